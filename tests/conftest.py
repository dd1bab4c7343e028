"""Settings of the whole suite: CPU, strict JAX, the compiler's effort, and where the real data are."""

import atexit
import os
import pathlib
import re
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compiled programs are kept for one worker and the programs that it starts, not from run to run.
if 'DALLE_JAX_TEST_CACHE' not in os.environ:
  os.environ['DALLE_JAX_TEST_CACHE'] = tempfile.mkdtemp(prefix='dalle_jax_programs_')
  atexit.register(shutil.rmtree, os.environ['DALLE_JAX_TEST_CACHE'], ignore_errors=True)
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.path.join(
  os.environ['DALLE_JAX_TEST_CACHE'], os.environ.get('PYTEST_XDIST_WORKER', 'alone')
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

TESTS = pathlib.Path(__file__).parent
# Files and directories whose tests are marked `core`: the mathematics and the contracts that everything else rests on.
CORE = (
  'compression/test_range_coder.py',
  'models/test_attention.py',
)


def pytest_configure(config: pytest.Config) -> None:
  """Sets how well XLA optimizes, before anything is compiled.

  The tests compile much and compute little: without LLVM's optimizations they, and the programs that they start, take
  half the time. `-m core` keeps the normal optimizations, so that it tests what users run. XLA_FLAGS has precedence.
  """
  if not re.match(r'core\b', config.option.markexpr):
    quick = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
    os.environ.setdefault('XLA_FLAGS', quick)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  core = [TESTS / name for name in CORE]
  missing = [str(path) for path in core if not path.exists()]
  if missing:
    raise pytest.UsageError(f'CORE in tests/conftest.py names files that do not exist: {missing}')
  for item in items:
    is_core = any(path == item.path or path in item.path.parents for path in core)
    if is_core and item.get_closest_marker('slow') is None:
      item.add_marker('core')


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """Real pictures and texts, not part of the project; tests that need them skip where they are absent."""
  default = TESTS.parents[1] / 'shared' / 'data'
  path = pathlib.Path(os.environ.get('DALLE_JAX_SHARED_DATA', default))
  if not path.is_dir():
    pytest.skip(f'no real data at {path}; set DALLE_JAX_SHARED_DATA to their directory')
  return path
