"""Coordination of several hosts: check that they run the same program, share a work directory, and fail together.

A host is a process of `jax.distributed`. With a single process, nothing here communicates. All hosts must call these
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
from dalle_jax.files import reason

MOST_LINES = 20  # differences that an error message lists for each host
# Environment variables that change the programs that a host compiles, or their rounding.
ENVIRONMENT = (
  'XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'JAX_ENABLE_X64', 'JAX_DEFAULT_MATMUL_PRECISION', 'NVIDIA_TF32_OVERRIDE',
)  # fmt: skip
PATIENCE_S = 30.0  # seconds until other hosts must see a new file of host 0; network file systems cache listings
_POLL_S = 0.5
_STOPPED = 'stopped by a signal'  # the report of a host that was stopped
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def barrier(name: str) -> None:
  """Waits until all hosts have called `barrier` with this name."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def together(activity: str) -> Iterator[None]:
  """Runs a block in which a single host may fail, then waits for all hosts.

  A host that failed raises its own error. Every other host raises an error that names the failed host, so that none
  waits forever.

  Args:
    activity: describes the block in error messages, for example 'preparing the data'.

  Raises:
    ValueError: another host raised an error. The output of that host has the traceback of a bug.
    KeyboardInterrupt: another host was stopped.
  """
  if jax.process_count() == 1:
    yield
    return
  failure: BaseException | None = None
  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    failure = error
  reports = _gather_texts('' if failure is None else _describe(failure))
  if failure is not None:
    raise failure
  failures = {host: report for host, report in enumerate(reports) if report}
  if not failures:
    return
  if _STOPPED in failures.values():
    raise KeyboardInterrupt
  host, report = next(iter(failures.items()))
  raise ValueError(f'{activity}: host {host} failed: {report}')


def _describe(failure: BaseException) -> str:
  """The report sent to the other hosts: the failure in words, or _STOPPED."""
  if isinstance(failure, KeyboardInterrupt):
    return _STOPPED
  if isinstance(failure, ValueError):
    return str(failure) or type(failure).__name__
  if isinstance(failure, OSError):
    return f'{failure.filename}: {reason(failure)}' if failure.filename else reason(failure)
  return f'{type(failure).__name__}: {failure}. The output of that host says more.'


def facts(config: Mapping[str, Any], **flags: Any) -> dict[str, Any]:
  """What must be equal on all hosts: the configuration, the other flags, source files, versions and environment.

  Args:
    config: the experiment's configuration as a nested mapping.
    **flags: values of the command's other flags, by name.
  """
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
  """Versions of this package, of Python, and of the packages that affect results, by name."""
  basics = {'dalle_jax': dalle_jax.__version__, 'python': platform.python_version()}
  return basics | {name: metadata.version(name) for name in _PACKAGES}


def agree(local_facts: Mapping[str, Any]) -> None:
  """Checks that all hosts run the same code with the same configuration.

  Args:
    local_facts: this host's `facts`: nested mappings with string keys and values that JSON can represent.

  Raises:
    ValueError: on every host. The hosts have unequal numbers of devices, or some hosts differ from host 0; the message
      lists the differences.
  """
  if jax.process_count() == 1:
    return
  _check_devices([device.process_index for device in jax.devices()])
  text = json.dumps(local_facts, sort_keys=True, default=str)
  digests = _gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
  if (digests == digests[0]).all():
    return
  first, *others = (json.loads(text) for text in _gather_texts(text))
  lines = []
  for host, other in enumerate(others, start=1):
    differences = _differences(first, other)
    if differences:
      more = [f'and {len(differences) - MOST_LINES} more'] if len(differences) > MOST_LINES else []
      lines.append(f'host {host} differs from host 0 in')
      lines += [f'  {line}' for line in [*differences[:MOST_LINES], *more]]
  raise ValueError(
    'The hosts do not run the same program. Install the same files and versions on all hosts, and run the same command '
    'on each:\n  ' + '\n  '.join(lines)
  )


def check_same(text: str, what: str, advice: str) -> None:
  """Checks that all hosts found the same.

  Args:
    text: what this host found, in a few words.
    what: what the text is about, in the plural, to begin the message.
    advice: what the user can do.

  Raises:
    ValueError: on every host. Some hosts differ from host 0; the message has the text of the first of them.
  """
  if jax.process_count() == 1:
    return
  first, *others = _gather_texts(text)
  for host, other in enumerate(others, start=1):
    if other != first:
      raise ValueError(f'{what} are not the same on all hosts. Host 0: {first}. Host {host}: {other}. {advice}')


