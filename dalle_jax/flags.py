"""What the doors share: the configuration flag, readable errors, and the start of JAX. Imports nothing heavy."""

import os
import platform
import re
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging

if TYPE_CHECKING:
  from dalle_jax.config import Config

EXIT_USER_ERROR = 2
EXIT_CTRL_C = 130  # the shell's own for a program that SIGINT ended
JOIN_S = 300  # for which a host waits for the others at its start
REMIND_S = 30  # after which it says that it waits
LEAVE_S = 60  # for which a host that failed by itself waits for the others, which it ends by that


def find_config(path: str) -> str:
  """A configuration file as given, or the one of that name that came with the package.

  `configs/quickstart.py:tiny` is looked for from the working directory first, so that a checkout's own files win; an
  installed package carries the same files inside.

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
    f'--config={name}: there is no such file. Shipped are {", ".join(f"configs/{n}.py" for n in shipped)}.'
  )


def _shipped_configs() -> dict[str, Path]:
  """Files by name: inside an installed package, or beside it in a checkout."""
  package = Path(__file__).parent
  directory = next((d for d in (package / 'configs', package.parent / 'configs') if d.is_dir()), None)
  files = sorted(directory.glob('[!_]*.py')) if directory else []
  return {file.stem: file for file in files}


def _resolve_config_flag(argv: list[str]) -> list[str]:
  """Arguments with the value of --config replaced by a file that exists."""
  resolved = list(argv)
  for i, argument in enumerate(argv):
    for prefix in ('--config=', '-config='):
      if argument.startswith(prefix):
        resolved[i] = prefix + find_config(argument[len(prefix) :])
    if argument in ('--config', '-config') and i + 1 < len(argv):
      resolved[i + 1] = find_config(argv[i + 1])
  return resolved


def run(main: Callable[[list[str]], int | None], positional: bool = False) -> None:
  """Parses flags and calls `main`; a ValueError ends the program with its message alone (--verbosity=1: in full).

  Args:
    main: gets the program's name and what is no flag.
    positional: whether `main` takes arguments that are no flags.
  """

  def guarded(argv: list[str]) -> int | None:
    if len(argv) > 1 and not positional:
      return _fail(f'Unknown arguments: {" ".join(argv[1:])}. Flags are written --name=value.')
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


def read_config(name: str = 'config') -> 'Config':
  """The configuration of the flag --config, after a check of the keys that the command line set.

  Raises:
    ValueError: A value is not allowed, or the configuration's task does not read a key that was set.
  """
  from ml_collections import config_flags

  from dalle_jax.config import Config, overrides

  flag = flags.FLAGS[name]
  config = Config.from_dict(flag.value)
  overrides.check(config, config_flags.get_override_values(flag))
  return config


def take_subject(argv: list[str], subjects: Sequence[str]) -> str:
  """Removes the first argument of a program that does several things, what to do, from argv."""
  asked_for_help = any(argument in ('--help', '-help', '--helpfull', '-h', '-?') for argument in argv[1:])
  if len(argv) > 1 and argv[1] in subjects:
    return argv.pop(1)
  if asked_for_help:
    return subjects[0]
  given = f'given {argv[1]!r}' if len(argv) > 1 else 'none was given'
  sys.exit(_fail(f'Say first what to do, one of {", ".join(subjects)}; {given}.'))


def _fail(message: str) -> int:
  print(f'error: {message}', file=sys.stderr)
  return EXIT_USER_ERROR


def _parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with errors of flags, of the configuration file and of its overrides in a line or two."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
    sys.exit(_fail(essence(error)))


def essence(error: Exception) -> str:
  """What helps in an error of absl or ml_collections: no traceback, and of a group's keys the nearest one only."""
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  lines = [line for line in text.replace('\\n', '\n').splitlines() if line.strip()]
  if any('Traceback' in line for line in lines):
    return lines[-1].partition(': ')[2] or lines[-1]
  kept = ' '.join(line.split(' Other fields present')[0] for line in lines).replace("\\'", "'").strip('"')
  unknown = re.match(r"'+(\w+)'(?:.*Did you mean \"(\w+)\")?", kept)
  if not unknown:
    return kept
  key, near = unknown.groups()
  return f'Unknown configuration key {key!r}' + (f'; did you mean {near!r}?' if near else '.')


