"""Inference with a trained reranker: scores of images for captions, embeddings, and image features for metrics."""

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
from dalle_jax.data.pictures.crops import fit_bicubic
from dalle_jax.data.text.clip_tokenizer import ClipTokenizer
from dalle_jax.data.text.tokenizer import Tokenizer
from dalle_jax.evaluation.row_batches import in_batches


class Ranker:
  """A loaded reranker, a contrastive model of images and captions. Its batches all have the same shape."""

  def __init__(self, loaded: Bundle, mesh: Mesh, batch_size: int = 64):
    """Initializes the ranker.

    Args:
      loaded: A bundle with the part 'reranker'.
      mesh: The device mesh that holds its parameters.
      batch_size: Images or prompts per batch, rounded up to a multiple of the number of devices that split it.
    """
    self.info: dict[str, Any] = loaded.info  # the contents of bundle.json
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer, Tokenizer | ClipTokenizer), 'a reranker reads captions'
    self._model, self._tokenizer, self._params = loaded.reranker, tokenizer, loaded.params['reranker']
    self._mesh, self._batch_size = mesh, batch_size
    methods = ('image_features', 'image_embeddings', 'text_embeddings')
    self._methods = {method: functools.partial(self._apply, method=method) for method in methods}

  def _apply(self, params: Any, batch: jax.Array, method: str) -> jax.Array:
    return self._model.apply({'params': params}, batch, method=method)

  def image_features(self, images: np.ndarray) -> np.ndarray:
    """Pooled features float32 [N, F], before the projection, of images uint8 [N, H, W, 3] of any size."""
    return self._in_batches('image_features', images, self._inputs)

  def image_embeddings(self, images: np.ndarray) -> np.ndarray:
    """Embeddings float32 [N, D] of unit length, of images uint8 [N, H, W, 3] of any size."""
    return self._in_batches('image_embeddings', images, self._inputs)

  def text_embeddings(self, prompts: Sequence[str]) -> np.ndarray:
    """Embeddings float32 [P, D] of unit length, of P prompts. Prompts that are too long are truncated with a warning.

    Raises:
      ValueError: A prompt is empty.
    """
    return self._in_batches('text_embeddings', prompts, self._ids)

  def scores(self, prompts: Sequence[str], images: np.ndarray) -> np.ndarray:
    """Scores how well images match their prompts, by the cosine similarity of their embeddings.

    Args:
      prompts: P prompts.
      images: N images of any size for each prompt, uint8 [P, N, H, W, 3].

    Returns:
      Scores float32 [P, N] in [-1, 1]; larger is better.

    Raises:
      ValueError: A prompt is empty.
    """
    num_prompts, per_prompt = images.shape[:2]
    assert num_prompts == len(prompts)
    embeddings = self.image_embeddings(images.reshape(num_prompts * per_prompt, *images.shape[2:]))
    embeddings = embeddings.reshape(num_prompts, per_prompt, -1)
    return np.einsum('PD,PND->PN', self.text_embeddings(prompts), embeddings)

  def _inputs(self, images: np.ndarray) -> np.ndarray:
    """The central squares of images, resized to the model's input size."""
    return np.stack([fit_bicubic(image, self._model.image.image_size) for image in images])

  def _ids(self, prompts: Sequence[str]) -> np.ndarray:
    """The token ids of prompts, int32 [P, input length]."""
    length = self._model.text.input_length
    ids = []
    for prompt in prompts:
      try:
        ids.append(self._tokenizer.encode_padded(prompt, length))
      except ValueError:  # The prompt is too long or empty. An empty prompt raises again.
        ids.append(self._tokenizer.encode_padded(prompt, length, truncate=True))
        logging.warning('The reranker reads only the first %d tokens of %r.', length, prompt)
    return np.stack(ids)

  def _in_batches(self, method: str, items: Any, prepare: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Runs a method of the model over N items, and returns its outputs [N, output size]."""
    run = self._methods[method]
    return in_batches(run, self._params, items, self._mesh, self._batch_size, prepare=prepare, whole=True)


def load(
  path: str, mesh: Mesh, *, batch_size: int = 64, flag: str = '--reranker', verify: bool | None = None
) -> Ranker:
  """Loads a reranker from a model directory.

  Args:
    path: The model directory.
    mesh: The device mesh.
    batch_size: Images or prompts per batch.
    flag: The flag that names the directory, for error messages.
    verify: Whether to compare the files with their checksums, as in `bundle.load`.

  Raises:
    ValueError: The directory is missing, damaged, or holds another kind of model. The message names the flag and says
      how to train a reranker.
  """
  return Ranker(bundle.load(Path(path), mesh, needs=('reranker',), flag=flag, verify=verify), mesh, batch_size)
