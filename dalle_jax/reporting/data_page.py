"""The page of a check of pictures and captions: counts, histograms, and examples of each kind."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dalle_jax.files import shown
from dalle_jax.reporting.blocks import drawing, inline_picture, paragraph, quotation, score_tables, section
from dalle_jax.reporting.curves import bars_svg
from dalle_jax.reporting.html import write_page


class ExampleTile(NamedTuple):
  """A picture, or two that are compared, with a text below."""

  text: str
  pictures: Sequence[Image.Image]  # none if the picture cannot be read


class ExampleGroup(NamedTuple):
  """Examples of pictures of a kind."""

  title: str
  num_pictures: int  # pictures of the kind, of which the tiles show some
  advice: str
  tiles: Sequence[ExampleTile]


def write_data_page(
  path: Path, figures: Mapping[str, Any], groups: Sequence[ExampleGroup], lines: Sequence[str]
) -> None:
  """Write the page, which needs no other files. All text is escaped.

  Args:
    path: the HTML file.
    figures: the figures, as in the JSON file beside the page.
    groups: examples of each kind. A kind without pictures is only named in the table of counts.
    lines: what was found, used and left out.
  """
  counts = {f'Pictures/{group.title}': group.num_pictures for group in groups}
  splits = {f'Splits/{split}': count for split, count in figures['splits'].items()}
  parts = [
    *section('Counts', score_tables({**splits, **counts, **_captions(figures['captions'])}), 'grid'),
    *section('Histograms', _histograms(figures), 'grid curves'),
    *section('Account', [quotation('What training would use', '\n'.join(lines))]),
    *(line for group in groups if group.tiles for line in _examples(group)),
    *section('Repeated captions', _repeated(figures['captions']['most_repeated'])),
  ]
  rate = figures['pictures_per_second']
  notes = [
    f'{figures["found"]:,} pictures found, {figures["used"]:,} of them can be used, from {figures["source"]}'
    + (f'; {rate:,.0f} pictures were checked each second.' if rate else '.'),
    f'{figures["skip_list"]["pictures"]:,} pictures are in the skip list. To leave them out, train with '
    '--config.data.skip_list and this file.',
  ]
  if problem := figures['captions'].get('problem'):
    notes.append(f'The tokenizer cannot be trained: {problem}')
  title = f'Check of {shown(figures["path"], 100)}'
  write_page(path, title=title, notes=notes, parts=parts)


def _captions(captions: Mapping[str, Any]) -> dict[str, float]:
  """The rows of the table of captions."""
  names = {
    'captions': 'captions', 'distinct': 'distinct captions', 'repeated': 'captions of several pictures',
    'repeated_pictures': 'pictures with such a caption', 'several': 'pictures with several captions',
    'over_long': 'captions that would be cut', 'over_long_share': 'their share', 'text_length': 'text_length',
    'pieces': 'pieces of the tokenizer', 'tokens_mean': 'tokens, mean', 'tokens_median': 'tokens, median',
    'tokens_99_percent': 'tokens, 99th percentile', 'tokens_max': 'tokens, most',
  }  # fmt: skip
  return {f'Captions/{name}': captions[key] for key, name in names.items() if key in captions}


def _histograms(figures: Mapping[str, Any]) -> list[str]:
  counts = {
    'Aspect ratio (width / height)': figures['aspect_ratios'],
    'Shorter side in pixels': figures['shorter_sides'],
    'Caption length in tokens': figures['captions']['token_lengths'],
    'Formats': figures['formats'],
    'Modes of pixels': figures['modes'],
  }
  return [
    drawing(title, bars_svg(_percent(_trimmed(bins)), title, '%'))
    for title, bins in counts.items()
    if any(bins.values())
  ]


def _trimmed(bins: Mapping[str, int]) -> dict[str, int]:
  """The bins from the first to the last with an item."""
  filled = [i for i, count in enumerate(bins.values()) if count]
  return dict(list(bins.items())[filled[0] : filled[-1] + 1])


def _percent(bins: Mapping[str, int]) -> dict[str, dict[str, float]]:
  total = sum(bins.values())
  return {name: {'share': 100 * count / total} for name, count in bins.items()}


def _examples(group: ExampleGroup) -> list[str]:
  blocks = [paragraph(f'{group.num_pictures:,} pictures. {group.advice}', 'note'), '<div class="row tiles wide">']
  blocks += [_tile(tile) for tile in group.tiles] + ['</div>']
  return section(html.escape(group.title), blocks)


def _tile(tile: ExampleTile) -> str:
  pictures = ''.join(inline_picture(picture, tile.text) for picture in tile.pictures)
  pair = f'<div class="pair">{pictures}</div>' if len(tile.pictures) > 1 else pictures
  return f'<figure class="tile">{pair}<figcaption>{html.escape(tile.text)}</figcaption></figure>'


def _repeated(captions: Sequence[Mapping[str, Any]]) -> list[str]:
  rows = ''.join(
    f'<tr><th scope="row">{html.escape(row["caption"])}</th><td>{row["pictures"]:,}</td></tr>' for row in captions
  )
  return [f'<table><caption>Captions and the number of pictures that have them</caption>{rows}</table>'] if rows else []
