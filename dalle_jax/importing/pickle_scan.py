"""A scan of a pickle's instructions before it is loaded, which bounds the memory and the steps that loading takes."""

import pickletools
from typing import Any, BinaryIO

_MAX_WEIGHT = 2000  # items of a tuple, with the items of the tuples inside it
_PUTS, _GETS = ('PUT', 'BINPUT', 'LONG_BINPUT'), ('GET', 'BINGET', 'LONG_BINGET')
# Instructions that make a tuple, or whose result may contain or be an argument.
_WRAPPING = ('TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'FROZENSET', 'REDUCE', 'NEWOBJ', 'NEWOBJ_EX', 'OBJ', 'INST',
             'BINPERSID')  # fmt: skip
# Instructions that change an object and leave it on the stack.
_CHANGING = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'BUILD')
_MARK = -1


class CappedFile:
  """A file that is never asked for more bytes than it has. Python takes memory for a read before it reads."""

  def __init__(self, file: BinaryIO) -> None:
    self._file = file
    begin = file.tell()
    self._end = file.seek(0, 2)
    file.seek(begin)

  @property
  def left(self) -> int:
    """Bytes after the current position."""
    return self._end - self._file.tell()

  def read(self, size: int = -1) -> bytes:
    return self._file.read(self.left if size < 0 else min(size, self.left))

  def readline(self) -> bytes:
    return self._file.readline()

  def tell(self) -> int:
    return self._file.tell()

  def seek(self, position: int, whence: int = 0) -> int:
    return self._file.seek(position, whence)

  def seekable(self) -> bool:
    return True


def check(file: CappedFile) -> None:
  """Check the instructions of the next pickle in a file, and go back to its beginning.

  Two kinds of small files could exhaust a reader:
  - A pickle stores objects in a memo by number, and Python allocates a table up to the highest number. A number above
    the count of instructions so far has no other purpose.
  - Instructions can put the same tuple into a tuple twice, and again. Sixty pairs make a tuple with 2^60 items, which
    takes no memory, but no one can hash, compare or print it. Other containers have no hash, so we follow only tuples.

  Raises:
    ValueError: a pickle does either, or is damaged.
  """
  begin = file.tell()
  weights = _Weights()
  for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
    if instruction.name in _PUTS and isinstance(argument, int) and argument > count:
      raise ValueError(f'instruction {count} stores an object in the memo under the number {argument}')
    if weights.after(instruction, argument) > _MAX_WEIGHT:
      raise ValueError(f'instruction {count} makes a tuple of more than {_MAX_WEIGHT:,} nested items')
  file.seek(begin)


class _Weights:
  """The stack and the memo of a pickle machine, with the weight of each object in its place.

  The weight of a tuple is 1 plus the weights of its items. Objects that are no tuples and hold none where a hash would
  find it weigh 1.
  """

  def __init__(self) -> None:
    self._stack: list[int] = []
    self._memo: dict[int, int] = {}

  def after(self, instruction: pickletools.OpcodeInfo, argument: Any) -> int:
    """Do one instruction. Returns the weight of the object on the top of the stack.

    Raises:
      ValueError: the stack has too few objects.
    """
    name = instruction.name
    if name == 'MARK':
      self._stack.append(_MARK)
    elif name == 'DUP':
      self._stack.append(self._top)
    elif name in _PUTS or name == 'MEMOIZE':
      self._memo[len(self._memo) if name == 'MEMOIZE' else int(argument)] = self._top
    elif name in _GETS:
      self._stack.append(self._memo.get(int(argument), 1))
    else:
      self._push(name, self._pop(instruction), instruction)
    return self._stack[-1] if self._stack else 0

  @property
  def _top(self) -> int:
    if not self._stack or self._stack[-1] == _MARK:
      raise ValueError('an instruction finds no object')
    return self._stack[-1]

  def _pop(self, instruction: pickletools.OpcodeInfo) -> list[int]:
    """Remove the objects that an instruction takes. Returns their weights, in the order of the stack."""
    if instruction.name == 'POP':
      return [self._stack.pop()] if self._stack else []
    taken: list[int] = []
    for kind in reversed(instruction.stack_before):
      if kind is pickletools.stackslice:
        continue
      if kind is pickletools.markobject:
        while self._stack and self._stack[-1] != _MARK:
          taken.append(self._stack.pop())
        if not self._stack:
          raise ValueError('an instruction finds no mark')
        self._stack.pop()
      else:
        taken.append(self._top)
        self._stack.pop()
    return taken[::-1]

  def _push(self, name: str, taken: list[int], instruction: pickletools.OpcodeInfo) -> None:
    if name in _WRAPPING:
      self._stack.append(1 + sum(taken))
    elif name in _CHANGING:
      self._stack.append(taken[0])
    elif name not in ('POP', 'POP_MARK'):
      self._stack += [1] * len(instruction.stack_after)
