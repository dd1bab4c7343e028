"""Settings of the whole suite: CPU, strict JAX, the compiler's effort, and where the real data are."""

import atexit
import os
import pathlib
import re
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Idle threads of OpenBLAS spin, which takes the other worker's core. The arrays here are too small to need them.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
# Each worker and the processes that it starts share a cache of compiled programs, which is deleted at the end.
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

QUICK_XLA = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_parallel_codegen_split_count=1',
  # Halves the compile time on jax 0.10. Later versions ignore it.
  '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters',
)
TESTS = pathlib.Path(__file__).parent
# Directories, files and tests that are marked `core`: the mathematics and the contracts that the rest relies on.
CORE = (
  'compression/test_container.py',
  'compression/test_range_coder.py',
  'models/test_attention.py',
  'models/test_dvae.py',
  'models/test_likelihood.py',
  'models/test_prior.py::test_prefill_and_steps_equal_the_logits_of_the_whole_sequence',
  'models/test_prior.py::test_probabilities_of_all_streams_sum_to_one',
  'sampling',
  'test_bundle.py',
  'test_mesh.py',
  'test_sharding.py',
  'training/test_checkpoint.py',
  'training/test_checkpoint_format.py',
  'training/test_loop.py',
  'training/test_optimizer.py',
  'training/test_resume.py',
  'training/test_schedule.py',
  'training/test_state.py',
  'training/test_step.py',
)


def pytest_configure(config: pytest.Config) -> None:
  """Sets how well XLA optimizes, before anything is compiled.

  The tests compile much and compute little. QUICK_XLA divides compile times by four, also in the processes that tests
  start. `-m core` keeps the normal optimizations, because it tests what users run. XLA_FLAGS, if set, takes precedence.
  """
  if not re.match(r'core\b', config.option.markexpr):
    os.environ.setdefault('XLA_FLAGS', ' '.join(QUICK_XLA))


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  missing = [name for name in CORE if not _exists(*name.partition('::')[::2])]
  if missing:
    raise pytest.UsageError(f'CORE in tests/conftest.py names tests that do not exist: {", ".join(missing)}')
  for item in items:
    node = item.nodeid.removeprefix(f'{TESTS.name}/')
    is_core = any(re.match(rf'{re.escape(name)}($|[/:[])', node) for name in CORE)
    if is_core and item.get_closest_marker('slow') is None:
      item.add_marker('core')


def _exists(path: str, test: str) -> bool:
  """Whether there is a file or a directory below `tests`, and a test of that name in it unless `test` is ''."""
  return (TESTS / path).exists() and (not test or f'def {test}(' in (TESTS / path).read_text(encoding='utf-8'))


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """Real pictures and texts, not part of the project; tests that need them skip where they are absent."""
  default = TESTS.parents[1] / 'shared' / 'data'
  path = pathlib.Path(os.environ.get('DALLE_JAX_SHARED_DATA', default))
  if not path.is_dir():
    pytest.skip(f'no real data at {path}; set DALLE_JAX_SHARED_DATA to their directory')
  return path
