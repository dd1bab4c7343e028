"""Tensors out of files that torch.save wrote, without torch and without running anything that the files say.

Such a file is a pickle with tensors beside it, and a pickle is a program: it may name any function and call it. The
reader here looks every name up in a closed table. Names of tensors' parts and of plain containers have an entry.
Classes of modules (below the packages that the caller names) become inert records, which keep their attributes and do
nothing. Every other name is refused, before anything is called.

Both formats of torch are read: the archive of version 1.6 and later, and the stream of pickles before it; and the
archives of TorchScript, whose classes are below the package `__torch__` and whose programs are not looked at.
"""

import collections
import io
import math
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older format
_DTYPES = {
  'FloatStorage': np.dtype('<f4'), 'HalfStorage': np.dtype('<f2'), 'DoubleStorage': np.dtype('<f8'),
  'LongStorage': np.dtype('<i8'), 'IntStorage': np.dtype('<i4'), 'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'), 'ByteStorage': np.dtype('u1'), 'BoolStorage': np.dtype('?'),
}  # fmt: skip
# How TorchScript says of what type a list is.
_LISTS = ('build_intlist', 'build_doublelist', 'build_boollist', 'build_tensorlist', 'restore_type_tag')
# What damaged or hostile files make the readers raise.
_ERRORS = (
  pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError,
  UnicodeDecodeError, ImportError, MemoryError, RecursionError, struct.error, zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip


class Record:
  """Stands in for an object of a class that is not known: keeps the attributes it is given."""

  def __init__(self, *args: Any) -> None:
    self.attributes: dict[str, Any] = {}

  def __setstate__(self, state: Any) -> None:
    self.attributes = dict(state) if isinstance(state, dict) else {}


class _Storage:
  """Numbers in a row, which several tensors may share; filled when the file has been read that far."""

  def __init__(self, dtype: np.dtype, size: int) -> None:
    self.dtype, self.size, self.values = dtype, size, None


class _Tensor:
  """A view of a storage, as the file describes it."""

  def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple) -> None:
    self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

  def array(self) -> np.ndarray:
    """The tensor as an array of its own; a view that leaves its storage is refused."""
    numbers = (self.offset, *self.shape, *self.strides)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(self.shape) != len(self.strides):
      raise ValueError(f'a tensor of shape {self.shape}, strides {self.strides} and offset {self.offset}')
    last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
    values = self.storage.values
    # Strides of 0 could make a huge array of a few numbers.
    if values is None or math.prod(self.shape) > len(values) or (0 not in self.shape and last >= len(values)):
      raise ValueError('a tensor that reaches beyond its data')
    if 0 in self.shape:
      return np.zeros(self.shape, self.storage.dtype)
    strides = [stride * values.itemsize for stride in self.strides]
    return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides, writeable=False).copy()


def read(path: Path, module_packages: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
  """The tensors of a state dict or a whole module, by their names (`blocks.input.w`).

  Args:
    path: the file.
    module_packages: packages whose classes are taken as modules, such as 'torch.nn.modules' and, of TorchScript,
      '__torch__'. A module that is in several places gives its tensors in the first alone.

  Raises:
    ValueError: the file cannot be read, is no such file, or names something that is not admitted. Nothing was executed.
  """
  path = Path(path)
  try:
    with path.open('rb') as file:
      archive = zipfile.is_zipfile(file)
      file.seek(0)
      loaded = _read_archive(file, module_packages) if archive else _read_stream(file, module_packages)
    return {name: tensor.array() for name, tensor in _named_tensors(loaded)}
  except OSError as error:
    raise ValueError(f'{path} cannot be read: {error.strerror or error}') from None
  except _Refused as error:
    raise ValueError(f'{path} is refused: {error} Nothing in it was executed.') from None
  except _ERRORS as error:
    raise ValueError(
      f'{path} is not a file that torch.save wrote, or a damaged one ({type(error).__name__}: {error}). Nothing in it '
      'was executed.'
    ) from None


class _Refused(Exception):
  """A name that is not in the table."""


class _Unpickler(pickle.Unpickler):
  """Admits the names of the table only."""

  def __init__(self, file: BinaryIO, module_packages: tuple[str, ...]) -> None:
    super().__init__(file, encoding='latin1')
    self._module_packages = module_packages
    self.storages: dict[str, _Storage] = {}

  @classmethod
  def of(cls, file: BinaryIO, module_packages: tuple[str, ...]) -> '_Unpickler':
    """An unpickler of what comes next in the file, after a look over its instructions without obeying any.

    Objects are remembered by number, and Python makes a table as long as the highest: one above the number of
    instructions so far serves no purpose but to take all memory.
    """
    begin = file.tell()
    for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
      if instruction.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > count:
        raise ValueError(f'object {argument} remembered by instruction {count}')
    file.seek(begin)
    return cls(file, module_packages)

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) in (('builtins', 'set'), ('__builtin__', 'set')):
      return set
    if module == 'torch._utils' and name in ('_rebuild_tensor', '_rebuild_tensor_v2'):
      return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, tuple(shape), tuple(strides))
    if module == 'torch._utils' and name in ('_rebuild_parameter', '_rebuild_parameter_with_state'):
      return lambda tensor, *_: tensor
    if module == 'torch' and name in _DTYPES:
      return _DTYPES[name]
    if module == 'torch.jit._pickle' and name in _LISTS:
      return lambda value, *_: value
    if (module, name) in (('torch', 'device'), ('torch', 'Size')):
      return lambda *args: args
    if any(module == package or module.startswith(package + '.') for package in self._module_packages):
      return type(name, (Record,), {})
    raise _Refused(
      f'it names {module}.{name}, which is neither a tensor nor a plain container nor a part of the model.'
    )

  def persistent_load(self, identity: Any) -> Any:
    kind, *rest = identity
    if kind == 'module':  # a class, beside its source code, which is not looked at
      return rest[0]
    if kind != 'storage':
      raise _Refused(f'it refers to {kind!r}.')
    dtype, key, _, size = rest[:4]
    if not isinstance(dtype, np.dtype) or type(size) is not int or size < 0 or not isinstance(key, str):
      raise ValueError('a storage without type, key or size')
    return self.storages.setdefault(key, _Storage(dtype, size))


