"""Scores of a trained reranker on held-out splits: retrieval, and telling similar images apart."""

import numpy as np
from jax.sharding import Mesh

from dalle_jax.bundle import Bundle
from dalle_jax.config import Config
from dalle_jax.data.batches import Preprocess
from dalle_jax.data.registry import Dataset
from dalle_jax.data.unreadable import Readable
from dalle_jax.evaluation import contrasts, retrieval
from dalle_jax.hosts import say
from dalle_jax.jobs import examples
from dalle_jax.jobs.ranker import Ranker
from dalle_jax.training.keys import stream_seed

# For each split: P prompts; the N best images for each, best first, uint8 [P, N, H, W, 3]; their cosines [P, N].
Retrieved = dict[str, tuple[list[str], np.ndarray, np.ndarray]]


def measure(config: Config, dataset: Dataset, loaded: Bundle, mesh: Mesh) -> tuple[dict[str, float], Retrieved]:
  """Measures a reranker, and retrieves the best images for a few captions of each split.

  Args:
    config: The experiment's configuration.
    dataset: The data set.
    loaded: The trained reranker, on the mesh.
    mesh: The device mesh.

  Returns:
    The scores by name, and the retrieved images.
  """
  ranker = Ranker(loaded, mesh, config.evaluation.batch_size)
  scores: dict[str, float] = {}
  retrieved: Retrieved = {}
  splits: list[str] = [name for name in ('validation', 'held_out') if name in dataset.splits]
  for split in splits or ['train']:
    source = examples.readable(config, dataset.open(split), split)
    captions, images = _distinct_captions(config, source)
    text_embeddings, image_embeddings = ranker.text_embeddings(captions), ranker.image_embeddings(images)
    cosines = image_embeddings @ text_embeddings.T
    scores |= retrieval.scores(cosines, split)
    prompts = examples.spread(captions, config.evaluation.sheet_prompts)
    prompt_cosines = cosines.T[[captions.index(prompt) for prompt in prompts]]
    best = np.argsort(-prompt_cosines, axis=1)[:, : config.evaluation.images_per_prompt]
    retrieved[split] = prompts, images[best], np.take_along_axis(prompt_cosines, best, axis=1)
    if config.data.source == 'captioned_shapes':
      scores |= _contrasts(config, source, ranker, split)
    say(f'measured {split}: {len(captions)} captions')
  return scores, retrieved


def _distinct_captions(config: Config, source: Readable) -> tuple[list[str], np.ndarray]:
  """The first config.evaluation.num_captions distinct captions of a split, each with its first image."""
  first_images: dict[str, np.ndarray] = {}
  transform = Preprocess(
    image_size=config.data.image_size, resampling=config.data.resampling, max_pixels=config.data.max_image_pixels
  )
  generator = np.random.default_rng(0)  # unused, because the crop is central and images are not flipped
  for i in range(len(source)):
    record = source[i]
    if record['caption'].strip() and record['caption'] not in first_images:
      first_images[record['caption']] = transform(record, generator)['image']
    if len(first_images) == config.evaluation.num_captions:
      break
  return list(first_images), np.stack(list(first_images.values()))


def _contrasts(config: Config, source: Readable, ranker: Ranker, split: str) -> dict[str, float]:
  """How often a caption scores its own image above an image that differs in one attribute."""
  pairs = contrasts.make_pairs(
    source, config.data.image_size, config.evaluation.num_prompts, stream_seed(config.seed, split)
  )
  text_embeddings = ranker.text_embeddings(pairs.captions)
  true_embeddings, false_embeddings = (ranker.image_embeddings(images) for images in (pairs.true, pairs.false))
  return contrasts.scores(pairs, text_embeddings, true_embeddings, false_embeddings, split)
