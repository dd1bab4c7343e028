"""Text data: read text files (or Python's own documentation), and cut their tokens into training sequences."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def read_corpus(path: str, validation_path: str, validation_fraction: float) -> dict[str, list[bytes]]:
  """Reads the training and validation texts.

  Args:
    path: a file, a directory of .txt files, or several of these separated by commas. Empty: the texts of Python's
      interactive help (`pydoc_data.topics`), which depend on the Python version.
    validation_path: files of the validation texts, in the same form. Empty: hold out the end of the texts at `path`.
    validation_fraction: share of the bytes to hold out if `validation_path` is empty.

  Returns:
    The file contents as {'train': texts, 'validation': texts}. There is no 'validation' if nothing is held out.

  Raises:
    ValueError: a file is missing or cannot be read, or there is no text.
  """
  texts = _read(path, 'config.data.path') if path else _python_help()
  if validation_path:
    return {'train': texts, 'validation': _read(validation_path, 'config.data.validation_path')}
  joined = b'\n'.join(texts)
  num_held_out = round(len(joined) * validation_fraction)
  if not num_held_out:
    return {'train': texts}
  # Cut at the start of a line if there is one before the held-out bytes.
  cut = joined.rfind(b'\n', 0, len(joined) - num_held_out) + 1 or len(joined) - num_held_out
  return {'train': [joined[:cut]], 'validation': [joined[cut:]]}


def _python_help() -> list[bytes]:
  from pydoc_data import topics

  return [topics.topics[name].encode() for name in sorted(topics.topics)]


def _read(paths: str, key: str) -> list[bytes]:
  texts = []
  for name in paths.split(','):
    path = Path(name.strip())
    if not path.exists():
      raise ValueError(f'{key}: there is no {path}; give a text file or a directory of .txt files.')
    files = sorted(path.rglob('*.txt')) if path.is_dir() else [path]
    try:
      texts += [file.read_bytes() for file in files]
    except OSError as error:
      raise ValueError(f'{key}: {path} cannot be read: {error}') from None
  texts = [text for text in texts if text]
  if not texts:
    raise ValueError(f'{key}: {paths} holds no text. In a directory, only non-empty .txt files are read.')
  return texts


def fingerprint(corpus: Mapping[str, list[bytes]]) -> str:
  """SHA-256 of the split names and their texts."""
  digest = hashlib.sha256()
  for split, texts in sorted(corpus.items()):
    for text in texts:
      digest.update(f'{split} {len(text)} '.encode())
      digest.update(text)
  return digest.hexdigest()


class Windows:
  """Random access to overlapping windows of a token sequence, from which `Crop` cuts training sequences.

  Window i is the record {'tokens': [2 * length - 1]} that starts at token i * length. The last window may be shorter.
  A random crop of `length` tokens from a window can therefore start at any token of the text.
  """

  def __init__(self, tokens: np.ndarray, length: int):
    """Wraps tokens [N].

    Args:
      tokens: the token ids [N] of the whole text.
      length: tokens per training sequence.

    Raises:
      ValueError: there are fewer tokens than one training sequence has.
    """
    if len(tokens) < length:
      raise ValueError(
        f'The text has {len(tokens)} tokens, fewer than the {length} of one sequence (config.model.length).'
      )
    self._tokens, self._length = tokens, length

  def __len__(self) -> int:
    return len(self._tokens) // self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    start = index * self._length
    return {'tokens': self._tokens[start : start + 2 * self._length - 1]}


class Crop:
  """The transform from a window to one training sequence {'tokens': int32 [length]}. Picklable.

  If `random` is True the sequence starts at a random token of the window, otherwise at its first token.
  """

  def __init__(self, length: int, random: bool):
    self._length, self._random = length, random

  def __call__(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    tokens = record['tokens']
    start = rng.integers(len(tokens) - self._length + 1) if self._random else 0
    return {'tokens': tokens[start : start + self._length].astype(np.int32)}
