"""Files are written here as torch writes them, with stand-ins under torch's names, because torch is not needed."""

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
  """Pickled as torch pickles a tensor, or a parameter."""

  def __init__(self, array, storage=None, offset=0, strides=None, parameter=False):
    self.shape, self.offset, self.parameter = tuple(array.shape), offset, parameter
    self.strides = strides or tuple(s // array.itemsize for s in np.ascontiguousarray(array).strides)
    self.storage = storage or Storage(array)

  def __reduce__(self):
    utils = sys.modules['torch._utils']
    parts = (self.storage, self.offset, self.shape, self.strides, False, collections.OrderedDict())
    if not self.parameter:
      return utils._rebuild_tensor_v2, parts
    inner = Tensor.__new__(Tensor)
    inner.__dict__ = {**self.__dict__, 'parameter': False}
    return utils._rebuild_parameter, (inner, False, collections.OrderedDict())


@pytest.fixture
def toy(monkeypatch):
  """Modules by torch's names, and a class Layer of a model; gone after the test."""

  def module(name, **members):
    made = types.ModuleType(name)
    for key, value in members.items():
      value.__module__, value.__qualname__, value.__name__ = name, key, key
      setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made

  storages = {name: type(name, (), {}) for name in ('FloatStorage', 'LongStorage')}
  module('torch', device=type('device', (), {'__reduce__': lambda self: (type(self), ())}), **storages)
  module('torch._utils', _rebuild_tensor_v2=lambda *_: None, _rebuild_parameter=lambda *_: None)
  module('torch.jit')
  module('torch.jit._pickle', build_intlist=lambda *_: None)
  module('__torch__')
  module('__torch__.toy_model.___torch_mangle_1', Part=type('Part', (), {}))
  return module('toy_model', Layer=type('Layer', (), {}))


class Writer(pickle.Pickler):
  def __init__(self, file, extra=(), modules=()):
    super().__init__(file, protocol=2)
    self.keys, self.extra, self.modules = {}, tuple(extra), list(modules)

  def persistent_id(self, value):
    if value in self.modules:  # the older format keeps a class beside its source code
      self.modules.remove(value)  # torch's own pickler does not come back for the class inside
      return ('module', value, 'toy_model.py', 'class Layer: pass')
    if not isinstance(value, Storage):
      return None
    kind = 'FloatStorage' if value.array.dtype == np.float32 else 'LongStorage'
    key = self.keys.setdefault(id(value), (str(len(self.keys)), value))[0]
    return ('storage', getattr(sys.modules['torch'], kind), key, 'cpu', len(value.array), *self.extra)


def archive(value):
  data, out = io.BytesIO(), io.BytesIO()
  writer = Writer(data)
  writer.dump(value)
  with zipfile.ZipFile(out, 'w') as file:
    file.writestr('archive/data.pkl', data.getvalue())
    for key, storage in writer.keys.values():
      file.writestr(f'archive/data/{key}', storage.array.tobytes())
  return out.getvalue()


def stream(value):
  out = io.BytesIO()
  for part in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}):
    pickle.dump(part, out, protocol=2)
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
def test_modules_and_state_dicts_give_their_tensors(toy, tmp_path, form):
  path = tmp_path / 'file.pkl'
  path.write_bytes(form(_module(toy)))
  found = torch_file.read(path, PACKAGES)
  assert set(found) == {'block.w'}
  np.testing.assert_array_equal(found['block.w'], A)
  path.write_bytes(form(collections.OrderedDict(a=Tensor(A), b=Tensor(B))))
  found = torch_file.read(path)
  np.testing.assert_array_equal(found['a'], A)
  np.testing.assert_array_equal(found['b'], B)
  assert found['b'].dtype == np.int64


def test_views_share_a_storage(toy, tmp_path):
  storage = Storage(A)
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive({'t': Tensor(A.T, storage, strides=(1, 3)), 'row': Tensor(A[1], storage, offset=3)}))
  found = torch_file.read(path)
  np.testing.assert_array_equal(found['t'], A.T)
  np.testing.assert_array_equal(found['row'], A[1])


def _script_part(**attributes):
  """An object of a class of TorchScript, which keeps tensors and parts side by side."""
  part = sys.modules['__torch__.toy_model.___torch_mangle_1'].Part()
  part.__dict__.update(attributes)
  return part


