"""What each stage of a run was trained on: fingerprints of its data and tokenizer, compared at every start.

WORKDIR/STAGE/trained_on.json belongs to a stage, and WORKDIR/tokenizer.json to the tokenizer. Stages and tokenizers of
earlier versions have no such file; they get one at their next start. The fingerprint of the data of such a stage is
read from its newest checkpoint.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from dalle_jax import hosts
from dalle_jax.config import Config
from dalle_jax.data import fingerprints
from dalle_jax.data.registry import Dataset
from dalle_jax.files import read_json_object
from dalle_jax.hosts import say
from dalle_jax.jobs.stored_json import STAGE_RECORD as FILE
from dalle_jax.jobs.stored_json import TOKENIZER_RECORD, is_data_record
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.stages import Stage
from dalle_jax.training.loop import CHECKPOINTS
from dalle_jax.training.stage_tasks import training_of


@dataclasses.dataclass(frozen=True)
class TrainedOn:
  """Identifies data and a tokenizer.

  Attributes:
    data: The fingerprint of the data.
    sizes: The number of records of each split; of text, the number of bytes.
    tokenizer: The hash of the tokenizer's contents, or in some records of its pieces; '' without one, or if unknown.
  """

  data: str
  sizes: dict[str, int]
  tokenizer: str = ''

  @classmethod
  def of(cls, dataset: Any) -> 'TrainedOn':
    """Describe a `Dataset` or `text_data.TextData`."""
    if isinstance(dataset, Dataset):
      return cls(dataset.fingerprint, {split: len(dataset.open(split)) for split in dataset.splits})
    return cls(dataset.fingerprint, {split: sum(map(len, texts)) for split, texts in dataset.texts.items()})

  def __str__(self) -> str:
    sizes = ', '.join(f'{size:,} {split}' for split, size in self.sizes.items())
    # Of a folder, the hash of the pictures is followed by that of their names and captions; either may have changed.
    name = self.data[:12] if len(self.data) <= 64 else f'{self.data[:8]}-{self.data[32:40]}'
    return f'fingerprint {name} ({sizes})'


class TrainingRecords:
  """The records of all stages of a run, and the data that the run has now. Only host 0 reads and writes files."""

  def __init__(self, config: Config, space: Workspace, dataset: Any, allow_other_data: bool = False):
    """
    Args:
      config: The experiment's configuration.
      space: The work directory.
      dataset: The data of this start.
      allow_other_data: Whether stages that were trained on other data or with another tokenizer may be used.
    """
    self._config, self._space, self._allow = config, space, allow_other_data
    self._now = TrainedOn.of(dataset)
    self._adopt = getattr(dataset, 'adopt', None)
    self._is_main = jax.process_index() == 0

  def check_data(self) -> None:
    """Compare the present data with the data of the trained stages.

    If the run accepts other data, a tokenizer of the earlier data that no stage uses is removed, and the list of the
    present records replaces the earlier list.

    Raises:
      ValueError: The hosts read different data, or a stage was trained on other data and `allow_other_data` is False,
        or is only partly trained.
    """
    hosts.check_same(
      str(self._now), 'The training data',
      'Copy the same files to config.data.path of every host, or use a file system that all hosts share.',
    )  # fmt: skip
    with hosts.together('comparing the data with those of earlier starts'):
      if self._is_main:
        self._check_stages()
        self._check_tokenizer_data()
        if self._adopt is not None:
          self._space.confirm()
          self._adopt()

  def check_tokenizer(self, tokenizer: Any) -> None:
    """Compare the tokenizer with that of the trained stages.

    Args:
      tokenizer: The run's tokenizer; None without one.

    Raises:
      ValueError: A stage was trained with another tokenizer and `allow_other_data` is False.
    """
    current_hash, pieces_hash = ('', '') if tokenizer is None else (tokenizer.contents_hash, tokenizer.pieces_hash)
    self._now = dataclasses.replace(self._now, tokenizer=current_hash)
    with hosts.together('comparing the tokenizer with that of earlier starts'):
      for stage, record in self._trained().items() if self._is_main else ():
        if _reads_text(stage) and record and record.tokenizer not in ('', current_hash, pieces_hash):
          self._refuse_or_say(
            f'stage {stage.name} was trained with another tokenizer than {self._space.tokenizer} holds now: hash '
            f'{record.tokenizer[:12]} then, {current_hash[:12] or "none"} now'
          )

  def keep(self, stage: Stage) -> None:
    """Store what a stage is about to be trained on. The record of a trained stage stays as it is."""
    file = self._space.path / stage.name / FILE
    trained = None if self._config.counts_ngrams or not self._is_main else self._trained().get(stage)
    if self._is_main and not (trained and file.exists()):
      tokenizer = self._now.tokenizer if _reads_text(stage) else ''
      record = dataclasses.replace(trained or self._now, tokenizer=tokenizer)
      self._space.write(f'{stage.name}/{FILE}', dataclasses.asdict(record))

  def data_of_parts(self) -> dict[str, str]:
    """The fingerprint of the data of each part that this run has trained, by the part's name; {} except on host 0."""
    fingerprints: dict[str, str] = {}
    for stage, record in self._trained().items() if self._is_main else ():
      for part, _ in stage.parts:
        fingerprints.setdefault(part, record.data if record else self._now.data)
    return fingerprints

  @property
  def data_of_last_stage(self) -> str:
    """The fingerprint of the data of the last trained stage; except on host 0 that of the present data."""
    return list(self.data_of_parts().values() or [self._now.data])[-1]

  def _trained(self) -> dict[Stage, TrainedOn | None]:
    """The trained or partly trained stages, in order, with their records; None for a stage of an earlier version."""
    records = {stage: self._read(self._space.path / stage.name / FILE) for stage in self._config.trained_stages}
    return {
      stage: record or self._record_of_checkpoint(stage)
      for stage, record in records.items()
      if self._has_weights(stage, record)
    }

  def _has_weights(self, stage: Stage, record: TrainedOn | None) -> bool:
    """Whether a stage has a checkpoint. Counting n-grams writes none; a record then shows that they were counted."""
    return record is not None if self._config.counts_ngrams else self._newest_step(stage) is not None

  def _newest_step(self, stage: Stage) -> int | None:
    directory = self._space.path / stage.name / CHECKPOINTS
    names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)

  def _record_of_checkpoint(self, stage: Stage) -> TrainedOn | None:
    """What the newest checkpoint of a stage of an earlier version says about its data; None if it does not say it."""
    step = self._newest_step(stage)
    if step is None:
      return None
    try:
      position = read_json_object(self._space.path / stage.name / CHECKPOINTS / str(step) / 'data' / 'metadata')
    except ValueError:
      return None  # the stage itself passes over a damaged checkpoint
    data, length = position.get('fingerprint'), position.get('dataset_length')
    if not (isinstance(data, str) and data.isalnum()):
      return None
    if fingerprints.same(data, self._now.data):
      return dataclasses.replace(self._now, tokenizer='')
    return TrainedOn(data, {'train': length} if type(length) is int else {})

  def _check_stages(self) -> None:
    for stage, record in self._trained().items():
      if record is None or fingerprints.same(record.data, self._now.data):
        continue
      changes = (
        f'stage {stage.name} was trained on other data than the configuration names now: {record} then, {self._now} now'
      )
      if self._config.data.source == 'captioned_shapes' and not self._config.models_text:
        changes += ' (captioned_shapes of earlier versions of dalle_jax are other data, too)'
      step = self._newest_step(stage)
      num_steps = training_of(self._config, stage.name).num_steps
      if self._allow and step is not None and step < num_steps:
        raise ValueError(
          f'--workdir {self._space.path}: {changes}. The stage has reached step {step} of {num_steps}, and the data of '
          'a stage cannot change before its end, even with --allow_other_data. Restore the earlier data until the '
          f'stage ends, set another --workdir, or delete {self._space.path / stage.name} to train the stage again.'
        )
      self._refuse_or_say(changes)

  def _refuse_or_say(self, changes: str) -> None:
    if not self._allow:
      raise ValueError(
        f'--workdir {self._space.path}: {changes}. Restore the earlier data, set another --workdir, or give '
        '--allow_other_data to use the trained stages with the present data.'
      )
    say(f'{changes}. --allow_other_data accepts this.')

  def _check_tokenizer_data(self) -> None:
    """Remove a tokenizer that was trained on other data, if no trained stage needs it, and record the present data."""
    space, file = self._space, self._space.path / TOKENIZER_RECORD
    if not (self._config.reads_captions or self._config.models_text) or any(map(_reads_text, self._trained())):
      return
    record = self._read(file)
    if record and not fingerprints.same(record.data, self._now.data) and space.tokenizer.exists():
      say(f'{space.tokenizer} was trained on other data, and no stage uses it yet; it is trained again.')
      space.confirm()
      space.tokenizer.unlink()
    if record is None or record.data != self._now.data:
      space.write(TOKENIZER_RECORD, dataclasses.asdict(self._now))

  def _read(self, file: Path) -> TrainedOn | None:
    """A stored record; None if there is none.

    Raises:
      ValueError: The file is damaged.
    """
    if not file.exists():
      return None
    advice = 'Remove this file if the data are those that the stage was trained on.'
    values = read_json_object(file, advice)
    if is_data_record(values):
      return TrainedOn(values['data'], values['sizes'], values['tokenizer'])
    raise ValueError(f'{file} is damaged: it does not hold the fingerprints and sizes of data. {advice}')


def _reads_text(stage: Stage) -> bool:
  return 'tokenizer' in stage.model_groups
