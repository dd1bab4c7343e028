"""A ladder of configurations: sizes times budgets times seeds, with what each costs, before anything is trained."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dalle_jax.config import Config, TrainingConfig
from dalle_jax.config.binding import fixed
from dalle_jax.training import flops
from dalle_jax.training.stage_tasks import batch_shapes, make_task, stages_of, tokens_per_example, training_of

Overrides = dict[str, str]  # 'config.GROUP.KEY' -> value as on a command line

# Of each stage: the held-out figure, what makes nats of it, and the unit then.
MEASURES = {
  'sequence': ('nats_per_token', 1.0, 'nats per token'),
  'prior': ('image_nats_per_token', 1.0, 'nats per image token'),
  'dvae': ('bits_per_dim', math.log(2), 'nats per dimension of 8-bit pixels'),
}


@dataclasses.dataclass(frozen=True)
class Rung:
  """One run to be made."""

  name: str
  overrides: Overrides  # on top of the ladder's configuration
  config: Config

  @property
  def stage(self) -> str:
    return stage_of(self.config)

  @property
  def training(self) -> TrainingConfig:
    return getattr(self.config, f'{self.stage}_training')

  @property
  def tokens(self) -> int:
    """Seen in training: all of a sequence's, text and image tokens of the prior's stream, or a dVAE's codes."""
    return self.training.num_steps * self.training.batch_size * tokens_per_example(self.config, self.stage)

  @property
  def config_hash(self) -> str:
    """Of what the work directory is bound to."""
    text = json.dumps(fixed(self.config.to_dict()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def cost(self, text_vocab_size: int | None = None) -> tuple[int, int, float]:
    """Trained parameters, those outside of embeddings, and the FLOPs of training.

    FLOPs are those of matrix products, counted in the program of a step: the loss and its gradient.

    Args:
      text_vocab_size: what the run's tokenizer has; None: at most so many as the configuration asks for.
    """
    untrained = dict.fromkeys(self.config.training_groups, TrainingConfig())
    model = dataclasses.replace(self.config, seed=0, **untrained)  # what all budgets of a size have in common
    total, outside, of_an_example = _cost(model, self.stage, text_vocab_size)
    return total, outside, float(self.training.num_steps * self.training.batch_size * of_an_example)


@functools.cache
def _cost(config: Config, stage: str, text_vocab_size: int | None) -> tuple[int, int, int]:
  """Parameters, those outside of embeddings, and the FLOPs of one example."""
  task = make_task(config, stage, text_vocab_size)
  return *flops.count_params(task), flops.step_flops(task, batch_shapes(config, stage, 1))


def stage_of(config: Config) -> str:
  """The stage that a ladder measures.

  Raises:
    ValueError: the task trains several, or one without a likelihood to follow.
  """
  *others, stage = stages_of(config)
  if others:
    raise ValueError(
      'A ladder trains one stage: set config.dvae.pretrained to the model directory of a dVAE, for priors on its '
      'tokens, or config.task=dvae.'
    )
  if stage not in MEASURES:
    raise ValueError(f'config.task is {config.task!r}; a ladder measures the stages {", ".join(MEASURES)}.')
  if stage == 'sequence' and config.model.kind == 'ngram':
    raise ValueError('config.model.kind is ngram, which is counted, not trained; take a neural kind.')
  return stage


def parse_axes(words: Sequence[str]) -> list[Overrides]:
  """Sizes from axes such as 'config.model.embed_dim=32,64' that are read side by side: the first value of each, ...

  Raises:
    ValueError: an axis is not of that form, two name one key, or their lengths differ.
  """
  axes: dict[str, list[str]] = {}
  for word in words:
    key, equals, values = word.partition('=')
    if not equals or not re.fullmatch(r'config(\.\w+)+', key) or not all(values.split(',')):
      raise ValueError(f'--axis={word} must read config.GROUP.KEY=VALUE,VALUE,...')
    if key in axes:
      raise ValueError(f'--axis names {key} twice; one axis has all values of a key.')
    axes[key] = values.split(',')
  lengths = {key: len(values) for key, values in axes.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f'The axes are read side by side and must have as many values each; given {lengths}.')
  return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def build(
  parse: Callable[[Mapping[str, str]], Any],
  sizes: Sequence[Overrides],
  *,
  tokens: Sequence[float] = (),
  steps: Sequence[int] = (),
  seeds: Sequence[int] = (0,),
  warmup_fraction: float = 0.05,
) -> list[Rung]:
  """The rungs, by rising size and budget.

  Each ends its own learning-rate schedule: a loss on the way of a longer schedule is worse than what the same budget
  reaches, and laws fitted to such losses favour large models (Hoffmann et al. 2022, section 3.1).

  Args:
    parse: from overrides to the whole configuration.
    sizes: overrides of each size.
    tokens: budgets; of each, as many whole steps as come nearest. Or:
    steps: budgets in optimizer steps.
    seeds: of `config.seed`.
    warmup_fraction: share of each run's steps that the learning rate rises.

  Raises:
    ValueError: a configuration is refused, or no ladder.
  """
  if bool(tokens) == bool(steps):
    raise ValueError('Give either --tokens or --steps, the budgets of each size.')
  if not sizes:
    raise ValueError('Give --axis=config.GROUP.KEY=VALUE,VALUE,... at least once: the sizes.')
  rungs = []
  for size, budget, seed in itertools.product(sizes, tokens or steps, seeds):
    config = Config.from_dict(parse(size))
    stage = stage_of(config)
    batch = training_of(config, stage).batch_size * tokens_per_example(config, stage)
    num_steps = max(1, round(budget / batch)) if tokens else int(budget)
    rungs.append(_rung(parse, size, f'config.{stage}_training', num_steps, seed, warmup_fraction))
  names = [rung.name for rung in rungs]
  repeated = {name for name in names if names.count(name) > 1}
  if repeated:
    raise ValueError(f'Several runs of the ladder are the same: {", ".join(sorted(repeated))}.')
  return rungs


def _rung(
  parse: Callable[[Mapping[str, str]], Any], size: Overrides, group: str, steps: int, seed: int, warmup: float
) -> Rung:
  own = {
    **size,
    f'{group}.num_steps': str(steps),
    f'{group}.warmup_steps': str(min(steps - 1, math.ceil(warmup * steps))),
    f'{group}.eval_every': str(steps),
    'config.seed': str(seed),
  }
  rung = Rung(_name(size, steps, seed), own, Config.from_dict(parse(own)))
  training = rung.training
  if training.schedule != 'cosine' or training.schedule_steps not in (0, steps):
    raise ValueError(
      f'{group}.schedule is {training.schedule!r} with schedule_steps {training.schedule_steps}; the runs of a ladder '
      "need 'cosine' and 0, so that the learning rate falls to its end within each budget."
    )
  return rung


def _name(size: Overrides, steps: int, seed: int) -> str:
  parts = [f'{key.rsplit(".", 1)[-1]}{value}' for key, value in size.items()]
  return re.sub(r'[^\w.+-]', '_', '-'.join([*parts, f'steps{steps}', f'seed{seed}']))
