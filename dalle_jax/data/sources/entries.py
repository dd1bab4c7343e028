"""Pictures of a source with their captions, and how they are divided into splits."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Found(NamedTuple):
  """A picture that a source has, and the captions that lie beside it."""

  path: str  # as in `Entry`
  key: str  # sorts the pictures, and names one whatever holds it: the member of a tar file, the path in a folder
  captions: list[str] | None  # some may be empty; None if it has none
  reason: str = 'it has no caption'  # why it has none


class Entry(NamedTuple):
  """A picture and its captions. A picture without a caption has the caption ''."""

  path: str  # names the picture within its source; for a file, its path relative to the folder, with forward slashes
  caption: str  # the first caption
  others: tuple[str, ...] = ()  # further captions

  @property
  def captions(self) -> tuple[str, ...]:
    """All captions."""
    return (self.caption, *self.others) if self.caption else ()

  def row(self) -> list[str]:
    """The path and the captions as JSON holds them; a single caption as earlier versions wrote it."""
    return [self.path, self.caption, *self.others]

  @classmethod
  def of_row(cls, row: Sequence[str]) -> 'Entry':
    """The entry of a `row`.

    Raises:
      ValueError: the row has no caption.
    """
    path, caption, *others = row
    return cls(path, caption, tuple(others))


def split_by_name(
  entries: list[Entry],
  validation_fraction: float,
  group_separator: str = '',
  by_path: bool = False,
  keys: Mapping[str, str] | None = None,
) -> tuple[list[Entry], list[Entry]]:
  """Splits entries into (train, validation) so that images with the same name are in the same split.

  The name of an entry is that of its first caption, see `name_of`. A name is held out if its hash, read as a number in
  [0, 1), is below `validation_fraction`. Adding images to the folder therefore does not move other images to another
  split.

  Two exceptions keep both splits non-empty. The name with the highest hash is never held out. The name with the lowest
  hash is always held out if there are several names and `validation_fraction` is above 0.

  Args:
    entries: the pictures.
    validation_fraction: share of names to hold out.
    group_separator: see `name_of`.
    by_path: whether the path of each entry is its name. It always is if the entry has no caption.
    keys: names used in place of paths, by path: those of `Found.key`, which do not depend on what holds the pictures.
  """
  keys = keys or {}
  names = [
    keys.get(entry.path, entry.path) if by_path or not entry.caption else name_of(entry.caption, group_separator)
    for entry in entries
  ]
  positions = {name: _position(name) for name in names}
  held_out = {name for name, position in positions.items() if position < validation_fraction}
  ranked = sorted(positions, key=lambda name: (positions[name], name))
  if validation_fraction > 0 and len(ranked) > 1:
    held_out.add(ranked[0])
  held_out.discard(ranked[-1])
  splits: tuple[list[Entry], list[Entry]] = ([], [])
  for entry, name in zip(entries, names, strict=True):
    splits[name in held_out].append(entry)
  return splits


def name_of(caption: str, group_separator: str = '') -> str:
  """Returns the name of a caption, which decides its split: the lower-cased text before the separator.

  The whole caption is the name if it does not contain the separator, or if the separator is empty.
  """
  caption = caption.lower()
  if group_separator:
    caption = caption.split(group_separator.lower(), 1)[0]
  return ' '.join(caption.split())


def _position(name: str) -> float:
  """The name's hash as a number in [0, 1)."""
  # 53 bits, because a float holds 53 bits exactly. With 64, the result could round up to 1.
  return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') >> 11) / 2**53
