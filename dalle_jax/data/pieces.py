"""What the tokenizers by SentencePiece have in common: one model in bytes, its pieces, its file, its training."""

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

SPACE = '\u2581'  # how SentencePiece writes it


class PieceModel:
  """A SentencePiece model; tokenizers add how text becomes ids and back."""

  def __init__(self, model: bytes):
    """Args: model: serialized.

    Raises:
      ValueError: the bytes are no such model.
    """
    import sentencepiece  # only loaded where a tokenizer is used

    try:
      if not model:
        raise RuntimeError('no bytes')
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(f'not a tokenizer, or a damaged one: {error}') from error
    self._model = model

  def __reduce__(self) -> tuple:
    return type(self), (self._model,)

  @property
  def vocab_size(self) -> int:
    """Number of pieces; at most what was asked for in training."""
    return self._processor.get_piece_size()

  @property
  def pieces_hash(self) -> str:
    """SHA-256 over the pieces in order: equal for tokenizers that give equal ids."""
    pieces = (self._processor.id_to_piece(i) for i in range(self.vocab_size))
    return hashlib.sha256('\n'.join(pieces).encode()).hexdigest()

  def save(self, path: str | os.PathLike) -> None:
    """Writes the tokenizer to one file."""
    Path(path).write_bytes(self._model)

  @classmethod
  def load(cls, path: str | os.PathLike) -> Self:
    """Reads what `save` wrote.

    Raises:
      ValueError: the file is missing, damaged or something else.
    """
    try:
      return cls(Path(path).read_bytes())
    except (OSError, ValueError) as error:
      raise ValueError(f'Cannot load the tokenizer {path}: {error}') from error


def checked(ids: Iterable[Any], vocab_size: int) -> list[int]:
  """The ids as Python's integers.

  Raises:
    ValueError: one lies outside of [0, vocab_size).
  """
  ids = [int(i) for i in ids]
  if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
    raise ValueError(f'Token ids must lie in [0, {vocab_size}); given {min(ids)} to {max(ids)}.')
  return ids


def train(lines: Iterable[str], vocab_size: int, **options: Any) -> bytes:
  """A byte-pair encoding learnt from lines, 256 of its pieces single bytes; deterministic for given lines in an order.

  Args:
    lines: what to learn from, not empty.
    vocab_size: the most pieces to make; a small corpus gives fewer.
    options: of SentencePiece's trainer.

  Raises:
    ValueError: the vocabulary is too small for the characters.
  """
  import sentencepiece

  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines), model_writer=model, model_type='bpe', vocab_size=vocab_size,
      hard_vocab_limit=False, byte_fallback=True, bos_id=-1, eos_id=-1, num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
  except RuntimeError as error:
    raise ValueError(
      f'The tokenizer cannot be trained with config.tokenizer.vocab_size={vocab_size}; a larger one may help. '
      f'SentencePiece says: {error}'
    ) from error
  return model.getvalue()
