"""The captions' tokenizer: byte-pair encoding of lower-cased text (section 2.2), by SentencePiece."""

import functools
import heapq
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dalle_jax.data.pieces import SPACE, PieceModel, checked, train

PAD = 0
# 256 byte pieces, the pad and the unknown piece, and some room for characters.
MIN_VOCAB_SIZE = 270


class Tokenizer(PieceModel):
  """Text to token ids and back. Token 0 is padding; any text can be encoded, rare characters as their bytes.

  Encoding lower-cases, applies Unicode NFKC and joins spaces, so decoding gives the text in that form.
  """

  def __init__(self, model: bytes):
    """Args: model: a serialized SentencePiece model, as `train_tokenizer` makes it.

    Raises:
      ValueError: the bytes are not such a model.
    """
    super().__init__(model)
    # A file cut at a lucky place still loads, but without its rules of normalization.
    if self._processor.id_to_piece(PAD) != '<pad>' or self.decode(self.encode('A')) != 'a':
      raise ValueError('not a tokenizer of this program, or a damaged one: padding or lower-casing is missing')

  def encode(self, text: str) -> list[int]:
    """Token ids of a text, without padding."""
    return self._processor.encode(text)

  def encode_with_dropout(self, text: str, dropout: float, rng: np.random.Generator) -> list[int]:
    """Token ids with BPE dropout (Provilkov et al. 2020): merges are left out at random, so that words come apart.

    SentencePiece samples as well, but from a generator of the whole program; this one makes a caption's tokens a
    function of `rng`. With a dropout of 0 it gives what `encode` gives.

    Args:
      text: a caption.
      dropout: chance that a merge, when its turn comes, is left out; at 1 nothing is merged.
      rng: source of the choices.
    """
    symbols = merge(list(self._processor.normalize(text)), self._ranks, dropout, rng)
    return [i for symbol in symbols for i in self._ids_of(symbol)]

  @functools.cached_property
  def _ranks(self) -> dict[str, int]:
    """The place of every piece in the order of merging; pieces learnt earlier have lower ids."""
    skipped = (self._processor.is_byte, self._processor.is_control, self._processor.is_unknown)
    return {
      self._processor.id_to_piece(i): i for i in range(self.vocab_size) if not any(is_one(i) for is_one in skipped)
    }

  def _ids_of(self, symbol: str) -> list[int]:
    """A piece's id, or those of its bytes."""
    if symbol in self._ranks:
      return [self._ranks[symbol]]
    return [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in symbol.encode()]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of token ids [T]; padding is skipped.

    Raises:
      ValueError: an id outside of the vocabulary.
    """
    ids = checked(ids, self.vocab_size)
    return self._processor.decode([i for i in ids if i != PAD])

  def words(self, ids: Sequence[int] | np.ndarray) -> list[tuple[str, list[int]]]:
    """The words of token ids [T], each with the places in [0, T) of the tokens that it is made of; padding is skipped.

    Raises:
      ValueError: an id outside of the vocabulary.
    """
    ids, places = checked(ids, self.vocab_size), []
    for place, i in enumerate(ids):
      if i == PAD:
        continue
      if not places or self._processor.id_to_piece(i).startswith(SPACE):
        places.append([])
      places[-1].append(place)
    return [(self.decode([ids[place] for place in word]), word) for word in places]

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


def merge(
  symbols: list[str],
  ranks: Mapping[str, int],
  dropout: float = 0.0,
  rng: np.random.Generator | None = None,
  between: str = '',
) -> list[str]:
  """Byte-pair merges: again and again the neighbours of the lowest rank, the leftmost of equals.

  Args:
    symbols: characters.
    ranks: the place in the order of merging of every pair, written as one text: its union, so that it does not matter
      where a piece is cut, or two parts with `between` between them.
    dropout: chance that a pair, when its turn comes, is left out; it has another turn if a neighbour changes.
    rng: source of the choices; not needed without dropout.
    between: what stands between the two parts of a pair in `ranks`.

  Returns:
    The pieces left at the end; joined, they give the joined symbols.
  """
  symbols, after = (
    list(symbols),
    [*range(1, len(symbols)), -1],
  )  # a merged symbol lives on at the place of its left part
  before = [-1, *range(len(symbols) - 1)]
  agenda: list[tuple[int, int, int, str]] = []

  def propose(left: int, right: int) -> None:
    if left >= 0 and right >= 0 and (rank := ranks.get(symbols[left] + between + symbols[right])) is not None:
      heapq.heappush(agenda, (rank, left, right, symbols[left] + symbols[right]))

  for left in range(len(symbols) - 1):
    propose(left, left + 1)
  while agenda:
    _, left, right, union = heapq.heappop(agenda)
    if not symbols[left] or after[left] != right or symbols[left] + symbols[right] != union:
      continue  # one of the two has been merged with another since
    if dropout and rng.random() < dropout:
      continue
    symbols[left], symbols[right] = union, ''
    after[left] = after[right]
    if after[left] >= 0:
      before[after[left]] = left
    propose(before[left], left)
    propose(left, after[left])
  return [symbol for symbol in symbols if symbol]


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
  _check_vocab_size(vocab_size)
  captions = [caption for caption in captions if caption.strip()]
  if not captions:
    raise ValueError('The tokenizer needs captions to learn from; all the given ones are empty.')
  options = {'normalization_rule_name': 'nmt_nfkc_cf', 'pad_id': PAD, 'unk_id': 1}
  return Tokenizer(train(captions, vocab_size, **options))


def _check_vocab_size(vocab_size: int) -> None:
  if vocab_size < MIN_VOCAB_SIZE:
    raise ValueError(
      f'config.tokenizer.vocab_size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE}, as 256 pieces are single '
      'bytes, which make every text encodable.'
    )
