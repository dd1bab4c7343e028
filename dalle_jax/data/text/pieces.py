"""Shared base of the SentencePiece tokenizers: load, save, hash and train a SentencePiece model."""

import hashlib
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from dalle_jax.files import reason, shown

SPACE = '\u2581'  # SentencePiece's symbol for a space
# Characters that SentencePiece reserves: the space's symbol, and U+2585 and NUL, whose lines its trainer skips.
RESERVED = re.compile(f'[{SPACE}\u2585\0]')


class PieceModel:
  """A SentencePiece model. Subclasses add the conversion between text and ids."""

  def __init__(self, model: bytes):
    """Loads a model.

    Args:
      model: the serialized SentencePiece model.

    Raises:
      ValueError: the bytes are not a SentencePiece model.
    """
    import sentencepiece  # imported here so that importing this module stays cheap

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
    """Number of pieces. It can be lower than the size requested in training."""
    return self._processor.get_piece_size()

  @property
  def pieces_hash(self) -> str:
    """SHA-256 of the pieces in order."""
    pieces = (self._processor.id_to_piece(i) for i in range(self.vocab_size))
    return hashlib.sha256('\n'.join(pieces).encode()).hexdigest()

  @property
  def contents_hash(self) -> str:
    """SHA-256 of the whole tokenizer, with the scores of its pieces and its rules of normalisation."""
    return hashlib.sha256(self._model).hexdigest()

  def save(self, path: str | os.PathLike) -> None:
    """Writes the tokenizer to one file."""
    Path(path).write_bytes(self._model)

  @classmethod
  def load(cls, path: str | os.PathLike) -> Self:
    """Reads a tokenizer that `save` wrote.

    Raises:
      ValueError: the file is missing, damaged, or not a tokenizer of this class.
    """
    try:
      return cls(Path(path).read_bytes())
    except (OSError, ValueError) as error:
      raise ValueError(f'Cannot load the tokenizer {shown(path)}: {reason(error)}') from error


def checked(ids: Iterable[Any], vocab_size: int) -> list[int]:
  """Converts token ids to Python integers and checks their range.

  Raises:
    ValueError: an id is outside [0, vocab_size).
  """
  ids = [int(i) for i in ids]
  if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
    raise ValueError(f'Token ids must lie in [0, {vocab_size}); given {min(ids)} to {max(ids)}.')
  return ids


def train(lines: Iterable[str], vocab_size: int, **options: Any) -> bytes:
  """Trains a byte-pair encoding with a piece for each of the 256 bytes.

  The result is deterministic: it depends only on the lines, their order and the options.

  Args:
    lines: the training text; at least one line.
    vocab_size: maximum number of pieces. A small corpus gives fewer.
    **options: further options of `SentencePieceTrainer.train`.

  Returns:
    The serialized SentencePiece model.

  Raises:
    ValueError: the vocabulary is too small for the characters of the text.
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
      f'The tokenizer cannot be trained with config.tokenizer.vocab_size={vocab_size}; try a larger value. '
      f'SentencePiece reports: {error}'
    ) from error
  return model.getvalue()
