"""Lists of pictures that training leaves out: a text file of paths, one a line.

A path is that of a picture in its source, such as `cats/1.png` or `00000.tar/1.png`. Empty lines and lines that begin
with `#` do not count. A path that such a line cannot hold is written as a JSON string.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from dalle_jax.data.account import Account
from dalle_jax.data.sources.entries import Found
from dalle_jax.files import shown, write_whole

REASON = 'it is in the skip list'
_MOST_BYTES = 2**30


def write(file: Path, groups: Mapping[str, Iterable[str]]) -> None:
  """Write the paths of each group under a comment with the group's name. A path is written once."""
  lines: dict[str, None] = {}
  for name, paths in groups.items():
    lines[f'# {name}'] = None
    lines.update(dict.fromkeys(map(_line, paths)))
  write_whole(file, ''.join(f'{line}\n' for line in lines).encode())


def read(file: Path) -> frozenset[str]:
  """The paths in a skip list.

  Raises:
    ValueError: there is no such file, or it is no skip list.
  """
  try:
    if not file.is_file():
      raise ValueError(f'config.data.skip_list: there is no file {shown(file)}.')
    if file.stat().st_size > _MOST_BYTES:
      raise ValueError(f'config.data.skip_list: {shown(file)} has more than {_MOST_BYTES:,} bytes.')
    text = file.read_bytes().decode('utf-8-sig')
  except OSError as error:
    raise ValueError(f'config.data.skip_list: {shown(file)} cannot be read: {error.strerror}.') from None
  except UnicodeDecodeError:
    raise ValueError(f'config.data.skip_list: {shown(file)} is not UTF-8 text; give a file of paths.') from None
  return frozenset(
    _path(line.removesuffix('\r'), f'{shown(file)}, line {number}')
    for number, line in enumerate(text.split('\n'), 1)
    if line.strip() and not line.startswith('#')
  )


def without(found: Iterable[Found], file: str, account: Account) -> list[Found]:
  """The pictures that a skip list does not name; all of them if `file` is ''. Counts the others."""
  found = list(found)
  if not file:
    return found
  skipped = read(Path(file))
  kept = []
  for picture in found:
    if picture.path in skipped:
      account.leave_out(REASON, picture.path)
    else:
      kept.append(picture)
  for path in sorted(skipped - {picture.path for picture in found}):
    account.note('a line of the skip list that names no picture', path)
  return kept


def _line(path: str) -> str:
  is_plain = path.isprintable() and path == path.strip() and path[:1] not in ('', '#', '"')
  return path if is_plain else json.dumps(path)


def _path(line: str, where: str) -> str:
  if not line.startswith('"'):
    return line
  try:
    path = json.loads(line)
  except ValueError:
    path = None
  if not isinstance(path, str):
    raise ValueError(f'config.data.skip_list: {where} is neither a path nor a JSON string: {shown(line, 80)}.')
  return path
