"""Errors of the command-line programs: most in this process, and each kind once through the real program."""

import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from dalle_jax import boundary, flags

ROOT = pathlib.Path(__file__).parents[1]


def _door(name, *arguments, cwd):
  command = [sys.executable, '-m', f'dalle_jax.{name}', *arguments]
  environment = {'PATH': '/usr/bin:/bin', 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'HOME': str(cwd)}
  return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def _error(finished):
  """The error message of a command that was refused with a single message."""
  assert finished.returncode == boundary.EXIT_USER_ERROR, finished.stdout + finished.stderr
  assert 'Traceback' not in finished.stderr
  lines = [line for line in finished.stderr.splitlines() if line.startswith('error: ')]
  assert len(lines) == 1, finished.stderr
  return finished.stderr[finished.stderr.index('error: ') :]


class TestFindConfig:
  @pytest.fixture(autouse=True)
  def elsewhere(self, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

  @pytest.mark.parametrize('given', ['configs/quickstart.py', 'quickstart.py', 'quickstart'])
  @pytest.mark.parametrize('variant', ['', ':tiny', ':'])
  def test_shipped_files_are_found_from_any_directory(self, given, variant):
    path, colon, rest = flags.find_config(given + variant).partition(':')
    assert pathlib.Path(path).samefile(ROOT / 'configs' / 'quickstart.py')
    assert colon + rest == variant

  def test_files_in_the_working_directory_take_precedence(self, tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'quickstart.py').write_text('')
    assert flags.find_config('configs/quickstart.py:tiny') == 'configs/quickstart.py:tiny'

  @pytest.mark.parametrize('given', ['configs/quickstar.py', 'mine/quickstart.py', '__init__', ':tiny'])
  def test_an_unknown_file_is_refused_with_the_list_of_shipped_files(self, given):
    with pytest.raises(ValueError, match=r'no such file\. Shipped are .*configs/quickstart\.py'):
      flags.find_config(given)


TINY = ('--config=configs/quickstart.py:tiny', '--config.data.num_train=30', '--config.data.num_validation=8')
TINY += ('--config.data.num_held_out=8', '--stop_after=data')


def test_overrides_reach_the_run_and_a_work_directory_refuses_another_configuration(tmp_path):
  finished = _door('train', *TINY, '--workdir=run', '--config.prior.num_layers=6', cwd=tmp_path)
  assert finished.returncode == 0, finished.stderr
  assert '30 train' in finished.stdout
  assert '"num_layers": 6' in (tmp_path / 'run' / 'config.json').read_text()
  error = _error(_door('train', *TINY, '--workdir=run', '--config.prior.num_layers=5', cwd=tmp_path))
  assert str(tmp_path / 'run') in error
  assert 'config.prior.num_layers: 6 -> 5' in error
  assert 'config.seed' not in error


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--config=configs/quickstart.py', '--config.prior.num_layer=3'], ['num_layer', 'num_layers']),
    (['--config=configs/quickstar.py'], ['configs/quickstar.py', 'no such file', 'configs/quickstart.py']),
    (['--config=configs/quickstart.py:huge'], ['tiny', 'huge']),
    (['--config=configs/quickstart.py', '--config.data.image_size=33'], ['config.data.image_size 33', 'image_size=32']),
    (['--config=configs/quickstart.py', '--config.prior.num_layers=many'], ['num_layers', 'many']),
    (['--config=configs/quickstart.py', '--wrokdir=x'], ['wrokdir', 'workdir']),
    (['--workdir=x'], ['config']),
    (['--config=configs/quickstart.py', '--num_hosts=2'], ['--num_hosts', 'give --distributed']),
    (['--config=configs/quickstart.py', 'stray'], ['stray']),
  ],
  ids=lambda value: ' '.join(value) if isinstance(value, list) and value[0].startswith('--') else None,
)
def test_train_refuses_mistakes_before_it_creates_anything(arguments, words, tmp_path):
  if arguments[-1] != '--workdir=x':
    arguments = [*arguments, '--workdir=run']
  error = _error(_door('train', *arguments, cwd=tmp_path))
  for word in words:
    assert word in error, error
  assert not (tmp_path / 'run').exists()
  assert len(error) < 600


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--prompt=a red circle'], ['nowhere', '--model']),
    ([], ['nowhere', '--model']),
    (['--prompt=a', '--prompt='], ['prompt', 'empty']),
    (['--prompts_file=missing.txt'], ['--prompts_file missing.txt']),
    (['--from=a.png', '--seed=3', '--prompt=a'], ['--from takes all settings from the picture', '--prompt, --seed']),
    (['--from=a.png', '--encode'], ['--from and --encode exclude each other']),
    (['--encode', '--image=a.png', '--top_k=3'], ['--encode draws nothing; leave out --top_k']),
    (['--keep_top=0.5', '--prompt=a'], ['--keep_top', '--image']),
    (['--keep=2', '--prompt=a'], ['--keep', '--candidates']),
    (['--reranker=x', '--prompt=a'], ['--reranker ranks candidates']),
    (['--image=a.png', '--keep_box=a,b,c,d'], ['--keep_box is a,b,c,d', 'four numbers']),
  ],
)
def test_generate_refuses_mistakes_before_it_creates_anything(arguments, words, tmp_path):
  error = _error(_door('generate', '--model=nowhere', *arguments, cwd=tmp_path))
  for word in words:
    assert word in error, error
  assert not list(tmp_path.iterdir())


