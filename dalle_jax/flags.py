"""Shared parts of the command-line programs: the --config flag, short error messages, and starting JAX.

Importing this module is cheap; it does not import JAX.
"""

import math
import os
import platform
import re
import runpy
import socket
import sys
import tempfile
import threading
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags, logging

from dalle_jax import boundary, precision

if TYPE_CHECKING:
  from dalle_jax.config import Config

MAX_IMAGE_PIXELS = 89_478_485  # the default of `dalle_jax.data.pictures.image`, which doors do not import
JOIN_S = 300  # seconds that a starting host waits for the other hosts
REMIND_S = 30  # seconds until a waiting host prints what to check
LEAVE_S = 60  # seconds that an exiting host waits for the other hosts; then it exits, which aborts them


def find_config(path: str) -> str:
  """Finds a configuration file by path, or by name among the files shipped with the package.

  A path that exists wins, so in a checkout the files of the working directory are used. Otherwise `configs/NAME.py`,
  `NAME.py` and `NAME` stand for the shipped file.

  Args:
    path: the value of --config: a file, optionally followed by ':VARIANT', such as 'configs/quickstart.py:tiny'.

  Returns:
    The path of an existing file, followed by the same variant.

  Raises:
    ValueError: there is no such file.
  """
  name, colon, variant = path.partition(':')
  if Path(name).is_file():
    return path
  shipped = _shipped_configs()
  if Path(name).parent.name in ('', 'configs') and Path(name).stem in shipped:
    return str(shipped[Path(name).stem]) + colon + variant
  raise ValueError(
    f'--config={name}: there is no such file. Shipped are {", ".join(f"configs/{stem}.py" for stem in shipped)}.'
  )


def _shipped_configs() -> dict[str, Path]:
  """The shipped configuration files by name. They are inside an installed package, and beside it in a checkout."""
  package = Path(__file__).parent
  directory = next((d for d in (package / 'configs', package.parent / 'configs') if d.is_dir()), None)
  files = sorted(directory.glob('[!_]*.py')) if directory else []
  return {file.stem: file for file in files}


def _resolve_config_flag(argv: list[str]) -> list[str]:
  """The arguments with the value of --config replaced by the path of an existing file."""
  resolved = list(argv)
  for i, argument in enumerate(argv):
    for prefix in ('--config=', '-config='):
      if argument.startswith(prefix):
        resolved[i] = prefix + find_config(argument[len(prefix) :])
    if argument in ('--config', '-config') and i + 1 < len(argv):
      resolved[i + 1] = find_config(argv[i + 1])
  return resolved


def run(main: Callable[[list[str]], int | None], positional: bool = False) -> NoReturn:
  """Parses the flags and runs a program; it exits with the status that `main` returns.

  What the user or the outside world does wrong, also while flags are parsed, ends in one message and status 2; see
  `boundary`. --verbosity=1 also prints the traceback.

  Args:
    main: gets the program's name followed by the arguments that are not flags.
    positional: whether the program accepts arguments that are not flags.
  """

  def checked(argv: list[str]) -> int | None:
    if len(argv) > 1 and not positional:
      raise ValueError(f'Unknown arguments: {" ".join(argv[1:])}. Write flags as --name=value.')
    return main(argv)

  def program() -> None:
    logging.set_verbosity(logging.WARNING)
    app.run(checked, argv=_resolve_config_flag(sys.argv), flags_parser=_parse_flags)

  boundary.run(program, _is_verbose)


def _is_verbose() -> bool:
  """Whether --verbosity=1 is given, perhaps among flags that cannot be parsed."""
  given = re.findall(r'^--?(?:verbosity|v)[=\n](\d+)$', '\n'.join(sys.argv), re.MULTILINE)
  return logging.get_verbosity() >= logging.DEBUG or any(int(number) for number in given)


def define_verify_model() -> Any:
  """Defines --verify_model, for the commands that load models; they pass its value to `bundle.verify_by_default`."""
  return flags.DEFINE_bool(
    'verify_model', True, 'Compare the files of each model with their checksums. false: load changed files too.'
  )


def read_config(name: str = 'config') -> 'Config':
  """The configuration of the flag --config, after a check of the keys that the command line set.

  Raises:
    ValueError: A value is not allowed, or the configuration's task does not read a key that was set.
  """
  return check_overrides(flags.FLAGS[name])


def check_overrides(flag: Any) -> 'Config':
  """The configuration of a flag of ml_collections, after the check of `read_config`.

  Args:
    flag: A parsed flag from `config_flags.DEFINE_config_file`, as `flags.FLAGS` holds it.
  """
  from ml_collections import config_flags

  from dalle_jax.config import Config, overrides

  config, keys = Config.from_dict(flag.value), config_flags.get_override_values(flag)
  overrides.check(config, keys)
  return overrides.with_kept_keys(config, keys)


