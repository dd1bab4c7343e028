"""How two trees of arrays differ, in words."""

from typing import Any

import jax
import numpy as np

MOST_SHOWN = 5


def differences(given: Any, expected: Any, most: int = MOST_SHOWN) -> str:
  """The leaves whose place, dtype or shape differ, as 'PATH: given DTYPE[SHAPE], expected ...; ...'; '' for none.

  Args:
    given: a tree whose leaves have `dtype` and `shape`.
    expected: another.
    most: leaves to name.
  """
  given, expected = _described(given), _described(expected)
  lines = [
    f'{path}: given {given.get(path, "nothing")}, expected {expected.get(path, "nothing")}'
    for path in sorted(given | expected)
    if given.get(path) != expected.get(path)
  ]
  more = len(lines) - most
  return '; '.join(lines[:most]) + (f'; and {more} more' if more > 0 else '')


def _described(tree: Any) -> dict[str, str]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(_as_in_files(path)): f'{np.dtype(leaf.dtype)}{list(leaf.shape)}' for path, leaf in leaves
  }


def _as_in_files(path: tuple[Any, ...]) -> tuple[Any, ...]:
  """A path whose attributes are keys, as files have them, which know of no classes."""
  return tuple(
    jax.tree_util.DictKey(entry.name) if isinstance(entry, jax.tree_util.GetAttrKey) else entry for entry in path
  )