def _read_archive(file: BinaryIO, module_packages: tuple[str, ...]) -> Any:
  with zipfile.ZipFile(file) as archive:
    names = archive.namelist()
    root = next((name[: -len('data.pkl')] for name in names if name.endswith('data.pkl')), None)
    if root is None:
      raise ValueError('an archive without data.pkl')
    unpickler = _Unpickler.of(io.BytesIO(archive.read(f'{root}data.pkl')), module_packages)
    loaded = unpickler.load()
    for key, storage in unpickler.storages.items():
      info = archive.getinfo(f'{root}data/{key}')
      if info.file_size != storage.size * storage.dtype.itemsize:
        raise ValueError(f'data of {info.file_size} bytes in place of {storage.size} numbers')
      storage.values = np.frombuffer(archive.read(info), storage.dtype)
  return loaded


def _read_stream(file: BinaryIO, module_packages: tuple[str, ...]) -> Any:
  def load() -> tuple[Any, _Unpickler]:
    unpickler = _Unpickler.of(file, module_packages)
    return unpickler.load(), unpickler

  if (load()[0], load()[0]) != (_MAGIC, _PROTOCOL):
    raise ValueError('another kind of file')
  load()  # of the machine that wrote it
  loaded, unpickler = load()
  keys, _ = load()
  if set(keys) != set(unpickler.storages):
    raise ValueError('other data than it names')
  for key in keys:
    storage = unpickler.storages[key]
    (size,) = struct.unpack('<q', file.read(8))
    data = file.read(size * storage.dtype.itemsize) if size == storage.size else b''
    if size != storage.size or len(data) != size * storage.dtype.itemsize:
      raise ValueError('data that end too early')
    storage.values = np.frombuffer(data, storage.dtype)
  return loaded


def _named_tensors(loaded: Any) -> list[tuple[str, _Tensor]]:
  """The tensors of a module or a state dict, by name."""
  if isinstance(loaded, Record):
    return _module_tensors(loaded, '', set())
  if isinstance(loaded, dict) and loaded and all(isinstance(tensor, _Tensor) for tensor in loaded.values()):
    return list(loaded.items())
  raise ValueError(f'neither a module nor a dict of tensors, but a {type(loaded).__name__}')


def _module_tensors(module: Record, prefix: str, seen: set[int]) -> list[tuple[str, _Tensor]]:
  """Those of a module and of its parts, each part once: nested over and over, a small file could name very many."""
  if id(module) in seen:
    return []
  seen.add(id(module))
  attributes = module.attributes
  if '_modules' in attributes:
    attributes = {**(attributes.get('_parameters') or {}), **(attributes['_modules'] or {})}
  found = []
  for name, value in attributes.items():  # of TorchScript: parameters, buffers and parts side by side
    if isinstance(value, _Tensor):
      found.append((prefix + name, value))
    elif isinstance(value, Record):
      found += _module_tensors(value, f'{prefix}{name}.', seen)
  return found
