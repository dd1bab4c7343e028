"""The weights of `models.inception`, as pytorch-fid publishes them: `pt_inception-2015-12-05-6726825d.pth`."""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dalle_jax.importing import torch_file
from dalle_jax.models.inception import NUM_CLASSES, NUM_FEATURES, SIZE, Inception

BATCH_NORM_EPSILON = 1e-3
_NAMED_BY_HASH = re.compile(r'-([0-9a-f]{8})\.pth')
_NORM = ('weight', 'bias', 'running_mean', 'running_var')


class Weights(NamedTuple):
  """Parameters of `Inception`, the class weights [2048, 1008], and the first 16 digits of the file's SHA-256."""

  params: dict[str, Any]
  classes: np.ndarray
  fingerprint: str


def load(path: Path) -> Weights:
  """Reads the file; nothing in it is executed.

  Raises:
    ValueError: it is missing, damaged, or holds other weights.
  """
  path = Path(path)
  fingerprint = _fingerprint(path)
  tensors = torch_file.read(path)
  shapes = jax.eval_shape(lambda: Inception().init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32)))
  params, problems = {}, []
  for place, leaf in jax.tree_util.tree_leaves_with_path(shapes['params']):
    keys = [entry.key for entry in place]
    if keys[-1] == 'kernel':
      layer = _layer(tensors, '.'.join(keys[:-1]), leaf.shape, problems)
      _put(params, keys[:-1], layer)
  classes = _take(tensors, 'fc.weight', (NUM_CLASSES, NUM_FEATURES), problems)
  _take(tensors, 'fc.bias', (NUM_CLASSES,), problems)  # the score of Salimans et al. 2016 leaves it out
  problems += [f'{name} is unknown' for name in tensors if not name.endswith('num_batches_tracked')]
  if problems:
    raise ValueError(
      f'--inception {path} does not hold the weights that Fréchet distances are measured with '
      f"(pt_inception-2015-12-05-6726825d.pth of pytorch-fid's releases; torchvision's are others): "
      f'{"; ".join(problems[:4])}{f"; and {len(problems) - 4} more" if len(problems) > 4 else ""}.'
    )
  return Weights(params, classes.T, fingerprint)


def _fingerprint(path: Path) -> str:
  """Of the file. One whose name ends in a hash, as torch's do, must have it."""
  try:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError as error:
    raise ValueError(f'--inception {path} cannot be read: {error.strerror or error}') from None
  named = _NAMED_BY_HASH.search(path.name)
  if named and not digest.startswith(named.group(1)):
    raise ValueError(f'--inception {path} is damaged: its SHA-256 begins with {digest[:8]}; fetch it again.')
  return digest[:16]


def _layer(tensors: dict[str, np.ndarray], name: str, shape: tuple, problems: list[str]) -> dict[str, np.ndarray]:
  """A convolution and the batch normalisation after it as kernel [H, W, in, out] and bias [out]."""
  height, width, num_in, num_out = shape
  kernel = _take(tensors, f'{name}.conv.weight', (num_out, num_in, height, width), problems)
  gain, offset, mean, variance = (_take(tensors, f'{name}.bn.{part}', (num_out,), problems) for part in _NORM)
  if np.any(variance < 0):
    problems.append(f'{name}.bn.running_var has negative values')
    return {}
  scale = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
  folded = kernel.transpose(2, 3, 1, 0) * scale
  return {'kernel': folded.astype(np.float32), 'bias': (offset - mean * scale).astype(np.float32)}


def _take(tensors: dict[str, np.ndarray], name: str, shape: tuple, problems: list[str]) -> np.ndarray:
  """A tensor, float64, out of the others; zeros and a word about it where it is not as it should be."""
  found = tensors.pop(name, None)
  if found is None:
    problems.append(f'it lacks {name}')
  elif found.shape != shape:
    problems.append(f'{name} has the shape {list(found.shape)}, not {list(shape)}')
  elif not np.all(np.isfinite(found)):
    problems.append(f'{name} holds values that are infinite or not numbers')
  else:
    return found.astype(np.float64)
  return np.zeros(shape)


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
  for key in keys[:-1]:
    tree = tree.setdefault(key, {})
  tree[keys[-1]] = value