def _differences(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
  """Lines `group.key: value on the first host -> value on the other`."""
  names = sorted(set(first) | set(other))
  return [line for name in names for line in difference(first.get(name, {}), other.get(name, {}), name)]


def _check_devices(device_hosts: list[int]) -> None:
  """Checks that all hosts have the same number of devices, because each loads the same number of rows of a batch.

  Args:
    device_hosts: the host's index for each device.
  """
  counts = collections.Counter(device_hosts)
  if len(set(counts.values())) > 1:
    listed = ', '.join(f'host {host}: {count}' for host, count in sorted(counts.items()))
    raise ValueError(
      f'The hosts have different numbers of devices ({listed}); all must have the same number. Under Slurm, JAX gives '
      'each process one GPU, so request one task per GPU.'
    )


def shared_directory(path: Path, flag: str = '--workdir', patience_s: float = PATIENCE_S) -> None:
  """Creates a directory and checks that all hosts see the same one.

  Args:
    path: the directory. Host 0 creates it if it does not exist.
    flag: the flag that named the directory, for error messages.
    patience_s: seconds to wait for a file that host 0 wrote.

  Raises:
    ValueError: on every host. Host 0 cannot create the directory or write to it, or some hosts do not see its files.
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
    blind_hosts = np.flatnonzero(~_gather(np.asarray(_appears(token, patience_s))))
  finally:
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):
        token.unlink()
  if blind_hosts.size:
    raise ValueError(
      f'{flag} {path} is not one directory for all hosts: host(s) {", ".join(map(str, blind_hosts))} do not see '
      f'what host 0 writes there. Set {flag} to a directory on a file system that all hosts mount at the same path '
      '(NFS, Filestore, or a bucket mounted with gcsfuse).'
    )


def _advice(flag: str) -> str:
  return f'Change its permissions, or name another directory with {flag}.'


def _make(path: Path, flag: str) -> None:
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'{flag} {path} cannot be made or written to: {reason(error, path)}. {_advice(flag)}') from None


def _touch(file: Path, flag: str) -> None:
  try:
    file.touch()
  except OSError as error:
    raise ValueError(f'{flag} {file.parent} cannot be written to: {reason(error, file)}. {_advice(flag)}') from None


def _appears(file: Path, patience_s: float) -> bool:
  """Waits up to `patience_s` seconds for a file; returns whether it exists."""
  end = time.monotonic() + patience_s
  while not file.exists():
    if time.monotonic() >= end:
      return False
    time.sleep(_POLL_S)
  return True


def any_host(mask: np.ndarray) -> np.ndarray:
  """Where a boolean array is True on at least one host; it has the same shape on all hosts."""
  return mask if jax.process_count() == 1 else np.asarray(_gather(mask.astype(np.uint8)).any(axis=0))


def xor(values: np.ndarray) -> np.ndarray:
  """The exclusive or of an array of integers over all hosts; it has the same shape on all hosts."""
  return values if jax.process_count() == 1 else np.bitwise_xor.reduce(_gather(values), axis=0)


def _gather(array: np.ndarray) -> np.ndarray:
  """Stacks an array from every host, all of the same shape: [hosts, ...]."""
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(array)).reshape(jax.process_count(), *array.shape)


def _gather_texts(text: str) -> list[str]:
  """The texts of all hosts, by host index; they may differ in length."""
  encoded = np.frombuffer(text.encode(errors='backslashreplace'), np.uint8)  # names of files may not be UTF-8
  lengths = _gather(np.asarray(encoded.size, np.int32))
  padded = np.zeros(max(1, lengths.max()), np.uint8)
  padded[: encoded.size] = encoded
  return [row[:length].tobytes().decode() for row, length in zip(_gather(padded), lengths, strict=True)]


def of_first(value: Any) -> Any:
  """The value of host 0 on all hosts.

  Args:
    value: what JSON can represent. The values of other hosts are not used.
  """
  return value if jax.process_count() == 1 else json.loads(_gather_texts(json.dumps(value))[0])


def say(text: str) -> None:
  """Prints on the first host only."""
  if jax.process_index() == 0:
    print(text, flush=True)
