"""One run at a time in a directory: a lock file with a heartbeat.

DIRECTORY/run.lock names the host and the process that hold the lock. A thread of the holder increases a counter in the
file every 10 seconds. A holder whose counter does not change for 60 seconds is taken for dead.

- Clocks of two hosts are never compared. A host that finds the lock of another host watches the counter for up to 60
  seconds.
- On the same machine, the lock of a process that has ended is taken over at once. The process's start time tells it
  from a later process with the same id.
- The lock needs no `flock`, which network file systems and mounted buckets may lack. A new lock is linked into place,
  which fails if there is one. A dead lock is renamed before it is replaced, so that one of several processes gets it.
- A process that was suspended reads the file before it writes anything else, and ends at once if it lost the lock.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from dalle_jax import hosts
from dalle_jax.files import parse_json_object, reason

FILE = 'run.lock'
EXIT_LOST = 2  # exit status of a process that lost its lock
BEAT_S = 10.0  # seconds between heartbeats
STALE_S = 60.0  # seconds without a heartbeat after which a lock is taken over
_POLL_S = 1.0
_SIZE = 2048  # bytes of the file; constant, so that a heartbeat needs no space on a full disk
_TRIES = 3  # reads until a missing file counts as removed; a process that takes a lock over hides it for a moment
_MACHINE = Path('/proc/sys/kernel/random/boot_id')


@dataclasses.dataclass(frozen=True)
class Holder:
  """The process that holds a lock.

  Attributes:
    host: The name of its host, for messages.
    process: Its process id.
    started: When it took the lock, as text in UTC, for messages.
    machine: Identifies a boot of a machine and a container on it; processes with equal values see the same ids.
    process_start: When the process started, in a unit of the machine; '' if unknown.
    token: A random text, different for each holder.
    beat: The number of heartbeats.
    clock: The machine's monotonic clock at the last heartbeat, in seconds.
  """

  host: str
  process: int
  started: str
  machine: str
  process_start: str
  token: str
  beat: int = 0
  clock: float = 0.0

  @classmethod
  def this_process(cls) -> 'Holder':
    """The calling process, with a new token."""
    now = time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())
    return cls(
      socket.gethostname()[:200], os.getpid(), now, _machine(), _process_start(os.getpid()), secrets.token_hex(8)
    )

  @classmethod
  def parse(cls, content: bytes) -> 'Holder | None':
    """The holder that a lock file describes; None if the file is damaged."""
    try:
      values = parse_json_object(content)
      fields = {field.name: field.type for field in dataclasses.fields(cls)}
      holder = cls(**{name: values[name] for name in fields})
    except (ValueError, KeyError):
      return None
    texts = (holder.host, holder.started, holder.machine, holder.process_start, holder.token)
    numbers = (holder.process, holder.beat, holder.clock)
    is_valid = all(isinstance(text, str) and text.isprintable() for text in texts)
    is_valid &= all(isinstance(number, int | float) and abs(number) < 2**53 for number in numbers)
    return holder if is_valid and type(holder.process) is int and holder.process > 0 else None

  def content(self) -> bytes:
    """The content of the lock file."""
    return json.dumps(dataclasses.asdict(self), indent=2).encode().ljust(_SIZE - 1) + b'\n'

  def is_on_this_machine(self) -> bool:
    """Whether the holder's process id has a meaning for this process."""
    return self.machine == _machine()

  def has_ended(self) -> bool:
    """Whether the process has ended. Only valid on its machine."""
    try:
      os.kill(self.process, 0)
    except ProcessLookupError:
      return True
    except OSError:
      pass  # the process exists and belongs to another user
    start = _process_start(self.process)
    return start == 'ended' or (bool(start and self.process_start) and start != self.process_start)


