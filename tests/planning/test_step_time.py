"""Measured steps."""

import itertools

import pytest

from dalle_jax.config import Config, MeshConfig
from dalle_jax.planning import compile as compiling
from dalle_jax.planning import step_time
from dalle_jax.sharding import make_mesh

CONFIG = Config.from_dict({
  'task': 'sequence', 'data': {'source': 'text'}, 'tokenizer': {'kind': 'bytes'},
  'model': {'kind': 'rnn', 'num_layers': 1, 'embed_dim': 8, 'hidden_size': 8, 'length': 8},
  'sequence_training': {'batch_size': 2},
})  # fmt: skip


def test_the_median_of_some_steps_after_the_first_is_measured():
  # The clock is read before and after each step: the first takes 100 s, then 1, 9, 2, 3 and 8 s.
  readings = iter(list(itertools.accumulate([0, 100, 0, 1, 0, 9, 0, 2, 0, 3, 0, 8])))
  mesh = make_mesh(MeshConfig())
  measured = step_time.measure(CONFIG, 'sequence', mesh, None, lambda: next(readings))
  assert measured.seconds == 3
  assert measured.needed > 1_000
  assert step_time.measure(CONFIG, 'sequence', mesh, measured.needed - 1).seconds is None


def test_a_refusal_of_the_compiler_is_no_error(monkeypatch):
  def refuse(program, mesh):
    raise compiling.OutOfMemoryError('too large', 10**12, 10**9)

  monkeypatch.setattr(step_time, 'compile_program', refuse)
  assert step_time.measure(CONFIG, 'sequence', make_mesh(MeshConfig()), 10**9) == (None, 10**12)


def test_other_errors_of_the_devices_are_errors(monkeypatch):
  import jax

  def fail(*arguments):
    raise jax.errors.JaxRuntimeError('INTERNAL: broken')

  monkeypatch.setattr(step_time, '_times', fail)
  with pytest.raises(jax.errors.JaxRuntimeError, match='broken'):
    step_time.measure(CONFIG, 'sequence', make_mesh(MeshConfig()), None)
