"""Choose sizes, tokenizer, batches and steps from facts about the pictures and from measured steps.

All functions here are pure: they read no file and no clock. `choosing` finds the facts, measures and stores.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from dalle_jax.config import Config
from dalle_jax.config.models import DVAE_SHAPE
from dalle_jax.config.running import MOST_ROWS
from dalle_jax.jobs.choose.draft import Draft
from dalle_jax.jobs.choose.picture_facts import PictureFacts
from dalle_jax.jobs.choose.scales import (
  PictureScale,
  PriorScale,
  Scale,
  minutes,
  pick,
  picture_scales,
  prior_scales,
)
from dalle_jax.stages import find

MIN_PICTURES = 20
USABLE = 0.8  # share of the planned time for steps; the rest is for evaluation, sheets and checkpoints
DVAE_SHARE = 0.4  # of the time for steps
LEAST_STEPS = 500
LEAST_PRIOR_STEPS = 300  # a prior of few pictures knows them by heart after these steps
SHORT_RUN = 4_000  # steps of the dVAE up to which it takes high learning rates
# Passes over the training pictures after which more steps gain nothing. The dVAE mirrors and the prior does not.
MOST_DVAE_PASSES, MOST_PRIOR_PASSES = 200, 40
MANY_PASSES = 20  # of the prior; from here on weights decay
CPU_ROWS, ACCELERATOR_ROWS, MOST_BATCH = 16, 32, 512
ENOUGH_HELD_OUT = 1_000
MOST_TEXT = 256  # text positions
LARGEST_GROUP = 0.1  # share of pictures that may share the beginning of their captions


@dataclasses.dataclass(frozen=True)
class Machine:
  """The devices of the mesh.

  Attributes:
    platform: 'cpu', 'gpu' or 'tpu'.
    kind: the name of a device.
    devices: their number.
    divisor: over how many of them a batch is split.
    bfloat16: whether they multiply bfloat16 matrices faster than float32.
  """

  platform: str
  kind: str = ''
  devices: int = 1
  divisor: int = 1
  bfloat16: bool = False

  @property
  def is_cpu(self) -> bool:
    """Whether steps run on CPUs."""
    return self.platform == 'cpu'


# Measures a stage's step in seconds; None if it does not fit into memory.
Measure = Callable[[Config, str], float | None]
# The numbers of tokens of captions, with a tokenizer of some number of pieces.
TokenLengths = Callable[[int], Sequence[int]]


def choose(draft: Draft, facts: PictureFacts, machine: Machine, measure: Measure, token_lengths: TokenLengths) -> None:
  """Choose all values of a draft.

  Raises:
    ValueError: there are too few pictures, or the values that are given do not fit the data or each other.
  """
  choose_task(draft, facts)
  config = draft.config()
  total = facts.captioned if config.reads_captions else facts.pictures
  _check_number(total, config.reads_captions)
  fraction, reason = held_out(total)
  pictures = round(total * (1 - draft.set('data.validation_fraction', fraction, reason)))
  if config.reads_captions:
    choose_text(draft, facts, token_lengths)
  draft.set('data.crop', *crop(facts.aspect))
  budget = 60 * config.choice.minutes * USABLE
  *_, last = stages = [stage.name for stage in config.trained_stages]
  if stages[0] == 'dvae':
    share = DVAE_SHARE if len(stages) > 1 else 1.0
    budget = max(budget - choose_dvae(draft, facts, machine, measure, pictures, budget * share), 0.0)
  else:
    choose_pretrained(draft)
  if last != 'dvae':
    choose_prior(draft, last, machine, measure, pictures, budget)


def choose_task(draft: Draft, facts: PictureFacts) -> None:
  """Whether the prior reads captions."""
  text = f'{facts.captioned:,} of {facts.pictures:,} pictures have captions'
  if 2 * facts.captioned >= facts.pictures and facts.captioned >= min(MIN_PICTURES, facts.pictures):
    draft.set('task', 'all', text)
  else:
    draft.set('task', 'sequence', f'{text}, so a model of image tokens without text follows the dVAE')


def _check_number(pictures: int, needs_captions: bool) -> None:
  if pictures < MIN_PICTURES:
    what = 'pictures with captions' if needs_captions else 'pictures'
    other = ' To train on pictures without captions, set config.task=sequence.' if needs_captions else ''
    raise ValueError(
      f'config.data.path has {pictures:,} {what} that can be used; at least {MIN_PICTURES} are needed to choose sizes. '
      f'Add pictures, or use another configuration file, such as configs/emoji.py.{other}'
    )


def held_out(pictures: int) -> tuple[float, str]:
  """`config.data.validation_fraction`, and why."""
  if pictures <= 10 * ENOUGH_HELD_OUT:
    return 0.1, 'the default'
  fraction = float(f'{ENOUGH_HELD_OUT / pictures:.1g}')
  return fraction, f'about {round(fraction * pictures):,} of {pictures:,} pictures are enough to measure'


def crop(aspect: float) -> tuple[str, str]:
  """`config.data.crop`, and why."""
  lost = 1 - 1 / aspect
  if lost < 0.2:
    return 'center', f'a square in the middle leaves out {lost:.0%} of a picture'
  return 'random', f'a square leaves out {lost:.0%} of a picture, so its place varies'


def choose_text(draft: Draft, facts: PictureFacts, token_lengths: TokenLengths) -> None:
  """The tokenizer, and which captions are held out together."""
  if facts.prefix_share >= 0.1 and facts.largest_prefix <= LARGEST_GROUP:
    reason = f'{facts.prefix_share:.0%} of captions share their part before a colon, and such captions stay together'
    draft.set('data.group_separator', ':', reason)
  size = draft.set('tokenizer.vocab_size', *vocabulary(facts.words, facts.characters))
  draft.set('tokenizer.text_length', *text_length(token_lengths(size)))
  many = facts.captioned >= 20_000
  reason = f'{facts.captioned:,} captions are {"many" if many else "few"}'
  draft.set('tokenizer.bpe_dropout', 0.1 if many else 0.0, reason)


def vocabulary(words: int, characters: int) -> tuple[int, str]:
  """`config.tokenizer.vocab_size`, and why: room for bytes, characters and words."""
  size = 512
  while size < min(270 + characters + words, 16_384):
    size *= 2
  return size, f'{words:,} words occur in several captions, with {characters:,} characters'


def text_length(lengths: Sequence[int]) -> tuple[int, str]:
  """`config.tokenizer.text_length`, and why.

  Args:
    lengths: the numbers of tokens of captions.
  """
  ordered = sorted(lengths) or [1]
  longest, most = ordered[-1], ordered[math.ceil(0.99 * len(ordered)) - 1]
  fits_all = longest < 64
  tokens = longest if fits_all else most
  length = min(8 * math.ceil((tokens + 1) / 8), MOST_TEXT)
  whose = 'the longest caption has' if fits_all else '99% of captions have at most'
  return length, f'{whose} {tokens:,} tokens'


def choose_pretrained(draft: Draft) -> None:
  """The sizes of images and codes, which the dVAE in config.dvae.pretrained determines."""
  for key in ('data.image_size', *(f'dvae.{name}' for name in DVAE_SHAPE)):
    draft.set(key, draft.get(key), 'of the configuration')


def choose_dvae(
  draft: Draft, facts: PictureFacts, machine: Machine, measure: Measure, pictures: int, budget: float
) -> float:
  """The sizes of images and of the dVAE, and its training. Returns the seconds that its steps take.

  Args:
    draft: the values so far.
    facts: facts about the pictures.
    machine: the devices.
    measure: measures a step.
    pictures: training pictures.
    budget: seconds for the steps.
  """
  group = 'dvae_training'
  draft.set('dvae.image_vocab_size', *num_codes(pictures, facts.colours))
  draft.set('dvae.dtype', *dtype(machine))

  def trial(scale: PictureScale) -> Config:
    batch, _ = batch_size(machine, scale.image_size)
    return draft.trial({
      'data.image_size': scale.image_size, 'dvae.patch_size': scale.patch_size, 'dvae.num_groups': scale.num_groups,
      'dvae.hidden_size': scale.hidden_size, f'{group}.batch_size': batch,
    })  # fmt: skip

  def shape(scale: PictureScale) -> tuple[int, ...]:
    config = trial(scale)
    return config.data.image_size, config.dvae.patch_size, config.dvae.num_groups, config.dvae.hidden_size

  scales = picture_scales(
    facts.side, pictures, draft.get('data.image_size') if draft.keeps('data.image_size') else None
  )
  scales = different(scales, shape)
  scale, seconds, reason = pick(scales, budget, lambda scale: measure(trial(scale), 'dvae'), machine.is_cpu)
  sides = f"the pictures' shorter sides have {facts.side} pixels"
  size = draft.set('data.image_size', scale.image_size, f'{sides}; {reason}')
  draft.set('dvae.patch_size', scale.patch_size, f'for {size} pixels along a side')
  draft.set('dvae.num_groups', scale.num_groups, f'for {scale.grid} x {scale.grid} codes')
  draft.set('dvae.hidden_size', scale.hidden_size, f'for {scale}')
  steps, _ = _set_training(
    draft, group, batch_size(machine, size), seconds, budget, pictures, MOST_DVAE_PASSES, scale.steps
  )
  is_short = steps <= SHORT_RUN
  reason = f'for {steps:,} steps' if is_short else f'half of the rate for short runs, for {steps:,} steps'
  draft.set(f'{group}.learning_rate', 1e-2 if is_short else 5e-3, reason)
  draft.set(f'{group}.muon_learning_rate', 0.02 if is_short else 0.01, reason)
  draft.set('dvae.temperature_steps', steps, 'all steps')
  draft.set('dvae.normal_steps', 2 * steps, 'twice the steps')
  return steps * seconds


def different(scales: Sequence[Scale], shape: Callable[[Scale], tuple[int, ...]]) -> list[Scale]:
  """The scales without those that differ in nothing, because their values are given; the smallest remains."""
  return list(reversed({shape(scale): scale for scale in reversed(scales)}.values()))


def num_codes(pictures: int, colours: int) -> tuple[int, str]:
  """`config.dvae.image_vocab_size`, and why."""
  levels = ((1_000, 256), (20_000, 512), (200_000, 1_024), (2_000_000, 4_096))
  size = next((codes for below, codes in levels if pictures < below), 8_192)
  if colours < 48 and size > 512:
    return 512, f'for pictures of few colours, about {colours}'
  return size, f'for {pictures:,} training pictures with about {colours} colours each'


def with_reading(seconds: float, reading: float, platform: str) -> float:
  """The time from one step to the next.

  Args:
    seconds: time of a step, when its batch is there.
    reading: time to read a batch. CPUs share their cores with the step; other devices compute at the same time.
    platform: of the devices.
  """
  return seconds + reading if platform == 'cpu' else max(seconds, reading)


def dtype(machine: Machine) -> tuple[str, str]:
  """The type of activations, and why."""
  name = machine.kind or machine.platform
  if machine.bfloat16:
    return 'bfloat16', f'{name} multiplies it faster'
  return 'float32', f'{name} multiplies bfloat16 no faster'


def batch_size(machine: Machine, image_size: int) -> tuple[int, str]:
  """The batch size of a stage, and why. It is a multiple of the devices that share a batch."""
  if machine.is_cpu:
    rows, most = CPU_ROWS // machine.divisor, CPU_ROWS
  else:
    rows, most = ACCELERATOR_ROWS if image_size <= 128 else ACCELERATOR_ROWS // 2, MOST_BATCH
  rows = max(min(rows, most // machine.divisor), 1)
  batch = min(rows * machine.divisor, MOST_ROWS)
  return batch, f'{rows} for each of {machine.divisor} device(s)'


def choose_prior(draft: Draft, stage: str, machine: Machine, measure: Measure, pictures: int, budget: float) -> None:
  """The sizes and the training of the transformer; the arguments are those of `choose_dvae`.

  Args:
    draft: the values so far.
    stage: 'prior', or 'sequence' for a model without captions.
    machine: the devices.
    measure: measures a step.
    pictures: training pictures.
    budget: seconds for the steps.
  """
  model, group = {'prior': 'prior', 'sequence': 'model'}[stage], find(stage).training_group
  draft.set(f'{model}.dtype', *dtype(machine))
  size = draft.get('data.image_size')

  def values(scale: PriorScale) -> dict[str, object]:
    width = draft.get(f'{model}.embed_dim') if draft.keeps(f'{model}.embed_dim') else scale.embed_dim
    return {
      f'{model}.num_layers': scale.num_layers, f'{model}.num_heads': _heads(scale, width),
      f'{model}.embed_dim': width, f'{group}.batch_size': batch_size(machine, size)[0],
    }  # fmt: skip

  def shape(scale: PriorScale) -> tuple[int, ...]:
    blocks = getattr(draft.trial(values(scale)), model)
    return blocks.num_layers, blocks.embed_dim

  scales = different(prior_scales(pictures), shape)
  scale, seconds, reason = pick(
    scales, budget, lambda scale: measure(draft.trial(values(scale)), stage), machine.is_cpu
  )  # fmt: skip
  draft.set(f'{model}.num_layers', scale.num_layers, f'for {pictures:,} training pictures; {reason}')
  width = draft.set(f'{model}.embed_dim', scale.embed_dim, f'for {pictures:,} training pictures')
  draft.set(f'{model}.num_heads', _heads(scale, width), f'for {width} channels')
  steps, batch = _set_training(
    draft, group, batch_size(machine, size), seconds, budget, pictures, MOST_PRIOR_PASSES, LEAST_PRIOR_STEPS
  )
  draft.set(f'{group}.learning_rate', scale.learning_rate, f'for {width} channels')
  passes = steps * batch / max(pictures, 1)
  decay = 0.1 if passes > MANY_PASSES else 0.0
  amount = 'more' if decay else 'not more'
  draft.set(f'{group}.weight_decay', decay, f'{passes:,.3g} passes over the pictures, {amount} than {MANY_PASSES}')


def _heads(scale: PriorScale, width: int) -> int:
  """The scale's number of heads, or the nearest smaller one that divides a given width."""
  return next(heads for heads in range(scale.num_heads, 0, -1) if width % heads == 0)


