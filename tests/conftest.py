"""Settings of the whole suite: CPU, strict JAX, and where the real data lie."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The tests compile much and compute little: without LLVM's optimisations they take half the time, as do the programs
# that they start. Flags that are set already stay: XLA_FLAGS=--xla_backend_optimization_level=3 tests what users run.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true')

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
