"""Describe how two trees of arrays differ, for error messages."""

from typing import Any

import jax
import numpy as np

MOST_SHOWN = 5


def differences(given: Any, expected: Any, most: int = MOST_SHOWN) -> str:
  """Describes the leaves whose path, dtype or shape differ.

  Args:
    given: a tree whose leaves have `dtype` and `shape`.
    expected: the tree to compare with.
    most: the maximum number of leaves to list.

  Returns:
    'PATH: given DTYPE[SHAPE], expected DTYPE[SHAPE]; ...'. Empty if the trees are equal in this sense.
  """
  given, expected = _descriptions(given), _descriptions(expected)
  lines = [
    f'{path}: given {given.get(path, "nothing")}, expected {expected.get(path, "nothing")}'
    for path in sorted(given | expected)
    if given.get(path) != expected.get(path)
  ]
  more = len(lines) - most
  return '; '.join(lines[:most]) + (f'; and {more} more' if more > 0 else '')


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by path, such as "['params']['bias']", whether a level is a dataclass or a dictionary."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(_with_dict_keys(path)): leaf for path, leaf in leaves}


def _descriptions(tree: Any) -> dict[str, str]:
  """'DTYPE[SHAPE]' of every leaf, by path."""
  return {path: f'{np.dtype(leaf.dtype)}{list(leaf.shape)}' for path, leaf in named_leaves(tree).items()}


def _with_dict_keys(path: tuple[Any, ...]) -> tuple[Any, ...]:
  """Replaces attribute names by dictionary keys. Files store dataclasses and named tuples as dictionaries."""
  return tuple(
    jax.tree_util.DictKey(entry.name) if isinstance(entry, jax.tree_util.GetAttrKey) else entry for entry in path
  )
