"""Configurations of a scaling ladder (every size, budget and seed), and the cost of each before training."""

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

Overrides = dict[str, str]  # 'config.GROUP.KEY' -> value, as text on a command line

# For each stage: the held-out metric, the factor that converts it to nats, and the unit after conversion.
MEASURES = {
  'sequence': ('nats_per_token', 1.0, 'nats per token'),
  'prior': ('image_nats_per_token', 1.0, 'nats per image token'),
  'dvae': ('bits_per_dim', math.log(2), 'nats per dimension, probability of 8-bit pixels'),
}


@dataclasses.dataclass(frozen=True)
class Rung:
  """One run of a ladder."""

  name: str
  overrides: Overrides  # the keys that differ from the ladder's configuration
  config: Config

  @property
  def stage(self) -> str:
    return stage_of(self.config)

  @property
  def training(self) -> TrainingConfig:
    return getattr(self.config, f'{self.stage}_training')

  @property
  def tokens(self) -> int:
    """The number of tokens seen in training.

    For sequence models these are the tokens of the sequences, for the prior the text and image tokens of the stream,
    and for the dVAE the codes.
    """
    return self.training.num_steps * self.training.batch_size * tokens_per_example(self.config, self.stage)

  @property
  def config_hash(self) -> str:
    """A hash of the configuration keys that a result depends on; see `config.binding`."""
    bound_keys = json.dumps(fixed(self.config.to_dict(), data_paths=True), sort_keys=True)
    return hashlib.sha256(bound_keys.encode()).hexdigest()[:16]

  def cost(self, text_vocab_size: int | None = None) -> tuple[int, int, float]:
    """The trained parameters, the trained parameters outside embeddings, and the FLOPs of training.

    The FLOPs count the matrix products in the traced program of a training step: the loss and its gradient.

    Args:
      text_vocab_size: the vocabulary size of the run's tokenizer; None for the configured size, which is its maximum.
    """
    defaults: dict[str, Any] = dict.fromkeys(self.config.training_groups, TrainingConfig())
    model = dataclasses.replace(self.config, seed=0, **defaults)  # so that all budgets of a size share a cache entry
    num_params, num_non_embedding, example_flops = _cost(model, self.stage, text_vocab_size)
    num_examples = self.training.num_steps * self.training.batch_size
    return num_params, num_non_embedding, float(num_examples * example_flops)


@functools.cache
def _cost(config: Config, stage: str, text_vocab_size: int | None) -> tuple[int, int, int]:
  """The parameters, the parameters outside embeddings, and the training FLOPs of one example."""
  task = make_task(config, stage, text_vocab_size)
  return *flops.count_params(task), flops.step_flops(task, batch_shapes(config, stage, 1))


def stage_of(config: Config) -> str:
  """The stage that a ladder trains and measures.

  Raises:
    ValueError: the task trains several stages, or a stage without a held-out likelihood.
  """
  *others, stage = stages_of(config)
  if others:
    raise ValueError(
      f'config.task is {config.task!r}, but a ladder trains one stage. For priors set config.dvae.pretrained to the '
      'model directory of a dVAE; for dVAEs set config.task=dvae.'
    )
  if stage not in MEASURES:
    raise ValueError(f'config.task is {config.task!r}; a ladder measures the stages {", ".join(MEASURES)}.')
  if stage == 'sequence' and config.model.kind == 'ngram':
    raise ValueError('config.model.kind is ngram, which is counted, not trained; choose a neural kind.')
  return stage


def parse_axes(words: Sequence[str]) -> list[Overrides]:
  """Parse the sizes of a ladder from axes such as 'config.model.embed_dim=32,64'.

  The first values of all axes make the first size, the second values the second size, and so on.

  Raises:
    ValueError: an axis does not have this form, two axes name one key, or the axes differ in length.
  """
  axes: dict[str, list[str]] = {}
  for word in words:
    key, equals, values = word.partition('=')
    if not equals or not re.fullmatch(r'config(\.\w+)+', key) or not all(values.split(',')):
      raise ValueError(f'--axis={word} must read config.GROUP.KEY=VALUE,VALUE,...')
    if key in axes:
      raise ValueError(f'--axis names {key} twice; give all values of a key in one --axis.')
    axes[key] = values.split(',')
  lengths = {key: len(values) for key, values in axes.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(
      f'--axis: the axes have different numbers of values, {lengths}; each must have as many values as the others.'
    )
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
  """Build the rungs of a ladder: one for each size, budget and seed, in this order.

  The learning-rate schedule of each run ends with its budget. A loss read in the middle of a longer schedule is worse
  than what the same budget can reach, and laws fitted to such losses favour large models (Hoffmann et al. 2022,
  section 3.1).

  Args:
    parse: makes the complete configuration from overrides.
    sizes: the overrides of each size.
    tokens: budgets in training tokens, each rounded to whole steps. Give either `tokens` or `steps`.
    steps: budgets in optimizer steps.
    seeds: the values of `config.seed`.
    warmup_fraction: the share of each run's steps in which the learning rate warms up.

  Raises:
    ValueError: a configuration is invalid or cannot be part of a ladder, or two runs are the same.
  """
  if bool(tokens) == bool(steps):
    raise ValueError('A ladder needs budgets; give either --tokens or --steps.')
  if not sizes:
    raise ValueError('A ladder needs sizes; give --axis=config.GROUP.KEY=VALUE,VALUE,... at least once.')
  rungs = []
  for size, budget, seed in itertools.product(sizes, tokens or steps, seeds):
    config = Config.from_dict(parse(size))
    stage = stage_of(config)
    tokens_per_step = training_of(config, stage).batch_size * tokens_per_example(config, stage)
    num_steps = max(1, round(budget / tokens_per_step)) if tokens else int(budget)
    rungs.append(_rung(parse, size, f'config.{stage}_training', num_steps, seed, warmup_fraction))
  names = [rung.name for rung in rungs]
  repeated = {name for name in names if names.count(name) > 1}
  if repeated:
    raise ValueError(
      f'Several runs of the ladder are the same: {", ".join(sorted(repeated))}. Each --axis, --tokens, --steps and '
      '--seeds needs values that differ.'
    )
  return rungs


def _rung(
  parse: Callable[[Mapping[str, str]], Any], size: Overrides, group: str, steps: int, seed: int, warmup: float
) -> Rung:
  overrides = {
    **size,
    f'{group}.num_steps': str(steps),
    f'{group}.warmup_steps': str(min(steps - 1, math.ceil(warmup * steps))),
    f'{group}.eval_every': str(steps),
    'config.seed': str(seed),
  }
  rung = Rung(_name(size, steps, seed), overrides, Config.from_dict(parse(overrides)))
  training = rung.training
  if training.schedule != 'cosine' or training.schedule_steps not in (0, steps):
    raise ValueError(
      f'{group}.schedule is {training.schedule!r} with schedule_steps {training.schedule_steps}; the runs of a ladder '
      "need 'cosine' and 0, so that the learning rate ends its decay within each budget."
    )
  return rung


def _name(size: Overrides, steps: int, seed: int) -> str:
  settings = [f'{key.rsplit(".", 1)[-1]}{value}' for key, value in size.items()]
  return re.sub(r'[^\w.+-]', '_', '-'.join([*settings, f'steps{steps}', f'seed{seed}']))
