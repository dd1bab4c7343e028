"""Lists the pictures of a folder with their captions, and says why other pictures are left out."""

import os
import posixpath
from collections.abc import Callable
from pathlib import Path

from dalle_jax.data.account import Account
from dalle_jax.data.pictures.image import EXTENSIONS
from dalle_jax.data.sources.entries import Found
from dalle_jax.data.sources.metadata_files import clean, is_metadata, read_metadata
from dalle_jax.data.sources.survey import LEADS_OUT, NO_FILE, Survey, inside_of, survey
from dalle_jax.data.text.caption_text import decoded
from dalle_jax.files import shown

# Extensions of pictures in formats that are not read. Files with them are counted as pictures.
_OTHER_PICTURES = frozenset(
  '.heic .heif .hif .jxl .jp2 .j2k .jpx .jpf .apng .mng .svg .svgz .psd .psb .ai .eps .ps .pdf .xcf .kra .ico .icns '
  '.cur .tga .ppm .pgm .pbm .pnm .pam .pfm .qoi .dds .exr .hdr .pcx .xbm .xpm .wmf .emf .raw .dng .cr2 .cr3 .crw .nef '
  '.nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .fits .jxr .wdp .bpg .flif .mpo .jps'.split()
)
MOST_CAPTION_BYTES = 2**20  # of a caption file
_MISSING = 'the file does not exist'


def scan(root: Path, account: Account | None = None) -> list[Found]:
  """Lists the images of a folder with the captions that belong to them, sorted by path, without opening them.

  Args:
    root: the folder.
    account: counts the pictures that cannot be used whatever their captions are, with the reasons.

  Raises:
    ValueError: the folder is missing or unreadable, all listed files are missing, or a metadata line (named in the
      message) is invalid or names a file outside the folder.
  """
  account = account or Account('pictures')
  found = survey(root)
  _note_others(found, account)
  metadata = [path for path in found.files if is_metadata(path)]
  if metadata:
    return _listed(root, found, metadata, account)
  return _with_caption_files(root, found, account)


def _extension(path: str) -> str:
  return posixpath.splitext(path)[1].lower()


def _is_picture(path: str) -> bool:
  return _extension(path) in EXTENSIONS or _extension(path) in _OTHER_PICTURES


def _note_others(found: Survey, account: Account) -> None:
  """Counts the files that are neither pictures nor captions."""
  for path in found.hidden:
    account.note('hidden, and therefore not read', path)
  for path in found.linked:
    account.note('a link to a folder inside this folder, which is searched at its own place', path)
  for path, reason in found.barred.items():
    if not _is_picture(path):
      account.note(reason, path)
  for path in found.files:
    if not _is_picture(path) and not is_metadata(path) and _extension(path) != '.txt':
      account.note('neither a picture nor captions', path)


def _listed(root: Path, found: Survey, metadata: list[str], account: Account) -> list[Found]:
  """The entries of metadata files."""
  captions: dict[str, list[str] | None] = {}
  for file in metadata:
    for path, texts in read_metadata(root, file):
      captions[path] = [*(captions.get(path) or []), *(texts or [])] or None
  for path in found.files:
    if _extension(path) == '.txt':
      account.note('a text file that is not read, because there is a metadata file', path)
  pictures = captions.keys() | {path for path in (*found.files, *found.barred) if _is_picture(path)}
  files, within = set(found.files), inside_of(root)
  images: list[Found] = []
  missing: list[str] = []
  for path in sorted(pictures):
    reason = found.barred.get(path)
    if reason is None and path in captions and path not in files:
      reason = _hidden_or_missing(root / path, within)
      missing += [path] if reason == _MISSING else []
    reason = reason or _other_format(path)
    if reason is not None:
      account.leave_out(reason, path)
    elif path not in captions:
      images.append(Found(path, path, None, 'no metadata line names it'))
    else:
      images.append(Found(path, path, captions[path]))
  if captions and len(missing) == len(captions):
    raise ValueError(
      f'{shown(root)}: all {len(missing)} images listed in {shown(metadata[0], 100)} are missing: {_shorten(missing)}.'
    )
  return images


def _hidden_or_missing(path: Path, within: Callable[[str], bool]) -> str | None:
  """Why a listed file that the survey does not have cannot be used; None if it can: it is hidden, or behind a link."""
  if os.path.isdir(path):
    return NO_FILE
  if not os.path.isfile(path):
    return NO_FILE if os.path.exists(path) else _MISSING
  return None if within(str(path)) else LEADS_OUT


def _with_caption_files(root: Path, found: Survey, account: Account) -> list[Found]:
  """The images, with the captions of those that have a `.txt` file beside them."""
  texts: dict[str, list[str]] = {}  # caption files by their path without extension; '.txt' comes before '.TXT'
  for path in sorted((*found.files, *found.barred), reverse=True):
    if _extension(path) == '.txt':
      texts.setdefault(posixpath.splitext(path)[0], []).append(path)
  images: list[Found] = []
  stems = set()
  for path in sorted(path for path in (*found.files, *found.barred) if _is_picture(path)):
    stem = posixpath.splitext(path)[0]
    stems.add(stem)
    if reason := found.barred.get(path) or _other_format(path):
      account.leave_out(reason, path)
    elif stem not in texts:
      images.append(Found(path, path, None, 'no text file beside it'))
    elif reason := found.barred.get(texts[stem][0]):
      images.append(Found(path, path, None, f'its text file is {reason}'))
    else:
      try:
        images.append(Found(path, path, _caption_lines(root / texts[stem][0])))
      except ValueError as error:
        images.append(Found(path, path, None, f'its text file {error}'))
  for stem, paths in texts.items():
    for path in paths[1:] if stem in stems else paths:
      if path not in found.barred:
        account.note('a text file that is not the caption of a picture', path)
  return images


def _caption_lines(file: Path) -> list[str]:
  """The lines of a caption file. Raises ValueError with the rest of a sentence about a file that cannot be used."""
  try:
    if os.path.getsize(file) > MOST_CAPTION_BYTES:
      raise ValueError(f'has more than {MOST_CAPTION_BYTES:,} bytes')
    return [clean(line) for line in decoded(file.read_bytes()).splitlines()]
  except OSError as error:
    raise ValueError(f'cannot be read: {error.strerror}') from None


def _other_format(path: str) -> str | None:
  extension = _extension(path)
  return None if extension in EXTENSIONS else f'its format ({extension}) is not read'


def _shorten(paths: list[str], most: int = 5) -> str:
  more = f' and {len(paths) - most} more' if len(paths) > most else ''
  return ', '.join(shown(path, 60) for path in paths[:most]) + more
