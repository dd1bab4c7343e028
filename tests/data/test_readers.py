import os

import pytest

from dalle_jax.config import DataConfig
from dalle_jax.data import readers


@pytest.mark.parametrize(
  ('cores', 'workers', 'threads'),
  [(1, 0, 2), (2, 0, 2), (8, 0, 8), (15, 0, 15), (16, 1, 16), (32, 2, 16), (96, 6, 16), (256, 8, 16)],
)
def test_threads_and_processes_follow_from_the_cores(monkeypatch, cores, workers, threads):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(cores)), raising=False)
  config = DataConfig()
  assert (readers.num_workers(config), readers.num_threads(config)) == (workers, threads)


def test_given_numbers_are_used(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(64)), raising=False)
  config = DataConfig(num_threads=3, num_workers=0)
  assert (readers.num_workers(config), readers.num_threads(config)) == (0, 3)


def test_systems_without_affinity_count_their_cores(monkeypatch):
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  monkeypatch.setattr(os, 'cpu_count', lambda: 5)
  assert readers.num_cores() == 5
