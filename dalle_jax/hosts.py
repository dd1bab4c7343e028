"""What several hosts do together: agree on what they run, see one work directory, and fail as one.

A host, here, is a process of `jax.distributed`. With one process nothing here does anything. All hosts must call these
functions in the same order.
"""

import collections
import contextlib
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dalle_jax
from dalle_jax.config import difference

MOST_LINES = 20  # of differences that a message lists for a host
# What changes the programs that hosts compile, or their rounding.
ENVIRONMENT = (
  'XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'JAX_ENABLE_X64', 'JAX_DEFAULT_MATMUL_PRECISION', 'NVIDIA_TF32_OVERRIDE',
)  # fmt: skip
PATIENCE_S = 30.0  # for which what host 0 wrote may be invisible to others: network file systems keep lists a while
_POLL_S = 0.5
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


class HostFailed(RuntimeError):
  """Another host failed, and not by a user's mistake."""


def barrier(name: str) -> None:
  """Waits until all hosts are here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
  """A part of the work in which one host may fail by itself; at its end all hosts wait for each other.

  Where one failed, it raises its own error, and the others one that tells of it, so that none waits forever.

  Args:
    what: is done, for the message: 'preparing the data'.

  Raises:
    ValueError: another host raised one, or an OSError.
    KeyboardInterrupt: another host was stopped.
    HostFailed: another host raised something else.
  """
  if jax.process_count() == 1:
    yield
    return
  failure: BaseException | None = None
  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    failure = error
  texts = _gather_texts('' if failure is None else _describe(failure))
  if failure is not None:
    raise failure
  failed = {host: text for host, text in enumerate(texts) if text}
  if not failed:
    return
  kinds = {text.split(' ', 1)[0] for text in failed.values()}
  if 'stopped' in kinds:
    raise KeyboardInterrupt
  host, text = next(iter(failed.items()))
  message = f'{what}: host {host} failed: {text.split(" ", 1)[1]}'
  raise ValueError(message) if kinds == {'mistake'} else HostFailed(message)


def _describe(failure: BaseException) -> str:
  """What the other hosts get to know: a word for the kind, and the message."""
  if isinstance(failure, KeyboardInterrupt):
    return 'stopped by a signal'
  if isinstance(failure, ValueError):
    return f'mistake {failure}'
  return f'{"mistake" if isinstance(failure, OSError) else "error"} {type(failure).__name__}: {failure}'


def facts(config: Mapping[str, Any], **flags: Any) -> dict[str, Any]:
  """What must be the same on all hosts: code, versions, the whole configuration and the command's other flags."""
  package = Path(dalle_jax.__file__).parent
  files = sorted(package.rglob('*.py'))
  return {
    'config': dict(config),
    'environment': {name: os.environ.get(name, '') for name in ENVIRONMENT},
    'flags': {f'--{name}': value for name, value in flags.items()},
    'source files': {f.relative_to(package).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()[:8] for f in files},
    'versions': versions(),
  }


def versions() -> dict[str, str]:
  """Of this package, of Python, and of the packages that decide what is computed."""
  own = {'dalle_jax': dalle_jax.__version__, 'python': platform.python_version()}
  return own | {name: metadata.version(name) for name in _PACKAGES}


def agree(own: Mapping[str, Any]) -> None:
  """Refuses to start where hosts would not run the same.

  Args:
    own: facts of this host: nested mappings with string keys of what JSON can say.

  Raises:
    ValueError: on every host, naming the hosts that differ from host 0, and in what; or which hosts have more devices
      than others.
  """
  if jax.process_count() == 1:
    return
  _check_devices([device.process_index for device in jax.devices()])
  text = json.dumps(own, sort_keys=True, default=str)
  digests = _gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
  if (digests == digests[0]).all():
    return
  first, *others = (json.loads(text) for text in _gather_texts(text))
  lines = []
  for host, other in enumerate(others, start=1):
    found = _differences(first, other)
    if found:
      more = [f'and {len(found) - MOST_LINES} more'] if len(found) > MOST_LINES else []
      lines += [f'host {host} differs from host 0 in', *(f'  {line}' for line in [*found[:MOST_LINES], *more])]
  raise ValueError(
    'The hosts do not run the same; install the same files on all and give all the same command:\n  '
    + '\n  '.join(lines)
  )


def _differences(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
  """Lines `group.key: of host 0 -> of the other`."""
  names = sorted(set(first) | set(other))
  return [line for name in names for line in difference(first.get(name, {}), other.get(name, {}), name)]


def _check_devices(owners: list[int]) -> None:
  """Refuses hosts with unequal numbers of devices, where the rows of a batch would not be of one number either.

  Args:
    owners: the host of each device.
  """
  counts = collections.Counter(owners)
  if len(set(counts.values())) > 1:
    listed = ', '.join(f'host {host}: {count}' for host, count in sorted(counts.items()))
    raise ValueError(
      f'The hosts have different numbers of devices ({listed}); all must have the same. With Slurm, JAX gives each '
      'process one GPU: ask for one task for each GPU.'
    )


def shared_directory(path: Path, flag: str = '--workdir', patience_s: float = PATIENCE_S) -> None:
  """Makes a directory, and refuses one that is not the same for all hosts.

  Args:
    path: the directory; host 0 makes it where there is none.
    flag: where it was named, for messages.
    patience_s: how long a host looks for what host 0 wrote.

  Raises:
    ValueError: on every host: it cannot be made or written to, or some hosts do not see what host 0 writes there.
  """
  if jax.process_count() == 1:
    _make(path, flag)
    return
  (number,) = _gather(np.frombuffer(secrets.token_bytes(8), np.uint8))[:1]
  token = path / f'.seen_by_all_{number.tobytes().hex()}'
  try:
    with together(f'making {flag}'):
      if jax.process_index() == 0:
        _make(path, flag)
        _touch(token, flag)
    blind = np.flatnonzero(~_gather(np.asarray(_appears(token, patience_s))))
  finally:
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):
        token.unlink()
  if blind.size:
    raise ValueError(
      f'{flag} {path} is not one directory for all hosts: host(s) {", ".join(map(str, blind))} do not see what host 0 '
      'writes there. Name a directory of a file system that all hosts have mounted at the same place (NFS, Filestore, '
      'a bucket by gcsfuse).'
    )


def _make(path: Path, flag: str) -> None:
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'{flag} {path} cannot be made or written to: {error}') from None


def _touch(file: Path, flag: str) -> None:
  try:
    file.touch()
  except OSError as error:
    raise ValueError(f'{flag} {file.parent} cannot be written to: {error}') from None


def _appears(file: Path, patience_s: float) -> bool:
  end = time.monotonic() + patience_s
  while not file.exists():
    if time.monotonic() >= end:
      return False
    time.sleep(_POLL_S)
  return True


def _gather(array: np.ndarray) -> np.ndarray:
  """Arrays of one shape of all hosts, [hosts, ...]."""
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(array)).reshape(jax.process_count(), *array.shape)


def _gather_texts(text: str) -> list[str]:
  """A text of any length from each host."""
  own = np.frombuffer(text.encode(), np.uint8)
  lengths = _gather(np.asarray(own.size, np.int32))
  padded = np.zeros(max(1, lengths.max()), np.uint8)
  padded[: own.size] = own
  return [row[:length].tobytes().decode() for row, length in zip(_gather(padded), lengths, strict=True)]


def say(text: str) -> None:
  """Prints from the first process only."""
  if jax.process_index() == 0:
    print(text, flush=True)