class RunLock:
  """The lock of a directory, for the process that runs in it."""

  def __init__(self, directory: Path, flag: str = '--workdir', on_lost: Callable[[str], None] | None = None) -> None:
    """
    Args:
      directory: The directory. `acquire` creates it.
      flag: The flag that names the directory, for messages.
      on_lost: Called with a message, from any thread, when the lock was lost. By default the process ends at once,
        because even an orderly end would write files.
    """
    self.path = Path(directory) / FILE
    self.is_held = False  # whether this process has taken the lock, and not given it back
    self._flag, self._on_lost = flag, on_lost or _end_process
    self._holder = Holder.this_process()
    self._confirmed = _clock()
    self._guard = threading.Lock()
    self._released = threading.Event()
    self._thread = threading.Thread(target=self._beat, name='run lock', daemon=True)

  def acquire(self, say: Callable[[str], None] = hosts.say) -> None:
    """Take the lock. If another process seems to hold it, wait until its last heartbeat is stale.

    Args:
      say: Prints a message for the user.

    Raises:
      ValueError: Another process holds the lock, or the directory cannot be written.
    """
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      while not self._create():
        content = _read(self.path)
        if content is not None:
          self._check_stale(content, say)
          self._take_away(content)
    except OSError as error:
      raise ValueError(
        f'{self._flag} {self.path.parent} cannot be made or written to: {reason(error, self.path.parent)}. Change its '
        f'permissions, or name another directory with {self._flag}.'
      ) from None
    self._confirmed = _clock()
    self.is_held = True
    self._thread.start()

  def release(self) -> None:
    """Give the lock back. Does nothing if another process has it by now."""
    self._released.set()
    self.is_held = False
    if self._thread.is_alive():
      self._thread.join(timeout=2 * BEAT_S)
    with self._guard, contextlib.suppress(OSError):
      aside = self._aside()
      os.rename(self.path, aside)
      if self._is_ours(_read(aside)):
        aside.unlink()
      else:
        self._put_back(aside)

  def confirm(self) -> None:
    """Check that this process still holds the lock if it may have been suspended. Cheap; call it before writing."""
    if _clock() - self._confirmed > 2 * BEAT_S:
      self._refresh()

  def _check_stale(self, content: bytes, say: Callable[[str], None]) -> None:
    """Raise ValueError if the holder of a lock lives; wait for as long as needed to know."""
    holder = Holder.parse(content)
    if holder is not None and holder.is_on_this_machine():
      if holder.has_ended():
        say(f'Process {holder.process} left {self.path} behind when it ended; this run takes it over.')
        return
      age = max(time.monotonic() - holder.clock, 0.0)
      if age < STALE_S:
        raise ValueError(self._refusal(holder, age))
      say(
        f'Process {holder.process}, which holds {self.path}, exists but has had no heartbeat for {age:.0f} s; this run '
        'takes over.'
      )
      return
    who = f'process {holder.process} on host {holder.host}' if holder else 'an unknown process (the file is damaged)'
    say(f'{self.path} belongs to {who}. Waiting up to {STALE_S:.0f} s to see whether it still runs.')
    start = time.monotonic()
    while time.monotonic() - start < STALE_S:
      time.sleep(_POLL_S)
      now = _read(self.path)
      if now is None:
        return
      if now != content:
        raise ValueError(self._refusal(Holder.parse(now), 0.0))
    say(f'{self.path} had no heartbeat for {STALE_S:.0f} s; this run takes over.')

  def _refusal(self, holder: Holder | None, age: float) -> str:
    who = 'Another process'
    if holder:
      who = f'Process {holder.process} on host {holder.host}, started {holder.started},'
    stop = f' (kill {holder.process})' if holder else ''
    return (
      f'{self._flag} {self.path.parent} is in use. {who} holds {self.path}; its last heartbeat was {age:.0f} s ago. '
      f'Wait until it ends, stop it{stop}, or set another {self._flag}. The lock of a process that died is taken over '
      f'{STALE_S:.0f} s after its last heartbeat.'
    )

  def _create(self) -> bool:
    """Create the lock file with its content. Returns False if there is one."""
    self._holder = dataclasses.replace(self._holder, clock=time.monotonic())
    aside = self._aside()
    try:
      aside.write_bytes(self._holder.content())
      return self._put_in_place(aside)
    finally:
      aside.unlink(missing_ok=True)

  def _put_in_place(self, file: Path) -> bool:
    """Give a file the lock's name. Returns False if there is a lock."""
    try:
      os.link(file, self.path)
    except FileExistsError:
      return self._is_ours(_read(self.path))  # over NFS, a repeated request may fail after the first one succeeded
    except OSError:  # the file system has no links
      try:
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
      except FileExistsError:
        return False
      with open(descriptor, 'wb') as created:
        created.write(file.read_bytes())
    return True

  def _take_away(self, content: bytes) -> None:
    """Rename a dead lock and delete it.

    Args:
      content: What the dead lock was seen to hold.

    Raises:
      ValueError: The lock had a heartbeat after all, or another process has replaced it.
    """
    aside = self._aside()
    try:
      os.rename(self.path, aside)
    except FileNotFoundError:
      return
    moved = _read(aside)
    if moved == content:
      aside.unlink()
      return
    self._put_back(aside)
    raise ValueError(self._refusal(Holder.parse(moved or b''), 0.0))

  def _put_back(self, aside: Path) -> None:
    self._put_in_place(aside)
    aside.unlink(missing_ok=True)

  def _aside(self) -> Path:
    """A new name beside the lock file."""
    return self.path.with_name(f'.{FILE}.{secrets.token_hex(8)}')

  def _is_ours(self, content: bytes | None) -> bool:
    holder = Holder.parse(content or b'')
    return holder is not None and holder.token == self._holder.token

  def _beat(self) -> None:
    while not self._released.wait(_POLL_S):
      if _clock() - self._confirmed >= BEAT_S:
        self._refresh()

  def _refresh(self) -> None:
    """Read the lock file, and increase its counter if this process still holds the lock.

    If the file system fails for a while, the run goes on, and the next heartbeat tries again.
    """
    with self._guard:
      if self._released.is_set():
        return
      holder = dataclasses.replace(self._holder, beat=self._holder.beat + 1, clock=time.monotonic())
      lost_to = None
      for attempt in range(_TRIES):
        if attempt:
          time.sleep(_POLL_S)
        try:
          # The open file stays the one that was checked, even if another process renames it now.
          with open(self.path, 'r+b', buffering=0) as file:
            lost_to = Holder.parse(file.read(2 * _SIZE))
            if lost_to and lost_to.token == self._holder.token:
              self._confirmed = _clock()
              file.seek(0)
              file.write(holder.content())
              self._holder = holder
              return
        except FileNotFoundError:
          continue
        except OSError:
          return
        if lost_to:
          break
    who = (
      f'Process {lost_to.process} on host {lost_to.host} has it now' if lost_to else 'The file is missing or damaged'
    )
    self._on_lost(
      f'This run lost its lock {self.path}, for example because its process was suspended for more than '
      f'{STALE_S:.0f} s. {who}. This run ends without writing anything more; finished checkpoints remain.'
    )


