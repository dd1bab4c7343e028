"""Configuration of the choice of sizes and steps from the data and from a measured step on the machine."""

import dataclasses

from dalle_jax.config.checks import require

MOST_MINUTES = 60 * 24 * 365


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceConfig:
  """Whether training begins with a choice of sizes and steps; `jobs.choose` makes it."""

  enabled: bool = False  # choose sizes, tokenizer, batches and steps at the first start of a run
  minutes: float = 30.0  # training time to plan for, without compiling and without the report
  # Keys, or groups of keys, that keep their values, such as 'prior.num_layers' or 'dvae_training'. The keys that the
  # command line sets are added.
  keep: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    require(
      0 < self.minutes <= MOST_MINUTES,
      f'config.choice.minutes is {self.minutes}; it must be above 0 and at most {MOST_MINUTES:,}.',
    )
