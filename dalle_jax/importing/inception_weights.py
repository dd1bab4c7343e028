"""Import of the weights for `models.inception` that pytorch-fid publishes: `pt_inception-2015-12-05-6726825d.pth`."""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dalle_jax.files import check_regular, shown
from dalle_jax.importing import torch_file
from dalle_jax.models.inception import NUM_CLASSES, NUM_FEATURES, SIZE, Inception

BATCH_NORM_EPSILON = 1e-3
_NAMED_BY_HASH = re.compile(r'-([0-9a-f]{8})\.pth')
_NORM = ('weight', 'bias', 'running_mean', 'running_var')


class Weights(NamedTuple):
  """The contents of a weights file."""

  params: dict[str, Any]  # of `Inception`
  classes: np.ndarray  # float64 [2048, 1008], from features to class logits
  fingerprint: str  # the first 16 digits of the file's SHA-256


def load(path: Path) -> Weights:
  """Read the weights file without executing anything in it.

  Raises:
    ValueError: the file is missing or damaged, or it holds other weights.
  """
  path = Path(path)
  fingerprint = _fingerprint(path)
  tensors = torch_file.read(path)
  shapes = jax.eval_shape(lambda: Inception().init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32)))
  params: dict[str, Any] = {}
  problems: list[str] = []
  for path_keys, leaf in jax.tree_util.tree_leaves_with_path(shapes['params']):
    keys = [entry.key for entry in path_keys]
    if keys[-1] == 'kernel':
      layer = _layer(tensors, '.'.join(keys[:-1]), leaf.shape, problems)
      _put(params, keys[:-1], layer)
  classes = _take(tensors, 'fc.weight', (NUM_CLASSES, NUM_FEATURES), problems)
  _take(tensors, 'fc.bias', (NUM_CLASSES,), problems)  # the Inception score of Salimans et al. 2016 does not use it
  problems += [f'{shown(name, 60)} is unknown' for name in tensors if not name.endswith('num_batches_tracked')]
  if problems:
    raise ValueError(
      f'--inception {path} does not hold the weights for the Fréchet Inception distance '
      f"(pt_inception-2015-12-05-6726825d.pth from pytorch-fid's releases; torchvision's weights differ): "
      f'{"; ".join(problems[:4])}{f"; and {len(problems) - 4} more" if len(problems) > 4 else ""}.'
    )
  return Weights(params, classes.T, fingerprint)


def _fingerprint(path: Path) -> str:
  """The first 16 digits of the file's SHA-256. If the file name ends in a hash, as torch's names do, compare it.

  Raises:
    ValueError: the file cannot be read, or its hash differs from the hash in its name.
  """
  try:
    check_regular(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise ValueError(f'--inception {path} cannot be read: {reason}.') from None
  named = _NAMED_BY_HASH.search(path.name)
  if named and not digest.startswith(named.group(1)):
    raise ValueError(f'--inception {path} is damaged: its SHA-256 begins with {digest[:8]}; download it again.')
  return digest[:16]


def _layer(tensors: dict[str, np.ndarray], name: str, shape: tuple, problems: list[str]) -> dict[str, np.ndarray]:
  """Fold a convolution and its batch normalisation into a kernel [H, W, in, out] and a bias [out].

  Args:
    tensors: tensors by published name; the layer's tensors are removed.
    name: the layer's published name.
    shape: the kernel's shape [H, W, in, out].
    problems: a list; a message is appended for each tensor that is missing or wrong.
  """
  height, width, num_in, num_out = shape
  kernel = _take(tensors, f'{name}.conv.weight', (num_out, num_in, height, width), problems)
  gain, offset, mean, variance = (_take(tensors, f'{name}.bn.{kind}', (num_out,), problems) for kind in _NORM)
  if np.any(variance < 0):
    problems.append(f'{name}.bn.running_var has negative values')
    return {}
  scale = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
  folded = kernel.transpose(2, 3, 1, 0) * scale
  return {'kernel': folded.astype(np.float32), 'bias': (offset - mean * scale).astype(np.float32)}


def _take(tensors: dict[str, np.ndarray], name: str, shape: tuple, problems: list[str]) -> np.ndarray:
  """Remove a tensor from `tensors` and return it as float64.

  If the tensor is missing or wrong, append a message to `problems` and return zeros, so that one run reports all
  problems.
  """
  tensor = tensors.pop(name, None)
  if tensor is None:
    problems.append(f'it lacks {name}')
  elif tensor.shape != shape:
    problems.append(f'{name} has the shape {shown(list(tensor.shape), 60)}, not {list(shape)}')
  elif not np.all(np.isfinite(tensor)):
    problems.append(f'{name} holds values that are infinite or NaN')
  else:
    return tensor.astype(np.float64)
  return np.zeros(shape)


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
  for key in keys[:-1]:
    tree = tree.setdefault(key, {})
  tree[keys[-1]] = value
