"""Every program meets errors of the outside world: one message and status 2; mistakes of ours show a traceback."""

import ast
import contextlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import situations
from situations import BUGS, OUTSIDE, outcome, raising

from dalle_jax import boundary, flags

ROOT = pathlib.Path(__file__).parents[1]
# Each program, with the flags that it requires.
PROGRAMS = {
  'dalle_jax.train': ['--config=configs/quickstart.py:tiny', '--workdir=w'],
  'dalle_jax.generate': ['--model=m'],
  'dalle_jax.evaluate': ['--model=m'],
  'dalle_jax.compress': ['info', 'a'],
  'tools/attention.py': ['--model=m'],
  'tools/benchmark.py': ['draw'],
  'tools/check_data.py': ['--path=a', '--out=b'],
  'tools/convert_tfds.py': ['--path=a', '--out=b'],
  'tools/embeddings.py': ['--model=m'],
  'tools/encode_images.py': ['--config=configs/quickstart.py:tiny', '--out=b'],
  'tools/fit.py': [],
  'tools/import_openai_clip.py': ['--weights=a', '--vocab=b', '--out=c'],
  'tools/import_openai_dvae.py': ['--encoder=a', '--decoder=b', '--out=c'],
  'tools/plot_compression.py': [],
  'tools/plot_context.py': [],
  'tools/prepare_data.py': ['--path=a', '--out=b'],
  'tools/scaling.py': ['fit'],
  'tools/soak.py': ['table', '--out=a'],
  'tools/tune_sampling.py': ['grid', '--model=m', '--out=a.json'],
}
OTHER_TOOLS = sorted({f'tools/{path.name}' for path in (ROOT / 'tools').glob('*.py')} - set(PROGRAMS))
DOORS = [ROOT / 'dalle_jax' / f'{name}.py' for name in ('train', 'generate', 'evaluate', 'compress')]


@pytest.fixture
def plain(monkeypatch):
  """The command line of a program without flags."""
  monkeypatch.setattr(sys, 'argv', ['program'])


def check_message(situation, status, text):
  words = OUTSIDE[situation][1]
  assert status == 2, (situation, status, text)
  assert text.startswith('error: ') and text.count('error: ') == 1 + (situation == 'control characters'), text
  assert 'Traceback' not in text and len(text) < boundary.LONGEST + 100, situation
  assert all(character.isprintable() or character == '\n' for character in text), situation
  for word in words:
    assert word in text, (situation, text)


@pytest.mark.parametrize('situation', OUTSIDE)
def test_what_the_outside_world_does_ends_in_one_message(situation, plain):
  check_message(situation, *outcome(flags.run, raising(OUTSIDE[situation][0])))


@pytest.mark.parametrize('name', BUGS)
def test_mistakes_of_ours_keep_their_traceback(name, plain):
  assert outcome(flags.run, raising(BUGS[name])) == (type(BUGS[name]).__name__, '')


def test_verbosity_shows_the_traceback_and_the_message(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['program', '--verbosity=1'])
  try:
    status, text = outcome(flags.run, raising(OUTSIDE['wrapped cause'][0]))
  finally:
    monkeypatch.setattr(sys, 'argv', ['program', '--verbosity=-1'])
    outcome(flags.run, lambda argv: 0)  # back to the level of other tests
  assert status == 2 and 'Traceback' in text and 'save failed' in text
  assert text.splitlines()[-1].startswith('error: ckpt (')


@pytest.mark.parametrize('arguments', [['--verbosity=1'], ['--verbosity', '1'], ['-v', '1']])
def test_verbosity_is_known_before_flags_are_parsed(arguments, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['program', *arguments, '--unknown'])
  assert flags._is_verbose()
  monkeypatch.setattr(sys, 'argv', ['program', '--prompt=--verbosity=1'])
  assert not flags._is_verbose()


def test_a_nameless_error_of_a_full_disk_names_what_the_flags_name(monkeypatch, plain):
  monkeypatch.setattr(boundary.flags, 'FLAGS', boundary.flags.FlagValues())
  boundary.flags.DEFINE_string('out', 'samples', '', flag_values=boundary.flags.FLAGS)
  boundary.flags.FLAGS.mark_as_parsed()
  message = boundary.explain(situations.os_error('ENOSPC'))
  assert message.startswith('--out=samples (') and 'MB free): No space left on device. Free some space' in message


LOGGING = """
from absl import logging
from dalle_jax import flags

class Closed:
  def __del__(self):
    raise RuntimeError('Event loop is closed')

def main(argv):
  try:
    raise OSError('in a thread')
  except OSError:
    logging.exception('save failed')
  Closed()
  raise ValueError('once')

flags.run(main)
"""


