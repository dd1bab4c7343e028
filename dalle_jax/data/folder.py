"""A folder of captioned images: list them, check that they can be read, and split them by `name_of`.

Captions come from one of three layouts. All subfolders are searched.
  * `metadata.jsonl`: one JSON object per line, with the keys `file_name` and `text` or `caption`. The file name is
    relative to the metadata file.
  * `metadata.csv`: the same keys as columns.
  * A `.txt` file beside each image. These are read only if there is no metadata file.

Only the first caption of an image that is not empty is used. An image can have several captions in a metadata list, in
several metadata lines, or in several lines of its `.txt` file. An `Account` counts what is not used.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle_jax.data import gate
from dalle_jax.data.account import Account
from dalle_jax.data.caption_listing import Entry, scan
from dalle_jax.data.checked_pictures import CheckedPictures
from dalle_jax.data.image import EXTENSIONS as ALL_EXTENSIONS
from dalle_jax.data.image import MAX_PIXELS
from dalle_jax.data.metadata_files import METADATA
from dalle_jax.files import shown

__all__ = [
  'EXTENSIONS', 'METADATA', 'Entry', 'FolderSource', 'name_of', 'open_folder', 'scan', 'split_by_name', 'verify'
]  # fmt: skip

EXTENSIONS = tuple(sorted(ALL_EXTENSIONS))


class FolderSource:
  """Random access to the records of captioned images. An image file is read when its record is requested."""

  def __init__(self, root: Path, entries: list[Entry], digests: list[str] | None = None):
    """
    Args:
      root: the folder.
      entries: the records.
      digests: SHA-256 of each image file, if it is known.
    """
    self._root = str(root)
    self._entries = entries
    self.digests = digests or []

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path, caption = self._entries[index]
    return {'image': Path(self._root, path).read_bytes(), 'caption': caption, 'key': path}

  def name(self, index: int) -> str:
    """The path of a record's image. Reads no image."""
    return self._entries[index].path

  def caption(self, index: int) -> str:
    """The caption of a record. Reads no image."""
    return self._entries[index].caption

  @property
  def entries(self) -> list[Entry]:
    """The paths and captions of all records. Reads no image."""
    return self._entries


def open_folder(
  root: str | os.PathLike,
  *,
  validation_fraction: float,
  group_separator: str = '',
  progress: Callable[[int, int], None] | None = None,
  max_pixels: int = MAX_PIXELS,
  memory: Path | None = None,
  account: Account | None = None,
) -> dict[str, FolderSource]:
  """Lists the captioned images, leaves out those that training cannot read, and splits the rest by name.

  Args:
    root: the folder.
    validation_fraction: share of names to hold out, see `split_by_name`.
    group_separator: captions that are equal up to this text have the same name. Empty: the whole caption is the name.
    progress: called with (number of images checked, number of images to check).
    max_pixels: the largest number of pixels of an image.
    memory: the file that remembers which images were checked, see `CheckedPictures`. None: check all.
    account: counts what is found, used and left out.

  Returns:
    The sources of 'train' and 'validation'. There is no 'validation' if nothing is held out.

  Raises:
    ValueError: the folder does not exist, has no captioned images or no readable image, or its metadata is invalid.
  """
  root, account = Path(root), account or Account('pictures')
  checked = CheckedPictures(memory, max_pixels)
  verdicts = _usable(root, scan(root, account), checked, max_pixels, progress, account)
  train, validation = split_by_name(list(verdicts), validation_fraction, group_separator)
  splits = {'train': train, 'validation': validation}
  return {
    split: FolderSource(root, entries, [verdicts[entry] for entry in entries])
    for split, entries in splits.items()
    if entries
  }


def verify(
  root: Path,
  entries: list[Entry],
  progress: Callable[[int, int], None] | None = None,
  max_pixels: int = MAX_PIXELS,
  account: Account | None = None,
) -> list[Entry]:
  """Returns the entries whose images training can decode; see `open_folder`.

  Raises:
    ValueError: no image can be decoded.
  """
  checked = CheckedPictures(None, max_pixels)
  return list(_usable(root, entries, checked, max_pixels, progress, account or Account('pictures')))


def _usable(
  root: Path,
  entries: list[Entry],
  checked: CheckedPictures,
  max_pixels: int,
  progress: Callable[[int, int], None] | None,
  account: Account,
) -> dict[Entry, str]:
  """The SHA-256 of the image of each entry that training can decode."""
  verdicts = gate.check(root, [entry.path for entry in entries], checked, max_pixels, progress)
  digests: dict[Entry, str] = {}
  for entry in entries:
    verdict = verdicts[entry.path]
    if verdict.problem:
      account.leave_out(verdict.problem, entry.path)
      continue
    digests[entry] = verdict.digest
    account.used += 1
    for note in verdict.notes:
      account.note(f'used, although {note}', entry.path)
  if not digests:
    names = ', '.join(shown(entry.path, 60) for entry in entries[:5])
    raise ValueError(
      f'config.data.path: none of the {len(entries)} images in {shown(root)} is readable: {names}'
      f'{" and others" if len(entries) > 5 else ""}.\n{account}'
    )
  return digests


def split_by_name(
  entries: list[Entry], validation_fraction: float, group_separator: str = ''
) -> tuple[list[Entry], list[Entry]]:
  """Splits entries into (train, validation) so that images with the same name are in the same split.

  A name is held out if its hash, read as a number in [0, 1), is below `validation_fraction`. Adding images to the
  folder therefore does not move other images to another split.

  Two exceptions keep both splits non-empty. The name with the highest hash is never held out. The name with the lowest
  hash is always held out if there are several names and `validation_fraction` is above 0.
  """
  positions = {name: _position(name) for name in {name_of(e.caption, group_separator) for e in entries}}
  held_out = {name for name, position in positions.items() if position < validation_fraction}
  ranked = sorted(positions, key=lambda name: (positions[name], name))
  if validation_fraction > 0 and len(ranked) > 1:
    held_out.add(ranked[0])
  held_out.discard(ranked[-1])
  splits: tuple[list[Entry], list[Entry]] = ([], [])
  for entry in entries:
    splits[name_of(entry.caption, group_separator) in held_out].append(entry)
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
