"""Tests of reading torch files. The files are written here in torch's formats, with mock modules in place of torch."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from dalle_jax.importing import torch_file

PACKAGES = ('toy_model', 'torch.nn.modules')


class Storage:
  def __init__(self, array):
    self.array = np.ascontiguousarray(array).reshape(-1)


class Tensor:
  """An object that pickles as torch pickles a tensor or a parameter."""

  def __init__(self, array, storage=None, offset=0, strides=None, parameter=False):
    self.shape, self.offset, self.parameter = tuple(array.shape), offset, parameter
    self.strides = strides or tuple(s // array.itemsize for s in np.ascontiguousarray(array).strides)
    self.storage = storage or Storage(array)

  def __reduce__(self):
    utils = sys.modules['torch._utils']
    arguments = (self.storage, self.offset, self.shape, self.strides, False, collections.OrderedDict())
    if not self.parameter:
      return utils._rebuild_tensor_v2, arguments
    inner = Tensor.__new__(Tensor)
    inner.__dict__ = {**self.__dict__, 'parameter': False}
    return utils._rebuild_parameter, (inner, False, collections.OrderedDict())


@pytest.fixture
def toy(monkeypatch):
  """Mock modules with torch's names, and a module `toy_model` with a class `Layer`, for the time of the test."""

  def module(name, **members):
    mock = types.ModuleType(name)
    for key, value in members.items():
      value.__module__, value.__qualname__, value.__name__ = name, key, key
      setattr(mock, key, value)
    monkeypatch.setitem(sys.modules, name, mock)
    return mock

  storages = {name: type(name, (), {}) for name in ('FloatStorage', 'LongStorage')}
  module('torch', device=type('device', (), {'__reduce__': lambda self: (type(self), ())}), **storages)
  module('torch._utils', _rebuild_tensor_v2=lambda *_: None, _rebuild_parameter=lambda *_: None)
  module('torch.jit')
  module('torch.jit._pickle', build_intlist=lambda *_: None)
  module('__torch__')
  module('__torch__.toy_model.___torch_mangle_1', Submodule=type('Submodule', (), {}))
  return module('toy_model', Layer=type('Layer', (), {}))


class Writer(pickle.Pickler):
  def __init__(self, file, extra=(), modules=()):
    super().__init__(file, protocol=2)
    self.keys, self.extra, self.modules = {}, tuple(extra), list(modules)

  def persistent_id(self, value):
    if value in self.modules:  # the older format stores a class together with its source code
      self.modules.remove(value)  # inside that tuple, torch's pickler stores the class as usual
      return ('module', value, 'toy_model.py', 'class Layer: pass')
    if not isinstance(value, Storage):
      return None
    kind = 'FloatStorage' if value.array.dtype == np.float32 else 'LongStorage'
    key = self.keys.setdefault(id(value), (str(len(self.keys)), value))[0]
    return ('storage', getattr(sys.modules['torch'], kind), key, 'cpu', len(value.array), *self.extra)


def archive(value, compression=zipfile.ZIP_STORED):
  """The bytes of an object in the zip format of torch 1.6 and later."""
  data, out = io.BytesIO(), io.BytesIO()
  writer = Writer(data)
  writer.dump(value)
  with zipfile.ZipFile(out, 'w', compression) as file:
    file.writestr('archive/data.pkl', data.getvalue())
    for key, storage in writer.keys.values():
      file.writestr(f'archive/data/{key}', storage.array.tobytes())
  return out.getvalue()


def stream(value):
  """The bytes of an object in the format before torch 1.6."""
  out = io.BytesIO()
  for preamble in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}):
    pickle.dump(preamble, out, protocol=2)
  layers = [sys.modules['toy_model'].Layer]
  writer = Writer(out, extra=(None,), modules=layers)
  writer.dump(value)
  pickle.dump([key for key, _ in writer.keys.values()], out, protocol=2)
  for _, storage in writer.keys.values():
    out.write(struct.pack('<q', len(storage.array)) + storage.array.tobytes())
  return out.getvalue()


A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7, 8], np.int64)


def _module(toy):
  inner, outer = toy.Layer(), toy.Layer()
  inner._parameters = collections.OrderedDict(w=Tensor(A, parameter=True), b=None)
  inner._modules = collections.OrderedDict()
  outer._parameters, outer._modules = {}, collections.OrderedDict(block=inner)
  outer.device, outer.names = sys.modules['torch'].device(), {'some', 'names'}
  return outer