@contextlib.contextmanager
def hold(directory: Path, flag: str = '--workdir') -> Iterator[RunLock | None]:
  """Hold the lock of a directory, shared by the hosts of a run: host 0 has it. Yields the lock; None on other hosts.

  Raises:
    ValueError: On every host. Another run holds the lock, or the directory cannot be written.
  """
  lock = RunLock(directory, flag) if jax.process_index() == 0 else None
  try:
    with hosts.together(f'{flag} {directory}'):
      if lock:
        lock.acquire()
    yield lock
  finally:
    if lock and lock.is_held:
      lock.release()


def _read(path: Path) -> bytes | None:
  """The content of a lock file; None if there is none."""
  try:
    with open(path, 'rb') as file:
      return file.read(2 * _SIZE)
  except FileNotFoundError:
    return None


def _machine() -> str:
  """Identifies this boot of the machine and the container; two processes with equal values see the same process ids."""
  try:
    return f'{_MACHINE.read_text().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return f'{socket.gethostname()} {uuid.getnode():012x}'


def _process_start(process: int) -> str:
  """When a process started, in clock ticks since boot; '' if unknown, 'ended' if it has ended but still has an id."""
  try:
    text = Path(f'/proc/{process}/stat').read_text(errors='replace')
  except OSError:
    return ''
  fields = text.rpartition(')')[2].split()  # the name of the program, in parentheses, may contain anything
  return 'ended' if fields[0] in 'ZX' else fields[19]


def _clock() -> float:
  """Seconds on a clock that goes on while the machine sleeps, where there is one."""
  return time.clock_gettime(getattr(time, 'CLOCK_BOOTTIME', time.CLOCK_MONOTONIC))


def _end_process(message: str) -> Any:
  """Print an error and end the process without any cleanup, which would write to the directory."""
  print(f'error: {message}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(EXIT_LOST)
