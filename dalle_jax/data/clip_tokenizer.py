"""The tokenizer of CLIP (Radford et al. 2021, section 2.4): byte-pair encoding of lower-cased text by published merges.

A text is cleaned and lower-cased, cut into words by a regular expression, and each word written as the characters that
stand for its UTF-8 bytes, the last one with an end-of-word mark; then pairs are merged in the order of the file.
"""

import functools
import gzip
import hashlib
import html
import importlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from dalle_jax.data.pieces import checked
from dalle_jax.data.tokenizer import merge, pad

CONTEXT_LENGTH = 77  # tokens of a text in all published models, the start and the end among them
MAX_MERGES = 48_894  # the published file has 262,144, of which CLIP uses the first
START, END = '<|startoftext|>', '<|endoftext|>'
_END_OF_WORD = '</w>'
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
  """Text to token ids and back, as CLIP's own tokenizer gives them.

  `encode` gives a text's tokens alone, `encode_padded` what the model reads: start, text, end, zeros. The end has the
  highest id. Unlike there, the marks of start and end cannot be typed: they are read as ordinary characters.
  """

  def __init__(self, merges: Iterable[str]):
    """Args: merges: pairs in the order of merging, as 'left right'.

    Raises:
      ValueError: one is not a pair of pieces that came before it, or makes a piece that is there already.
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
    """Number of ids, start and end among them; 49,408 in the published vocabulary."""
    return len(self._pieces)

  @property
  def pieces_hash(self) -> str:
    """SHA-256 over the pieces in order: equal for tokenizers that give equal ids."""
    return hashlib.sha256('\n'.join(self._pieces).encode()).hexdigest()

  @property
  def start_id(self) -> int:
    return self._ids[START]

  @property
  def end_id(self) -> int:
    return self._ids[END]

  def encode(self, text: str) -> list[int]:
    """Token ids of a text, without start, end and padding."""
    return [i for word in _words().findall(_cleaned(text)) for i in self._word_ids(word)]

  def _word_ids(self, word: str) -> list[int]:
    symbols = [_byte_characters()[byte] for byte in word.encode()]
    symbols[-1] += _END_OF_WORD
    return [self._ids[piece] for piece in merge(symbols, self._ranks, between=' ')]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of token ids [T] up to the first end, with a space after each word.

    Raises:
      ValueError: an id outside of the vocabulary.
    """
    ids = checked(ids, self.vocab_size)
    ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
    text = ''.join(self._pieces[i].replace(_END_OF_WORD, ' ') for i in ids if i != self.start_id)
    bytes_of = {character: byte for byte, character in _byte_characters().items()} | {' ': ord(' ')}
    return bytes(bytes_of[character] for character in text).decode(errors='replace').strip()

  def encode_padded(self, text: str, length: int = CONTEXT_LENGTH, truncate: bool = False) -> np.ndarray:
    """Token ids int32 [length]: start, text, end, and 0 up to the length.

    Args:
      text: a caption or prompt.
      length: slots for tokens.
      truncate: cuts a text that is too long instead of refusing it; the end stays.

    Raises:
      ValueError: the text is empty, or has too many tokens.
    """
    ids = self.encode(text)
    if not ids:
      raise ValueError(f'The prompt {text!r} is empty; give at least one word.')
    if len(ids) > length - 2 and not truncate:
      raise ValueError(
        f'The prompt has {len(ids)} tokens, but the model takes at most {length - 2}; shorten it, or cut it off with '
        f'--truncate: {text!r}'
      )
    return pad([self.start_id, *ids[: length - 2], self.end_id], length)

  def save(self, path: str | os.PathLike) -> None:
    """Writes the merges to one file, a line each below a heading."""
    Path(path).write_text('\n'.join(['#version: 0.2', *self._merges, '']), encoding='utf-8')

  @classmethod
  def load(cls, path: str | os.PathLike) -> Self:
    """Reads the merges from what `save` wrote, or from a published file.

    Args:
      path: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, unpacked or not, or `merges.txt` or `tokenizer.json` of a copy.

    Raises:
      ValueError: the file is missing, damaged or something else.
    """
    try:
      data = Path(path).read_bytes()
      text = (gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data).decode()
      return cls(_from_json(text) if text[:1] == '{' else _from_lines(text))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
      raise ValueError(f'Cannot load the tokenizer {path}: {error}') from error


def check_packages() -> None:
  """Looks whether the packages that encoding needs are installed; a ValueError says which one is not."""
  for name in ('regex', 'ftfy'):
    _package(name)


def _from_lines(text: str) -> list[str]:
  """Merges below a heading, of which only the first are CLIP's."""
  heading, *lines = text.split('\n')
  if 'version' not in heading:
    raise ValueError(f"not a list of CLIP's merges: it begins with {heading[:80]!r}")
  return [line for line in lines[:MAX_MERGES] if line]


def _from_json(text: str) -> list[str]:
  """Merges of a `tokenizer.json`, pairs as lists or as texts."""
  merges = json.loads(text)['model']['merges']
  return [pair if isinstance(pair, str) else ' '.join(pair) for pair in merges]


@functools.cache
def _byte_characters() -> dict[int, str]:
  """A printable character for each byte, in the order of their ids: those that print stand for themselves."""
  plain = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
  others = [byte for byte in range(256) if byte not in plain]
  return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@functools.cache
def _words() -> Any:
  regex = _package('regex')
  return regex.compile(_WORDS, regex.IGNORECASE)


def _cleaned(text: str) -> str:
  """Repaired Unicode, HTML's entities resolved (twice, as many captions of the web need), joined spaces, lower case."""
  text = html.unescape(html.unescape(_package('ftfy').fix_text(text)))
  return ' '.join(text.split()).lower()


def _package(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError:
    raise ValueError(f"CLIP's tokenizer needs the package {name}: pip install 'dalle_jax[clip]'.") from None
