"""Reading tensors from files that torch.save wrote, without torch and without executing anything in the files.

Such a file contains a pickle, and a pickle is a program that may import and call any function. This reader has its own
table of allowed names:
- The functions that rebuild tensors, and plain containers, have safe replacements.
- Classes in the packages that the caller names become inert records, which only keep their attributes.
- Any other name is refused before anything is called.

Three formats are supported: the zip archive of torch 1.6 and later, the older stream of pickles, and the TorchScript
archive. The classes of TorchScript are in the package `__torch__`; its code is ignored.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dalle_jax.files import check_regular, shown
from dalle_jax.importing import pickle_scan
from dalle_jax.importing.pickle_scan import CappedFile

_MOST_COPIES = 4  # tensors may share storages; their sizes may add up to so many times the size of the file
_LONGEST_NAME = 1000  # characters of a tensor's name, with the names of the modules around it
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older format
_DTYPES = {
  'FloatStorage': np.dtype('<f4'), 'HalfStorage': np.dtype('<f2'), 'DoubleStorage': np.dtype('<f8'),
  'LongStorage': np.dtype('<i8'), 'IntStorage': np.dtype('<i4'), 'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'), 'ByteStorage': np.dtype('u1'), 'BoolStorage': np.dtype('?'),
}  # fmt: skip
# Functions by which TorchScript annotates the type of a list.
_LIST_TYPES = ('build_intlist', 'build_doublelist', 'build_boollist', 'build_tensorlist', 'restore_type_tag')
# Errors that damaged or hostile files can cause in the reader.
_ERRORS = (
  pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError,
  UnicodeDecodeError, ImportError, MemoryError, RecursionError, struct.error, zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip


class Record:
  """Placeholder for an object of an allowed class. It keeps the object's attributes and has no behaviour."""

  def __init__(self, *args: Any) -> None:
    self.attributes: dict[str, Any] = {}

  def __setstate__(self, state: Any) -> None:
    self.attributes = dict(state) if isinstance(state, dict) else {}


class _Storage:
  """A flat array that several tensors may share. `values` is None until the reader reaches the data in the file."""

  def __init__(self, dtype: np.dtype, size: int) -> None:
    self.dtype, self.size = dtype, size
    self.values: np.ndarray | None = None


class _Tensor:
  """A strided view of a storage, as the file describes it. Offset and strides count elements, not bytes."""

  def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple) -> None:
    self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

  def array(self) -> np.ndarray:
    """Return a copy of the tensor's values.

    Raises:
      ValueError: the view is invalid or reaches beyond its storage.
    """
    numbers = (self.offset, *self.shape, *self.strides)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(self.shape) != len(self.strides):
      raise ValueError('the shape, the strides or the offset of a tensor is not made of whole numbers from 0')
    last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
    values = self.storage.values
    # The size is limited too, because strides of 0 could turn a few numbers into a huge array.
    if values is None or math.prod(self.shape) > len(values) or (0 not in self.shape and last >= len(values)):
      raise ValueError('a tensor reaches beyond its data')
    if 0 in self.shape:
      return np.zeros(self.shape, self.storage.dtype)
    strides = [stride * values.itemsize for stride in self.strides]
    return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides, writeable=False).copy()


