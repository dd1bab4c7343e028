"""How many threads and processes read data: as the configuration says, or chosen from the cores of the machine.

The examples and their order do not depend on these numbers.
"""

import os

from dalle_jax.config.data import DataConfig

_CORES_PER_WORKER = 16  # beyond this, threads of one process wait for Python's global lock
_MOST_WORKERS = 8
_THREADS = 2, 16  # a second thread reads while the first decodes, even on one core


def num_cores() -> int:
  """The cores that this process may use."""
  affinity = getattr(os, 'sched_getaffinity', None)  # Linux only
  return len(affinity(0)) if affinity else os.cpu_count() or 1


def num_workers(config: DataConfig) -> int:
  """Reading processes; 0: the main process reads in threads."""
  if config.num_workers >= 0:
    return config.num_workers
  return min(num_cores() // _CORES_PER_WORKER, _MOST_WORKERS)


def num_threads(config: DataConfig) -> int:
  """Reading threads in each process that reads."""
  return config.num_threads or min(max(num_cores() // max(num_workers(config), 1), _THREADS[0]), _THREADS[1])
