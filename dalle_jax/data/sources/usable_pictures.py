"""Pictures of any source as records: captions are chosen, unreadable pictures left out, the rest split by name."""

import dataclasses
import posixpath
from collections.abc import Callable, Iterable

from dalle_jax.config.data import CLASS
from dalle_jax.data.account import Account
from dalle_jax.data.pictures import gate
from dalle_jax.data.pictures.checked_pictures import CheckedPictures
from dalle_jax.data.pictures.image import MAX_PIXELS
from dalle_jax.data.pictures.stores import Store
from dalle_jax.data.sources.entries import Entry, Found, split_by_name
from dalle_jax.data.sources.picture_source import PictureSource
from dalle_jax.data.text.caption_text import is_empty
from dalle_jax.files import shown


@dataclasses.dataclass(frozen=True)
class Choices:
  """Which pictures are used and how they are split; the fields are keys of `DataConfig`, except `needs_captions`."""

  validation_fraction: float = 0.0
  group_separator: str = ''
  caption_template: str = ''
  max_image_pixels: int = MAX_PIXELS
  needs_captions: bool = True  # whether pictures without captions are left out


def open_pictures(
  store: Store,
  found: Iterable[Found],
  where: str,
  choices: Choices,
  account: Account,
  checked: CheckedPictures | None = None,
  progress: Callable[[int, int], None] | None = None,
  layout: str = '',
) -> dict[str, PictureSource]:
  """Leaves out the pictures without captions and those that training cannot read, and splits the rest by name.

  Args:
    store: reads the pictures.
    found: the pictures, in the order of the records.
    where: the folder, for messages.
    choices: which pictures are used.
    account: counts what is found, used and left out.
    checked: remembers the pictures of earlier checks.
    progress: called with (number of pictures checked, number of pictures to check).
    layout: how captions are given, for the message that there are none.

  Returns:
    The sources of 'train' and 'validation'. There is no 'validation' if nothing is held out.

  Raises:
    ValueError: no picture can be used.
  """
  found = list(found)
  entries = captioned(found, choices, account)
  if not entries:
    kind = 'captioned images' if choices.needs_captions else 'images'
    raise ValueError(f'config.data.path: no {kind} in {shown(where)}.\n{account}\n{layout}{_advice(account, choices)}')
  digests = readable(store, entries, where, choices.max_image_pixels, account, checked, progress)
  train, validation = split_by_name(
    list(digests), choices.validation_fraction, choices.group_separator, by_path=bool(choices.caption_template),
    keys={picture.path: picture.key for picture in found},
  )  # fmt: skip
  return {
    split: PictureSource(store, part, [digests[entry] for entry in part])
    for split, part in (('train', train), ('validation', validation))
    if part
  }


def captioned(found: Iterable[Found], choices: Choices, account: Account) -> list[Entry]:
  """The entries of the pictures that may be used. Counts the others."""
  entries = []
  for picture in found:
    captions = list(dict.fromkeys(text for text in picture.captions or [] if not is_empty(text)))
    if not captions and choices.caption_template:
      captions = _of_class(picture, choices.caption_template)
    if captions:
      entries.append(Entry(picture.path, captions[0], tuple(captions[1:])))
      if len(captions) > 1:
        account.note('with several captions; each epoch uses one of them, chosen at random', picture.path)
    elif not choices.needs_captions:
      entries.append(Entry(picture.path, ''))
    elif picture.captions is not None:
      account.leave_out('its caption is empty', picture.path)
    else:
      account.leave_out('it lies in no class folder' if choices.caption_template else picture.reason, picture.path)
  return entries


def _of_class(picture: Found, template: str) -> list[str]:
  """The caption of a picture in a class folder."""
  name = posixpath.basename(posixpath.dirname(picture.key)).replace('_', ' ').replace('-', ' ').strip()
  return [template.replace(CLASS, name)] if name else []


def readable(
  store: Store,
  entries: list[Entry],
  where: str,
  max_pixels: int,
  account: Account,
  checked: CheckedPictures | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> dict[Entry, str]:
  """The SHA-256 of the picture of each entry that training can decode; see `open_pictures`.

  Raises:
    ValueError: no picture can be decoded.
  """
  checked = checked or CheckedPictures(None, max_pixels)
  verdicts = gate.check(store, [entry.path for entry in entries], checked, max_pixels, progress)
  digests: dict[Entry, str] = {}
  for entry in entries:
    verdict = verdicts[entry.path]
    if verdict.problem:
      account.leave_out(verdict.problem, entry.path)
      continue
    digests[entry] = verdict.digest
    account.used += 1
    for note in verdict.notes:
      account.note(f'used, although {note}', entry.path)
  if not digests:
    names = ', '.join(shown(entry.path, 60) for entry in entries[:5])
    raise ValueError(
      f'config.data.path: none of the {len(entries)} images in {shown(where)} is readable: {names}'
      f'{" and others" if len(entries) > 5 else ""}.\n{account}'
    )
  return digests


def _advice(account: Account, choices: Choices) -> str:
  if not account.found or choices.caption_template:
    return ''
  return (
    "\nPictures in folders named after what they show need no captions: set config.data.caption_template='a photo of a "
    "{class}'. Without captions, a dVAE can be trained: config.task=dvae."
  )
