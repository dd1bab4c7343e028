"""Prompt accuracy on captioned_shapes: the share of drawn images in which the exact judge finds all that was asked."""

from collections.abc import Sequence

import numpy as np

from dalle_jax.data.shapes import captions as language
from dalle_jax.evaluation import figures
from dalle_jax.evaluation.figures import Figure

KINDS = {1: 'one_object', 2: 'two_objects'}


def choose(captions: Sequence[str], num_per_kind: int) -> list[str]:
  """The first `num_per_kind` captions with one object and as many with two, each text once.

  Args:
    captions: captions of captioned_shapes.
    num_per_kind: at most so many of each kind are taken.
  """
  kept: dict[int, list[str]] = {count: [] for count in KINDS}
  for caption in dict.fromkeys(captions):
    group = kept[num_objects(caption)]
    if len(group) < num_per_kind:
      group.append(caption)
  return [caption for group in kept.values() for caption in group]


def num_objects(caption: str) -> int:
  """How many objects a caption of captioned_shapes names."""
  return len(language.parse(caption).objects)


def shares(captions: Sequence[str], right: np.ndarray) -> dict[str, Figure]:
  """Accuracy over all captions, under '', and by number of objects, under the names in KINDS that occur.

  Args:
    captions: the prompts.
    right: bool [N], the judge's verdict on the image of each.
  """
  counts = np.array([num_objects(caption) for caption in captions])
  groups = {'': np.ones(len(captions), bool)} | {name: counts == count for count, name in KINDS.items()}
  return {name: figures.share(right[members]) for name, members in groups.items() if members.any()}


def scores(captions: Sequence[str], right: np.ndarray, split: str) -> dict[str, float]:
  """`shares` as flat scores of a split, with counts and standard errors."""
  result = {}
  for name, figure in shares(captions, right).items():
    place = f'{split}/{name}'.rstrip('/')
    result[f'prompt_accuracy/{place}'] = figure.value
    result[f'prompt_accuracy_stderr/{place}'] = figure.stderr
    result[f'prompt_count/{place}'] = float(figure.count)
  return result
