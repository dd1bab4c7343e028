"""Image codes and caption tokens in ArrayRecord files, made of pictures by a dVAE: format, listing, and random access.

A directory has `codes.json`, which is written last, and for each split a directory of shards as `picture_records`
writes them. Their records hold codes in place of a picture. `tools/encode_images.py` makes them.
"""

import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dalle_jax.data.account import Account
from dalle_jax.data.fingerprints import hash_of
from dalle_jax.data.shards import picture_records
from dalle_jax.data.sources import skip_list
from dalle_jax.data.sources.entries import Entry
from dalle_jax.data.sources.picture_source import PictureSource
from dalle_jax.files import parse_json_object, read_json_object, shown

MANIFEST, PLAN = 'codes.json', 'codes_plan.json'
NO_CODE = -1  # in place of each code of a picture that is not encoded yet
_MAGIC = b'DJC1'  # begins the codes of a record, before the length of their JSON header in 4 bytes
_ADVICE = 'Encode the pictures again with tools/encode_images.py, in an empty directory.'


class CodeFacts(NamedTuple):
  """What a directory of codes was made of, and how."""

  path: str  # of the directory
  dvae: str  # fingerprint of the dVAE's parameters
  model: str  # the model directory that the dVAE was loaded from
  tokenizer: str  # hash of the tokenizer of the captions' tokens; '' without tokens
  image_size: int  # pixels
  resampling: str  # as in config.data.resampling
  grid: tuple[int, int]  # rows and columns of codes
  crop: str  # of the further crops, as in config.data.crop
  num_crops: int  # further crops of each picture besides the one at the centre

  @property
  def length(self) -> int:
    """Codes of a picture."""
    return self.grid[0] * self.grid[1]


def encode(codes: np.ndarray, tokens: list[list[int]], digest: int) -> bytes:
  """The bytes of one picture.

  Args:
    codes: int32 [1 + num_crops, rows, columns], the centre crop first; of a held-out picture only that one.
    tokens: the token ids of each caption, without padding.
    digest: hash of the centre crop's pixels, see `data.checks.seen`.
  """
  dtype = '<u2' if codes.max(initial=0) < 2**16 else '<u4'
  header = json.dumps({'shape': codes.shape, 'dtype': dtype, 'tokens': tokens, 'digest': f'{digest:x}'}).encode()
  return _MAGIC + struct.pack('<I', len(header)) + header + codes.astype(dtype).tobytes()


def decode(data: bytes) -> tuple[np.ndarray, list[list[int]], int]:
  """The arguments of `encode` from its result.

  Raises:
    ValueError: the bytes are not such a record.
  """
  try:
    if not data.startswith(_MAGIC):
      raise ValueError('it holds no codes')
    end = 8 + struct.unpack_from('<I', data, 4)[0]
    header = parse_json_object(data[8:end])
    if header['dtype'] not in ('<u2', '<u4'):
      raise ValueError('its codes have an unknown type')
    codes = np.frombuffer(data[end:], header['dtype']).reshape(header['shape']).astype(np.int32)
    tokens = [[int(token) for token in caption] for caption in header['tokens']]
    return codes, tokens, int(header['digest'], 16)
  except (KeyError, TypeError, ValueError, struct.error) as error:
    raise ValueError(f'it is no record of codes, or a damaged one: {shown(error, 100)}') from None