def _set_training(
  draft: Draft,
  group: str,
  batch: tuple[int, str],
  seconds: float,
  budget: float,
  pictures: int,
  passes: int,
  least: int,
) -> tuple[int, int]:
  """The batch size, the steps and the intervals of a stage. Returns steps and batch size.

  Args:
    draft: the values so far.
    group: the stage's training group.
    batch: the batch size, and why.
    seconds: time of a step.
    budget: seconds for all steps.
    pictures: training pictures.
    passes: as for `num_steps`.
    least: as for `num_steps`.
  """
  batch_size = draft.set(f'{group}.batch_size', *batch)
  steps = draft.set(f'{group}.num_steps', *num_steps(seconds, budget, pictures, batch_size, passes, least))
  draft.set(f'{group}.warmup_steps', min(100, steps // 10), 'a tenth of the steps, at most 100')
  decay = 0.999 if steps >= 1_000 else 0.99
  draft.set(f'{group}.ema_decay', decay, f'an average over {round(1 / (1 - decay)):,} of {steps:,} steps')
  for key, parts in (('log_every', 40), ('eval_every', 5), ('checkpoint_every', 5), ('sheet_every', 3)):
    draft.set(f'{group}.{key}', max(steps // parts, 1), f'1/{parts} of the steps')
  return steps, batch_size


def num_steps(seconds: float, budget: float, pictures: int, batch: int, passes: int, least: int) -> tuple[int, str]:
  """The steps of a stage, and why: a multiple of 100.

  Args:
    seconds: time of a step.
    budget: seconds for all steps.
    pictures: training pictures.
    batch: pictures in a step.
    passes: the number of passes over the pictures after which more steps gain nothing.
    least: steps that a model of this size needs, however few pictures there are.
  """
  fitting = int(budget / max(seconds, 1e-6))
  useful = max(math.ceil(passes * pictures / batch / 100) * 100, least)
  if useful <= fitting:
    number = useful * batch / pictures
    return useful, f'{number:,.3g} passes over {pictures:,} pictures, in {minutes(useful * seconds)}'
  steps = max(fitting // 100 * 100, min(LEAST_STEPS, useful))
  if steps > fitting:
    return steps, f'fewer would not be worth it, although they take {minutes(steps * seconds)}'
  return steps, f'steps of {seconds:.2g} s, for {minutes(budget)}'