def test_archives_of_torchscript_give_their_tensors(toy, tmp_path):
  path = tmp_path / 'file.pt'
  activation = _script_part(training=False)
  block = _script_part(training=False, w=Tensor(A), act=activation, name='block')
  block.sizes = Call(sys.modules['torch.jit._pickle'].build_intlist, [3])
  path.write_bytes(archive(_script_part(training=True, scale=Tensor(B), block=block, act=activation, no=None)))
  found = torch_file.read(path, ('__torch__',))
  assert set(found) == {'scale', 'block.w'}
  np.testing.assert_array_equal(found['block.w'], A)
  with pytest.raises(ValueError, match=r'it names __torch__\.toy_model\.___torch_mangle_1\.Part'):
    torch_file.read(path)


def test_parts_within_parts_over_and_over_are_read_once(toy, tmp_path):
  path = tmp_path / 'file.pt'
  part = _script_part(w=Tensor(A))
  for _ in range(60):  # 2^60 names
    part = _script_part(left=part, right=part)
  part.left.right.itself = part
  path.write_bytes(archive(part))
  assert set(torch_file.read(path, ('__torch__',))) == {'left.' * 60 + 'w'}


@pytest.mark.parametrize(
  'changes', [{'offset': 1}, {'strides': (3, 2)}, {'offset': -1}, {'strides': (3, -1)}, {'strides': (3,)}]
)
def test_views_that_leave_their_storage_are_refused(toy, tmp_path, changes):
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive({'a': Tensor(A, **changes)}))
  with pytest.raises(ValueError, match=r'file\.pkl.*Nothing in it was executed'):
    torch_file.read(path)


def test_huge_views_of_a_few_numbers_are_refused(toy, tmp_path):
  huge = Tensor(A)
  huge.shape, huge.strides = (10**6, 10**6), (0, 0)
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive({'a': huge}))
  with pytest.raises(ValueError, match=r'file\.pkl.*reaches beyond its data'):
    torch_file.read(path)


def test_a_table_of_remembered_objects_that_takes_all_memory_is_refused(tmp_path):
  path = tmp_path / 'file.pkl'
  number = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[:-1]  # without the end
  path.write_bytes(number + pickle.LONG_BINPUT + (2**31 - 1).to_bytes(4, 'little') + pickle.STOP)
  with pytest.raises(ValueError, match='object 2147483647 remembered by instruction 2'):
    torch_file.read(path)


class Call:
  """Pickled as a call of any function."""

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
def test_nothing_that_a_file_says_is_executed(toy, tmp_path, form, hostile):
  path, mark = tmp_path / 'file.pkl', tmp_path / 'mark'
  path.write_bytes(form(hostile(mark)))
  with pytest.raises(ValueError, match=r'file\.pkl is refused: it names .*Nothing in it was executed'):
    torch_file.read(path, PACKAGES)
  assert not mark.exists()


def test_classes_of_models_that_the_caller_does_not_name_are_refused(toy, tmp_path):
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive(_module(toy)))
  with pytest.raises(ValueError, match=r'it names toy_model\.Layer'):
    torch_file.read(path, ('toy',))


@pytest.mark.parametrize('form', [archive, stream])
def test_damaged_files_are_refused(toy, tmp_path, form):
  whole, path = form({'a': Tensor(A), 'b': Tensor(B)}), tmp_path / 'file.pkl'
  for length in range(0, len(whole), 7):
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r'file\.pkl'):
      torch_file.read(path)


@pytest.mark.parametrize('content', [b'', b'\x89PNG\r\n\x1a\n' + bytes(50), pickle.dumps({'a': 1}), pickle.dumps(3)])
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / 'file.pkl'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'not a file that torch\.save wrote|is refused'):
    torch_file.read(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'nowhere\.pkl cannot be read'):
    torch_file.read(tmp_path / 'nowhere.pkl')


def test_what_is_neither_module_nor_tensors_is_refused(toy, tmp_path):
  path = tmp_path / 'file.pkl'
  path.write_bytes(archive({'a': Tensor(A), 'step': 3}))
  with pytest.raises(ValueError, match='neither a module nor a dict of tensors'):
    torch_file.read(path)
