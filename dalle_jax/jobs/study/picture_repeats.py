"""Pictures that occur several times: equal files, pictures that look alike, and both across splits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dalle_jax.data.checks.inspection import Inspection
from dalle_jax.data.checks.near_duplicates import LookIndex
from dalle_jax.data.checks.seen import normalized
from dalle_jax.data.sources.entries import Entry
from dalle_jax.jobs.study import caption_figures


class Repeats(NamedTuple):
  """Repeated pictures.

  Attributes:
    groups: the paths of 'duplicates' and 'near_duplicates' of an earlier picture, and of the held-out pictures that
      training also has: 'leaked' (an equal file), 'leaked_near' and 'leaked_captions'. Training pictures come first.
    originals: for each kind, the path of a picture that a repeated picture is like, by the path of the latter.
    superfluous: duplicates all of whose captions the earlier picture has too.
  """

  groups: dict[str, list[str]]
  originals: dict[str, dict[str, str]]
  superfluous: list[str]

  @property
  def figures(self) -> dict[str, Any]:
    """The number of pictures of each kind."""
    counts = {kind: len(paths) for kind, paths in self.groups.items()}
    return {**counts, 'duplicates_with_other_captions': counts['duplicates'] - len(self.superfluous)}


def find_repeats(
  train: Sequence[Entry], validation: Sequence[Entry], inspections: Mapping[str, Inspection], most_distance: int
) -> Repeats:
  """Find repeated pictures among those that training would use.

  A near duplicate is like a picture that is kept: chains of pictures that are each like the next one are not merged.

  Args:
    train: the training split.
    validation: the held-out split.
    inspections: what is known of each picture, by its path.
    most_distance: the largest number of different bits of the hashes of near duplicates.
  """
  entries = [*train, *validation]
  originals: dict[str, dict[str, str]] = {
    'duplicates': {}, 'near_duplicates': {}, 'leaked': {}, 'leaked_near': {},
  }  # fmt: skip
  kept, trained = LookIndex(most_distance), LookIndex(most_distance)
  first: dict[str, int] = {}  # by digest
  trained_digests: dict[str, int] = {}
  superfluous = []
  for number, entry in enumerate(entries):
    item, path = inspections[entry.path], entry.path
    digest, look = item.verdict.digest, item.look
    assert look is not None, 'a picture that training uses has been read'
    if digest in first:
      earlier = entries[first[digest]]
      originals['duplicates'][path] = earlier.path
      if {*map(normalized, entry.captions)} <= {*map(normalized, earlier.captions)}:
        superfluous.append(path)
    elif (near := kept.find(look)) is not None:
      originals['near_duplicates'][path] = entries[near].path
    else:
      kept.add(number, look)
    if number >= len(train):
      if digest in trained_digests:
        originals['leaked'][path] = entries[trained_digests[digest]].path
      elif (near := trained.find(look)) is not None:
        originals['leaked_near'][path] = entries[near].path
    elif digest not in first:
      trained.add(number, look)
      trained_digests[digest] = number
    first.setdefault(digest, number)
  groups = {kind: list(pairs) for kind, pairs in originals.items()}
  groups['leaked_captions'] = caption_figures.leaked(train, validation)
  return Repeats(groups, originals, superfluous)
