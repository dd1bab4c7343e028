"""What groups check themselves with; every message names the key to change."""

from typing import Any


def require(condition: bool, message: str) -> None:
  if not condition:
    raise ValueError(message)


def require_positive(group: str, obj: Any, *names: str) -> None:
  for name in names:
    value = getattr(obj, name)
    require(value > 0, f'config.{group}.{name} is {value}; it must be above 0.')


def require_fraction(group: str, obj: Any, *names: str) -> None:
  for name in names:
    value = getattr(obj, name)
    require(0 <= value <= 1, f'config.{group}.{name} is {value}; it must lie in [0, 1].')


def require_choice(group: str, obj: Any, name: str, choices: tuple[str, ...]) -> None:
  value = getattr(obj, name)
  require(value in choices, f'config.{group}.{name} is {value!r}; allowed are {", ".join(choices)}.')
