"""Lossless text tokenizers: any bytes to token ids and back, exactly.

There are two kinds:
  * 'bytes' has one id per byte.
  * 'pieces' is a SentencePiece byte-pair encoding without normalisation. 256 of its pieces stand for single bytes. They
    encode what the other pieces cannot: invalid UTF-8, characters that did not occur in training, NUL, and U+2581,
    which SentencePiece itself uses for the space.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dalle_jax.data.text.pieces import RESERVED, SPACE, PieceModel, checked, train

# Maximum characters per training line. Longer lines are split, because SentencePiece skips lines above its limit.
_MAX_LINE = 2_000
# Characters that must be encoded as bytes: U+2581, NUL (where SentencePiece would stop) and invalid UTF-8, which
# Python's surrogateescape decodes to U+DC80..U+DCFF.
_BYTES_ONLY = re.compile(f'([{SPACE}\0\udc80-\udcff]+)')


class TextTokenizer(Protocol):
  """Lossless conversion between bytes and ids in [0, vocab_size)."""

  @property
  def vocab_size(self) -> int: ...

  @property
  def pieces_hash(self) -> str: ...

  @property
  def contents_hash(self) -> str: ...

  def encode(self, text: bytes) -> np.ndarray:
    """Returns int32 ids [T]."""

  def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
    """Returns the bytes of ids [T]. `decode(encode(text)) == text` for any bytes."""

  def lengths(self, ids: np.ndarray) -> np.ndarray:
    """Returns the number of bytes [T] that each of the ids [T] stands for."""

  def save(self, path: Path) -> None: ...


class ByteTokenizer:
  """A tokenizer whose ids are the values of the bytes."""

  vocab_size = 256
  pieces_hash = contents_hash = hashlib.sha256(b'bytes').hexdigest()

  def encode(self, text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).astype(np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
    return bytes(checked(ids, self.vocab_size))

  def lengths(self, ids: np.ndarray) -> np.ndarray:
    return np.ones(len(ids), np.int64)

  def save(self, path: Path) -> None:
    path.write_bytes(b'')


class PieceTokenizer(PieceModel):
  """A tokenizer whose ids are SentencePiece pieces."""

  def __init__(self, model: bytes):
    """Loads a model.

    Args:
      model: a serialized SentencePiece model that `train_pieces` made.

    Raises:
      ValueError: the bytes are not such a model.
    """
    super().__init__(model)
    # A caption tokenizer would fail here: it normalizes upper case and spaces.
    sample = b' A  b\n'
    if any(i < 0 for i in self._byte_ids) or self.decode(self.encode(sample)) != sample:
      raise ValueError('not a lossless text tokenizer, or a damaged one')

  @functools.cached_property
  def _byte_ids(self) -> list[int]:
    """The id of each byte's piece, or -1 if the model has no piece for that byte."""
    ids = [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in range(256)]
    return [i if self._processor.is_byte(i) else -1 for i in ids]

  @functools.cached_property
  def _pieces(self) -> list[bytes]:
    """The bytes that each id stands for."""
    pieces = [self._processor.id_to_piece(i).replace(SPACE, ' ').encode() for i in range(self.vocab_size)]
    for byte, i in enumerate(self._byte_ids):
      pieces[i] = bytes([byte])
    return [b'' if self._processor.is_unknown(i) else piece for i, piece in enumerate(pieces)]

  def encode(self, text: bytes) -> np.ndarray:
    ids = []
    for segment in _BYTES_ONLY.split(text.decode('utf-8', 'surrogateescape')):
      if _BYTES_ONLY.match(segment):
        ids.append([self._byte_ids[byte] for byte in segment.encode('utf-8', 'surrogateescape')])
      elif segment:
        ids.append(self._processor.encode(segment))
    return np.concatenate([np.asarray(segment_ids, np.int32) for segment_ids in ids] or [np.empty(0, np.int32)])

  def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
    return b''.join(self._pieces[i] for i in checked(ids, self.vocab_size))

  def lengths(self, ids: np.ndarray) -> np.ndarray:
    sizes = np.array([len(piece) for piece in self._pieces])
    return sizes[np.asarray(ids, np.int64)]


def train_pieces(texts: Iterable[bytes], vocab_size: int) -> PieceTokenizer:
  """Trains a lossless byte-pair encoding. The result depends only on the texts and their order.

  Args:
    texts: the training texts.
    vocab_size: maximum number of pieces. A small corpus gives fewer.

  Raises:
    ValueError: there is no text, or the vocabulary is too small for the characters of the text.
  """
  lines = [line for text in texts for line in _lines(text)]
  if not lines:
    raise ValueError('The tokenizer cannot be trained without text: there is none, or it has only empty lines.')
  options = {'normalization_rule_name': 'identity', 'add_dummy_prefix': False, 'remove_extra_whitespaces': False}
  # The limit is in bytes; a line of _MAX_LINE characters has at most 4 bytes per character.
  return PieceTokenizer(train(lines, vocab_size, **options, unk_id=0, pad_id=-1, max_sentence_length=8 * _MAX_LINE))


def _lines(text: bytes) -> Iterable[str]:
  for line in RESERVED.sub(' ', text.decode('utf-8', 'ignore')).splitlines():
    yield from (line[i : i + _MAX_LINE] for i in range(0, len(line), _MAX_LINE))


def load(kind: str, path: Path) -> TextTokenizer:
  """Reads a tokenizer that `save` wrote.

  Args:
    kind: 'bytes' or 'pieces'.
    path: the file.

  Raises:
    ValueError: the file is missing, damaged, or not a lossless text tokenizer.
  """
  return ByteTokenizer() if kind == 'bytes' else PieceTokenizer.load(path)
