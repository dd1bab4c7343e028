"""Prompt accuracy on captioned_shapes: the share of images in which the judge finds all that the prompt names."""

from collections.abc import Mapping, Sequence

import numpy as np

from dalle_jax.data.shapes import captions as language
from dalle_jax.evaluation import figures, judge
from dalle_jax.evaluation.figures import Figure

KINDS = {1: 'one_object', 2: 'two_objects'}


def choose(captions: Sequence[str], num_per_kind: int) -> list[str]:
  """Choose the first distinct captions with one object and the first with two.

  Args:
    captions: captions of captioned_shapes.
    num_per_kind: the most captions of each kind.

  Returns:
    The captions with one object, then those with two.
  """
  by_kind: dict[int, list[str]] = {count: [] for count in KINDS}
  for caption in dict.fromkeys(captions):
    group = by_kind[num_objects(caption)]
    if len(group) < num_per_kind:
      group.append(caption)
  return [caption for group in by_kind.values() for caption in group]


def num_objects(caption: str) -> int:
  """The number of objects that a caption of captioned_shapes names."""
  return len(language.parse(caption).objects)


def shares(captions: Sequence[str], right: np.ndarray) -> dict[str, Figure]:
  """Compute the accuracy over all captions and by number of objects.

  Args:
    captions: N prompts.
    right: bool [N], whether the image of each prompt is right.

  Returns:
    The accuracy over all captions under '', and the accuracy of each kind that occurs under its name in KINDS. The
    intervals count images with the same caption as correlated.
  """
  counts = np.array([num_objects(caption) for caption in captions])
  groups = {'': np.ones(len(captions), bool)} | {name: counts == count for count, name in KINDS.items()}
  labels = np.array(captions, object)
  return {
    name: figures.share(right[members], labels[members].tolist()) for name, members in groups.items() if members.any()
  }


def scores(captions: Sequence[str], right: np.ndarray, split: str) -> dict[str, float]:
  """The accuracies of `shares` as flat metrics of a split, with intervals and counts."""
  return flat_scores(shares(captions, right), split)


def flat_scores(accuracies: Mapping[str, Figure], split: str) -> dict[str, float]:
  """Accuracies by the names of `shares` as flat metrics of a split, with intervals, counts and the judge's version."""
  result = {'prompt_judge': float(judge.VERSION)}
  for name, figure in accuracies.items():
    suffix = f'{split}/{name}'.rstrip('/')
    result |= figures.flat(f'prompt_accuracy/{suffix}', figure)
    result[f'prompt_count/{suffix}'] = float(figure.count)
  return result