@pytest.mark.parametrize('form', [archive, stream])
def test_tensors_of_modules_and_state_dicts_are_read(toy, tmp_path, form):
  path = tmp_path / 'file.pkl'
  path.write_bytes(form(_module(toy)))
  tensors = torch_file.read(path, PACKAGES)
  assert set(tensors) == {'block.w'}
  np.testing.assert_array_equal(tensors['block.w'], A)
  path.write_bytes(form(collections.OrderedDict(a=Tensor(A), b=Tensor(B))))
  tensors = torch_file.read(path)
  np.testing.assert_array_equal(tensors['a'], A)
  np.testing.assert_array_equal(tensors['b'], B)
  assert tensors['b'].dtype == np.int64


def test_views_of_a_shared_storage_are_read(toy, tmp_path):
  storage = Storage(A)
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive({'t': Tensor(A.T, storage, strides=(1, 3)), 'row': Tensor(A[1], storage, offset=3)}))
  tensors = torch_file.read(path)
  np.testing.assert_array_equal(tensors['t'], A.T)
  np.testing.assert_array_equal(tensors['row'], A[1])


def _script_module(**attributes):
  """A mock TorchScript module, whose attributes are tensors and submodules side by side."""
  module = sys.modules['__torch__.toy_model.___torch_mangle_1'].Submodule()
  module.__dict__.update(attributes)
  return module


def test_tensors_of_torchscript_archives_are_read(toy, tmp_path):
  path = tmp_path / 'file.pt'
  activation = _script_module(training=False)
  block = _script_module(training=False, w=Tensor(A), act=activation, name='block')
  block.sizes = Call(sys.modules['torch.jit._pickle'].build_intlist, [3])
  path.write_bytes(archive(_script_module(training=True, scale=Tensor(B), block=block, act=activation, no=None)))
  tensors = torch_file.read(path, ('__torch__',))
  assert set(tensors) == {'scale', 'block.w'}
  np.testing.assert_array_equal(tensors['block.w'], A)
  with pytest.raises(ValueError, match=r'it names __torch__\.toy_model\.___torch_mangle_1\.Submodule'):
    torch_file.read(path)


def test_modules_with_several_references_are_read_once(toy, tmp_path):
  path = tmp_path / 'file.pt'
  module = _script_module(w=Tensor(A))
  for _ in range(60):  # 2^60 names
    module = _script_module(left=module, right=module)
  module.left.right.itself = module
  path.write_bytes(archive(module))
  assert set(torch_file.read(path, ('__torch__',))) == {'left.' * 60 + 'w'}


@pytest.mark.parametrize(
  'changes', [{'offset': 1}, {'strides': (3, 2)}, {'offset': -1}, {'strides': (3, -1)}, {'strides': (3,)}]
)
def test_views_beyond_their_storage_are_refused(toy, tmp_path, changes):
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive({'a': Tensor(A, **changes)}))
  with pytest.raises(ValueError, match=r'file\.pkl.*Nothing in it was executed'):
    torch_file.read(path)


def test_huge_views_of_a_small_storage_are_refused(toy, tmp_path):
  huge = Tensor(A)
  huge.shape, huge.strides = (10**6, 10**6), (0, 0)
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive({'a': huge}))
  with pytest.raises(ValueError, match=r'file\.pkl.*reaches beyond its data'):
    torch_file.read(path)


def test_a_memo_number_that_would_exhaust_the_memory_is_refused(tmp_path):
  path = tmp_path / 'file.pkl'
  number = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[:-1]  # without the STOP instruction
  path.write_bytes(number + pickle.LONG_BINPUT + (2**31 - 1).to_bytes(4, 'little') + pickle.STOP)
  with pytest.raises(ValueError, match='instruction 2 stores an object in the memo under the number 2147483647'):
    torch_file.read(path)


