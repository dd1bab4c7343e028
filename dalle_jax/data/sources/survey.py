"""Lists the files below a folder: which may be read, and which may not, with the reasons.

Links are followed only to files inside the folder. Linked folders are not searched: their files are found at their own
place if that is inside the folder.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dalle_jax.files import shown

LEADS_OUT = 'a link that leads out of the folder; only files inside it are read'
LEADS_NOWHERE = 'a link to a file that does not exist'
LEADS_IN_A_CIRCLE = 'a link that leads in a circle, or over too many other links'
NO_FILE = 'neither a file nor a folder'


class Survey(NamedTuple):
  """The files below a folder, as sorted relative paths with forward slashes."""

  files: list[str]  # files that may be read, without hidden ones
  barred: dict[str, str]  # files that may not be read, with the reasons
  hidden: list[str]  # hidden files and folders
  linked: list[str]  # links to folders inside the folder


def survey(root: Path, key: str = 'config.data.path') -> Survey:
  """Lists all files below a folder.

  Args:
    root: the folder.
    key: the flag or configuration key that names the folder, for messages.

  Raises:
    ValueError: the folder does not exist, or a folder cannot be read.
  """
  # os.path.isdir returns False if a parent folder cannot be read. Path.is_dir can raise instead.
  if not os.path.isdir(root):
    raise ValueError(f'{key}: there is no folder {shown(root)}, or it cannot be accessed.')
  within, result, folders = inside_of(root), Survey([], {}, [], []), ['']
  while folders:
    prefix = folders.pop()
    try:
      with os.scandir(os.path.join(root, prefix)) as entries:
        folders += [name for entry in entries if (name := _sort(entry, prefix, within, result))]
    except OSError as error:
      folder = error.filename if error.filename is not None else os.path.join(root, prefix)
      raise ValueError(f'{key}: the folder {shown(folder)} cannot be read: {error.strerror}.') from error
  return Survey(sorted(result.files), dict(sorted(result.barred.items())), sorted(result.hidden), sorted(result.linked))


def inside_of(root: Path) -> Callable[[str], bool]:
  """A function that tells whether a path, with all its links resolved, is inside a folder."""
  real_root = os.path.realpath(root)
  prefix = os.path.join(real_root, '')

  def within(path: str) -> bool:
    real = os.path.realpath(path)
    return real == real_root or real.startswith(prefix)

  return within


def barred(path: str, within: Callable[[str], bool]) -> str:
  """Why the target of a link may not be read; '' for a file or a folder inside of `within`."""
  if not within(path):
    return LEADS_OUT
  try:
    mode = os.stat(path).st_mode
  except OSError as error:
    return LEADS_IN_A_CIRCLE if error.errno == errno.ELOOP else LEADS_NOWHERE
  return '' if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else NO_FILE


def _sort(entry: os.DirEntry, prefix: str, within: Callable[[str], bool], result: Survey) -> str:
  """Adds an entry of a folder to `result`. Returns the folder to search next, or ''."""
  name = prefix + entry.name
  if entry.name.startswith('.'):
    result.hidden.append(name)
  elif entry.is_symlink():
    reason = barred(entry.path, within)
    if reason:
      result.barred[name] = reason
    elif os.path.isdir(entry.path):
      result.linked.append(name)
    else:
      result.files.append(name)
  elif entry.is_dir(follow_symlinks=False):
    return f'{name}/'
  elif stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
    result.files.append(name)
  else:
    result.barred[name] = NO_FILE
  return ''
