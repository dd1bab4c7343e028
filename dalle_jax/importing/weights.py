"""Tensors by name, from whichever kind of file holds them; and whether they are what a model needs."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dalle_jax import trees
from dalle_jax.importing import torch_file


def read(path: Path, module_packages: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
  """The tensors of a `.safetensors` file, or of one that torch wrote; nothing in it is executed.

  Args:
    path: the file.
    module_packages: as `torch_file.read` takes them.

  Raises:
    ValueError: the file cannot be read, is no such file or a damaged one, or names something that is not admitted.
  """
  path = Path(path)
  return _read_safetensors(path) if path.suffix == '.safetensors' else torch_file.read(path, module_packages)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    import safetensors
    import safetensors.numpy
  except ImportError:
    raise ValueError(f"{path} needs the package safetensors: pip install 'dalle_jax[clip]'.") from None
  try:
    return safetensors.numpy.load(path.read_bytes())
  except OSError as error:
    raise ValueError(f'{path} cannot be read: {error.strerror or error}') from None
  except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} is not a safetensors file, or a damaged one ({error}).') from None


def checked(params: Any, expected: Any, problem: str) -> Any:
  """The parameters as float32.

  Args:
    params: a tree of arrays.
    expected: a tree of what has `dtype` and `shape`.
    problem: the files and what they do not do, to begin a message with: 'a.pt does not hold a model'.

  Raises:
    ValueError: places, dtypes or shapes differ, with every difference; or values are infinite or not numbers.
  """
  differences = trees.differences(params, expected, most=10**6)
  if differences:
    lines = differences.replace('; ', '\n  ')
    raise ValueError(f'{problem}:\n  {lines}')
  broken = [
    jax.tree_util.keystr(place)
    for place, leaf in jax.tree_util.tree_leaves_with_path(params)
    if not np.all(np.isfinite(leaf))
  ]
  if broken:
    raise ValueError(f'{problem}: values are infinite or not numbers, in {", ".join(broken)}.')
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32, order='C'), params)
