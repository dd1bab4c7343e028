import jax
import pytest

from dalle_jax import hardware, sharding
from dalle_jax.training import compiler


def test_options_that_the_compiler_does_not_know_are_left_out_and_told(caplog):
  mesh = sharding.one_device_mesh()
  options = {'xla_gone': '1', 'xla_backend_optimization_level': '2', 'xla_gone_too': '1'}
  assert compiler.supported(options, mesh) == {'xla_backend_optimization_level': '2'}
  assert [name in caplog.text for name in options] == [True, False, True]
  assert len(options) == 3  # the caller's are not changed


def test_other_refusals_are_not_swallowed():
  with pytest.raises(jax.errors.JaxRuntimeError):
    compiler.supported({'xla_backend_optimization_level': 'perhaps'}, sharding.one_device_mesh())


def test_nothing_is_compiled_where_there_are_no_options(monkeypatch):
  monkeypatch.setattr(jax, 'jit', None)
  assert compiler.step_options(sharding.one_device_mesh(), 24) == {}


def test_steps_take_the_options_of_their_devices(monkeypatch):
  asked = {'xla_backend_optimization_level': '2'}
  monkeypatch.setattr(hardware, 'compiler_options', lambda kind, mib: asked if (kind, mib) == ('cpu', 7) else {})
  assert compiler.step_options(sharding.one_device_mesh(), 7) == asked