def test_a_traceback_is_shortened_to_its_last_message():
  traceback = 'File "x.py", line 3\nTraceback (most recent call last):\n  more\nValueError: the reason'
  assert flags.essence(ValueError(traceback)) == 'the reason'


def test_an_unknown_key_is_reported_with_the_nearest_known_key():
  message = '\'a\' Did you mean "b" instead of "a"? Other fields present'
  assert flags.essence(KeyError(message)) == "Unknown configuration key 'a'; did you mean 'b'?"
  assert flags.essence(KeyError("'a' Other fields present in container")) == "Unknown configuration key 'a'."


def test_ctrl_c_prints_one_line_and_exits_with_130(monkeypatch, capsys):
  def stop(argv):
    raise KeyboardInterrupt

  monkeypatch.setattr(sys, 'argv', ['door'])
  with pytest.raises(SystemExit) as end:
    flags.run(stop)
  assert end.value.code == boundary.EXIT_CTRL_C == 130
  assert capsys.readouterr().err == 'Stopped on request.\n'


@pytest.mark.parametrize(
  ('coordinator', 'host', 'words'),
  [
    ('localhost', 0, 'must be HOST:PORT'),
    ('localhost:', 0, 'must be HOST:PORT'),
    ('localhost:123456', 1, 'must be HOST:PORT'),
    ('localhost:1234', 2, 'must be 0 to 1'),
    ('no-such-host.invalid:1234', 1, 'cannot resolve the name no-such-host.invalid'),
  ],
)
def test_invalid_coordinator_addresses_are_refused_before_jax_starts(coordinator, host, words):
  with pytest.raises(ValueError, match=words):
    flags.start_jax(True, coordinator, 2, host)


def test_host_0_refuses_a_coordinator_port_in_use():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=f'port {port} of this host, which is host 0, cannot be opened'):
      flags.start_jax(True, f'localhost:{port}', 2, 0)


def test_a_host_that_waits_for_others_prints_what_to_check(monkeypatch, capsys):
  import jax

  waited = threading.Event()
  monkeypatch.setattr(flags, 'REMIND_S', 0.01)

  def initialize(*arguments, **options):
    assert (arguments, options['initialization_timeout']) == ((None, None, None), flags.JOIN_S)
    waited.wait(0.5)
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(ValueError, match='give --coordinator=HOST:PORT'):
    flags.start_jax(distributed=True)
  assert '--num_hosts the same' in capsys.readouterr().err
