import struct
import sys

import numpy as np
import pytest
import safetensors.numpy

from dalle_jax.importing import weights

A = np.arange(6, dtype=np.float16).reshape(2, 3)


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file({'a': A, 'scale': np.array(2.0)}, path)
  return path


def test_safetensors_files_are_read(path):
  tensors = weights.read(path)
  assert set(tensors) == {'a', 'scale'} and tensors['a'].dtype == np.float16
  np.testing.assert_array_equal(tensors['a'], A)
  assert tensors['scale'] == 2.0 and tensors['scale'].shape == ()


@pytest.mark.parametrize(
  'change',
  [
    lambda data: b'',
    lambda data: data[:-1],
    lambda data: data[:20],
    lambda data: struct.pack('<Q', 2**63) + data[8:],
    lambda data: data.replace(b'[2,3]', b'[2,4]'),
    lambda data: data.replace(b'"F16"', b'"F99"'),
    lambda data: b'PK' + data,
  ],
)
def test_damaged_safetensors_files_are_refused(path, change):
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(ValueError, match=r'a\.safetensors is not a safetensors file, or it is damaged'):
    weights.read(path)


def test_a_missing_file_and_a_missing_package_are_reported(path, monkeypatch):
  with pytest.raises(ValueError, match=r'nowhere\.safetensors cannot be read: No such file'):
    weights.read(path.with_name('nowhere.safetensors'))
  monkeypatch.setitem(sys.modules, 'safetensors', None)
  with pytest.raises(ValueError, match=r"needs the package safetensors: pip install 'dalle_jax\[clip\]'"):
    weights.read(path)


def test_parameters_are_checked_and_converted_to_float32():
  params = {'a': [np.float32([1, 2])], 'b': np.array(3.0)}
  expected = {'a': [np.zeros(2, np.float32)], 'b': np.zeros((), np.float64)}
  checked = weights.checked(params, expected, 'f.pt does not fit')
  assert checked['b'].dtype == np.float32 and checked['b'].shape == () and checked['b'] == 3
  with pytest.raises(
    ValueError, match=r"f\.pt does not fit:\n  \['a'\]\[0\]: given float32\[2\], expected float32\[3\]"
  ):
    weights.checked(params, {**expected, 'a': [np.zeros(3, np.float32)]}, 'f.pt does not fit')
  params['b'] = np.array(np.inf)
  with pytest.raises(ValueError, match=r"infinite or NaN, in \['b'\]"):
    weights.checked(params, expected, 'f.pt does not fit')