def read(path: Path, module_packages: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
  """Read the tensors of a state dict or of a whole module.

  Args:
    path: the file.
    module_packages: packages whose classes may occur as modules, such as 'torch.nn.modules', or '__torch__' for
      TorchScript.

  Returns:
    Tensors by name, such as `blocks.input.w`. A module that occurs in several places counts once, at the first place.

  Raises:
    ValueError: the file cannot be read, has another format, is damaged, or names a class or function that is not
      allowed. Nothing in it was executed.
  """
  path = Path(path)
  try:
    check_regular(path)
    with path.open('rb') as opened:
      file = CappedFile(opened)
      size, archive = file.left, zipfile.is_zipfile(opened)
      file.seek(0)
      loaded = _read_archive(file, module_packages) if archive else _read_stream(file, module_packages)
    return _arrays(_named_tensors(loaded), size)
  except OSError as error:
    raise ValueError(f'{shown(path)} cannot be read: {error.strerror or shown(error)}') from None
  except _Refused as error:
    raise ValueError(f'{shown(path)} is refused: {error} Nothing in it was executed.') from None
  except _ERRORS as error:
    raise ValueError(
      f'{shown(path)} is not a file that torch.save wrote, or it is damaged ({_problem(error)}). '
      'Nothing in it was executed.'
    ) from None


def _problem(error: Exception) -> str:
  """What is wrong with a file, in words: messages of Python's own errors say nothing to users."""
  is_worded = isinstance(error, ValueError | zipfile.BadZipFile | pickle.UnpicklingError)
  if not is_worded or isinstance(error, UnicodeDecodeError):
    return 'it is cut off, or its contents are not those of such a file'
  return shown(error) or 'its contents cannot be read'


def _arrays(tensors: list[tuple[str, _Tensor]], file_size: int) -> dict[str, np.ndarray]:
  """The values of tensors by name.

  Args:
    tensors: names and tensors.
    file_size: bytes of the file that they are from.

  Raises:
    ValueError: a tensor is invalid, or together they are much larger than the file, because they share storages.
  """
  arrays: dict[str, np.ndarray] = {}
  num_bytes = 0
  for name, tensor in tensors:
    arrays[name] = tensor.array()
    num_bytes += arrays[name].nbytes
    if num_bytes > _MOST_COPIES * file_size:
      raise ValueError(f'its tensors have more than {_MOST_COPIES} times the {file_size:,} bytes of the file')
  return arrays


class _Refused(Exception):
  """The file names a class or function that is not allowed."""


class _Unpickler(pickle.Unpickler):
  """An unpickler that only resolves the allowed names."""

  def __init__(self, file: CappedFile, module_packages: tuple[str, ...]) -> None:
    super().__init__(file, encoding='latin1')
    self._module_packages = module_packages
    self.storages: dict[str, _Storage] = {}

  @classmethod
  def of(cls, file: CappedFile, module_packages: tuple[str, ...]) -> '_Unpickler':
    """Make an unpickler for the next pickle in the file, after a scan of its instructions.

    Raises:
      ValueError: the pickle would exhaust the memory or the time of a reader.
    """
    pickle_scan.check(file)
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
    if module == 'torch.jit._pickle' and name in _LIST_TYPES:
      return lambda value, *_: value
    if (module, name) in (('torch', 'device'), ('torch', 'Size')):
      return lambda *args: args
    if any(module == package or module.startswith(package + '.') for package in self._module_packages):
      return type(name, (Record,), {})
    raise _Refused(
      f'it names {shown(module, 80)}.{shown(name, 80)}, which is neither a tensor nor a plain container nor a class '
      'of the model.'
    )

  def persistent_load(self, identity: Any) -> Any:
    kind, *rest = identity
    if kind == 'module':  # a class and its source code; we ignore the code
      return rest[0]
    if kind != 'storage':
      named = shown(repr(kind)) if isinstance(kind, str) else type(kind).__name__  # a tuple could be huge as text
      raise _Refused(f"it refers to an object of the kind {named}; only 'storage' and 'module' are allowed.")
    dtype, key, _, size = rest[:4]
    if not isinstance(dtype, np.dtype) or type(size) is not int or size < 0 or not isinstance(key, str):
      raise ValueError('a storage lacks its type, key or size')
    return self.storages.setdefault(key, _Storage(dtype, size))


def _read_archive(file: CappedFile, module_packages: tuple[str, ...]) -> Any:
  size = file.left
  with zipfile.ZipFile(file) as archive:
    names = archive.namelist()
    root = next((name[: -len('data.pkl')] for name in names if name.endswith('data.pkl')), None)
    if root is None:
      raise ValueError('the archive lacks data.pkl')
    left = size
    info = archive.getinfo(f'{root}data.pkl')
    left = _after(info, left)
    unpickler = _Unpickler.of(CappedFile(io.BytesIO(archive.read(info))), module_packages)
    loaded = unpickler.load()
    for key, storage in unpickler.storages.items():
      info = archive.getinfo(f'{root}data/{key}')
      if info.file_size != storage.size * storage.dtype.itemsize:
        expected = storage.size * storage.dtype.itemsize
        raise ValueError(f'the data of a storage have {info.file_size} bytes instead of {shown(expected)}')
      left = _after(info, left)
      storage.values = np.frombuffer(archive.read(info), storage.dtype)
  return loaded


def _after(info: zipfile.ZipInfo, left: int) -> int:
  """The bytes of an archive that are left for other records after a record.

  Raises:
    ValueError: there are too few. torch compresses no records, so they cannot be larger than the archive.
  """
  if info.file_size > left:
    raise ValueError(
      f'the record {shown(info.filename, 80)} claims {info.file_size:,} bytes, so that the records would be larger '
      'than the file; torch.save does not compress them'
    )
  return left - info.file_size


def _read_stream(file: CappedFile, module_packages: tuple[str, ...]) -> Any:
  def load() -> tuple[Any, _Unpickler]:
    unpickler = _Unpickler.of(file, module_packages)
    return unpickler.load(), unpickler

  if [type(number) is int and number for number in (load()[0], load()[0])] != [_MAGIC, _PROTOCOL]:
    raise ValueError('the first two pickles are not the magic number and protocol of torch.save')
  load()  # sizes and byte order of the machine that wrote the file
  loaded, unpickler = load()
  keys, _ = load()
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise ValueError('the list of storages does not consist of names')
  if sorted(keys) != sorted(unpickler.storages):
    raise ValueError('the list of storages differs from the storages that the tensors use')
  for key in keys:
    storage = unpickler.storages[key]
    (size,) = struct.unpack('<q', file.read(8))
    num_bytes = size * storage.dtype.itemsize
    if size != storage.size or num_bytes > file.left:
      raise ValueError('the data of a storage have a wrong size')
    storage.values = np.frombuffer(file.read(num_bytes), storage.dtype)
  return loaded


def _named_tensors(loaded: Any) -> list[tuple[str, _Tensor]]:
  """Names and tensors of a module or a state dict.

  Raises:
    ValueError: the object is neither.
  """
  if isinstance(loaded, Record):
    return _module_tensors(loaded, '', set())
  if isinstance(loaded, dict) and loaded and all(isinstance(tensor, _Tensor) for tensor in loaded.values()):
    if not all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in loaded):
      raise ValueError(f'a tensor has a name of more than {_LONGEST_NAME:,} characters, or none')
    return list(loaded.items())
  raise ValueError(f'it holds neither a module nor a dict of tensors, but a {shown(type(loaded).__name__, 80)}')


def _module_tensors(module: Record, prefix: str, seen: set[int]) -> list[tuple[str, _Tensor]]:
  """Names and tensors of a module and its submodules.

  Each module counts once. Otherwise a small file with nested references could produce exponentially many names.

  Args:
    module: the module.
    prefix: start of the tensors' names.
    seen: ids of the modules visited so far, updated in place.
  """
  if id(module) in seen:
    return []
  seen.add(id(module))
  attributes = module.attributes
  if '_modules' in attributes:
    attributes = {**(attributes.get('_parameters') or {}), **(attributes['_modules'] or {})}
  tensors = []
  for name, value in attributes.items():  # TorchScript keeps parameters, buffers and submodules side by side
    if isinstance(value, _Tensor | Record) and not (isinstance(name, str) and len(prefix + name) <= _LONGEST_NAME):
      raise ValueError(f'a tensor or a module has a name of more than {_LONGEST_NAME:,} characters, or none')
    if isinstance(value, _Tensor):
      tensors.append((prefix + name, value))
    elif isinstance(value, Record):
      tensors += _module_tensors(value, f'{prefix}{name}.', seen)
  return tensors
