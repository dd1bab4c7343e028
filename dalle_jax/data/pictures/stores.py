"""Where the bytes of pictures lie: files of a folder, members of tar files. A store is picklable."""

import os
from typing import NamedTuple, Protocol


class Stamp(NamedTuple):
  """The size and time of a stored picture. A picture with another stamp is checked again."""

  size: int  # bytes
  mtime_ns: int  # nanoseconds

  @classmethod
  def of(cls, status: os.stat_result) -> 'Stamp':
    return cls(status.st_size, status.st_mtime_ns)


class TooLargeError(ValueError):
  """A stored picture has more bytes than the caller allows."""


class Store(Protocol):
  """Reads pictures by their paths, which are those of `Entry`."""

  def read(self, path: str, most_bytes: int | None = None) -> tuple[Stamp, bytes]:
    """The stamp and the bytes of a picture.

    Args:
      path: the picture.
      most_bytes: the largest size allowed; None for any.

    Raises:
      OSError: it cannot be read.
      TooLargeError: it is larger than `most_bytes`.
    """
    ...

  def stamp(self, path: str) -> Stamp:
    """The stamp of a picture. Reads no picture. Raises OSError."""
    ...


class FolderStore:
  """The files of a folder."""

  def __init__(self, root: str | os.PathLike):
    """
    Args:
      root: the folder.
    """
    self._root = os.fspath(root)

  def read(self, path: str, most_bytes: int | None = None) -> tuple[Stamp, bytes]:
    with open(os.path.join(self._root, path), 'rb') as file:
      stamp = Stamp.of(os.fstat(file.fileno()))
      check_size(stamp.size, most_bytes)
      return stamp, file.read()

  def stamp(self, path: str) -> Stamp:
    return Stamp.of(os.stat(os.path.join(self._root, path)))


def check_size(size: int, most_bytes: int | None) -> None:
  """Raise TooLargeError if a picture has more bytes than are allowed."""
  if most_bytes is not None and size > most_bytes:
    raise TooLargeError(f'the file has {size:,} bytes; a picture of the largest size allowed has fewer')
