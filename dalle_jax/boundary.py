"""The boundary of the commands: errors of users and of the system end in one message and an exit status.

Every command runs in `run`. It prints one message and exits with status 2 for

- a ValueError, which is how the package reports a user's mistake
- an OSError: disk full, permissions, deleted files, broken links, too many open files, network
- too little memory, a missing accelerator, a missing package, a helper process that the system ended

The error may also be the cause of another error, because libraries wrap what their background threads raise. All other
errors are bugs, and their traceback is shown. Importing this module is cheap.
"""

import contextlib
import errno
import io
import os
import re
import select
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging

from dalle_jax.files import naming, shown

EXIT_USER_ERROR = 2
EXIT_CTRL_C = 130  # the status that a shell reports for a program ended by SIGINT
EXIT_CLOSED_PIPE = 141  # the status that a shell reports for a program ended by SIGPIPE
LONGEST, LONGEST_LINE = 2000, 800  # characters of a message and of a line of it; the middle of longer ones is left out
ESCAPED = 10  # the most characters of an escaped character
LONGEST_REASON = 400  # characters of a message that another library wrote

# What to do about an error number of the operating system.
_FULL = 'Free some space, or name a directory on another disk.'
_STDOUT, _STDOUT_FULL = 'the standard output', 'Free some space, or send it to a file on another disk.'
_DENIED = 'Change its permissions, or name a file or directory that you may use.'
_GONE = 'Check the path: it was never there, or was deleted or moved meanwhile.'
_FILES = 'Raise the limit of open files (ulimit -n), or end programs that keep files open.'
_NETWORK = 'Check the network and the address, or use files that are already on this machine.'
_NETWORK_MODULES = ('socket', 'ssl', 'urllib.error', 'requests.exceptions')
_NAMELESS = ('ENOSPC', 'EDQUOT', 'EROFS', 'EFBIG', 'EIO')  # writing fails with these without the name of the file
ADVICE = {
  'ENOSPC': _FULL, 'EDQUOT': _FULL,
  'EACCES': _DENIED, 'EPERM': _DENIED,
  'EROFS': 'Its file system is read-only; name a directory on another one.',
  'ENOENT': _GONE, 'ESTALE': _GONE, 'ENXIO': _GONE, 'ENODEV': _GONE,
  'EISDIR': 'Name a file instead.',
  'ENOTDIR': 'A part of the path is a file; name a directory instead.',
  'ENOTEMPTY': 'Empty the directory, or name another one.',
  'EEXIST': 'Remove it, or name another one.',
  'EMFILE': _FILES, 'ENFILE': _FILES,
  'ELOOP': 'Its symbolic links lead in a circle; mend them, or name another path.',
  'ENAMETOOLONG': 'Give a shorter name.',
  'EFBIG': 'Raise the limit of file sizes (ulimit -f), or use another file system.',
  'ENOMEM': 'End other programs, or ask for less at a time (batch sizes, numbers of images).',
  'EIO': 'The disk or the network drive fails; use another one.',
  'ETXTBSY': 'Another program uses it; end that program, or name another file.',
  'EBUSY': 'Another program uses it; end that program, or name another file.',
}  # fmt: skip
# What array_record says of errors of writing, such as 'write() failed: File too large; writing PATH; at byte 5'.
_IN_WORDS = {os.strerror(getattr(errno, code)): getattr(errno, code) for code in (*_NAMELESS, 'EACCES', 'ENOMEM')}
# Flags that name what the commands write; a full disk is reported with their directories.
_OUTPUTS = ('workdir', 'out', 'data_dir', 'cache', 'report', 'json', 'hlo')
# Status codes at the start of errors of XLA, JAX and TensorStore, and what they mean.
_OTHER_HOSTS = (
  'Another host of this run failed, or cannot be reached. See its messages and the network, and start again.'
)
_CODES = {'UNAVAILABLE': _OTHER_HOSTS, 'DEADLINE_EXCEEDED': _OTHER_HOSTS, 'ABORTED': _OTHER_HOSTS}
_MEMORY_WORDS = ('RESOURCE_EXHAUSTED', 'CUDA_ERROR_OUT_OF_MEMORY', 'Out of memory', 'out of memory', 'bad_alloc')
# Errors that a handler of ours may raise by mistake while it handles an error of the outside world.
_MISTAKES = (
  ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RecursionError, SyntaxError, TypeError,
)  # fmt: skip
_PACKAGE = __name__.partition('.')[0]
_EXTRAS = {'ftfy': 'clip', 'regex': 'clip', 'wandb': 'wandb'}  # packages of optional extras


