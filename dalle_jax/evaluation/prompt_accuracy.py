"""Prompt accuracy on captioned_shapes: the share of drawn images in which the exact judge finds all that was asked."""

from collections.abc import Sequence

import numpy as np

from dalle_jax.data.shapes import captions as language

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


def scores(captions: Sequence[str], right: np.ndarray, split: str) -> dict[str, float]:
  """Flat figures: accuracy over all captions of a split and by number of objects, with counts and standard errors.

  Args:
    captions: the prompts.
    right: bool [N], the judge's verdict on the image of each.
    split: names the figures.
  """
  counts = np.array([num_objects(caption) for caption in captions])
  groups = {'': np.ones(len(captions), bool)} | {f'/{name}': counts == count for count, name in KINDS.items()}
  result = {}
  for suffix, members in groups.items():
    if members.any():
      share = float(np.mean(right[members]))
      result[f'prompt_accuracy/{split}{suffix}'] = share
      result[f'prompt_accuracy_stderr/{split}{suffix}'] = float(np.sqrt(share * (1 - share) / members.sum()))
      result[f'prompt_count/{split}{suffix}'] = float(members.sum())
  return result