class Call:
  """An object that pickles as a call of a given function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('form', [archive, stream])
@pytest.mark.parametrize(
  'hostile',
  [
    lambda mark: Call(os.system, f'touch {mark}'),
    lambda mark: Call(eval, f'open({str(mark)!r}, "w")'),
    lambda mark: {'a': Tensor(A), 'b': [Call(open, str(mark), 'w')]},
    lambda mark: Call(getattr, Call(__import__, 'os'), 'system'),
    lambda mark: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(mark)))),
  ],
)
def test_calls_in_a_file_are_refused_and_not_executed(toy, tmp_path, form, hostile):
  path, mark = tmp_path / 'file.pkl', tmp_path / 'mark'
  path.write_bytes(form(hostile(mark)))
  with pytest.raises(ValueError, match=r'file\.pkl is refused: it names .*Nothing in it was executed'):
    torch_file.read(path, PACKAGES)
  assert not mark.exists()


def test_classes_outside_the_allowed_packages_are_refused(toy, tmp_path):
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive(_module(toy)))
  with pytest.raises(ValueError, match=r'it names toy_model\.Layer'):
    torch_file.read(path, ('toy',))


@pytest.mark.parametrize('form', [archive, stream])
def test_truncated_files_are_refused(toy, tmp_path, form):
  data, path = form({'a': Tensor(A), 'b': Tensor(B)}), tmp_path / 'file.pkl'
  for length in range(0, len(data), 7):
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match=r'file\.pkl'):
      torch_file.read(path)


@pytest.mark.parametrize('content', [b'', b'\x89PNG\r\n\x1a\n' + bytes(50), pickle.dumps({'a': 1}), pickle.dumps(3)])
def test_files_of_other_formats_are_refused(tmp_path, content):
  path = tmp_path / 'file.pkl'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'not a file that torch\.save wrote|is refused'):
    torch_file.read(path)


def test_a_missing_file_is_reported(tmp_path):
  with pytest.raises(ValueError, match=r'nowhere\.pkl cannot be read'):
    torch_file.read(tmp_path / 'nowhere.pkl')


def test_objects_other_than_modules_and_state_dicts_are_refused(toy, tmp_path):
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive({'a': Tensor(A), 'step': 3}))
  with pytest.raises(ValueError, match='neither a module nor a dict of tensors'):
    torch_file.read(path)


def test_records_that_unpack_to_more_than_the_file_are_refused(toy, tmp_path):
  path = tmp_path / 'file.pt'
  path.write_bytes(archive({'a': Tensor(np.zeros(10**6, np.float32))}, zipfile.ZIP_DEFLATED))
  with pytest.raises(ValueError, match='claims 4,000,000 bytes, so that the records would be larger than the file'):
    torch_file.read(path)


def test_a_size_in_the_directory_of_an_archive_takes_no_memory(toy, tmp_path):
  path, data = tmp_path / 'file.pt', bytearray(archive({'a': Tensor(A)}))
  entry = data.find(b'PK\x01\x02', data.find(b'PK\x01\x02') + 1)  # of data/0
  data[entry + 20 : entry + 28] = struct.pack('<II', 2**31, 2**31)
  path.write_bytes(bytes(data))
  with pytest.raises(ValueError, match=r'file\.pt is not a file'):
    torch_file.read(path)


def test_many_tensors_of_one_storage_are_refused(toy, tmp_path):
  storage = Storage(np.zeros(10_000, np.float32))
  tensors = {str(i): Tensor(storage.array, storage) for i in range(200)}
  path = tmp_path / 'file.pt'
  for form in (archive, stream):
    path.write_bytes(form(tensors))
    with pytest.raises(ValueError, match=r'its tensors have more than 4 times the .* bytes of the file'):
      torch_file.read(path)
  path.write_bytes(archive({'a': tensors['0'], 'b': tensors['1']}))  # such as tied embeddings
  assert len(torch_file.read(path)) == 2


def test_storages_larger_than_the_rest_of_a_stream_are_refused(toy, tmp_path):
  path, data = tmp_path / 'file.pkl', stream({'a': Tensor(A)})
  for size in (7, 2**40, 2**62, -1):
    path.write_bytes(data[: -8 - A.nbytes] + struct.pack('<q', size) + A.tobytes())
    with pytest.raises(ValueError, match='a storage have a wrong size'):
      torch_file.read(path)


def test_messages_repeat_little_of_a_file(toy, tmp_path):
  path = tmp_path / 'a\nb.pkl'
  for value in ({'x' * 10**6: Tensor(A)}, {'a': type('y' * 10**5, (), {})}, {5: Tensor(A)}):
    with pytest.raises(ValueError, match=r'a\\nb\.pkl') as refusal:
      path.write_bytes(archive(value) if 'a' not in value else pickle.dumps(len) * 3)
      torch_file.read(path)
    assert len(str(refusal.value)) < 600