def refuse_choice(config: 'Config') -> 'Config':
  """The configuration, for commands that need sizes before training starts.

  Raises:
    ValueError: its sizes are chosen when training starts.
  """
  if config.choice.enabled:
    raise ValueError(
      'config.choice.enabled is True in the file of --config, so its sizes are chosen when training starts and are '
      'not known here. Give another file, or --config.choice.enabled=false to use the sizes in this one.'
    )
  return config


def define_max_image_pixels(default: int | None = MAX_IMAGE_PIXELS) -> Any:
  """Defines --max_image_pixels, for the commands that open picture files. None means: the model's own setting."""
  return flags.DEFINE_integer(
    'max_image_pixels', default,
    'Largest number of pixels, rows times columns, of a picture file that is opened. Decoding takes about 10 bytes per '
    'pixel.',
    lower_bound=1,
  )  # fmt: skip


def take_subject(argv: list[str], subjects: Sequence[str]) -> str:
  """Removes the subcommand from the arguments and returns it.

  Args:
    argv: the program's arguments, changed in place.
    subjects: the allowed subcommands. The first one is returned if only help is requested.
  """
  asked_for_help = any(argument in ('--help', '-help', '--helpfull', '-h', '-?') for argument in argv[1:])
  if len(argv) > 1 and argv[1] in subjects:
    return argv.pop(1)
  if asked_for_help:
    return subjects[0]
  given = f'given {argv[1]!r}' if len(argv) > 1 else 'given nothing'
  sys.exit(boundary.fail(f'The first argument must be one of {", ".join(subjects)}; {given}.'))


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags with absl, and shortens errors of flags, of the configuration file and of its overrides.

  Raises:
    ValueError: a flag or its value is wrong, or the configuration file cannot be run.
  """
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS and flags.FLAGS['config'].value is not None:
      flags.FLAGS['config'].value.items()  # raises an error if the file failed and absl kept no configuration
    _check_numbers()
    return rest
  except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
    raise ValueError(_config_file_error(argv) or essence(error)) from error
  except (Exception, SystemExit) as error:
    message = _config_file_error(argv)
    if message is None:
      raise
    raise ValueError(message) from error


def _check_numbers() -> None:
  """Raises ValueError for a flag whose number is not finite or has more than 64 bits; absl's bounds accept NaN."""
  for name in flags.FLAGS:
    value = flags.FLAGS[name].value if flags.FLAGS[name].present else None
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f'--{name} is {value}; it must be a finite number.')
    if isinstance(value, int) and abs(value) >= 2**63:
      raise ValueError(f'--{name} is {value}; it must be below 2^63.')


def _config_file_error(argv: list[str]) -> str | None:
  """Runs the file of --config alone: the message for the error that it raises; None without an error."""
  given = next((argument.partition('=')[2] for argument in argv if argument.startswith(('--config=', '-config='))), '')
  if not given and '--config' in argv[:-1]:
    given = argv[argv.index('--config') + 1]
  if not given:
    return None
  file, colon, variant = given.partition(':')
  try:
    get_config = runpy.run_path(file).get('get_config')
    if not callable(get_config):
      return f'--config={file} has no function get_config(); it must return a configuration, as in configs/.'
    values = get_config(variant) if colon else get_config()
    if callable(getattr(values, 'items', None)):
      return None
    return f'--config={file}: get_config() returns {type(values).__name__}; it must return a configuration.'
  except ValueError as error:
    return str(error)
  except (Exception, SystemExit) as error:
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else (frames or [None])[-1]
    place = f', line {line}' if line else ''
    return f'--config={file}{place}: {type(error).__name__}: {error}. Correct the file, or name another one.'


def essence(error: Exception) -> str:
  """Shortens an error message of absl or ml_collections: no traceback, and only the nearest key if a key is unknown."""
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  lines = [line for line in text.replace('\\n', '\n').splitlines() if line.strip()]
  if any('Traceback' in line for line in lines):
    return lines[-1].partition(': ')[2] or lines[-1]
  message = ' '.join(line.split(' Other fields present')[0] for line in lines).replace("\\'", "'").strip('"')
  unknown_key = re.match(r"'+(\w+)'(?:.*Did you mean \"(\w+)\")?", message)
  if not unknown_key:
    return message
  key, nearest = unknown_key.groups()
  return f'Unknown configuration key {key!r}' + (f'; did you mean {nearest!r}?' if nearest else '.')


def define_overwrite(what: str) -> flags.FlagHolder[bool]:
  """Define the flag --overwrite of a command. Without it, the command refuses existing files before any work.

  Args:
    what: what is replaced, for the help.
  """
  return flags.DEFINE_bool('overwrite', False, f'Replace {what}.')  # type: ignore[no-any-return]


