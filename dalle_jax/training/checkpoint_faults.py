"""What the errors of restoring a checkpoint mean: only a damaged checkpoint may be passed over, and deleted later."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dalle_jax import hosts, integrity
from dalle_jax.training.checkpoint_format import NewerFormatError

# Errors of the system that say nothing about the contents of a file.
_DENIED = (errno.EACCES, errno.EPERM)
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.ENOTCONN)
_NUMBER = re.compile(r"os_error_code='(\d+)'|\[OS error: (\d+)")  # in the errors of TensorStore


class MismatchError(ValueError):
  """An undamaged checkpoint belongs to another model or optimizer."""


def raise_unless_damaged(failure: Exception | None, path: Path) -> None:
  """Raise an error unless the checkpoint was restored on all hosts or is damaged. All hosts call this together.

  Args:
    failure: The error of restoring the checkpoint on this host; None without one.
    path: The checkpoint, for messages.

  Raises:
    ValueError: It fits another model, was written by a later version or may not be read, perhaps on another host.
    Exception: Memory was too small, on this host.
  """
  error = None if failure is None else _other_error(failure, path)
  if not hosts.any_host(np.array([error is not None])).any():
    return
  if error is None or error is failure:
    raise failure or ValueError(f'Another host failed to restore {path}.')
  raise error from failure


def _other_error(failure: Exception, path: Path) -> Exception | None:
  """The error to raise for a failure that does not mean damage; None if it means damage, or for another host's."""
  if isinstance(failure, MismatchError | NewerFormatError):
    return ValueError(f'Training cannot continue from the checkpoint {path}: {failure}.')
  if any(isinstance(link, MemoryError) for link in _chain(failure)) or 'RESOURCE_EXHAUSTED' in str(failure):
    return failure
  numbers = {number for link in _chain(failure) for number in _numbers(link)}
  if errno.ENOMEM in numbers:
    return failure
  if numbers.intersection(_DENIED) or 'PERMISSION_DENIED' in str(failure):
    advice = 'Change the permissions of its files.'
  elif numbers.intersection(_PASSING):
    advice = 'The checkpoint may be intact; start again when its files can be read.'
  else:
    return None
  return ValueError(f'The checkpoint {path} may not be read: {integrity.cause(failure).rstrip(".")}. {advice}')


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """An error and its causes."""
  while error is not None:
    yield error
    error = error.__cause__


def _numbers(error: BaseException) -> Iterator[int]:
  """The numbers of the system's errors that an error is or reports."""
  if isinstance(error, PermissionError):
    yield errno.EACCES
  if isinstance(error, OSError) and error.errno is not None:
    yield error.errno
  for groups in _NUMBER.findall(str(error)):
    yield int(groups[0] or groups[1])
