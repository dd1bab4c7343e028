"""The page of a check of pictures, with examples of each kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_jax.data.account import Account
from dalle_jax.data.pictures import image
from dalle_jax.data.pictures.stores import Store
from dalle_jax.files import shown
from dalle_jax.jobs.study.picture_repeats import Repeats
from dalle_jax.reporting import data_page
from dalle_jax.reporting.data_page import ExampleGroup, ExampleTile

_NUM_EXAMPLES = 12
_THUMBNAIL = 96  # pixels of the longer side

# The kinds in the order of the page: the title, and what training does.
KINDS = {
  'unreadable': ('Unreadable', 'Training leaves these pictures out.'),
  'truncated': ('Truncated', 'These unreadable files end too early. Copy or download them again.'),
  'enormous': ('Enormous', 'They take long to decode. tools/prepare_data.py --size reduces them once.'),
  'tiny': ('Tiny', 'Training enlarges them if they are smaller than config.data.image_size.'),
  'animated': ('Animated', 'Training uses the first frame or page.'),
  'cmyk': ('CMYK', 'Training converts them to RGB.'),
  '16_bit': ('More than 8 bits', 'Training reads them with 8 bits per channel.'),
  'alpha': ('Transparent', 'Training shows them on white.'),
  'rotated': ('Rotated by EXIF data', 'Training turns them upright.'),
  'noted': ('Colours not honoured', 'These files ask for a colour space that their pixels are not converted from.'),
  'missing': ('Without captions', 'Only a dVAE can be trained on them (config.task=dvae).'),
  'empty': ('Empty captions', 'Training leaves these pictures out.'),
  'over_long': ('Captions that would be cut', 'Raise config.tokenizer.text_length, or shorten the captions.'),
  'duplicates': ('Exact duplicates', 'An equal file comes earlier. The picture that is kept is on the right.'),
  'near_duplicates': ('Near duplicates', 'They look like a picture that comes earlier, on the right.'),
  'leaked': ('Held-out pictures in training', 'Held-out pictures that training also has, on the right.'),
  'leaked_near': ('Held-out pictures near training', 'They look like a training picture, on the right.'),
  'leaked_captions': ('Held-out captions in training', 'Training has a picture with the same caption.'),
}


def write(
  path: Path,
  store: Store,
  figures: Mapping[str, Any],
  groups: Mapping[str, Sequence[str]],
  problems: Mapping[str, str],
  repeats: Repeats,
  account: Account,
  max_pixels: int,
) -> None:
  """Write the page.

  Args:
    path: the HTML file.
    store: reads the examples.
    figures: the figures of the check.
    groups: the paths of the pictures of each of KINDS.
    problems: why pictures cannot be read, by path.
    repeats: what repeated pictures are like.
    account: what was found, used and left out.
    max_pixels: the largest number of pixels of a picture.
  """

  def picture(name: str) -> Image.Image | None:
    if name in problems:
      return None
    try:
      result = Image.fromarray(image.decode(store.read(name)[1], max_pixels))
    except (OSError, ValueError):  # it has changed since the check
      return None
    result.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return result

  example_groups = []
  for kind, (title, advice) in KINDS.items():
    paths = groups[kind]
    originals = repeats.originals.get(kind, {})
    tiles = []
    for i in np.unique(np.linspace(0, len(paths) - 1, min(_NUM_EXAMPLES, len(paths))).round().astype(int)):
      name = paths[i]
      other = originals.get(name)
      text = shown(name, 60) + (f': {shown(problems[name], 120)}' if name in problems else '')
      text += f' and {shown(other, 60)}' if other else ''
      pictures = [drawn for each in (name, other) if each is not None and (drawn := picture(each)) is not None]
      tiles.append(ExampleTile(text, pictures))
    example_groups.append(ExampleGroup(title, len(paths), advice, tiles))
  data_page.write_data_page(path, figures, example_groups, account.lines())
