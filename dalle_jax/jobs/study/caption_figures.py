"""Figures about captions: missing, empty, repeated and long ones, and the lengths in tokens."""

import collections
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dalle_jax.data.account import Account
from dalle_jax.data.checks.seen import normalized
from dalle_jax.data.sources.entries import Entry, Found
from dalle_jax.data.sources.usable_pictures import Choices, captioned
from dalle_jax.data.text.tokenizer import train_tokenizer
from dalle_jax.files import shown

_MOST_BINS = 24
_NUM_REPEATED = 20  # repeated captions that are listed


class Captions:
  """The captions that pictures have."""

  def __init__(self, found: Sequence[Found], choices: Choices):
    """
    Args:
      found: the pictures.
      choices: how captions are chosen.
    """
    self.choices = choices
    self.entries = {entry.path: entry for entry in captioned(found, choices, Account('pictures'))}
    without = [picture for picture in found if picture.path not in self.entries]
    self.groups = {
      'missing': [picture.path for picture in without if picture.captions is None],
      'empty': [picture.path for picture in without if picture.captions is not None],
      'several': [entry.path for entry in self.entries.values() if entry.others],
    }
    self.reasons = collections.Counter(picture.reason for picture in without if picture.captions is None)


class CaptionFigures(NamedTuple):
  """Figures about captions, and the pictures with a caption that would be cut."""

  figures: dict[str, Any]
  over_long: list[str]


def measure(
  captions: Captions, train: Sequence[Entry], validation: Sequence[Entry], text_length: int, vocab_size: int
) -> CaptionFigures:
  """Measure the captions of the pictures that training would use.

  Args:
    captions: all captions.
    train: the training split, whose captions train the tokenizer.
    validation: the held-out split.
    text_length: positions of text; the first is the start, so one token less fits.
    vocab_size: the largest number of pieces of the tokenizer.

  Returns:
    The figures. If the tokenizer cannot be trained, 'problem' says why, and figures about tokens are missing.
  """
  entries = [*train, *validation]
  figures: dict[str, Any] = {
    **{kind: len(paths) for kind, paths in captions.groups.items()},
    'reasons_of_missing': {shown(reason): count for reason, count in captions.reasons.most_common(20)},
    **_repeated(entries),
  }
  texts = [caption for entry in train for caption in entry.captions]
  unmeasured = {'captions': len(texts), 'over_long': 0, 'over_long_share': 0.0, 'token_lengths': {}}
  if not texts:
    return CaptionFigures({**figures, **unmeasured}, [])
  try:
    tokenizer = train_tokenizer(texts, vocab_size)
  except ValueError as error:
    return CaptionFigures({**figures, **unmeasured, 'problem': str(error)}, [])
  every = [caption for entry in entries for caption in entry.captions]
  lengths = {text: len(tokenizer.encode(text)) for text in dict.fromkeys(every)}
  counts = np.array([lengths[text] for text in every])
  most = text_length - 1
  over_long = [entry.path for entry in entries if any(lengths[text] > most for text in entry.captions)]
  return CaptionFigures(
    {
      **figures, 'captions': len(every), 'distinct': len(lengths), 'pieces': tokenizer.vocab_size,
      'text_length': text_length, 'over_long': int((counts > most).sum()),
      'over_long_share': float((counts > most).mean()), 'over_long_pictures': len(over_long),
      'tokens_mean': float(counts.mean()), 'tokens_median': float(np.median(counts)), 'tokens_max': int(counts.max()),
      'tokens_99_percent': float(np.quantile(counts, 0.99)), 'token_lengths': _histogram(counts),
    },
    over_long,
  )  # fmt: skip


def leaked(train: Sequence[Entry], validation: Sequence[Entry]) -> list[str]:
  """The held-out pictures with a caption that a training picture has, without regard to case and spacing."""
  known = {normalized(caption) for entry in train for caption in entry.captions}
  return [entry.path for entry in validation if any(normalized(caption) in known for caption in entry.captions)]


def _repeated(entries: Sequence[Entry]) -> dict[str, Any]:
  """How many captions several pictures share."""
  counts: collections.Counter[str] = collections.Counter()
  for entry in entries:
    counts.update({normalized(caption) for caption in entry.captions})
  repeated = {caption: count for caption, count in counts.most_common() if count > 1}
  return {
    'repeated': len(repeated),
    'repeated_pictures': sum(
      any(normalized(caption) in repeated for caption in entry.captions) for entry in entries
    ),
    'most_repeated': [
      {'caption': shown(caption), 'pictures': count}
      for caption, count in itertools.islice(repeated.items(), _NUM_REPEATED)
    ],
  }  # fmt: skip


def _histogram(lengths: np.ndarray) -> dict[str, int]:
  """Counts of lengths in at most `_MOST_BINS` equal intervals."""
  width = -(-(int(lengths.max()) + 1) // _MOST_BINS)
  counts = np.bincount(lengths // width)
  return {
    (str(i) if width == 1 else f'{i * width}–{(i + 1) * width - 1}'): int(count) for i, count in enumerate(counts)
  }
