import jax
import pytest

from dalle_jax import hardware, sharding
from dalle_jax.training import compiler


def test_unknown_options_are_dropped_with_a_warning(caplog):
  mesh = sharding.one_device_mesh()
  options = {'xla_gone': '1', 'xla_backend_optimization_level': '2', 'xla_gone_too': '1'}
  assert compiler.supported(options, mesh) == {'xla_backend_optimization_level': '2'}
  assert [name in caplog.text for name in options] == [True, False, True]
  assert len(options) == 3  # the argument is not changed


def test_other_compiler_errors_are_raised():
  with pytest.raises(jax.errors.JaxRuntimeError):
    compiler.supported({'xla_backend_optimization_level': 'perhaps'}, sharding.one_device_mesh())


def test_nothing_is_compiled_if_there_are_no_options(monkeypatch):
  monkeypatch.setattr(jax, 'jit', None)
  assert compiler.step_options(sharding.one_device_mesh(), 24) == {}


def test_step_options_depend_on_the_device_kind(monkeypatch):
  options = {'xla_backend_optimization_level': '2'}
  monkeypatch.setattr(hardware, 'compiler_options', lambda kind, mib: options if (kind, mib) == ('cpu', 7) else {})
  assert compiler.step_options(sharding.one_device_mesh(), 7) == options
