"""A trained reranker at work: how well pictures fit captions, and what it sees in pictures, for other figures."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from dalle_jax import bundle
from dalle_jax.bundle import Bundle
from dalle_jax.data.crops import fit_bicubic
from dalle_jax.evaluation.row_batches import in_batches


class Ranker:
  """A loaded contrastive model, on a mesh, in batches of one fixed shape."""

  def __init__(self, loaded: Bundle, mesh: Mesh, batch_size: int = 64):
    """Prepares to run it.

    Args:
      loaded: a bundle with the part 'reranker'.
      mesh: of the devices, which hold its parameters.
      batch_size: pictures, or prompts, at a time; rounded up to what the devices divide.
    """
    self.info: dict[str, Any] = loaded.info  # of bundle.json
    self._model, self._tokenizer, self._params = loaded.reranker, loaded.tokenizer, loaded.params['reranker']
    self._mesh, self._batch_size = mesh, batch_size
    methods = ('image_features', 'image_embeddings', 'text_embeddings')
    self._methods = {method: functools.partial(self._apply, method=method) for method in methods}

  def _apply(self, params: Any, batch: jax.Array, method: str) -> jax.Array:
    return self._model.apply({'params': params}, batch, method=method)

  def image_features(self, images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] of any size to float32 [N, F]: pooled, before the projection."""
    return self._in_batches('image_features', images, self._pictures)

  def image_embeddings(self, images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] of any size to float32 [N, D] of unit length."""
    return self._in_batches('image_embeddings', images, self._pictures)

  def text_embeddings(self, prompts: Sequence[str]) -> np.ndarray:
    """P prompts to float32 [P, D] of unit length. One with too many tokens is cut, with a warning.

    Raises:
      ValueError: a prompt is empty.
    """
    return self._in_batches('text_embeddings', prompts, self._ids)

  def scores(self, prompts: Sequence[str], images: np.ndarray) -> np.ndarray:
    """How well pictures fit their prompts: the cosines of their embeddings.

    Args:
      prompts: P of them.
      images: uint8 [P, N, H, W, 3] of any size, N for each prompt.

    Returns:
      float32 [P, N], in [-1, 1]; larger is better.

    Raises:
      ValueError: a prompt is empty.
    """
    count, number = images.shape[:2]
    assert count == len(prompts)
    embedded = self.image_embeddings(images.reshape(count * number, *images.shape[2:])).reshape(count, number, -1)
    return np.einsum('PD,PND->PN', self.text_embeddings(prompts), embedded)

  def _pictures(self, images: np.ndarray) -> np.ndarray:
    """As the model takes them: the shorter side resized, and the centre."""
    return np.stack([fit_bicubic(image, self._model.image.image_size) for image in images])

  def _ids(self, prompts: Sequence[str]) -> np.ndarray:
    length = self._model.text.input_length
    found = []
    for prompt in prompts:
      try:
        found.append(self._tokenizer.encode_padded(prompt, length))
      except ValueError:  # too long, or empty, which is refused again
        found.append(self._tokenizer.encode_padded(prompt, length, truncate=True))
        logging.warning('The reranker reads the first %d tokens only of %r.', length, prompt)
    return np.stack(found)

  def _in_batches(self, method: str, items: Any, prepare: Callable[[Any], np.ndarray]) -> np.ndarray:
    """[N, size of the output], in batches of one shape."""
    run = self._methods[method]
    return in_batches(run, self._params, items, self._mesh, self._batch_size, prepare=prepare, whole=True)


def load(path: str, mesh: Mesh, *, batch_size: int = 64, flag: str = '--reranker') -> Ranker:
  """Reads a reranker from a model directory.

  Args:
    path: the directory, with the part 'reranker'.
    mesh: of the devices.
    batch_size: pictures, or prompts, at a time.
    flag: where the directory was named, for messages.

  Raises:
    ValueError: the directory is missing, damaged, or another kind of model; names the flag, and how to get one.
  """
  return Ranker(bundle.load(Path(path), mesh, needs=('reranker',), flag=flag), mesh, batch_size)
