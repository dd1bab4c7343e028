"""Text data: read text files (or Python's own documentation), and cut their tokens into training sequences."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dalle_jax.data.account import Account
from dalle_jax.data.sources.survey import survey
from dalle_jax.files import shown


def read_corpus(
  path: str, validation_path: str, validation_fraction: float, account: Account | None = None
) -> dict[str, list[bytes]]:
  """Reads the training and validation texts.

  Args:
    path: a file, a directory of .txt files, or several of these separated by commas. Hidden files and links out of a
      directory are not read. Empty: the texts of Python's interactive help (`pydoc_data.topics`), which depend on the
      Python version.
    validation_path: files of the validation texts, in the same form. Empty: hold out the end of the texts at `path`.
    validation_fraction: share of the bytes to hold out if `validation_path` is empty.
    account: counts the files that are found, used and left out.

  Returns:
    The file contents as {'train': texts, 'validation': texts}. There is no 'validation' if nothing is held out.

  Raises:
    ValueError: a file is missing or cannot be read, or there is no text.
  """
  account = account or Account('texts')
  if path:
    texts = _read(path, 'config.data.path', account)
  else:
    texts = _python_help()
    account.used += len(texts)
  if validation_path:
    return {'train': texts, 'validation': _read(validation_path, 'config.data.validation_path', account)}
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


def _read(paths: str, key: str, account: Account) -> list[bytes]:
  texts: list[bytes] = []
  seen: set[str] = set()
  for name in paths.split(','):
    path = Path(name.strip())
    if not name.strip() or not path.exists():
      raise ValueError(
        f'{key}: there is no {shown(name.strip()) or "name between two commas"}; give a text file or a directory of '
        '.txt files.'
      )
    if not path.is_file() and not path.is_dir():  # a device or a pipe may have no end
      raise ValueError(f'{key}: {shown(name.strip())} is neither a file nor a directory; give one of these.')
    for file in _text_files(path, key, account) if path.is_dir() else [path]:
      text = _read_file(file, key)
      if not text:
        account.leave_out('it is empty', file.name)
        continue
      if (real := os.path.realpath(file)) in seen:
        account.note('read more than once, because several of the given paths lead to it', file.name)
      seen.add(real)
      account.used += 1
      texts.append(text)
  if not texts:
    raise ValueError(
      f'{key}: {shown(paths)} holds no text. In a directory, only non-empty .txt files are read.\n{account}'
    )
  return texts


def _read_file(file: Path, key: str) -> bytes:
  try:
    return file.read_bytes()
  except OSError as error:
    raise ValueError(f'{key}: {shown(file)} cannot be read: {error.strerror}') from None


def _text_files(directory: Path, key: str, account: Account) -> list[Path]:
  """The `.txt` files below a directory, sorted. Counts the other files."""
  found = survey(directory, key)
  for name in found.hidden:
    account.note('hidden, and therefore not read', name)
  for name in found.linked:
    account.note('a link to a folder inside this folder, which is searched at its own place', name)
  for name, reason in found.barred.items():
    (account.leave_out if _is_text(name) else account.note)(reason, name)
  for name in found.files:
    if not _is_text(name):
      account.note('not a .txt file', name)
  return sorted(directory / name for name in found.files if _is_text(name))


def _is_text(name: str) -> bool:
  return name.lower().endswith('.txt')


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
