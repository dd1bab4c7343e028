"""The captions' tokenizer: byte-pair encoding of lower-cased text (section 2.2), by SentencePiece."""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

PAD = 0
# 256 byte pieces, the pad and the unknown piece, and some room for characters.
MIN_VOCAB_SIZE = 270


class Tokenizer:
  """Text to token ids and back. Token 0 is padding; any text can be encoded, rare characters as their bytes.

  Encoding lower-cases, applies Unicode NFKC and joins spaces, so decoding gives the text in that form.
  """

  def __init__(self, model: bytes):
    """Args: model: a serialized SentencePiece model, as `train_tokenizer` makes it.

    Raises:
      ValueError: the bytes are not such a model.
    """
    import sentencepiece  # only loaded where a tokenizer is used

    try:
      if not model:
        raise RuntimeError('no bytes')
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(f'not a tokenizer, or a damaged one: {error}') from error
    self._model = model
    # A file cut at a lucky place still loads, but without its rules of normalization.
    if self._processor.id_to_piece(PAD) != '<pad>' or self.decode(self.encode('A')) != 'a':
      raise ValueError('not a tokenizer of this program, or a damaged one: padding or lower-casing is missing')

  def __reduce__(self) -> tuple:
    return Tokenizer, (self._model,)

  @property
  def vocab_size(self) -> int:
    """Number of pieces, the padding among them; at most what was asked for in training."""
    return self._processor.get_piece_size()

  @property
  def pieces_hash(self) -> str:
    """SHA-256 over the pieces in order: equal for tokenizers that give equal ids."""
    pieces = (self._processor.id_to_piece(i) for i in range(self.vocab_size))
    return hashlib.sha256('\n'.join(pieces).encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Token ids of a text, without padding."""
    return self._processor.encode(text)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of token ids [T]; padding is skipped.

    Raises:
      ValueError: an id outside of the vocabulary.
    """
    ids = [int(i) for i in ids if i != PAD]
    if ids and not 0 < min(ids) <= max(ids) < self.vocab_size:
      raise ValueError(f'Token ids must lie in [0, {self.vocab_size}); given {min(ids)} to {max(ids)}.')
    return self._processor.decode(ids)

  def encode_padded(self, text: str, length: int, truncate: bool = False) -> np.ndarray:
    """Token ids int32 [length], padded with 0 on the right.

    Args:
      text: a caption or prompt.
      length: slots for text tokens.
      truncate: cuts a text that is too long instead of refusing it.

    Raises:
      ValueError: the text is empty, or has too many tokens.
    """
    ids = self.encode(text)
    if not ids:
      raise ValueError(f'The prompt {text!r} is empty; give at least one word.')
    if len(ids) > length and not truncate:
      raise ValueError(
        f'The prompt has {len(ids)} tokens, but the model takes at most {length}; shorten it, or cut it off with '
        f'--truncate: {text!r}'
      )
    return pad(ids, length)

  def save(self, path: str | os.PathLike) -> None:
    """Writes the tokenizer to one file."""
    Path(path).write_bytes(self._model)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Tokenizer':
    """Reads what `save` wrote.

    Raises:
      ValueError: the file is missing, damaged or something else.
    """
    try:
      return cls(Path(path).read_bytes())
    except (OSError, ValueError) as error:
      raise ValueError(f'Cannot load the tokenizer {path}: {error}') from error


def pad(ids: Sequence[int], length: int) -> np.ndarray:
  """Token ids as int32 [length]: cut, or padded with 0 on the right."""
  padded = np.full(length, PAD, np.int32)
  padded[: len(ids)] = ids[:length]
  return padded


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
  """Learns byte-pair merges from captions; deterministic for given captions in a given order.

  Args:
    captions: the training texts.
    vocab_size: the most pieces to make; a small corpus gives fewer.

  Raises:
    ValueError: no text at all, or a vocabulary too small for the corpus's characters.
  """
  import sentencepiece

  _check_vocab_size(vocab_size)
  captions = [caption for caption in captions if caption.strip()]
  if not captions:
    raise ValueError('The tokenizer needs captions to learn from; all the given ones are empty.')
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(captions), model_writer=model, model_type='bpe', vocab_size=vocab_size,
      hard_vocab_limit=False, normalization_rule_name='nmt_nfkc_cf', byte_fallback=True,
      pad_id=PAD, unk_id=1, bos_id=-1, eos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
  except RuntimeError as error:
    raise ValueError(
      f'The tokenizer cannot be trained with config.tokenizer.vocab_size={vocab_size}; a larger one may help. '
      f'SentencePiece says: {error}'
    ) from error
  return Tokenizer(model.getvalue())


def _check_vocab_size(vocab_size: int) -> None:
  if vocab_size < MIN_VOCAB_SIZE:
    raise ValueError(
      f'config.tokenizer.vocab_size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE}, as 256 pieces are single '
      'bytes, which make every text encodable.'
    )
