"""Text as data: files, or the reference that every Python carries; and windows of tokens to train on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def read_corpus(path: str, validation_path: str, validation_fraction: float) -> dict[str, list[bytes]]:
  """The texts of each split, as they are in the files.

  Args:
    path: a file, a directory of .txt files, or several of both with commas between; empty: the texts of Python's
      interactive help (`pydoc_data.topics`), which depend on its version.
    validation_path: the same for what is held out; empty: the end of `path`.
    validation_fraction: share of the bytes that is held out without a `validation_path`.

  Returns:
    'train' and, where anything is held out, 'validation'.

  Raises:
    ValueError: a file is missing or cannot be read, or there is no text.
  """
  texts = _read(path, 'config.data.path') if path else _topics()
  if validation_path:
    return {'train': texts, 'validation': _read(validation_path, 'config.data.validation_path')}
  whole = b'\n'.join(texts)
  held_out = round(len(whole) * validation_fraction)
  if not held_out:
    return {'train': texts}
  cut = whole.rfind(b'\n', 0, len(whole) - held_out) + 1 or len(whole) - held_out
  return {'train': [whole[:cut]], 'validation': [whole[cut:]]}


def _topics() -> list[bytes]:
  from pydoc_data import topics

  return [topics.topics[name].encode() for name in sorted(topics.topics)]


def _read(paths: str, key: str) -> list[bytes]:
  texts = []
  for name in paths.split(','):
    path = Path(name.strip())
    if not path.exists():
      raise ValueError(f'{key}: there is no {path}; give a text file, or a directory of .txt files.')
    files = sorted(path.rglob('*.txt')) if path.is_dir() else [path]
    try:
      texts += [file.read_bytes() for file in files]
    except OSError as error:
      raise ValueError(f'{key}: {path} cannot be read: {error}') from None
  texts = [text for text in texts if text]
  if not texts:
    raise ValueError(f'{key}: {paths} holds no text; a directory is searched for .txt files.')
  return texts


def fingerprint(corpus: Mapping[str, list[bytes]]) -> str:
  """SHA-256 over splits and texts."""
  digest = hashlib.sha256()
  for split, texts in sorted(corpus.items()):
    for text in texts:
      digest.update(f'{split} {len(text)} '.encode())
      digest.update(text)
  return digest.hexdigest()


class Windows:
  """Tokens [N] as records {'tokens'} of 2 * length - 1 tokens each, one every `length`; see `crop`."""

  def __init__(self, tokens: np.ndarray, length: int):
    """Raises ValueError if there are not enough tokens for one window."""
    if len(tokens) < length:
      raise ValueError(
        f'The text has {len(tokens)} tokens, fewer than the {length} of one sequence (config.model.length).'
      )
    self._tokens, self._length = tokens, length

  def __len__(self) -> int:
    return len(self._tokens) // self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    begin = index * self._length
    return {'tokens': self._tokens[begin : begin + 2 * self._length - 1]}


class Crop:
  """A window's record to {'tokens': int32 [length]}: from a random place in it, or from its beginning. Picklable."""

  def __init__(self, length: int, random: bool):
    self._length, self._random = length, random

  def __call__(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    tokens = record['tokens']
    begin = rng.integers(len(tokens) - self._length + 1) if self._random else 0
    return {'tokens': tokens[begin : begin + self._length].astype(np.int32)}
