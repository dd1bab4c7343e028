"""A configuration whose keys are chosen one after another, each with its reason."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from dalle_jax.config import Config
from dalle_jax.config.models import DVAE_SHAPE
from dalle_jax.config.overrides import given

GIVEN = 'given'
OF_PRETRAINED = 'as in the model of config.dvae.pretrained'


class ChosenKey(NamedTuple):
  """A key without 'config.', its value, and why it has this value."""

  key: str
  value: Any
  reason: str

  def __str__(self) -> str:
    return f'{self.key} = {self.value}: {self.reason}'


class Draft:
  """The values chosen so far. Keys in `config.choice.keep` keep their values."""

  def __init__(self, config: Config, pretrained: Config | None = None):
    """
    Args:
      config: the values at the start.
      pretrained: the configuration of the dVAE in config.dvae.pretrained, which determines the shape of the dVAE.
    """
    self._values = config.to_dict()
    self._start = config
    self._pretrained = pretrained.to_dict() if pretrained else None
    self.chosen: list[ChosenKey] = []

  def keeps(self, key: str) -> bool:
    """Whether a key keeps its value."""
    return given(self._start, key)

  def get(self, key: str) -> Any:
    """The present value of a key."""
    return find_value(self._values, key)

  def set(self, key: str, value: Any, reason: str) -> Any:
    """Choose a value, unless the key keeps the one that it has. Returns the value that the key has afterwards."""
    value, source = self._resolved(key, value)
    _store(self._values, key, value)
    self.chosen.append(ChosenKey(key, value, source or reason))
    return value

  def trial(self, values: Mapping[str, Any]) -> Config:
    """The configuration with further values, except for keys that keep theirs. The draft stays as it is.

    Raises:
      ValueError: the values do not fit each other.
    """
    draft = copy.deepcopy(self._values)
    for key, value in values.items():
      _store(draft, key, self._resolved(key, value)[0])
    return Config.from_dict(draft)

  def config(self) -> Config:
    """The configuration with all values.

    Raises:
      ValueError: the values do not fit each other.
    """
    return Config.from_dict(self._values)

  def _resolved(self, key: str, value: Any) -> tuple[Any, str]:
    """The value that a key gets, and where it is from; '' for the proposed value."""
    if self.keeps(key):
      return self.get(key), GIVEN
    group, _, name = key.partition('.')
    if self._pretrained and (key == 'data.image_size' or (group == 'dvae' and name in DVAE_SHAPE)):
      return find_value(self._pretrained, key), OF_PRETRAINED
    return value, ''


def find_value(values: Mapping[str, Any], key: str) -> Any:
  """The value of a key such as 'prior.num_layers' in nested dicts."""
  group, _, name = key.partition('.')
  return values[group][name] if name else values[group]


def _store(values: dict[str, Any], key: str, value: Any) -> None:
  group, _, name = key.partition('.')
  if name:
    values[group][name] = value
  else:
    values[group] = value
