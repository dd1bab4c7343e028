"""The versions of the checkpoints' format, and how older ones become the present one.

- 1: the state without `skipped`; 'meta' with 'loss' and 'meta'.
- 2: with `skipped`; 'meta' says its 'format_version', and has 'description' besides.

A checkpoint of each version is in the tests.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.training.state import TrainState

FORMAT_VERSION = 2


def check_version(meta: dict[str, Any]) -> int:
  """The version of a checkpoint, from its 'meta'.

  Raises:
    NewerFormatError: a later dalle_jax wrote it.
  """
  version = meta.get('format_version', 1)  # the first format did not say
  if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
    raise NewerFormatError(
      f'it has format {version!r}, and this version of dalle_jax reads 1 to {FORMAT_VERSION}: install a newer one'
    )
  return version


class NewerFormatError(ValueError):
  """A checkpoint that this version of the code cannot know how to read."""


def stored_form(version: int, abstract: TrainState) -> Any:
  """The tree that a checkpoint of `version` holds, for a state of these shapes."""
  if version == 1:
    return {name: tree for name, tree in _fields(abstract).items() if name != 'skipped'}
  return abstract


def current_form(version: int, stored: Any, abstract: TrainState) -> TrainState:
  """A state from the tree that a checkpoint of `version` held."""
  if version == 1:
    # A run in which an update is skipped is as old as the count.
    zero = jnp.zeros(abstract.skipped.shape, abstract.skipped.dtype)
    return TrainState(**stored, skipped=jax.device_put(zero, abstract.skipped.sharding))
  return stored


def _fields(state: TrainState) -> dict[str, Any]:
  return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
