"""The caption tokenizer: a SentencePiece byte-pair encoding of lower-cased text (section 2.2)."""

import functools
import heapq
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dalle_jax.data.text.caption_text import check_characters, check_visible, is_empty, sentences, shortened
from dalle_jax.data.text.pieces import RESERVED, SPACE, PieceModel, checked, train

PAD = 0
# 256 byte pieces, the padding piece, the unknown piece, and a few pieces for characters.
MIN_VOCAB_SIZE = 270


class Tokenizer(PieceModel):
  """A tokenizer for captions and prompts. Token 0 is padding.

  Encoding lower-cases the text, applies Unicode NFKC and collapses spaces. Decoding returns the text in that form. Any
  text can be encoded: a character without a piece is encoded as its UTF-8 bytes. So is U+2581, with which SentencePiece
  itself writes spaces.
  """

  def __init__(self, model: bytes):
    """Loads a model.

    Args:
      model: a serialized SentencePiece model that `train_tokenizer` made.

    Raises:
      ValueError: the bytes are not such a model.
    """
    super().__init__(model)
    # Some truncated files are valid protocol buffers and load, but lack the normalization rules.
    if self._processor.id_to_piece(PAD) != '<pad>' or self.decode(self.encode('A')) != 'a':
      raise ValueError('not a caption tokenizer, or a damaged one: padding or lower-casing is missing')

  def encode(self, text: str) -> list[int]:
    """Returns the token ids of a text, without padding. There are none exactly if `caption_text.is_empty(text)`.

    Raises:
      ValueError: the text holds half of a surrogate pair.
    """
    check_characters(text)
    if is_empty(text):
      return []
    masked, mask = self._masked(text)
    return self._unmasked(self._processor.encode(masked), mask)

  def unseen(self, text: str) -> str:
    """Returns the characters of a text that have no piece, each once. They were rare or absent in training."""
    masked, mask = self._masked(text)
    unseen = dict.fromkeys(symbol for symbol in self._processor.normalize(masked) if symbol not in self._ranks)
    return ''.join(SPACE if symbol == mask else symbol for symbol in unseen)

  def _masked(self, text: str) -> tuple[str, str]:
    """The text with another character in place of U+2581, and that character; '' if the text has no U+2581.

    The mask is a private-use character that has no piece and is not in the text. SentencePiece encodes it as bytes.
    """
    if SPACE not in text:
      return text, ''
    private = map(chr, range(0xF0000, 0xFFFFE))
    mask = next(character for character in private if character not in text and character not in self._ranks)
    return text.replace(SPACE, mask), mask

  def _unmasked(self, ids: list[int], mask: str) -> list[int]:
    """Replaces the bytes of the mask by those of U+2581."""
    if not mask:
      return ids
    old, new = self._ids_of(mask), self._bytes_of(SPACE)
    result: list[int] = []
    for i in ids:
      result.append(i)
      if result[-len(old) :] == old:
        result[-len(old) :] = new
    return result

  def encode_with_dropout(self, text: str, dropout: float, rng: np.random.Generator) -> list[int]:
    """Encodes with BPE dropout (Provilkov et al. 2020): merges are skipped at random, which splits words further.

    SentencePiece's own sampling uses a global random state. Here the tokens depend only on the arguments. With a
    dropout of 0 the result equals that of `encode`.

    Args:
      text: a caption.
      dropout: probability of skipping a merge. At 1 nothing is merged.
      rng: source of the random choices.

    Returns:
      The token ids, without padding.
    """
    if is_empty(text):
      return []
    masked, mask = self._masked(text)
    symbols = merge(list(self._processor.normalize(masked)), self._ranks, dropout, rng)
    return self._unmasked([i for symbol in symbols for i in self._ids_of(symbol)], mask)

  @functools.cached_property
  def _ranks(self) -> dict[str, int]:
    """Maps each piece to its id, which is also its rank: SentencePiece numbers pieces in the order of merging."""
    exclusions = (self._processor.is_byte, self._processor.is_control, self._processor.is_unknown)
    return {
      self._processor.id_to_piece(i): i
      for i in range(self.vocab_size)
      if not any(is_excluded(i) for is_excluded in exclusions)
    }

  def _ids_of(self, symbol: str) -> list[int]:
    """The id of a piece, or the ids of its bytes if it is not in the vocabulary."""
    if symbol in self._ranks:
      return [self._ranks[symbol]]
    return self._bytes_of(symbol)

  def _bytes_of(self, symbol: str) -> list[int]:
    """The ids of the pieces that stand for the UTF-8 bytes of a symbol."""
    return [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in symbol.encode()]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of token ids [T]. Padding is skipped.

    Raises:
      ValueError: an id is outside the vocabulary.
    """
    ids = checked(ids, self.vocab_size)
    return self._processor.decode([i for i in ids if i != PAD])

  def words(self, ids: Sequence[int] | np.ndarray) -> list[tuple[str, list[int]]]:
    """Groups token ids [T] into words. Padding is skipped.

    Returns:
      For each word, its text and the positions of its tokens in [0, T).

    Raises:
      ValueError: an id is outside the vocabulary.
    """
    ids = checked(ids, self.vocab_size)
    word_positions: list[list[int]] = []
    for position, i in enumerate(ids):
      if i == PAD:
        continue
      if not word_positions or self._processor.id_to_piece(i).startswith(SPACE):
        word_positions.append([])
      word_positions[-1].append(position)
    return [(self.decode([ids[position] for position in positions]), positions) for positions in word_positions]

  def encode_padded(self, text: str, length: int, truncate: bool = False) -> np.ndarray:
    """Returns token ids int32 [length], padded with 0 on the right.

    Args:
      text: a caption or prompt.
      length: number of token slots.
      truncate: whether to cut a text that is too long. If False, such a text is an error.

    Raises:
      ValueError: the text is empty, or too long and `truncate` is False.
    """
    check_visible(text)
    ids = self.encode(text)
    if len(ids) > length and not truncate:
      raise ValueError(
        f'The prompt has {len(ids)} tokens, but the model takes at most {length}; shorten it, or cut it off with '
        f'--truncate: {shortened(text)!r}'
      )
    return pad(ids, length)


def merge(
  symbols: list[str],
  ranks: Mapping[str, int],
  dropout: float = 0.0,
  rng: np.random.Generator | None = None,
  between: str = '',
) -> list[str]:
  """Applies byte-pair merges: repeatedly merges the adjacent pair of lowest rank, the leftmost one if ranks tie.

  Args:
    symbols: the characters to merge.
    ranks: the rank of each pair in the merge order. The key is left + between + right. With an empty `between` the
      rank depends only on the merged piece, not on its two parts.
    dropout: probability of skipping a pair when it is the next to merge. A skipped pair is not tried again, but a merge
      beside it forms a new pair.
    rng: source of the random choices. Only needed with dropout.
    between: the separator in the keys of `ranks`.

  Returns:
    The pieces. Joined, they equal the joined symbols.
  """
  # The symbols form a linked list. A merged symbol takes the index of its left part, and its right part becomes ''.
  symbols = list(symbols)
  following = [*range(1, len(symbols)), -1]
  preceding = [-1, *range(len(symbols) - 1)]
  queue: list[tuple[int, int, int, str]] = []

  def propose(left: int, right: int) -> None:
    if left >= 0 and right >= 0 and (rank := ranks.get(symbols[left] + between + symbols[right])) is not None:
      heapq.heappush(queue, (rank, left, right, symbols[left] + symbols[right]))

  for left in range(len(symbols) - 1):
    propose(left, left + 1)
  while queue:
    _, left, right, merged = heapq.heappop(queue)
    if not symbols[left] or following[left] != right or symbols[left] + symbols[right] != merged:
      continue  # outdated: one of the two symbols has been merged with another since
    if dropout:
      assert rng is not None, 'dropout needs a source of random choices'
      if rng.random() < dropout:
        continue
    symbols[left], symbols[right] = merged, ''
    following[left] = following[right]
    if following[left] >= 0:
      preceding[following[left]] = left
    propose(preceding[left], left)
    propose(left, following[left])
  return [symbol for symbol in symbols if symbol]


def pad(ids: Sequence[int], length: int) -> np.ndarray:
  """Truncates token ids, or pads them with 0 on the right, to int32 [length]."""
  padded = np.full(length, PAD, np.int32)
  padded[: len(ids)] = ids[:length]
  return padded


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
  """Trains a caption tokenizer. The result depends only on the captions and their order.

  Args:
    captions: the training captions, of any length.
    vocab_size: maximum number of pieces. A small corpus gives fewer.

  Raises:
    ValueError: all captions are empty, or the vocabulary is too small for the characters of the captions.
  """
  _check_vocab_size(vocab_size)
  # SentencePiece would skip captions with a reserved character, and long ones.
  lines = [
    line for caption in captions if not is_empty(caption) for line in sentences(RESERVED.sub(' ', caption))
    if not is_empty(line)
  ]  # fmt: skip
  if not lines:
    raise ValueError('The tokenizer cannot be trained without captions: there are none, or all are empty.')
  options = {'normalization_rule_name': 'nmt_nfkc_cf', 'pad_id': PAD, 'unk_id': 1}
  return Tokenizer(train(lines, vocab_size, **options))


def _check_vocab_size(vocab_size: int) -> None:
  if vocab_size < MIN_VOCAB_SIZE:
    raise ValueError(
      f'config.tokenizer.vocab_size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE}, because 256 pieces are '
      'reserved for single bytes, so that every text can be encoded.'
    )
