"""The files of a bundle: `bundle.json`, what it says about the other files, and the checks against it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

import dalle_jax
from dalle_jax import hosts, integrity
from dalle_jax.files import check_array_path, read_json_object, shown

FORMAT_VERSION = 2
FLAG = '--verify_model=false'
# For each kind of bundle: what error messages call it, and what they ask for if a command needs it.
KINDS = {
  'pictures': ('a model of images', 'a model of images'),
  'model': ('a model of text', 'a model of text (config.task=sequence)'),
  'reranker': (
    'a reranker',
    'a reranker: python -m dalle_jax.train --config=configs/reranker.py --workdir=... trains one',
  ),
}
_FILES = ('bundle.json', 'config.json', 'params')
_MOST_NGRAMS = 2**40  # entries of one order; a file never holds as many
_verifies = True  # see `verify_by_default`
_said: set[str] = set()  # notes that were printed; each is printed once


def verify_by_default(enabled: bool) -> None:
  """Sets whether bundles are compared with their checksums if a call does not say so: the flag --verify_model."""
  global _verifies
  _verifies = enabled


def verifies(verify: bool | None) -> bool:
  """The value of an argument `verify`; None stands for the default."""
  return _verifies if verify is None else verify


def describe(directory: Path) -> dict[str, dict[str, Any]]:
  """The size in bytes and the SHA-256 of every file of a bundle except `bundle.json`, by its relative path."""
  sizes = integrity.files_below(directory)
  sizes.pop('bundle.json', None)
  digests = integrity.checksums(directory, sizes, 'sha256')
  return {name: {'size': size, 'sha256': digests[name]} for name, size in sizes.items()}


def check(
  path: Path, needs: tuple[str, ...] = ('dvae', 'prior'), flag: str = '--model', verify: bool | None = None
) -> dict[str, Any]:
  """Checks that a bundle exists and is complete, and returns the contents of `bundle.json`.

  The contents of the files in params/ are not read; `verify_params` does that.

  Args:
    path: The bundle's directory.
    needs: The parts that the bundle must hold; () accepts any parts. ('model',) alone asks for a model of text.
    flag: The flag or configuration key that names the directory, for error messages.
    verify: Whether to compare `bundle.json`, `config.json` and the tokenizer with their checksums; None: the default.

  Raises:
    ValueError: The bundle is missing, incomplete, damaged or of another kind. The message says what to do.
  """
  path = Path(path)
  check_array_path(path, flag, reading=True)
  if not path.is_dir():
    raise ValueError(_missing_message(path, needs, flag))
  missing = [name for name in _FILES if not (path / name).exists()]
  if missing:
    raise ValueError(
      f'{path} ({flag}) is not a complete model directory: it lacks {", ".join(missing)}. Set {flag} to WORKDIR/model, '
      'the directory that training printed at its end, or run the training command again.'
    )
  info = _read_info(path, flag, verifies(verify))
  _check_parts(path, info, needs, flag)
  _check_sizes(path, info, verifies(verify))
  return info


def verify_params(path: Path, info: Mapping[str, Any]) -> None:
  """Compares the files in params/ with their checksums; several hosts share the work.

  Args:
    path: The bundle's directory.
    info: The contents of its `bundle.json`, from `check`.

  Raises:
    ValueError: A file has changed. The message names it.
  """
  expected = {name: facts for name, facts in info['files'].items() if name.startswith('params/')}
  largest_first = sorted(expected, key=lambda name: -expected[name]['size'])
  own = set(largest_first[jax.process_index() :: jax.process_count()])
  with hosts.together(f'checking {path}'):
    damaged = integrity.damages(path, expected, 'sha256', own.__contains__)
    if damaged:
      raise ValueError(_damaged_message(path, damaged))


def say_once(note: str) -> None:
  """Logs a note as a warning, the first time only."""
  if note not in _said and jax.process_index() == 0:
    _said.add(note)
    logging.warning('%s', note)


def writer(path: Path) -> str:
  """A sentence about the version that wrote a bundle; empty if it is this version or unknown."""
  try:
    version = _read_json(Path(path) / 'bundle.json')['dalle_jax_version']
  except (ValueError, KeyError):
    return ''
  is_same = version == dalle_jax.__version__
  return '' if is_same else f' It was written by dalle_jax {brief(version)}; this is {dalle_jax.__version__}.'


def brief(value: Any) -> str:
  """A value from a file, in at most 60 characters."""
  return shown(value, 60)


def _read_json(file: Path) -> dict[str, Any]:
  return read_json_object(file, max_bytes=integrity.MOST_JSON_BYTES)


def has_tokenizer(info: Mapping[str, Any]) -> bool:
  """Whether a bundle has a tokenizer, according to its `bundle.json`."""
  return 'tokenizer' in info or 'prior' in info['parts']


def _read_info(path: Path, flag: str, verify: bool) -> dict[str, Any]:
  """The contents of `bundle.json` with all entries of the right types; the files of format 1 get their full paths."""
  file = path / 'bundle.json'
  try:
    info = _read_json(file)
  except ValueError as error:
    raise ValueError(f'{error} Copy the directory again or run the training command again.') from None
  damaged = f'{file} is damaged (%s). Copy the directory again or run the training command again.'
  version = info.get('format_version')
  if type(version) is not int:
    raise ValueError(damaged % f'format_version is {brief(version)!r}')
  if verify and 'checksum' in info and not integrity.has_own_checksum(file.read_bytes(), info['checksum']):
    raise ValueError(f'{damaged % "its contents do not match its checksum"} To load it anyway, set {FLAG}.')
  if not 1 <= version <= FORMAT_VERSION:
    advice = 'Install a newer dalle_jax.' if version > FORMAT_VERSION else 'Train the model again.'
    raise ValueError(
      f'{path} ({flag}) has bundle format {brief(version)}, and this version of dalle_jax reads format 1 to '
      f'{FORMAT_VERSION}.{writer(path)} {advice}'
    )
  if version > 1 and 'checksum' not in info:
    raise ValueError(damaged % 'it has no checksum')
  info.setdefault('parts', ['dvae', 'prior'])
  files = info.setdefault('files', {})
  if version == 1 and isinstance(files, dict):
    info['files'] = files = {f'params/{name}': {'size': size} for name, size in files.items()}
  wrong = _wrong_entry(info)
  if wrong:
    raise ValueError(damaged % wrong)
  return info


def _wrong_entry(info: Mapping[str, Any]) -> str:
  """Describes an entry of `bundle.json` that has a wrong type or value; '' if there is none."""
  parts = info['parts']
  if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
    return f'parts is {brief(parts)}'
  for name in ('params', 'tokenizer', 'data', 'dalle_jax_version', 'checksum'):
    if not isinstance(info.get(name, ''), str):
      return f'{name} is {brief(info[name])}'
  if not _is_count(info.get('text_vocab_size', 0)):
    return f'text_vocab_size is {brief(info["text_vocab_size"])}'
  ngrams = info.get('ngrams', [])
  if not isinstance(ngrams, list) or not all(_is_count(number) for number in ngrams):
    return f'ngrams is {brief(ngrams)}'
  files, keys = info['files'], {'size'} if info['format_version'] == 1 else {'size', 'sha256'}
  if not isinstance(files, dict):
    return f'files is {brief(files)}'
  for name, facts in files.items():
    if not isinstance(facts, dict) or set(facts) != keys or not _is_count(facts['size']):
      return f'the entry {brief(name)} of files is {brief(facts)}'
    if not isinstance(facts.get('sha256', ''), str):
      return f'the entry {brief(name)} of files is {brief(facts)}'
  if info['format_version'] > 1 and not ('config.json' in files and any(name.startswith('params/') for name in files)):
    return 'files does not list config.json and params/'
  return ''


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < _MOST_NGRAMS


def _check_sizes(path: Path, info: Mapping[str, Any], verify: bool) -> None:
  """Compares the sizes of all files and the checksums of the small files. Logs the names of unlisted files, once.

  Without `verify`, only the sizes of the files in params/ are compared.
  """
  files = info['files']
  small = {name: facts for name, facts in files.items() if not name.startswith('params/')}
  large = {name: facts for name, facts in files.items() if name.startswith('params/')}
  damaged = integrity.damages(path, small, 'sha256') if verify else []
  damaged += integrity.damages(path, large, None)
  if damaged:
    raise ValueError(_damaged_message(path, damaged))
  if verify and info['format_version'] > 1:
    extra = sorted(set(integrity.files_below(path)) - set(files) - {'bundle.json'})
    if extra:
      names = integrity.listed(shown(name, 80) for name in extra)
      say_once(f'{path} holds files that do not belong to the model; they are not read: {names}.')


def _damaged_message(path: Path, damaged: list[str]) -> str:
  message = (
    f'The model directory {path} is damaged: {integrity.listed(damaged)}. Copy the directory again or run the training '
    'command again.'
  )
  # Without checksums, files of params/ that have other sizes are refused too.
  small = ('config.json (', 'tokenizer.model (')
  if all(problem.endswith(integrity.CHANGED) or problem.startswith(small) for problem in damaged):
    message += f' To load the changed files anyway, set {FLAG} (in Python: verify=False).'
  return message


def _missing_message(path: Path, needs: tuple[str, ...], flag: str) -> str:
  """The error message for a directory that does not exist."""
  needed = f'; this needs {KINDS["reranker"][1]}' if needs == ('reranker',) else ''
  message = f'There is no model directory at {path} ({flag}){needed}. Training writes it to WORKDIR/model when it ends.'
  partial = path.with_name(path.name + '.partial')
  if partial.is_dir():
    message += (
      f' {partial} is incomplete, because training stopped while it was written: run the training command again.'
    )
  return message


def _check_parts(path: Path, info: Mapping[str, Any], needs: tuple[str, ...], flag: str) -> None:
  """Checks that a bundle has its tokenizer and the parts `needs`; see `check`."""
  parts = info['parts']
  if has_tokenizer(info) and not (path / 'tokenizer.model').exists():
    raise ValueError(
      f'{path} ({flag}) is not a complete model directory: it lacks tokenizer.model. Copy the directory again or run '
      'the training command again.'
    )
  kind, needed = _kind(parts), _kind(list(needs))
  if needs and kind != needed:
    raise ValueError(f'{path} ({flag}) holds {KINDS[kind][0]}, but this needs {KINDS[needed][1]}.')
  if not set(needs) <= set(parts):
    raise ValueError(
      f'{path} ({flag}) holds the {" and ".join(parts)} only, but this needs the {" and ".join(needs)}. Train a prior '
      f'on it: python -m dalle_jax.train --config=... --config.dvae.pretrained={path} --workdir=..., with the values '
      f'of config.dvae in {path / "config.json"}.'
    )


def _kind(parts: list[str]) -> str:
  """The key of KINDS for a bundle with these parts."""
  return parts[0] if parts in (['model'], ['reranker']) else 'pictures'
