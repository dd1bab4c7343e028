"""Versions of the checkpoint format, and migration from older versions.

- 1: the state has no `skipped`; the item 'meta' holds 'loss' and 'meta'.
- 2: the state has `skipped`; the item 'meta' also holds 'format_version' and 'description'.
- 3: the item 'checksums' is new (`checkpoint_checksums`), with checksums of files.
- 4: it also has a checksum of each array of the state (`array_checksums`).

The tests restore a stored checkpoint of each version.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.training.state import TrainState

FORMAT_VERSION = 4


def check_version(meta: dict[str, Any]) -> int:
  """Format version of a checkpoint, from its item 'meta'.

  Raises:
    NewerFormatError: a later version of dalle_jax wrote the checkpoint.
    ValueError: the version is not a number.
  """
  version = meta.get('format_version', 1)  # format 1 does not store its version
  if type(version) is not int or version < 1:
    raise ValueError(f'its format version is {str(version)[:40]!r}')
  if version > FORMAT_VERSION:
    raise NewerFormatError(
      f'it has format {str(version)[:40]}, and this version of dalle_jax reads 1 to {FORMAT_VERSION}: '
      'install a newer dalle_jax'
    )
  return version


class NewerFormatError(ValueError):
  """The checkpoint has a format that this version of dalle_jax cannot read."""


def stored_form(version: int, abstract: TrainState) -> Any:
  """Shapes of the tree that a checkpoint of format `version` stores for a state like `abstract`."""
  if version == 1:
    return {name: tree for name, tree in _fields(abstract).items() if name != 'skipped'}
  return abstract


def current_form(version: int, stored: Any, abstract: TrainState) -> TrainState:
  """Convert the tree from a checkpoint of format `version` to a state."""
  if version == 1:
    # Skipping updates was introduced together with the count, so older runs have skipped none.
    zero = jnp.zeros(abstract.skipped.shape, abstract.skipped.dtype)
    return TrainState(**stored, skipped=jax.device_put(zero, abstract.skipped.sharding))
  return stored


def _fields(state: TrainState) -> dict[str, Any]:
  return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