@pytest.mark.parametrize('verbosity', [-1, 1])
def test_what_libraries_log_of_their_threads_has_tracebacks_only_if_asked_for(verbosity):
  command = [sys.executable, '-c', LOGGING, f'--verbosity={verbosity}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=_environment())
  assert done.returncode == 2 and 'save failed' in done.stderr and 'error: once' in done.stderr
  for text in ('Traceback', 'in a thread', 'Event loop is closed'):
    assert (text in done.stderr) == (verbosity == 1)


def test_a_full_standard_output_is_not_blamed_on_what_the_flags_name(monkeypatch):
  monkeypatch.setattr(boundary, '_places', lambda: '--out=samples')
  with open('/dev/full', 'w') as full:
    monkeypatch.setattr(sys, 'stdout', full)
    full.write('a')
    message = boundary.explain(situations.os_error('ENOSPC'))
    monkeypatch.undo()
    with contextlib.suppress(OSError):
      full.close()
  assert message.startswith('The standard output: No space left')


def test_further_lines_of_a_message_are_indented_and_long_lines_are_cut():
  assert boundary.printable('a\nerror: b\n  c\r') == 'a\n  error: b\n  c'
  cut = boundary.printable('x' * 1000 + '\ny')
  assert cut == 'x' * 480 + ' [200 characters left out] ' + 'x' * 320 + '\n  y'


def test_programs_are_listed_and_begin_at_the_boundary_only():
  assert not OTHER_TOOLS or all(_goes_through_the_boundary(ROOT / name) for name in OTHER_TOOLS)
  for path in [*DOORS, *(ROOT / 'tools').glob('*.py')]:
    assert _goes_through_the_boundary(path), path


def _goes_through_the_boundary(path):
  """Whether the last statement of a program is `if __name__ == '__main__': doors.run(...)`, and nothing else exits."""
  tree = ast.parse(path.read_text(encoding='utf-8'))
  last = tree.body[-1]
  calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
  return (
    isinstance(last, ast.If)
    and len(last.body) == 1
    and ast.unparse(last.body[0]).startswith('doors.run(')
    and not {'sys.exit', 'exit', 'os._exit', 'app.run'} & set(calls)
  )


@pytest.mark.parametrize('program', [*PROGRAMS, *OTHER_TOOLS])
def test_every_program_meets_every_situation(program):
  command = [sys.executable, str(pathlib.Path(situations.__file__)), program, *PROGRAMS.get(program, [])]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=_environment())
  assert done.returncode == 0, done.stderr
  outcomes = json.loads(done.stdout)
  for situation in OUTSIDE:
    check_message(situation, *outcomes.pop(situation))
  status, text = outcomes.pop('unknown flag')
  assert status == 2 and text.startswith('error: ') and 'no_such_flag' in text
  assert outcomes == {name: [type(error).__name__, ''] for name, error in BUGS.items()}