def run(program: Callable[[], int | None], verbose: Callable[[], bool]) -> NoReturn:
  """Runs a program and exits with the status that it returns; see the module's description.

  The reader of a pipe may stop reading (`| head`): the program then ends without a message, with status 141.

  Args:
    program: the program; it may also raise SystemExit.
    verbose: whether to print the traceback of an error as well as its message.
  """
  try:
    _open_streams()
    _make_logs_printable(verbose)
    _quieten_threads(verbose)
    try:
      status = program()
    except SystemExit as end:
      status = end.code  # type: ignore[assignment]
    _flush()
  except BaseException as error:
    status = _status(error, verbose)
  _leave(status)


def _status(error: BaseException, verbose: Callable[[], bool]) -> int:
  """Prints the message of an error and returns the exit status. Raises the error again if it is a bug."""
  if isinstance(error, KeyboardInterrupt):
    _print('Stopped on request.')
    return EXIT_CTRL_C
  if isinstance(error, BrokenPipeError) and _reader_left():
    return EXIT_CLOSED_PIPE
  message = explain(error) if isinstance(error, Exception) else None
  if message is None:
    raise error
  if verbose():
    traceback.print_exception(error)
  return fail(message)


def fail(message: str) -> int:
  """Prints an error message, made printable and cut if it is long, and returns the exit status."""
  _print(f'error: {printable(message)}')
  return EXIT_USER_ERROR


def printable(message: str) -> str:
  """A message without control characters, whose further lines are indented; long lines and messages are cut."""
  first, *lines = (_cut(line, LONGEST_LINE) for line in _cut(message.strip(), LONGEST).split('\n'))
  lines = [line if line.startswith(' ') else f'  {line}' for line in lines]
  return '\n'.join(shown(line, ESCAPED * len(line) + 3) for line in (first, *lines))


def _cut(text: str, most: int) -> str:
  """The text without its middle if it is longer than `most`; the end says what to do."""
  if len(text) <= most:
    return text
  end = most * 2 // 5
  return f'{text[: most - end]} [{len(text) - most} characters left out] {text[-end:]}'


def explain(error: BaseException) -> str | None:
  """The message for an error of the user or of the outside world; None for a mistake of this program."""
  if isinstance(error, ValueError):
    return (_coded(error) if re.match('[A-Z_]+: ', str(error)) else None) or str(error)
  for link in _chain(error):
    message = _outside(link)
    if message:
      return message
  return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """The error, and the errors that caused it, nearest first."""
  seen: set[int] = set()
  waiting = [error]
  while waiting:
    link = waiting.pop(0)
    if link is None or id(link) in seen:
      continue
    seen.add(id(link))
    yield link
    waiting.append(link.__cause__)
    if not link.__suppress_context__ and not isinstance(link, _MISTAKES):
      waiting.append(link.__context__)
    waiting += getattr(link, 'exceptions', ())  # of an ExceptionGroup


def _outside(error: BaseException) -> str | None:
  """The message for an error of the outside world, without its causes; None for any other error."""
  if isinstance(error, MemoryError):
    return _too_little_memory(str(error))
  if isinstance(error, OSError):
    return _os_message(error)
  if isinstance(error, ImportError):
    return _import_message(error)
  if isinstance(error, RuntimeError) and str(error).startswith('Symlink loop'):  # from Path.resolve
    return f'{_short(error)}. {ADVICE["ELOOP"]}'
  if isinstance(error, HTTPException):
    return f'The network connection failed: {type(error).__name__}: {_short(error)}. {_NETWORK}'
  if type(error).__name__ == 'BrokenProcessPool' or 'was terminated unexpectedly' in str(error):
    return (
      f'A helper process ended before its work was done: {_short(error)}. The system may have ended it for lack of '
      'memory; use fewer workers (config.data.num_workers), or smaller batches.'
    )
  return _coded(error)


