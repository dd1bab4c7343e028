"""Settings of the whole suite: CPU, strict JAX, and where the real data lie."""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The tests compile much and compute little: without LLVM's optimisations they take half the time, as do the programs
# that they start. Flags that are set already stay: XLA_FLAGS=--xla_backend_optimization_level=3 tests what users run.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true')
# Programs are kept for the tests of one worker and what they start, as many compile the same; not from run to run.
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


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """Real pictures and texts, not part of the project; tests that need them skip where they are absent."""
  default = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
  path = pathlib.Path(os.environ.get('DALLE_JAX_SHARED_DATA', default))
  if not path.is_dir():
    pytest.skip(f'no real data at {path}; set DALLE_JAX_SHARED_DATA to their directory')
  return path