def _environment(**changes):
  """The environment without the variables whose change is None."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), **changes}
  return {name: value for name, value in environment.items() if value is not None}


CONFIGS = {
  'syntax': ('def get_config(:\n  return 1', ['line 1', 'SyntaxError']),
  'raises': ('def get_config():\n  return 1 / 0', ['line 2', 'ZeroDivisionError: division by zero']),
  'raises when imported': ('\nimport no_such_package', ['line 2', "No module named 'no_such_package'"]),
  'exits': ('import sys\nsys.exit(3)', ['line 2', 'SystemExit: 3']),
  'missing file': ("def get_config():\n  open('nowhere')", ['line 2', 'FileNotFoundError']),
  'no get_config': ('x = 1', ['has no function get_config()']),
  'returns a number': ('def get_config():\n  return 5', ['get_config() returns int']),
  'takes arguments': ('def get_config(a, b):\n  return a', ['missing 2 required positional arguments']),
  'a mistake of its author': (
    'def get_config():\n  raise ValueError("config.a is 5; use 6.")',
    ['config.a is 5; use 6.'],
  ),
}


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('override', [[], ['--config.seed=1']], ids=['plain', 'override'])
def test_a_configuration_file_that_fails_is_named_with_the_line(name, override, tmp_path, monkeypatch):
  from ml_collections import config_flags

  (tmp_path / 'mine.py').write_text(CONFIGS[name][0])
  monkeypatch.setattr(flags.flags, 'FLAGS', flags.flags.FlagValues())
  monkeypatch.setattr(sys, 'argv', ['program', f'--config={tmp_path / "mine.py"}', *override])
  config_flags.DEFINE_config_file('config', None, '', flag_values=flags.flags.FLAGS, sys_argv=sys.argv)
  with pytest.raises(ValueError) as error:
    flags._parse_flags(sys.argv)
  message = str(error.value)
  for word in [*CONFIGS[name][1], *([] if name.startswith('a mistake') else [f'--config={tmp_path}'])]:
    assert word in message, message
  assert 'Traceback' not in message


@pytest.mark.parametrize('number', ['nan', 'inf', '-inf', '1e400'])
def test_numbers_that_are_not_finite_are_refused_for_every_flag(number, monkeypatch):
  for given, message in (
    (f'--share={number}', r'--share'),
    (f'--count={2**70}', r'--count is 1180591620717411303424; it must be below 2\^63'),
  ):
    holder = flags.flags.FlagValues()
    monkeypatch.setattr(flags.flags, 'FLAGS', holder)
    flags.flags.DEFINE_float('share', 0.5, '', lower_bound=0.0, upper_bound=1.0, flag_values=holder)
    flags.flags.DEFINE_integer('count', 1, '', flag_values=holder)
    with pytest.raises(ValueError, match=message):
      flags._parse_flags(['program', given])


def run_program(name, *arguments, stdout=subprocess.PIPE, **environment):
  command = [sys.executable, *(['-m', name] if name.startswith('dalle_jax.') else [name]), *arguments]
  return subprocess.run(
    command, cwd=ROOT, env=_environment(**environment), stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=300,
    check=False,
  )  # fmt: skip


def test_a_reader_that_stops_reading_ends_a_program_quietly():
  reader, writer = os.pipe()
  os.close(reader)
  try:
    program = 'from dalle_jax import flags; flags.run(lambda argv: print("a" * 100_000))'
    done = run_program('-c', program, stdout=writer)
  finally:
    os.close(writer)
  assert (done.returncode, done.stderr) == (boundary.EXIT_CLOSED_PIPE, '')


def _raw_errors(path):
  """Lines that put an error of the operating system into a message as it is, such as '[Errno 13] Permission denied'."""
  for handler in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
      if any(getattr(name, 'id', '') == 'OSError' for name in ast.walk(handler.type)):
        for value in ast.walk(handler):
          if isinstance(value, ast.FormattedValue) and getattr(value.value, 'id', '') == handler.name:
            yield f'{path.name}:{value.lineno}'


def test_messages_hold_no_error_numbers():
  files = [*(ROOT / 'dalle_jax').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]
  assert [line for path in files for line in _raw_errors(path)] == []


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='there is no /dev/full')
def test_a_full_standard_output_is_reported():
  with open('/dev/full', 'w') as full:
    done = run_program('dalle_jax.generate', '--help', stdout=full)
  assert done.returncode == 2 and done.stderr.startswith('error: ') and 'standard output' in done.stderr
  assert len(done.stderr.splitlines()) == 1 and 'No space left on device' in done.stderr


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='there is no /dev/full')
@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_full_standard_output_is_named_although_flags_name_other_outputs(unbuffered):
  program = (
    'from absl import flags as absl_flags; from dalle_jax import flags; absl_flags.DEFINE_string("out", "samples", "");'
    'flags.run(lambda argv: print("a" * 10_000, flush=True))'
  )
  command = [sys.executable, '-c', program, '--out=here']
  environment = _environment() | {'PYTHONUNBUFFERED': unbuffered}
  with open('/dev/full', 'w') as full:
    done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=-1, text=True, check=False, env=environment)
  message = 'The standard output: No space left on device. Free some space, or send it to a file on another disk.'
  assert (done.returncode, done.stderr.strip()) == (2, f'error: {message}')


def test_closed_streams_are_refused_or_replaced():
  program = f'{sys.executable} -m dalle_jax.compress info'
  done = subprocess.run(f'{program} >&-', shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and 'standard output is closed' in done.stderr
  done = subprocess.run(f'{program} 2>&- <&-', shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout, done.stderr) == (2, '', '')


def test_log_lines_are_printable_and_short(plain):
  from absl import logging

  def warn(argv):
    logging.warning('%s is left out', 'a\x1b[31m' + 'x' * 5000)
    return 0

  status, _ = outcome(flags.run, warn)
  handler = logging.get_absl_handler().python_handler
  record = logging.logging.LogRecord('a', 30, 'a', 1, '%s is left out', ('a\x1b[31m' + 'x' * 5000,), None)
  assert status == 0 and handler.filter(record)
  assert record.getMessage().startswith(r'a\x1b[31mxx') and record.getMessage().endswith('x is left out')
  assert len(record.getMessage()) < 900


# Real programs, each with arguments that reach the situation; MODEL is a small model directory.
JAX_PROGRAMS = {
  'dalle_jax.train': ['--config=configs/quickstart.py:tiny', '--workdir=OUT'],
  'dalle_jax.generate': ['--model=MODEL', '--prompt=a red circle', '--out=OUT'],
  'dalle_jax.evaluate': ['--model=MODEL', '--out=OUT.json'],
  'dalle_jax.compress': ['encode', '--model=MODEL', 'docs/images/report.png', 'OUT.djxc', '--resize', '--lossy'],
  'tools/attention.py': ['--model=MODEL', '--prompt=a red circle', '--out=OUT.html'],
  'tools/benchmark.py': ['dvae', '--config=configs/quickstart.py:tiny'],
  'tools/embeddings.py': ['--model=MODEL', '--near=a'],
  'tools/tune_sampling.py': ['grid', '--model=MODEL', '--out=OUT.json'],
}
MODEL = 'tests/golden/bundles/1'


def _real(name, out, **options):
  arguments = [word.replace('MODEL', MODEL).replace('OUT', str(out)) for word in JAX_PROGRAMS[name]]
  return run_program(name, *arguments, **options)


def _check_refused(done, *words):
  assert done.returncode == 2, done.stderr
  errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1 and 'Traceback' not in done.stderr
  for word in words:
    assert word in errors[0], errors[0]


def test_a_missing_accelerator_is_refused(tmp_path):
  _check_refused(_real('dalle_jax.generate', tmp_path / 'a', JAX_PLATFORMS='nonsense'), 'JAX_PLATFORMS=nonsense: ')
  assert not (tmp_path / 'a').exists()


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['cuda', 'nonsense', 'tpu'])
@pytest.mark.parametrize('name', JAX_PROGRAMS)
def test_every_program_refuses_a_missing_accelerator(name, platform, tmp_path):
  import jax

  if platform == jax.default_backend():
    pytest.skip(f'there is a {platform} here')
  _check_refused(_real(name, tmp_path / 'a', JAX_PLATFORMS=platform), f'JAX_PLATFORMS={platform}: ', 'jax[cuda13]')


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name, words in JAX_PROGRAMS.items() if any('OUT' in word for word in words)])
@pytest.mark.parametrize('place', ['a file', 'a circle of links', 'proc', 'file size'])
def test_every_program_refuses_an_output_that_cannot_be_written(name, place, tmp_path):
  import resource

  out = {'a file': tmp_path / 'file' / 'a', 'a circle of links': tmp_path / 'link' / 'a'}.get(place, tmp_path / 'a')
  (tmp_path / 'file').write_text('')
  (tmp_path / 'link').symlink_to('link')
  if place == 'proc':
    out = pathlib.Path('/proc/nothing')
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    if place == 'file size':
      resource.setrlimit(resource.RLIMIT_FSIZE, (50, limit[1]))
    done = _real(name, out)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  _check_refused(done, tmp_path.name if place != 'proc' else '/proc/nothing')


@pytest.mark.slow
@pytest.mark.parametrize('home', [None, '/dev/null', '/proc', '/no/such/directory'])
def test_images_are_drawn_without_a_home_directory(home, tmp_path):
  done = _real('dalle_jax.generate', tmp_path, HOME=home, JAX_COMPILATION_CACHE_DIR=None, XDG_CACHE_HOME=None)
  assert done.returncode == 0, done.stderr
  assert len(list(tmp_path.glob('000_a_red_circle_seed0_*.png'))) == 8


@pytest.mark.slow
@pytest.mark.parametrize('name', ['dalle_jax.train', 'dalle_jax.generate', 'dalle_jax.compress', 'tools/attention.py'])
def test_64_bit_types_change_nothing(name, tmp_path):
  for x64 in '01':
    (tmp_path / x64).mkdir()
    done = _real(name, tmp_path / x64 / 'a', JAX_ENABLE_X64=x64)
    assert done.returncode == 0, done.stderr
    assert ('32-bit types' in done.stderr) == (x64 == '1')
  suffixes = ('.png', '.html', '.djxc') if 'train' not in name else ('.model', '.png')
  contents = [
    {path.name: path.read_bytes() for path in (tmp_path / x64).rglob('*') if path.suffix in suffixes} for x64 in '01'
  ]
  assert contents[0] == contents[1] and contents[0]
  if 'train' in name:
    infos = [json.loads((tmp_path / x64 / 'a' / 'model' / 'bundle.json').read_text())['params'] for x64 in '01']
    assert infos[0] == infos[1]
    states = list((tmp_path / '1').glob('a/*/checkpoints/*/state'))
    assert states and set().union(*map(_dtypes, states)) == {'float32', 'int32'}
    assert _dtypes(tmp_path / '1' / 'a' / 'model' / 'params') == {'float32'}


def _dtypes(path):
  """The dtypes of stored arrays."""
  import jax
  import orbax.checkpoint as ocp

  metadata = ocp.StandardCheckpointHandler().metadata(path)
  return {str(leaf.dtype) for leaf in jax.tree.leaves(metadata.tree)}
