"""Reject keys on the command line that the configuration's task does not read."""

import dataclasses
from collections.abc import Iterable

from dalle_jax import stages
from dalle_jax.config.root import Config

# Groups and keys that every task reads. A dVAE alone samples nothing, but its model directory keeps the settings.
_COMMON = ('seed', 'task', 'profile', 'data', 'mesh', 'logging', 'sampling', 'evaluation')


def groups_read(config: Config) -> tuple[str, ...]:
  """Returns the names of the configuration groups and top-level keys that the task reads."""
  model_groups = [group for stage in config.task_stages for group in stage.model_groups]
  choice = ('choice',) if config.choice.enabled else ()
  read = dict.fromkeys((*_COMMON, *choice, *model_groups, *config.training_groups))
  reads_text = config.models_text or config.reads_captions
  return tuple(group for group in read if group != 'tokenizer' or reads_text)


def check(config: Config, keys: Iterable[str]) -> None:
  """Reject keys in groups that the task does not read.

  Args:
    config: The configuration, after the command line changed it.
    keys: The keys that the command line set, without 'config.', such as 'prior.num_layers'.

  Raises:
    ValueError: The task does not read a key's group. The message suggests the same key in a group that it reads.
  """
  keys = tuple(keys)
  read = groups_read(config)
  if config.choice.enabled and config.task == 'all' and 'task' not in keys:  # pictures without captions change the task
    read = tuple(dict.fromkeys((*read, *groups_read(dataclasses.replace(config, task='sequence')))))
  for key in keys:
    group, _, name = key.partition('[')[0].partition('.')
    if group in read:
      continue
    reason = f'config.task={config.task} does not read config.{group}'
    if group == 'dvae_training' and config.dvae.pretrained:
      reason = f'config.dvae.pretrained={config.dvae.pretrained} is already trained, so config.{group} is not read'
    if group == 'choice':
      reason = 'this configuration does not choose sizes; config.choice.enabled and configs/mine.py do'
    candidates = [other for other in read if _kind(other) == _kind(group)]
    similar = [f'config.{other}.{name}' for other in candidates if name in _keys(config, other)]
    hint = f', or set {" or ".join(similar)} instead.' if similar else f'; this task reads {", ".join(read)}.'
    raise ValueError(f'config.{key} is set, but {reason}. Leave the key out{hint}')


def with_kept_keys(config: Config, keys: Iterable[str]) -> Config:
  """The configuration with the keys of the command line among those that `config.choice` leaves as they are.

  A configuration that chooses nothing stays as it is.
  """
  if not config.choice.enabled:
    return config
  keys = [key.partition('[')[0] for key in keys if not key.startswith('choice.')]
  keep = tuple(dict.fromkeys((*config.choice.keep, *keys)))
  return dataclasses.replace(config, choice=dataclasses.replace(config.choice, keep=keep))


def given(config: Config, key: str) -> bool:
  """Whether `config.choice` leaves a key as it is."""
  return key in config.choice.keep or key.partition('.')[0] in config.choice.keep


def _kind(group: str) -> str:
  """The kind of a group: 'common', 'training' or 'model'. `check` suggests only keys in groups of the same kind."""
  if group in _COMMON:
    return 'common'
  return 'training' if group in stages.training_groups() else 'model'


def _keys(config: Config, group: str) -> tuple[str, ...]:
  """The keys of a group; an empty tuple for a top-level key."""
  value = getattr(config, group)
  return tuple(field.name for field in dataclasses.fields(value)) if dataclasses.is_dataclass(value) else ()
