"""A folder of images: list them with their captions, check that they can be read, and split them by name.

Captions come from one of three layouts. All subfolders are searched.
  * `metadata.jsonl`: one JSON object per line, with the keys `file_name` and `text` or `caption`. The file name is
    relative to the metadata file.
  * `metadata.csv`: the same keys as columns.
  * A `.txt` file beside each image, with a caption in each line. These are read only if there is no metadata file.

An image can have several captions in a metadata list, in several metadata lines, or in several lines of its `.txt`
file. Instead of captions, `Choices.caption_template` makes them from the names of folders.
"""

import os
from collections.abc import Callable
from pathlib import Path

from dalle_jax.data.account import Account
from dalle_jax.data.pictures.checked_pictures import CheckedPictures
from dalle_jax.data.pictures.stores import FolderStore
from dalle_jax.data.sources import caption_listing
from dalle_jax.data.sources.entries import Entry
from dalle_jax.data.sources.metadata_files import LAYOUT
from dalle_jax.data.sources.picture_source import PictureSource
from dalle_jax.data.sources.usable_pictures import Choices, captioned, open_pictures


def open_folder(
  root: str | os.PathLike,
  choices: Choices,
  *,
  progress: Callable[[int, int], None] | None = None,
  memory: Path | None = None,
  account: Account | None = None,
) -> dict[str, PictureSource]:
  """Opens the images of a folder; see `usable_pictures.open_pictures`.

  Args:
    root: the folder.
    choices: which images are used, and how they are split.
    progress: called with (number of images checked, number of images to check).
    memory: the file that remembers which images were checked, see `CheckedPictures`. None: check all.
    account: counts what is found, used and left out.

  Raises:
    ValueError: the folder does not exist, has no captioned images or no readable image, or its metadata is invalid.
  """
  root, account = Path(root), account or Account('pictures')
  found = caption_listing.scan(root, account)
  checked = CheckedPictures(memory, choices.max_image_pixels)
  return open_pictures(FolderStore(root), found, str(root), choices, account, checked, progress, layout=LAYOUT)


def scan(root: Path, account: Account | None = None) -> list[Entry]:
  """Lists the captioned images of a folder, sorted by path, without opening them.

  Args:
    root: the folder.
    account: counts the images that are left out, with the reasons.

  Raises:
    ValueError: as `caption_listing.scan`.
  """
  account = account or Account('pictures')
  return captioned(caption_listing.scan(root, account), Choices(), account)
