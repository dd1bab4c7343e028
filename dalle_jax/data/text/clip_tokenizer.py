"""CLIP's tokenizer (Radford et al. 2021, section 2.4): byte-pair encoding of lower-cased text with published merges.

Encoding has four steps:
  1. Clean and lower-case the text.
  2. Split it into words with a regular expression.
  3. Write each UTF-8 byte of a word as one printable character, and add an end-of-word mark to the last character.
  4. Merge pairs in the order of the merges file.
"""

import functools
import gzip
import hashlib
import html
import importlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from dalle_jax.data.text.caption_text import check_characters, check_visible, is_empty, shortened
from dalle_jax.data.text.pieces import checked
from dalle_jax.data.text.tokenizer import merge, pad
from dalle_jax.files import check_regular, reason, shown

CONTEXT_LENGTH = 77  # text slots of all published models, including the start and end tokens
MAX_MERGES = 48_894  # CLIP uses only the first merges of the published file, which lists 262,144
MAX_UNPACKED = 2**26  # bytes of a list of merges; the published one has 3 MB
START, END = '<|startoftext|>', '<|endoftext|>'
_END_OF_WORD = '</w>'
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
  """CLIP's tokenizer. It gives the same token ids as OpenAI's implementation.

  `encode` returns only the text's tokens. `encode_padded` returns what the model reads: start, text, end, zeros. The
  end token has the highest id. Unlike OpenAI's tokenizer, this one reads '<|startoftext|>' and '<|endoftext|>' in a
  text as ordinary characters, so a prompt cannot contain the start and end tokens.
  """

  def __init__(self, merges: Iterable[str]):
    """Builds the vocabulary from the merges.

    Args:
      merges: pairs of pieces as 'left right', in the order of merging.

    Raises:
      ValueError: a merge does not join two known pieces, or makes a piece that already exists.
    """
    self._merges = tuple(merges)
    characters = _byte_characters().values()
    pieces = dict.fromkeys([*characters, *(character + _END_OF_WORD for character in characters)])
    for number, pair in enumerate(self._merges, 1):
      left, _, right = pair.partition(' ')
      if left not in pieces or right not in pieces or left + right in pieces:
        raise ValueError(f"not a list of CLIP's merges, or a damaged one: merge {number} is {pair[:80]!r}")
      pieces[left + right] = None
    self._pieces = [*pieces, START, END]
    self._ids = {piece: i for i, piece in enumerate(self._pieces)}
    self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}

  def __reduce__(self) -> tuple:
    return type(self), (self._merges,)

  @property
  def vocab_size(self) -> int:
    """Number of ids, including start and end. The published vocabulary has 49,408."""
    return len(self._pieces)

  @property
  def pieces_hash(self) -> str:
    """SHA-256 of the pieces in order. Tokenizers with equal hashes give equal ids."""
    return hashlib.sha256('\n'.join(self._pieces).encode()).hexdigest()

  @property
  def start_id(self) -> int:
    return self._ids[START]

  @property
  def end_id(self) -> int:
    return self._ids[END]

  def encode(self, text: str) -> list[int]:
    """Returns the token ids of a text, without start, end and padding. There are none if it `is_empty`.

    Raises:
      ValueError: the text holds half of a surrogate pair.
    """
    check_characters(text)
    cleaned = _cleaned(text)
    return [] if is_empty(cleaned) else [i for word in _words().findall(cleaned) for i in self._word_ids(word)]

  def _word_ids(self, word: str) -> list[int]:
    symbols = [_byte_characters()[byte] for byte in word.encode()]
    symbols[-1] += _END_OF_WORD
    return [self._ids[piece] for piece in merge(symbols, self._ranks, between=' ')]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of token ids [T] up to the first end token, with a space between words.

    Raises:
      ValueError: an id is outside the vocabulary.
    """
    ids = checked(ids, self.vocab_size)
    ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
    text = ''.join(self._pieces[i].replace(_END_OF_WORD, ' ') for i in ids if i != self.start_id)
    bytes_of = {character: byte for byte, character in _byte_characters().items()} | {' ': ord(' ')}
    return bytes(bytes_of[character] for character in text).decode(errors='replace').strip()

  def encode_padded(self, text: str, length: int = CONTEXT_LENGTH, truncate: bool = False) -> np.ndarray:
    """Returns token ids int32 [length]: start, text, end, then padding with 0.

    Args:
      text: a caption or prompt.
      length: number of token slots, including start and end.
      truncate: whether to cut a text that is too long. If False, such a text is an error. The end token always stays.

    Raises:
      ValueError: the text is empty, or too long and `truncate` is False.
    """
    check_characters(text)
    check_visible(_cleaned(text))
    ids = self.encode(text)
    if len(ids) > length - 2 and not truncate:
      raise ValueError(
        f'The prompt has {len(ids)} tokens, but the model takes at most {length - 2}; shorten it, or cut it off with '
        f'--truncate: {shortened(text)!r}'
      )
    return pad([self.start_id, *ids[: length - 2], self.end_id], length)

  def save(self, path: str | os.PathLike) -> None:
    """Writes the merges to one file: a heading, then one merge per line."""
    Path(path).write_text('\n'.join(['#version: 0.2', *self._merges, '']), encoding='utf-8')

  @classmethod
  def load(cls, path: str | os.PathLike) -> Self:
    """Reads a file that `save` wrote, or a published file.

    Args:
      path: a file that `save` wrote, OpenAI's `bpe_simple_vocab_16e6.txt.gz` (compressed or not), or `merges.txt` or
        `tokenizer.json` of a Hugging Face model.

    Raises:
      ValueError: the file is missing, damaged, or not a list of merges.
    """
    try:
      check_regular(Path(path))
      with Path(path).open('rb') as file:
        text = _unpacked(file).decode()
      return cls(_from_json(text) if text[:1] == '{' else _from_lines(text))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
      raise ValueError(
        f"Cannot load the tokenizer {shown(path)}: {_problem(error)}. Name OpenAI's "
        'bpe_simple_vocab_16e6.txt.gz, or merges.txt or tokenizer.json of a Hugging Face model.'
      ) from error


def _problem(error: Exception) -> str:
  """What is wrong with a list of merges, in words."""
  if isinstance(error, UnicodeDecodeError):
    return f'it is not text in UTF-8 (byte {error.start})'
  if isinstance(error, KeyError):
    return f'it has no entry {shown(error)}'
  if isinstance(error, TypeError | RecursionError):
    return 'its entries are not those of a tokenizer'
  return reason(error)


def check_packages() -> None:
  """Raises ValueError if a package that encoding needs is not installed."""
  for name in ('regex', 'ftfy'):
    _package(name)


def _unpacked(file: BinaryIO) -> bytes:
  """The content of a file, decompressed if it is a gzip file.

  Raises:
    ValueError: the content has more than MAX_UNPACKED bytes.
  """
  content = file.read(MAX_UNPACKED + 1)
  if content[:2] == b'\x1f\x8b':
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as unpacked:
      content = unpacked.read(MAX_UNPACKED + 1)
  if len(content) > MAX_UNPACKED:
    raise ValueError(f'it has more than {MAX_UNPACKED:,} bytes, after decompression if it is a gzip file')
  return content


def _from_lines(text: str) -> list[str]:
  """The first MAX_MERGES merges of a text file, whose first line is a heading."""
  heading, *lines = text.split('\n')
  if 'version' not in heading:
    raise ValueError(f"not a list of CLIP's merges: it begins with {heading[:80]!r}")
  return [line for line in lines[:MAX_MERGES] if line]


def _from_json(text: str) -> list[str]:
  """Merges from a `tokenizer.json`, which stores each pair as a list or as one string."""
  merges = json.loads(text)['model']['merges']
  return [pair if isinstance(pair, str) else ' '.join(pair) for pair in merges]


@functools.cache
def _byte_characters() -> dict[int, str]:
  """Maps each byte to a printable character. The order of the keys is the order of the ids.

  A byte that is printable in Latin-1 maps to that character. The other bytes map to characters from U+0100 on.
  """
  printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
  unprintable = [byte for byte in range(256) if byte not in printable]
  return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(unprintable)}


@functools.cache
def _words() -> Any:
  regex = _package('regex')
  return regex.compile(_WORDS, regex.IGNORECASE)


def _cleaned(text: str) -> str:
  """Repairs broken Unicode, resolves HTML entities, collapses white space and lower-cases.

  Many captions from the web were escaped twice, so entities are resolved twice.
  """
  text = html.unescape(html.unescape(_package('ftfy').fix_text(text)))
  return ' '.join(text.split()).lower()


def _package(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError:
    raise ValueError(f"CLIP's tokenizer needs the package {name}: pip install 'dalle_jax[clip]'.") from None