def start_jax(
  distributed: bool, coordinator: str | None = None, hosts: int | None = None, host: int | None = None
) -> None:
  """Starts JAX: joins the other hosts if `distributed`, and prints the devices in use.

  Args:
    distributed: whether other hosts take part.
    coordinator: HOST:PORT of host 0. This and the next two may be None on clusters that JAX knows (TPU pods, Slurm).
    hosts: number of hosts.
    host: index of this host, from 0.

  Raises:
    ValueError: the hosts cannot be joined, or they are described although `distributed` is False.
  """
  if not distributed and (coordinator, hosts, host) != (None, None, None):
    raise ValueError('--coordinator, --num_hosts and --host_index describe other hosts; give --distributed as well.')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  import jax

  precision.use_32_bits()
  if distributed:
    _join(coordinator, hosts, host)
  cache = _enable_compilation_cache()
  try:
    devices = jax.devices()
  except (RuntimeError, AssertionError) as error:  # JAX 0.10 asserts if jaxlib is built without CUDA
    raise ValueError(boundary.no_accelerator(error)) from error
  if jax.process_index() == 0:
    print(
      f'JAX {jax.__version__} on {len(devices)} {devices[0].device_kind} device(s), {jax.process_count()} host(s)'
      + (f', compilation cache in {cache}' if cache else ''),
      flush=True,
    )


def _enable_compilation_cache() -> str:
  """Keeps compiled programs on disk from one start to the next.

  Set JAX_COMPILATION_CACHE_DIR to choose the directory, or to an empty value to keep nothing. Programs compiled for a
  CPU run only on CPUs with the same instructions, and several machines may share a home directory. By default, each
  kind of CPU therefore gets its own directory.

  Returns:
    The directory; empty if nothing is kept.
  """
  import jax

  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return os.environ['JAX_COMPILATION_CACHE_DIR']
  try:
    home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    directory = home / 'dalle_jax' / 'programs' / f'{platform.machine()}_{_cpu_features():08x}'
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
      pass
  except (OSError, RuntimeError):  # there is no home directory, or it cannot be written
    return ''
  jax.config.update('jax_compilation_cache_dir', str(directory))
  return str(directory)


def _cpu_features() -> int:
  """A checksum of the CPU's instruction-set flags; 0 if they are unknown."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return 0
  features = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  return zlib.crc32(features.partition(':')[2].encode())


def _join(coordinator: str | None, hosts: int | None, host: int | None) -> None:
  """Joins the other hosts; see `start_jax` for arguments and errors.

  If hosts are still missing at the timeout, JAX aborts the process from C++. The advice is therefore printed earlier.
  """
  import jax

  if coordinator is not None:
    _check_coordinator(coordinator, hosts, host)
  where = f' at {coordinator}' if coordinator else ''
  advice = (
    f'Waiting for the other hosts{where}. If any is missing {JOIN_S} s after the start, this host exits. Check that '
    'the same command runs on all hosts (--num_hosts the same on all; --host_index from 0, different on each), that no '
    'process of an earlier start is left, and that no firewall blocks the port of host 0.'
  )
  reminder = threading.Timer(REMIND_S, lambda: print(advice, file=sys.stderr, flush=True))
  reminder.daemon = True
  reminder.start()
  try:
    jax.distributed.initialize(
      coordinator, hosts, host, initialization_timeout=JOIN_S, shutdown_timeout_seconds=LEAVE_S
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f'--distributed: the hosts cannot be joined: {error} Outside TPU pods and clusters that JAX knows, also give '
      '--coordinator=HOST:PORT, --num_hosts and --host_index.'
    ) from error
  finally:
    reminder.cancel()


def _check_coordinator(coordinator: str, hosts: int | None, host: int | None) -> None:
  """Checks for mistakes that would crash JAX: a malformed address, an unknown host name, or a port in use.

  Raises:
    ValueError: there is such a mistake.
  """
  name, colon, port = coordinator.rpartition(':')
  if not (name and colon and port.isdecimal() and 0 < int(port) < 2**16):
    raise ValueError(f'--coordinator is {coordinator!r}; it must be HOST:PORT, such as 10.0.0.1:1234.')
  if hosts is not None and host is not None and not 0 <= host < hosts:
    raise ValueError(f'--host_index is {host}; with --num_hosts={hosts} it must be 0 to {hosts - 1}.')
  try:
    socket.getaddrinfo(name.strip('[]'), int(port))
  except OSError as error:
    raise ValueError(
      f'--coordinator={coordinator}: this host cannot resolve the name {name}: {error.strerror or error}.'
    ) from None
  if host == 0:
    _check_port(coordinator, int(port))


def _check_port(coordinator: str, port: int) -> None:
  """Checks that host 0 can listen on the coordinator's port."""
  family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
  try:
    socket.create_server(('', port), family=family, dualstack_ipv6=socket.has_dualstack_ipv6()).close()
  except OSError as error:
    raise ValueError(
      f'--coordinator={coordinator}: port {port} of this host, which is host 0, cannot be opened: '
      f'{error.strerror or error}. Choose another port, or end the program that uses it, perhaps an earlier start.'
    ) from None
