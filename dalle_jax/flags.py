"""Shared parts of the command-line programs: the --config flag, short error messages, and starting JAX.

Importing this module is cheap; it does not import JAX.
"""

import os
import platform
import re
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

if TYPE_CHECKING:
  from dalle_jax.config import Config

EXIT_USER_ERROR = 2
EXIT_CTRL_C = 130  # the status that a shell reports for a program ended by SIGINT
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


def run(main: Callable[[list[str]], int | None], positional: bool = False) -> None:
  """Parses the flags and runs a program; it exits with the status that `main` returns.

  A ValueError is a user's mistake: its message is printed without a traceback (with one at --verbosity=1), and the
  status is 2.

  Args:
    main: gets the program's name followed by the arguments that are not flags.
    positional: whether the program accepts arguments that are not flags.
  """

  def guarded(argv: list[str]) -> int | None:
    if len(argv) > 1 and not positional:
      return _fail(f'Unknown arguments: {" ".join(argv[1:])}. Write flags as --name=value.')
    try:
      return main(argv)
    except KeyboardInterrupt:
      print('Stopped on request.', file=sys.stderr)
      return EXIT_CTRL_C
    except ValueError as error:
      if logging.get_verbosity() >= logging.DEBUG:
        raise
      return _fail(str(error))

  logging.set_verbosity(logging.WARNING)
  try:
    argv = _resolve_config_flag(sys.argv)
  except ValueError as error:
    sys.exit(_fail(str(error)))
  app.run(guarded, argv=argv, flags_parser=_parse_flags)


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

  config = Config.from_dict(flag.value)
  overrides.check(config, config_flags.get_override_values(flag))
  return config


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
  sys.exit(_fail(f'The first argument must be one of {", ".join(subjects)}; {given}.'))


def _fail(message: str) -> int:
  """Prints an error message and returns the exit status."""
  print(f'error: {message}', file=sys.stderr)
  return EXIT_USER_ERROR


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags with absl, and shortens errors of flags, of the configuration file and of its overrides."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
    sys.exit(_fail(essence(error)))


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

  if distributed:
    _join(coordinator, hosts, host)
  cache = _enable_compilation_cache()
  if jax.process_index() == 0:
    devices = jax.devices()
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
  home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  directory = home / 'dalle_jax' / 'programs' / f'{platform.machine()}_{_cpu_features():08x}'
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError:
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
    raise ValueError(f'--coordinator={coordinator}: this host cannot resolve the name {name}: {error}.') from None
  if host == 0:
    _check_port(coordinator, int(port))


def _check_port(coordinator: str, port: int) -> None:
  """Checks that host 0 can listen on the coordinator's port."""
  family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
  try:
    socket.create_server(('', port), family=family, dualstack_ipv6=socket.has_dualstack_ipv6()).close()
  except OSError as error:
    raise ValueError(
      f'--coordinator={coordinator}: port {port} of this host, which is host 0, cannot be opened: {error}. Choose '
      'another port, or end the program that uses it, perhaps an earlier start.'
    ) from None