def _coded(error: BaseException) -> str | None:
  """The message for an error of XLA, JAX, TensorStore or TensorFlow, which put a status code into the text."""
  text = str(error)
  number = re.search(r"os_error_code='(\d+)'|\[OS error: (\d+)|\(?errno[ =:](\d+)", text)
  if number:
    code = int(next(filter(None, number.groups())))
    file = re.search(r'(?:local file|directory|file:?) "([^"]+)"', text)
    return _os_message(OSError(code, os.strerror(code), file.group(1).split('\0')[0] if file else None))
  if isinstance(error, ValueError):
    return None
  in_words = re.search(rf'failed: ({"|".join(map(re.escape, _IN_WORDS))})(?:; (?:writing|reading) ([^;]+))?', text)
  if in_words:
    return _os_message(OSError(_IN_WORDS[in_words.group(1)], *in_words.groups()))
  if any(word in text for word in _MEMORY_WORDS):
    return _too_little_memory(text)
  if 'initialize backend' in text or 'Unknown backend' in text:
    return no_accelerator(error)
  status = re.match(r'([A-Z_]+): ', text)
  if status and status.group(1) in _CODES and type(error).__module__.partition('.')[0] in ('jax', 'jaxlib'):
    return f'{_CODES[status.group(1)]} JAX reports: {_short(error)}'
  return None


