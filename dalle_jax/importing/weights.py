"""Reading tensors from weight files of any supported format, and comparing them with the tensors of a model."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dalle_jax import trees
from dalle_jax.files import check_regular, shown
from dalle_jax.importing import torch_file

_MOST_SHOWN = 30  # tensors that a message names


def read(path: Path, module_packages: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
  """Read the tensors of a `.safetensors` file or of a file that torch wrote, without executing anything in it.

  Args:
    path: the file; its suffix decides the format.
    module_packages: see `torch_file.read`.

  Returns:
    Tensors by name.

  Raises:
    ValueError: the file cannot be read, has another format, is damaged, or names a class that is not allowed.
  """
  path = Path(path)
  return _read_safetensors(path) if path.suffix == '.safetensors' else torch_file.read(path, module_packages)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    import safetensors
    import safetensors.numpy
  except ImportError:
    raise ValueError(f"{shown(path)} needs the package safetensors: pip install 'dalle_jax[clip]'.") from None
  try:
    check_regular(path)
    return safetensors.numpy.load(path.read_bytes())
  except OSError as error:
    raise ValueError(f'{shown(path)} cannot be read: {error.strerror or shown(error)}') from None
  except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{shown(path)} is not a safetensors file, or it is damaged ({shown(error)}).') from None


def checked(params: Any, expected: Any, problem: str) -> Any:
  """Check parameters and convert them to float32.

  Args:
    params: a tree of arrays.
    expected: a tree whose leaves have the expected `dtype` and `shape`.
    problem: start of the error message, such as 'a.pt does not hold a model'.

  Raises:
    ValueError: paths, dtypes or shapes differ, or values are infinite or NaN. The message names the first differences.
  """
  differences = trees.differences(params, expected, most=_MOST_SHOWN)
  if differences:
    lines = '\n  '.join(shown(line) for line in differences.split('; '))
    raise ValueError(f'{problem}:\n  {lines}')
  nonfinite = [
    jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if not np.all(np.isfinite(leaf))
  ]
  if nonfinite:
    raise ValueError(f'{problem}: values are infinite or NaN, in {shown(", ".join(nonfinite), 400)}.')
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32, order='C'), params)
