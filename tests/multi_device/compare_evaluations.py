"""Evaluates a small model on one device and on a mesh of eight; prints both results as JSON.

Run by `test_evaluations.py` in a separate process, because JAX fixes the number of devices when it starts.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from random_models import PICTURES, caption_tokenizer, save_random

from dalle_jax import sharding
from dalle_jax.config import Config, MeshConfig
from dalle_jax.jobs.evaluate import measured
from dalle_jax.jobs.evaluate.evaluation_run import evaluate
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings

RERANKER = {
  'embed_dim': 8, 'patch_size': 4, 'image_width': 8, 'image_num_layers': 1, 'image_num_heads': 2, 'text_width': 8,
  'text_num_layers': 1, 'text_num_heads': 2,
}  # fmt: skip
METRICS = ('reconstruction', 'likelihood', 'fid', 'kid', 'precision_recall', 'diversity')
NUM_PICTURES = 21  # not divisible by any mesh of eight devices


def write_pictures(path: Path) -> None:
  rng = np.random.default_rng(0)
  path.mkdir()
  for i in range(NUM_PICTURES):
    Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path / f'{i:02d}.png')
    (path / f'{i:02d}.txt').write_text(f'{("a red circle", "a blue square", "a green triangle")[i % 3]} {i // 2}')


def main() -> None:
  assert jax.device_count() == 8, jax.devices()
  root = Path(sys.argv[1])
  write_pictures(root / 'pictures')
  data = {'source': 'folder', 'path': str(root / 'pictures'), 'image_size': 8, 'validation_fraction': 0.0}
  config = Config.from_dict({**PICTURES, 'data': data})
  model = save_random(root / 'model', config, caption_tokenizer())
  ranking = Config.from_dict({**PICTURES, 'task': 'reranker', 'data': data, 'reranker': RERANKER})
  reranker = save_random(root / 'reranker' / 'model', ranking, caption_tokenizer())
  codes, draw_samples = {}, measured.draw_samples

  def draw_and_record(*arguments):
    samples = draw_samples(*arguments)
    codes[mesh.size] = samples.codes
    return samples

  measured.draw_samples = draw_and_record
  results = {}
  for mesh in (sharding.one_device_mesh(), sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
    settings = EvaluationSettings(
      model=model, metrics=METRICS, split='train', features='reranker', reranker=reranker, images_per_prompt=3,
      diversity_prompts=5, out=str(root / f'{mesh.size}.json'), cache=str(root / f'features_{mesh.size}'),
    )  # fmt: skip
    results[mesh.size] = evaluate(settings, mesh)
  tokens = {'wrong_tokens': float(np.mean(codes[1] != codes[8])), 'num_codes': len(np.unique(codes[1]))}
  print(json.dumps({'one': results[1], 'all': results[8], **tokens}))


if __name__ == '__main__':
  main()