class CodeSource(PictureSource):
  """Random access to the records of a split. Picklable."""

  def __init__(self, store: Any, entries: list[Entry], facts: CodeFacts):
    """
    Args:
      store: reads the records.
      entries: the pictures and their captions.
      facts: how the codes were made.
    """
    super().__init__(store, entries)
    self._facts = facts

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The record {'codes': int32 [1 + num_crops, length], 'tokens': {caption: ids}, 'digest': int, ...}.

    It also has 'tokenizer', the hash of the tokenizer of these tokens, and 'caption', 'key' and perhaps 'captions' as a
    record of a picture.

    Raises:
      ValueError: the record is damaged.
    """
    record = super().__getitem__(index)
    codes, tokens, digest = decode(record.pop('image'))
    if codes.shape[1:] != self._facts.grid or len(codes) not in (1, 1 + self._facts.num_crops):
      raise ValueError(f'{record["key"]}: it has codes of the shape {codes.shape}')
    captions = self.captions(index)
    by_caption = dict(zip(captions, tokens, strict=True)) if len(captions) == len(tokens) else {}
    return {
      **record, 'codes': codes.reshape(len(codes), -1), 'tokens': by_caption, 'digest': digest,
      'tokenizer': self._facts.tokenizer,
    }  # fmt: skip

  def of(self, entries: list[Entry]) -> 'CodeSource':
    """A source of other records of the same files."""
    return CodeSource(self.store, entries, self._facts)


def holds_codes(root: Path) -> bool:
  """Whether a directory has codes, or the beginning of them."""
  return any((root / name).is_file() for name in (MANIFEST, PLAN))


def facts_of(root: Path) -> CodeFacts:
  """How the codes in a directory were made.

  Raises:
    ValueError: the directory is unfinished or damaged.
  """
  return _facts(root, _manifest(root))


def _manifest(root: Path) -> dict[str, Any]:
  if not (root / MANIFEST).is_file():
    state = 'is not finished' if (root / PLAN).is_file() else 'has no codes'
    raise ValueError(
      f'config.data.path: {shown(root)} {state}: there is no {MANIFEST}. Run tools/encode_images.py with --out={root} '
      '(again), or set config.data.source to the kind of these data.'
    )
  return read_json_object(root / MANIFEST, _ADVICE)


def _facts(root: Path, manifest: dict[str, Any]) -> CodeFacts:
  try:
    rows, columns = map(int, manifest['grid'])
    return CodeFacts(
      str(root), str(manifest['dvae']), str(manifest['model']), str(manifest['tokenizer']), int(manifest['image_size']),
      str(manifest['resampling']), (rows, columns), str(manifest['crop']), int(manifest['crops']),
    )  # fmt: skip
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'config.data.path: {shown(root / MANIFEST)} is damaged: {shown(error, 100)}. {_ADVICE}') from None


def scan(
  root: Path, account: Account, needs_captions: bool = True, skipped: str = ''
) -> tuple[dict[str, CodeSource], CodeFacts, dict[str, Any], list[str]]:
  """Opens all splits of a directory of codes.

  Args:
    root: the directory.
    account: counts what is used and left out.
    needs_captions: whether pictures without captions are left out.
    skipped: a file of the pictures to leave out, see `skip_list`; '' for none.

  Returns:
    The records of each split, 'train' first; how they were made; what identifies them besides the contents of the
    shards; and the SHA-256 of each shard.

  Raises:
    ValueError: the directory is unfinished or damaged, or no record can be used.
  """
  manifest = _manifest(root)
  facts, sources = _facts(root, manifest), {}
  identity, digests = {key: value for key, value in manifest.items() if key not in ('splits', 'model')}, []
  splits = manifest.get('splits')
  if not isinstance(splits, list) or not all(isinstance(split, str) and split.isidentifier() for split in splits):
    raise ValueError(f'config.data.path: {shown(root / MANIFEST)} is damaged: it names no splits. {_ADVICE}')
  for split in splits:
    store, found = picture_records.scan(root / split, account, in_order=False)
    digests += _check_shards(root / split)
    entries = []
    for picture in skip_list.without(found, skipped, account):
      captions = picture.captions or ['']
      if needs_captions and not picture.captions:
        account.leave_out(picture.reason, picture.path)
      else:
        entries.append(Entry(picture.path, captions[0], tuple(captions[1:])))
    account.used += len(entries)
    identity[split] = hash_of([entry.row() for entry in entries])
    if entries or split == 'train':
      sources[split] = CodeSource(store, entries, facts)
  if not len(sources.get('train', ())):
    raise ValueError(f'config.data.path: {shown(root)} has no codes to train on.\n{account}')
  return sources, facts, identity, digests


def _check_shards(directory: Path) -> list[str]:
  """The SHA-256 of each shard of a split, as its manifest has it. Raises ValueError if one is missing or cut."""
  digests = []
  for shard in read_json_object(directory / picture_records.MANIFEST, _ADVICE)['shards']:
    file = directory / f'{os.path.basename(shard["name"])}.array_record'
    size = file.stat().st_size if file.is_file() else -1
    if size != shard['bytes']:
      problem = 'is missing' if size < 0 else f'has {size:,} bytes, and not {shard["bytes"]:,}'
      raise ValueError(f'config.data.path: {shown(file)} {problem}. Run the same tools/encode_images.py again.')
    digests.append(str(shard['sha256']))
  return digests
