"""Check pictures and captions before training: figures, a page with examples, and a list of pictures to leave out."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dalle_jax.config import DataConfig, TokenizerConfig
from dalle_jax.data import detect, picture_kinds
from dalle_jax.data.account import Account
from dalle_jax.data.checks import inspection, near_duplicates
from dalle_jax.data.checks.inspection import Inspection
from dalle_jax.data.pictures.stores import Store
from dalle_jax.data.sources import skip_list
from dalle_jax.data.sources.entries import Entry, Found, split_by_name
from dalle_jax.data.sources.usable_pictures import captioned
from dalle_jax.files import write_json
from dalle_jax.jobs.study import caption_figures, check_examples
from dalle_jax.jobs.study.picture_repeats import Repeats, find_repeats
from dalle_jax.training.progress import Progress

PAGE, FIGURES, SKIP_LIST, WORK = 'check.html', 'check.json', 'skip.txt', 'work'
# What may be put into the skip list, by the words of --skip.
SKIPS = ('unreadable', 'duplicates', 'leaks', 'near', 'tiny', 'enormous', 'over_long')


@dataclasses.dataclass(frozen=True)
class CheckSettings:
  """How pictures and captions are judged."""

  text_length: int = TokenizerConfig.text_length  # as config.tokenizer.text_length
  vocab_size: int = TokenizerConfig.vocab_size  # as config.tokenizer.vocab_size
  tiny: int = 32  # pixels: a picture is tiny if its shorter side is below
  enormous: int = 25_000_000  # pixels: a picture is enormous if it has more
  near_distance: int = near_duplicates.MOST_DISTANCE  # bits
  num_processes: int = 0  # 0: one for each core
  skip: Sequence[str] = ('unreadable', 'duplicates', 'leaks')  # of SKIPS


class Checked(NamedTuple):
  """What the check found."""

  account: Account
  figures: dict[str, Any]
  groups: dict[str, list[str]]  # the paths of the pictures of each kind

  @property
  def num_skipped(self) -> int:
    return self.figures['skip_list']['pictures']


def check(config: DataConfig, out: Path, settings: CheckSettings) -> Checked:
  """Check a source of pictures, and write the page, the figures and the skip list to a directory.

  Args:
    config: the source, and how it is split.
    out: the directory.
    settings: how pictures and captions are judged.

  Raises:
    ValueError: the source cannot be listed.
  """
  config = dataclasses.replace(config, source=detect.source_of(config))
  if config.source not in picture_kinds.KINDS:
    advice = ' Check each part of the mixture by itself.' if config.source == 'mixture' else ''
    raise ValueError(
      f'--path {config.path} is read as {config.source}; only {", ".join(picture_kinds.KINDS)} can be checked.{advice}'
    )
  account = Account('pictures')
  with Progress('listing', 1, 'file') as progress:
    store, found = picture_kinds.listed(config, out / WORK, account, progress.update_of)
  inspections, seconds = _inspect(store, found, config, settings)
  groups = _kinds_of_pictures(found, inspections, settings)
  captions = caption_figures.Captions(found, picture_kinds.choices_of(config))
  entries = _usable(found, inspections, captions, account)
  train, validation = split_by_name(
    entries, config.validation_fraction, config.group_separator, by_path=bool(config.caption_template),
    keys={picture.path: picture.key for picture in found},
  ) if entries else ([], [])  # fmt: skip
  by_path = dict(zip((picture.path for picture in found), inspections, strict=True))
  repeats = find_repeats(train, validation, by_path, settings.near_distance)
  text = caption_figures.measure(captions, train, validation, settings.text_length, settings.vocab_size)
  groups |= {**captions.groups, 'over_long': text.over_long, **repeats.groups}
  skipped = _skipped(groups, repeats, settings)
  figures = {
    'path': config.path, 'source': config.source, 'found': account.found, 'used': account.used,
    'left_out': {tally.reason: tally.count for tally in account.left_out.values()},
    'notes': {tally.reason: tally.count for tally in account.notes.values()},
    'seconds': round(seconds, 3), 'pictures_per_second': round(len(found) / seconds, 1) if seconds else None,
    'splits': {'train': len(train), 'validation': len(validation)},
    'pictures': {kind: len(groups[kind]) for kind in _PICTURE_KINDS},
    'formats': _counts(item.traits.format for item in inspections if item.traits),
    'modes': _counts(item.traits.mode for item in inspections if item.traits),
    'aspect_ratios': _histogram([item.width / item.height for item in inspections if item.height], _ASPECTS),
    'shorter_sides': _histogram([min(item.width, item.height) for item in inspections if item.height], _SIDES),
    'captions': text.figures, 'repeats': repeats.figures,
    'skip_list': {
      'pictures': len({path for paths in skipped.values() for path in paths}),
      **{name: len(paths) for name, paths in skipped.items()},
    },
    'settings': {**dataclasses.asdict(settings), 'skip': list(settings.skip)},
  }  # fmt: skip
  checked = Checked(account, figures, groups)
  skip_list.write(out / SKIP_LIST, skipped)
  write_json(out / FIGURES, figures)
  problems = {path: item.verdict.problem for path, item in by_path.items() if item.verdict.problem}
  check_examples.write(out / PAGE, store, figures, groups, problems, repeats, account, config.max_image_pixels)
  return checked


def _inspect(
  store: Store, found: list[Found], config: DataConfig, settings: CheckSettings
) -> tuple[list[Inspection], float]:
  """Inspect all pictures, and measure the seconds that it takes."""
  begin = time.monotonic()
  with Progress('checking', len(found), 'picture', interval_s=10.0) as progress:
    paths = [picture.path for picture in found]
    results = inspection.inspect_all(
      store, paths, config.max_image_pixels, settings.num_processes, progress.update_of
    )  # fmt: skip
  return results, time.monotonic() - begin


_PICTURE_KINDS = (
  'unreadable', 'truncated', 'animated', 'cmyk', '16_bit', 'alpha', 'rotated', 'tiny', 'enormous', 'noted',
)  # fmt: skip


def _kinds_of_pictures(
  found: list[Found], inspections: list[Inspection], settings: CheckSettings
) -> dict[str, list[str]]:
  """The paths of the pictures of each kind. A picture may be of several."""
  groups: dict[str, list[str]] = {kind: [] for kind in _PICTURE_KINDS}
  for picture, item in zip(found, inspections, strict=True):
    verdict, traits = item.verdict, item.traits
    applies = {
      'unreadable': bool(verdict.problem),
      'truncated': item.is_cut,
      'enormous': item.width * item.height > settings.enormous or 'more than the limit of' in verdict.problem,
    }
    if traits is not None:
      applies |= {
        'animated': traits.frames > 1,
        'cmyk': traits.mode == 'CMYK',
        '16_bit': traits.bits > 8,
        'alpha': traits.is_transparent,
        'rotated': traits.is_turned,
        'tiny': min(item.width, item.height) < settings.tiny,
        'noted': bool(verdict.notes),
      }
    for kind, does in applies.items():
      if does:
        groups[kind].append(picture.path)
  return groups


def _usable(
  found: list[Found], inspections: list[Inspection], captions: caption_figures.Captions, account: Account
) -> list[Entry]:
  """The entries that training would use. Without any caption, these are all readable pictures, for stage 1."""
  usable = []
  needs_captions = bool(captions.entries)
  for picture, item in zip(found, inspections, strict=True):
    if item.verdict.problem:
      account.leave_out(item.verdict.problem, picture.path)
    elif picture.path in captions.entries:
      usable.append(captions.entries[picture.path])
    elif needs_captions:
      usable += captioned([picture], captions.choices, account)
    else:
      usable.append(Entry(picture.path, ''))
  account.used = len(usable)
  return usable


def _skipped(groups: dict[str, list[str]], repeats: Repeats, settings: CheckSettings) -> dict[str, list[str]]:
  """The paths for the skip list, by the words of `settings.skip`."""
  lists = {
    **{name: groups[name] for name in ('unreadable', 'tiny', 'enormous', 'over_long')},
    'duplicates': repeats.superfluous,
    'leaks': list(dict.fromkeys([*repeats.groups['leaked'], *repeats.groups['leaked_near']])),
    'near': repeats.groups['near_duplicates'],
  }
  return {name: lists[name] for name in SKIPS if name in settings.skip}


_ASPECTS = (0, 1 / 3, 1 / 2, 2 / 3, 4 / 5, 0.95, 1.05, 5 / 4, 3 / 2, 2, 3)
_SIDES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def _histogram(values: Sequence[float], edges: Sequence[float]) -> dict[str, int]:
  """Counts of values by the interval that they are in, from each edge up to the next one."""
  counts = {f'{low:.3g} to {high:.3g}': 0 for low, high in itertools.pairwise(edges)}
  counts[f'{edges[-1]:.3g} or more'] = 0
  names = list(counts)
  for value in values:
    counts[names[sum(value >= edge for edge in edges) - 1]] += 1
  return counts


def _counts(values: Any) -> dict[str, int]:
  counts: dict[str, int] = {}
  for value in values:
    counts[value] = counts.get(value, 0) + 1
  return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
