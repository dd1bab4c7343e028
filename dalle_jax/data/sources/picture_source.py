"""Records of pictures with captions, and records with one caption each."""

from typing import Any

from dalle_jax.data.pictures.stores import Store
from dalle_jax.data.sources.entries import Entry


class PictureSource:
  """Random access to the records of pictures. A picture is read when its record is requested. Picklable."""

  def __init__(self, store: Store, entries: list[Entry], digests: list[str] | None = None):
    """
    Args:
      store: reads the pictures.
      entries: the records.
      digests: SHA-256 of each picture, if it is known.
    """
    self.store = store
    self._entries = entries
    self.digests = digests or []

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The record {'image': encoded bytes, 'caption': str, 'key': str}; with several captions also 'captions'."""
    entry = self._entries[index]
    record = {'image': self.store.read(entry.path)[1], 'caption': entry.caption, 'key': entry.path}
    return {**record, 'captions': entry.captions} if entry.others else record

  def name(self, index: int) -> str:
    """The path of a record's image. Reads no image."""
    return self._entries[index].path

  def captions(self, index: int) -> tuple[str, ...]:
    """All captions of a record. Reads no image."""
    return self._entries[index].captions

  @property
  def entries(self) -> list[Entry]:
    """The paths and captions of all records. Reads no image."""
    return self._entries


class EachCaption:
  """A view of a source in which a record with several captions is repeated, once with each of them. Picklable."""

  def __init__(self, source: Any):
    """
    Args:
      source: the records. Sources without a method `captions` have one caption for each record.
    """
    self._source = source
    captions = getattr(source, 'captions', None)
    counts = [max(len(captions(index)), 1) if captions else 1 for index in range(len(source))]
    self._pairs = [(index, number) for index, count in enumerate(counts) for number in range(count)]

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> dict[str, Any]:
    index, number = self._pairs[index]
    record = dict(self._source[index])
    captions = record.pop('captions', (record['caption'],))
    return {**record, 'caption': captions[number]}
