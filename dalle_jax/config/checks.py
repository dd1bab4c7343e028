"""Checks of values in configuration groups. Every message names the key to change."""

from typing import Any


def require(condition: bool, message: str) -> None:
  """Raises ValueError with `message` if `condition` is false."""
  if not condition:
    raise ValueError(message)


def require_positive(group: str, obj: Any, *names: str) -> None:
  """Raises ValueError unless the fields `names` of the configuration group `obj` are above 0."""
  for name in names:
    value = getattr(obj, name)
    require(value > 0, f'config.{group}.{name} is {value}; it must be above 0.')


def require_fraction(group: str, obj: Any, *names: str) -> None:
  """Raises ValueError unless the fields `names` of the configuration group `obj` lie in [0, 1]."""
  for name in names:
    value = getattr(obj, name)
    require(0 <= value <= 1, f'config.{group}.{name} is {value}; it must lie in [0, 1].')


def require_choice(group: str, obj: Any, name: str, choices: tuple[str, ...]) -> None:
  """Raises ValueError unless the field `name` of the configuration group `obj` is one of `choices`."""
  value = getattr(obj, name)
  require(value in choices, f'config.{group}.{name} is {value!r}; allowed are {", ".join(choices)}.')