def no_accelerator(error: BaseException) -> str:
  """The message if JAX finds no device of the kind that was asked for."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  asked = f'JAX_PLATFORMS={shown(platforms)}: ' if platforms else ''
  reason = f' ({_short(error, 300)})' if str(error) else ''
  return (
    f'{asked}JAX cannot use such a device here{reason}. Check that the accelerator is present, that its driver works, '
    "and that JAX's package for it is installed (such as jax[cuda13]), or set JAX_PLATFORMS=cpu."
  )


def _too_little_memory(text: str) -> str:
  return (
    f'There is too little memory{f" ({_short(text, 300)})" if text else ""}. Use a smaller batch '
    'size or fewer images at a time, end other programs, or use a device with more memory.'
  )


def _import_message(error: ImportError) -> str | None:
  name = (error.name or '').partition('.')[0]
  if name == _PACKAGE or (not name and _PACKAGE in str(error)):
    return None
  if 'failed to map segment' in str(error) or os.strerror(errno.ENOMEM) in str(error):
    return _too_little_memory(str(error))
  if isinstance(error, ModuleNotFoundError) and name:
    extra = f' (pip install "dalle_jax[{_EXTRAS[name]}]")' if name in _EXTRAS else ''
    return f'The Python package {shown(name)} is not installed here. Install it{extra} for {shown(sys.executable)}.'
  return f'The Python package {shown(name) or "to import"} cannot be used: {_short(error)}. Install it again.'


def _os_message(error: OSError) -> str:
  """What failed, why, and what to do."""
  names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | Path)]
  subject = ' and '.join(map(shown, names))
  code = errno.errorcode.get(error.errno, '') if isinstance(error.errno, int) else ''
  reason = _short(error.strerror or next(iter(error.args[-1:]), type(error).__name__))
  if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__ in _NETWORK_MODULES:
    return f'{subject or "The network"}: {type(error).__name__}: {reason}. {_NETWORK}'
  advice = ADVICE.get(code, '')
  if not names and code in _NAMELESS:
    subject = 'The standard output' if _stdout_fails() else _places() or 'A file, or the standard output'
  elif names == [_STDOUT]:
    subject = 'The standard output'
    advice = _STDOUT_FULL if advice is _FULL else advice
  elif names and advice is _FULL:
    subject += _free_space(names[0])
  return f'{subject}: {reason}. {advice}'.removeprefix(': ').strip()


def _stdout_fails() -> bool:
  """Whether the standard output does not take what has been printed."""
  try:
    sys.stdout.flush()
  except (OSError, ValueError):
    return True
  return False


def _places() -> str:
  """The outputs that the flags name, for an error that does not say which file it is about."""
  values = flags.FLAGS.flag_values_dict() if flags.FLAGS.is_parsed() else {}
  named = [(name, values[name]) for name in _OUTPUTS if isinstance(values.get(name), str) and values[name]]
  return ' or '.join(f'--{name}={shown(value)}{_free_space(value)}' for name, value in named)


def _free_space(path: str) -> str:
  """The free space of the disk that holds a path, in words."""
  directory = Path(path).absolute()
  for place in (directory, *directory.parents):
    with contextlib.suppress(OSError, ValueError):
      return f' ({shutil.disk_usage(place).free / 1e6:,.0f} MB free)'
  return ''


def _short(value: Any, most: int = LONGEST_REASON) -> str:
  """The text of an error of another library: its first lines as one, without the tail that TensorStore adds."""
  text = str(value).partition(' [tensorstore_spec=')[0].partition('\nTraceback')[0]
  return shown(' '.join(text.split()), most).rstrip('.')


def _open_streams() -> None:
  """Prepares stdin, stdout and stderr.

  A closed stream's number would be given to the next file that is opened, and messages would be written into it.

  Raises:
    ValueError: stdout is closed.
  """
  stdout_is_closed = sys.stdout is None or sys.stdout.closed
  for number, name in ((0, 'stdin'), (2, 'stderr'), (1, 'stdout')):
    try:
      os.fstat(number)
    except OSError:
      mode = os.O_RDONLY if number == 0 else os.O_WRONLY
      opened = os.open(os.devnull, mode)
      if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, 'r' if number == 0 else 'w', encoding='utf-8'))
  if stdout_is_closed:
    raise ValueError('The standard output is closed, so that results would be lost. Send it to a file or to /dev/null.')
  _name_stdout()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError, OSError, ValueError):
      stream.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]


class _NamedStdout(io.FileIO):
  """The file of stdout, whose errors name it. Without a buffer, as under PYTHONUNBUFFERED, nothing else would."""

  def write(self, data: Any) -> int | None:  # type: ignore[override]
    with naming(_STDOUT):
      return super().write(data)


def _name_stdout() -> None:
  """Replaces sys.stdout by a stream of the same file and properties whose errors name it. Leaves consoles alone."""
  old = sys.stdout
  if os.name != 'posix' or type(old) is not io.TextIOWrapper or old.isatty() or isinstance(old.buffer, _NamedStdout):
    return
  with contextlib.suppress(OSError, ValueError):
    if old.fileno() == 1 and not isinstance(getattr(old.buffer, 'raw', None), _NamedStdout):
      old.flush()
      raw = _NamedStdout(1, 'w', closefd=False)
      buffer = raw if isinstance(old.buffer, io.RawIOBase) else io.BufferedWriter(raw)
      sys.stdout = io.TextIOWrapper(
        buffer,  # type: ignore[arg-type]
        encoding=old.encoding, errors=old.errors, line_buffering=old.line_buffering, write_through=old.write_through,
      )  # fmt: skip


def _make_logs_printable(verbose: Callable[[], bool]) -> None:
  """Escapes control characters in log lines, which may hold names of files; cuts long lines.

  Libraries log the errors of their threads with tracebacks, before the same error ends the program with one message.
  The tracebacks are shown if `verbose` says so.
  """

  def escape(record: Any) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    if not verbose():
      record.exc_info = record.exc_text = None
    return True

  handler = logging.get_absl_handler().python_handler
  if not handler.filters:
    handler.addFilter(escape)


def _quieten_threads(verbose: Callable[[], bool]) -> None:
  """Drops what TensorStore's threads report after a save of Orbax has failed, unless `verbose` says otherwise."""

  def report(unraisable: Any) -> None:
    if verbose() or str(unraisable.exc_value) != 'Event loop is closed':
      earlier(unraisable)

  earlier = sys.unraisablehook
  if getattr(earlier, '__module__', '') != __name__:
    sys.unraisablehook = report


def _flush() -> None:
  """Writes what is buffered, while errors can still be reported."""
  with naming(_STDOUT):
    sys.stdout.flush()


def _reader_left() -> bool:
  """Whether stdout or stderr is a pipe that nobody reads any more."""
  if not hasattr(select, 'poll'):
    return True
  poll = select.poll()
  for number in (1, 2):
    poll.register(number, 0)
  with contextlib.suppress(OSError):
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
  return True


def _print(line: str) -> None:
  if sys.stderr is not None:
    with contextlib.suppress(OSError, ValueError):
      print(line, file=sys.stderr, flush=True)


def _leave(status: Any) -> NoReturn:
  """Exits. What stdout cannot take is dropped, so that the interpreter does not complain while it exits."""
  for number, stream in ((1, sys.stdout), (2, sys.stderr)):
    try:
      stream.flush()
    except (OSError, ValueError, AttributeError):
      with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
  sys.exit(status)
