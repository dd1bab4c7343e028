"""What a trained reranker can tell apart: retrieval in each held-out split, near misses, and the pictures it finds."""

import numpy as np
from jax.sharding import Mesh

from dalle_jax.bundle import Bundle
from dalle_jax.config import Config
from dalle_jax.data.batches import Preprocess
from dalle_jax.data.registry import Dataset
from dalle_jax.evaluation import contrasts, retrieval
from dalle_jax.hosts import say
from dalle_jax.jobs import examples
from dalle_jax.jobs.ranker import Ranker
from dalle_jax.training.keys import stream_seed

# By split: prompts, their best pictures uint8 [P, N, H, W, 3], the best first, and the cosines [P, N].
Found = dict[str, tuple[list[str], np.ndarray, np.ndarray]]


def measure(config: Config, dataset: Dataset, loaded: Bundle, mesh: Mesh) -> tuple[dict[str, float], Found]:
  """Flat figures, and what is found for some captions of each split among its pictures.

  Args:
    config: of the experiment.
    dataset: its data.
    loaded: the trained reranker, on the mesh.
    mesh: of the devices.
  """
  ranker = Ranker(loaded, mesh, config.evaluation.batch_size)
  figures, found = {}, {}
  for split in [name for name in ('validation', 'held_out') if name in dataset.splits] or ['train']:
    captions, images = _distinct(config, dataset, split)
    texts, pictures = ranker.text_embeddings(captions), ranker.image_embeddings(images)
    similarity = pictures @ texts.T
    figures |= retrieval.scores(similarity, split)
    prompts = examples.spread(captions, config.evaluation.sheet_prompts)
    rows = similarity.T[[captions.index(prompt) for prompt in prompts]]
    best = np.argsort(-rows, axis=1)[:, : config.evaluation.images_per_prompt]
    found[split] = prompts, images[best], np.take_along_axis(rows, best, axis=1)
    if config.data.source == 'captioned_shapes':
      figures |= _contrasts(config, dataset, ranker, split)
    say(f'measured {split}: {len(captions)} captions')
  return figures, found


def _distinct(config: Config, dataset: Dataset, split: str) -> tuple[list[str], np.ndarray]:
  """The first config.evaluation.num_captions different captions of a split, each with its first picture."""
  source, first = dataset.open(split), {}
  transform = Preprocess(image_size=config.data.image_size, resampling=config.data.resampling)
  generator = np.random.default_rng(0)  # nothing is drawn from it: centre crop, no flip
  for i in range(len(source)):
    record = source[i]
    if record['caption'].strip() and record['caption'] not in first:
      first[record['caption']] = transform(record, generator)['image']
    if len(first) == config.evaluation.num_captions:
      break
  return list(first), np.stack(list(first.values()))


def _contrasts(config: Config, dataset: Dataset, ranker: Ranker, split: str) -> dict[str, float]:
  pairs = contrasts.make_pairs(
    dataset.open(split), config.data.image_size, config.evaluation.num_prompts, stream_seed(config.seed, split)
  )
  texts = ranker.text_embeddings(pairs.captions)
  true, false = (ranker.image_embeddings(images) for images in (pairs.true, pairs.false))
  return contrasts.scores(pairs, texts, true, false, split)
