"""Commands read and write files at paths that look like patterns, flags or formats."""

import numpy as np
import pytest
from PIL import Image
from random_models import PICTURES, caption_tokenizer, save_random

from dalle_jax import bundle
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.config import Config
from dalle_jax.jobs.compress import commands
from dalle_jax.jobs.draw.generation import draw
from dalle_jax.jobs.evaluate import evaluation_run
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.sampling.draw_settings import DrawSettings

NAME = '-m[1] *? %d {x} é'


@pytest.fixture(scope='module')
def moved(tmp_path_factory):
  """A model directory in a directory with an odd name."""
  root = tmp_path_factory.mktemp('models')
  save_random(root / 'model', Config.from_dict(PICTURES), caption_tokenizer())
  (root / NAME).mkdir()
  return (root / 'model').rename(root / NAME / 'model')


@pytest.mark.slow
def test_images_are_generated_measured_and_compressed_at_odd_paths(moved, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files = draw(str(moved), ['a red circle'], DrawSettings(num_images=2, seed=1), out=f'{NAME}/out')
  assert all((tmp_path / file).is_file() for file in files)
  data = tmp_path / NAME / 'data'
  data.mkdir()
  for i in range(4):
    Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(data / f'{i}.png')
    (data / f'{i}.txt').write_text(f'a red circle {i}')
  out = f'{NAME}/figures.json'
  settings = EvaluationSettings(model=str(moved), data=f'{NAME}/data', split='train', batch_size=4, out=out)
  evaluation_run.evaluate(settings)
  assert (tmp_path / NAME / 'figures.json').is_file()
  commands.encode(str(moved), str(data / '0.png'), f'{NAME}/coded', CompressionSettings())
  commands.decode(str(moved), f'{NAME}/coded', f'{NAME}/decoded.png')
  with Image.open(tmp_path / NAME / 'decoded.png') as image:
    assert np.asarray(image).max() == 0


def test_model_directories_are_not_written_where_they_could_not_be_read(moved, tmp_path):
  config, tokenizer = Config.from_dict(PICTURES), caption_tokenizer()
  for name in ('a[1]', 'a*', 'a?', 'a\\b'):
    with pytest.raises(ValueError, match='The model directory: the path'):
      save_random(tmp_path / name / 'model', config, tokenizer)
  assert list(tmp_path.iterdir()) == []
  bundle.check(moved)
