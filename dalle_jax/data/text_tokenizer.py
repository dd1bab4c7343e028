"""Tokenizers that lose nothing: any bytes to token ids and back, exactly.

'bytes' has one id for each byte. 'pieces' is a byte-pair encoding by SentencePiece without normalisation; what its
pieces cannot say (bytes that are no UTF-8, characters that it never saw, and U+2581, which SentencePiece uses itself
for the space) is written as single bytes, for which 256 of its pieces stand.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dalle_jax.data.pieces import SPACE, PieceModel, checked, train

_LINE = 2_000  # characters of a piece of text that is trained on; SentencePiece leaves out longer lines
# Characters that only bytes can stand for: SentencePiece's own space and NUL, at which it would stop.
_BYTES_ONLY = re.compile(f'([{SPACE}\0\udc80-\udcff]+)')


class TextTokenizer(Protocol):
  """Bytes to ids in [0, vocab_size) and back."""

  @property
  def vocab_size(self) -> int: ...

  @property
  def pieces_hash(self) -> str: ...

  def encode(self, text: bytes) -> np.ndarray:
    """int32 ids [T]."""

  def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
    """The bytes of ids [T]; `decode(encode(text)) == text` for all bytes."""

  def lengths(self, ids: np.ndarray) -> np.ndarray:
    """How many bytes each of the ids [T] stands for."""

  def save(self, path: Path) -> None: ...


class ByteTokenizer:
  """Ids are bytes."""

  vocab_size = 256
  pieces_hash = hashlib.sha256(b'bytes').hexdigest()

  def encode(self, text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).astype(np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
    return bytes(checked(ids, self.vocab_size))

  def lengths(self, ids: np.ndarray) -> np.ndarray:
    return np.ones(len(ids), np.int64)

  def save(self, path: Path) -> None:
    path.write_bytes(b'')


class PieceTokenizer(PieceModel):
  """Ids are SentencePiece's pieces.

  Raises:
    ValueError: the bytes are not a model that `train_pieces` made.
  """

  def __init__(self, model: bytes):
    super().__init__(model)
    sample = b' A  b\n'
    if any(byte < 0 for byte in self._byte_ids) or self.decode(self.encode(sample)) != sample:
      raise ValueError('not a tokenizer of text without loss, or a damaged one')

  @functools.cached_property
  def _byte_ids(self) -> list[int]:
    """The id of each byte; -1 where there is none."""
    ids = [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in range(256)]
    return [i if self._processor.is_byte(i) else -1 for i in ids]

  @functools.cached_property
  def _pieces(self) -> list[bytes]:
    """What each id stands for."""
    pieces = [self._processor.id_to_piece(i).replace(SPACE, ' ').encode() for i in range(self.vocab_size)]
    for byte, i in enumerate(self._byte_ids):
      pieces[i] = bytes([byte])
    return [b'' if self._processor.is_unknown(i) else piece for i, piece in enumerate(pieces)]

  def encode(self, text: bytes) -> np.ndarray:
    parts = []
    for part in _BYTES_ONLY.split(text.decode('utf-8', 'surrogateescape')):
      if _BYTES_ONLY.match(part):
        parts.append([self._byte_ids[byte] for byte in part.encode('utf-8', 'surrogateescape')])
      elif part:
        parts.append(self._processor.encode(part))
    return np.concatenate([np.asarray(part, np.int32) for part in parts] or [np.empty(0, np.int32)])

  def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
    return b''.join(self._pieces[i] for i in checked(ids, self.vocab_size))

  def lengths(self, ids: np.ndarray) -> np.ndarray:
    sizes = np.array([len(piece) for piece in self._pieces])
    return sizes[np.asarray(ids, np.int64)]


def train_pieces(texts: Iterable[bytes], vocab_size: int) -> PieceTokenizer:
  """Learns byte-pair merges from texts; deterministic for given texts in a given order.

  Args:
    texts: what to learn from.
    vocab_size: the most pieces to make; a small corpus gives fewer.

  Raises:
    ValueError: no text at all, or a vocabulary too small for its characters.
  """
  lines = [line for text in texts for line in _lines(text)]
  if not lines:
    raise ValueError('The tokenizer needs text to learn from; there is none.')
  options = {'normalization_rule_name': 'identity', 'add_dummy_prefix': False, 'remove_extra_whitespaces': False}
  return PieceTokenizer(train(lines, vocab_size, **options, unk_id=0, pad_id=-1, max_sentence_length=8 * _LINE))


def _lines(text: bytes) -> Iterable[str]:
  for line in text.decode('utf-8', 'ignore').replace(SPACE, ' ').replace('\0', ' ').splitlines():
    yield from (line[i : i + _LINE] for i in range(0, len(line), _LINE))


def load(kind: str, path: Path) -> TextTokenizer:
  """Reads what `save` wrote.

  Raises:
    ValueError: the file is missing, damaged or something else.
  """
  return ByteTokenizer() if kind == 'bytes' else PieceTokenizer.load(path)
