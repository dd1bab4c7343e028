import importlib.metadata
import importlib.util

import pytest

from dalle_jax.planning import topologies


@pytest.mark.parametrize(
  ('name', 'full', 'chips'),
  [
    ('v5p:8x8x8', 'v5p:8x8x8', 512),
    ('v5p-128', 'v5p:4x4x4', 64),  # the number in the name counts cores
    ('v5p-256', 'v5p:4x4x8', 128),
    ('v4-512', 'v4:4x8x8', 256),
    ('v5e-256', 'v5e:16x16', 256),  # the number in the name counts chips
    ('v5litepod-8', 'v5e:2x4', 8),
    ('V6E-256', 'v6e:16x16', 256),
    ('v3-8', 'v3:2x2', 4),
    ('h100:8', 'h100:8', 8),
    ('a100-40gb:4', 'a100-40gb:4', 4),
  ],
)
def test_names_are_parsed(name, full, chips):
  topology = topologies.parse(name)
  assert (topology.name, topology.num_chips) == (full, chips)
  assert topology.chip.peak_flops > 0
  assert topology.chip.memory > 0


def test_v3_has_two_devices_per_chip_and_v4_one():
  assert topologies.parse('v3:4x4').num_devices == 2 * topologies.parse('v3:4x4').num_chips
  assert topologies.parse('v4:2x2x1').num_devices == 4


def test_slices_multiply_the_number_of_chips():
  assert topologies.parse('v5e:4x4', slices=3).num_chips == 48


@pytest.mark.parametrize('name', ['v9:2x2', 'v5p:4x4', 'v5e-3', 'v5p-127', 'h100', 'h100:0', 'h100:x', 'v5e:4xx4', ''])
def test_the_error_of_an_unknown_name_lists_all_names(name):
  with pytest.raises(ValueError, match='is unknown') as error:
    topologies.parse(name)
  for known in ('v5p:SHAPE', '4x4x8', 'v5p-8192', 'v5e-256', 'h100'):
    assert known in str(error.value)


def test_the_error_of_a_missing_compiler_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"not installed; install it with: pip install 'jax\[tpu\]=="):
    topologies.compiler_version()


@pytest.mark.parametrize(('installed', 'is_good'), [('0.0.42.1', True), ('0.0.52', False), ('0.0.421', False)])
def test_a_compiler_of_the_wrong_version_is_refused(monkeypatch, installed, is_good):
  version = importlib.metadata.version
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: installed if name == 'libtpu' else version(name))
  monkeypatch.setattr(importlib.metadata, 'requires', lambda name: ['libtpu==0.0.42.*; extra == "tpu"'])
  if is_good:
    assert topologies.compiler_version() == installed
  else:
    with pytest.raises(ValueError, match=rf'libtpu {installed} is installed, but .* libtpu==0\.0\.42\.\*'):
      topologies.compiler_version()
