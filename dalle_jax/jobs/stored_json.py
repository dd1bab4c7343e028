"""Check the JSON files of a work directory at the start, before anything in it is changed.

Some of these files are only read late, or not by every start. Their damage would otherwise be overwritten in silence.
`workspace` checks config.json and seconds.json itself.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dalle_jax import stages
from dalle_jax.files import read_json_object
from dalle_jax.integrity import MOST_JSON_BYTES

TOKENIZER_RECORD = 'tokenizer.json'  # what the tokenizer was trained on; see `trained_on`
RECORDS = 'records.json'  # the list of records that the run began with; see `data.checks.pinned`
STAGE_RECORD = 'trained_on.json'  # what a stage was trained on; see `trained_on`
SCORES = 'scores.json'
CHOICE = 'choice.json'  # the chosen sizes and steps; see `choose.choosing`
PRETRAINED = 'pretrained.json'  # the dVAE that the run began with; see `pretrained`

CHOICE_ADVICE = 'Remove this file; a run with results takes its values from config.json.'
_SAME_DATA = 'Remove this file if the data are those that {} was trained on.'


def check(workdir: Path) -> None:
  """Check all JSON files of a work directory.

  Raises:
    ValueError: A file is damaged. The message names it and says what to do.
  """
  for file, is_sound, holds, advice in _expected(workdir):
    if os.path.lexists(file):
      # Scores of earlier versions may hold NaN.
      if not is_sound(read_json_object(file, advice, MOST_JSON_BYTES, allow_nan=file.name == SCORES)):
        raise ValueError(f'{file} is damaged: it does not hold {holds}. {advice}')
  records = workdir / RECORDS
  if os.path.lexists(records) and (problem := _damage_of_records(records)):
    raise ValueError(
      f'{records} is damaged: {problem}. Restore it from a copy, or remove it to go on with the records that are found '
      'now; the run is refused later if they are other data.'
    )


def is_data_record(values: dict[str, Any]) -> bool:
  """Whether an object can be a `trained_on.TrainedOn`."""
  data, sizes, tokenizer = (values.get(name) for name in ('data', 'sizes', 'tokenizer'))
  return (
    isinstance(data, str) and data.isalnum() and isinstance(tokenizer, str) and isinstance(sizes, dict)
    and all(type(size) is int for size in sizes.values()) and ''.join(sizes).isprintable()
  )  # fmt: skip


def are_choices(values: dict[str, Any]) -> bool:
  """Whether an object can be the contents of CHOICE."""
  choices = values.get('choices')
  return isinstance(values.get('request'), str) and isinstance(choices, list) and all(map(_is_choice, choices))


def _is_choice(choice: Any) -> bool:
  return isinstance(choice, list) and len(choice) == 3 and all(isinstance(text, str) for text in choice[::2])


def _expected(workdir: Path) -> Iterator[tuple[Path, Callable[[dict[str, Any]], bool], str, str]]:
  """Each file, whether an object can be its contents, what it holds in words, and what to do about damage."""
  data = 'the fingerprints and sizes of data'
  yield workdir / TOKENIZER_RECORD, is_data_record, data, _SAME_DATA.format('the tokenizer')
  for stage in stages.names():
    yield workdir / stage / STAGE_RECORD, is_data_record, data, _SAME_DATA.format('the stage')
  again = 'Remove this file; the same command writes it again.'
  yield workdir / SCORES, _are_scores, 'scores', again
  advice = 'Remove this file if config.dvae.pretrained is the dVAE that the run began with.'
  yield workdir / CHOICE, are_choices, 'chosen values', CHOICE_ADVICE
  yield workdir / PRETRAINED, bool, 'the identity of a dVAE', advice
  model = f'Remove {workdir / "model"}; the same command writes it again.'
  yield workdir / 'model' / 'bundle.json', _is_bundle, 'the list of the files of a model', model
  yield workdir / 'model' / 'config.json', _is_config, 'a configuration', model


def _are_scores(values: dict[str, Any]) -> bool:
  return bool(values) and all(value is None or type(value) in (int, float) for value in values.values())


def _is_bundle(values: dict[str, Any]) -> bool:
  return type(values.get('format_version')) is int and isinstance(values.get('parts'), list)


def _is_config(values: dict[str, Any]) -> bool:
  return all(isinstance(values.get(name), dict) for name in ('data', 'dvae'))


def _damage_of_records(file: Path) -> str:
  """What is wrong with the list of records, without parsing all of it; '' if it looks whole."""
  try:
    with file.open('rb') as content:
      start = content.read(1024).lstrip()
      content.seek(-min(1024, file.stat().st_size), os.SEEK_END)
      end = content.read().rstrip()
  except OSError as error:
    return f'it cannot be read ({error.strerror})'
  if not start:
    return 'it is empty'
  if not re.match(rb'\{\s*"(lists|fingerprint)"', start):
    return 'it does not hold a list of records'
  return '' if end.endswith(b'}') and (b'"fingerprint"' in end or b'"fingerprint"' in start) else 'its end is missing'