def start_jax(
  distributed: bool, coordinator: str | None = None, hosts: int | None = None, host: int | None = None
) -> None:
  """First contact with JAX: joins the other hosts if asked, and says what it runs on.

  Args:
    distributed: whether there are other hosts.
    coordinator: HOST:PORT of the first of them; None, as for the next two, where the cluster tells (TPU pods, Slurm).
    hosts: how many there are.
    host: the number of this one.

  Raises:
    ValueError: the hosts cannot be joined, or are described without `distributed`.
  """
  if not distributed and (coordinator, hosts, host) != (None, None, None):
    raise ValueError('--coordinator, --num_hosts and --host_index describe other hosts: give --distributed with them.')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  import jax

  if distributed:
    _join(coordinator, hosts, host)
  cache = _keep_programs()
  if jax.process_index() == 0:
    devices = jax.devices()
    print(
      f'JAX {jax.__version__} on {len(devices)} {devices[0].device_kind} device(s), {jax.process_count()} host(s)'
      + (f', compilation cache in {cache}' if cache else ''),
      flush=True,
    )


def _keep_programs() -> str:
  """Keeps compiled programs from one start to the next; where, or '' for nowhere.

  JAX_COMPILATION_CACHE_DIR says where, and empty that they are not kept. Programs for a CPU fit CPUs with the same
  instructions alone, and home directories are seen by several machines: each kind has a directory of its own.
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
  """A number for the set of instructions that this machine has; 0 where it cannot be told."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return 0
  found = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  return zlib.crc32(found.partition(':')[2].encode())


def _join(coordinator: str | None, hosts: int | None, host: int | None) -> None:
  """Joins the other hosts; arguments and errors are those of `start_jax`.

  Where hosts are missing in the end, JAX ends the process from C++, so that all that can be found out is said before.
  """
  import jax

  if coordinator is not None:
    _check_coordinator(coordinator, hosts, host)
  where = f' at {coordinator}' if coordinator else ''
  advice = (
    f'Waiting for the other hosts{where}; without them this one ends {JOIN_S} s after its start. Check that the same '
    'command runs on all of them (--num_hosts the same, --host_index from 0, each once), that none of an earlier start '
    'is left, and that no firewall closes the port of host 0.'
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
      f'--distributed: the hosts cannot be joined: {error} Outside of TPU pods and clusters that JAX knows, give '
      '--coordinator=HOST:PORT, --num_hosts and --host_index as well.'
    ) from error
  finally:
    reminder.cancel()


def _check_coordinator(coordinator: str, hosts: int | None, host: int | None) -> None:
  """Refuses what JAX would answer with a crash: a malformed address, a name that is unknown, a port that is taken.

  Raises:
    ValueError: what is wrong.
  """
  name, colon, port = coordinator.rpartition(':')
  if not (name and colon and port.isdecimal() and 0 < int(port) < 2**16):
    raise ValueError(f'--coordinator is {coordinator!r}; it must be HOST:PORT, for instance 10.0.0.1:1234.')
  if hosts is not None and host is not None and not 0 <= host < hosts:
    raise ValueError(f'--host_index is {host}; with --num_hosts={hosts} it must lie in 0 to {hosts - 1}.')
  try:
    socket.getaddrinfo(name.strip('[]'), int(port))
  except OSError as error:
    raise ValueError(f'--coordinator={coordinator}: this host does not know {name}: {error}.') from None
  if host == 0:
    _check_port(coordinator, int(port))


def _check_port(coordinator: str, port: int) -> None:
  family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
  try:
    socket.create_server(('', port), family=family, dualstack_ipv6=socket.has_dualstack_ipv6()).close()
  except OSError as error:
    raise ValueError(
      f'--coordinator={coordinator}: port {port} of this host, which is host 0, cannot be opened: {error}. Choose '
      'another port, or end the program that has it, perhaps an earlier start.'
    ) from None
