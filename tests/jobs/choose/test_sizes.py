"""The choice of sizes and steps from made-up facts and times, without files and clocks."""

import copy
import dataclasses
import functools
import pathlib
import runpy

import pytest

from dalle_jax.config import Config
from dalle_jax.jobs.choose import sizes
from dalle_jax.jobs.choose.draft import ChosenKey, Draft
from dalle_jax.jobs.choose.picture_facts import PictureFacts
from dalle_jax.jobs.choose.sizes import Machine

CONFIGS = pathlib.Path(__file__).parents[3] / 'configs'
LAPTOP = Machine('cpu', 'cpu')
GPU = Machine('gpu', 'A100', bfloat16=True)
POD = Machine('tpu', 'v5e', devices=32, divisor=32, bfloat16=True)
HUNDRED = PictureFacts(pictures=100, captioned=100, side=128, colours=150, words=20, characters=40)
EMOJI = PictureFacts(
  pictures=3_097, captioned=3_097, side=128, colours=150, words=1_100, characters=60, prefix_share=0.6,
  largest_prefix=0.08,
)  # fmt: skip
ICONS = PictureFacts(pictures=24_237, captioned=24_237, side=64, colours=90, words=3_000, characters=70)
MILLION = PictureFacts(pictures=1_000_000, captioned=1_000_000, side=400, aspect=1.5, colours=400, words=40_000,
                       characters=300)  # fmt: skip
# Seconds of a step on each machine, for a unit of work of the smallest sizes.
SPEED = {'cpu': 0.1, 'gpu': 0.004, 'tpu': 0.002}


@functools.cache
def _values():
  return runpy.run_path(str(CONFIGS / 'mine.py'))['get_config']().to_dict()


def mine(**groups):
  """The configuration of configs/mine.py with values that are given."""
  values = copy.deepcopy(_values())
  keep = [f'{group}.{key}' for group, changes in groups.items() if isinstance(changes, dict) for key in changes]
  keep += [key for key, value in groups.items() if not isinstance(value, dict)]
  for group, changes in groups.items():
    values[group] = values[group] | changes if isinstance(changes, dict) else changes
  values['choice']['keep'] += tuple(keep)
  return Config.from_dict(values)


def step_seconds(config, stage, machine):
  """The made-up time of a step: it grows with its work, on accelerators with the root of it."""
  if stage == 'dvae':
    work = (config.data.image_size / config.dvae.patch_size / 32 * config.dvae.hidden_size / 32) ** 2
    rows = config.dvae_training.batch_size
  else:
    blocks = config.prior if stage == 'prior' else config.model
    work = blocks.num_layers / 4 * (blocks.embed_dim / 128) ** 2 * config.image_length / 64
    rows = getattr(config, f'{stage}_training').batch_size
  return SPEED[machine.platform] * (work * rows / machine.divisor / 16) ** (1.0 if machine.is_cpu else 0.5)


def choose(config, facts, machine=LAPTOP, lengths=(5, 9)):
  """The chosen configuration, the reason of each key, and the stages that were measured."""
  measured = []

  def measure(config, stage):
    measured.append(stage)
    return step_seconds(config, stage, machine)

  draft = Draft(config)
  sizes.choose(draft, facts, machine, measure, lambda vocab_size: lengths)
  return draft.config(), {choice.key: choice.reason for choice in draft.chosen}, measured


@pytest.mark.parametrize(
  ('facts', 'machine', 'image', 'codes', 'prior'),
  [
    (HUNDRED, LAPTOP, (64, 8), 256, (4, 128)),
    (EMOJI, LAPTOP, (64, 8), 512, (4, 192)),
    (ICONS, LAPTOP, (64, 8), 1_024, (4, 192)),
    (MILLION, LAPTOP, (64, 8), 4_096, (4, 192)),
    (HUNDRED, GPU, (64, 8), 256, (4, 128)),
    (EMOJI, GPU, (128, 16), 512, (4, 192)),
    (ICONS, GPU, (64, 16), 1_024, (6, 256)),
    (MILLION, GPU, (128, 16), 4_096, (8, 512)),
    (MILLION, POD, (256, 32), 4_096, (8, 512)),
  ],
)
def test_sizes_follow_from_pictures_and_machine(facts, machine, image, codes, prior):
  config, _, _ = choose(mine(), facts, machine)
  assert (config.data.image_size, config.grid_size) == image
  assert config.dvae.image_vocab_size == codes
  assert (config.prior.num_layers, config.prior.embed_dim) == prior
  assert config.task == 'all'
  for training in (config.dvae_training, config.prior_training):
    assert training.batch_size % machine.divisor == 0
    assert training.warmup_steps < training.num_steps
    assert 0 < training.eval_every < training.num_steps
  assert config.dvae.dtype == config.prior.dtype == ('float32' if machine is LAPTOP else 'bfloat16')


@pytest.mark.parametrize('facts', [HUNDRED, EMOJI, ICONS, MILLION])
@pytest.mark.parametrize('machine', [LAPTOP, GPU, POD])
def test_the_steps_fit_the_time(facts, machine):
  config, _, _ = choose(mine(), facts, machine)
  seconds = sum(
    getattr(config, f'{stage}_training').num_steps * step_seconds(config, stage, machine) for stage in ('dvae', 'prior')
  )
  assert seconds <= 60 * 30 * sizes.USABLE


def test_more_time_gives_larger_models_and_more_steps():
  short, _, _ = choose(mine(), ICONS)
  long, _, _ = choose(mine(choice={'minutes': 600.0}), ICONS)
  assert (short.grid_size, long.grid_size) == (8, 16)
  assert short.prior.embed_dim < long.prior.embed_dim
  assert short.dvae_training.num_steps < long.dvae_training.num_steps


def test_few_pictures_are_not_repeated_for_ever():
  config, reasons, _ = choose(mine(choice={'minutes': 10_000.0}), HUNDRED)
  assert (config.dvae_training.num_steps, config.prior_training.num_steps) == (3_000, 300)
  assert config.prior_training.weight_decay == 0.1
  assert reasons['prior_training.weight_decay'] == '53.3 passes over the pictures, more than 20'
  config, _, _ = choose(mine(), MILLION, GPU)
  assert config.prior_training.weight_decay == 0.0


def test_given_keys_stay_and_the_others_fit_them():
  config, reasons, _ = choose(
    mine(data={'image_size': 96}, prior={'num_layers': 7}, prior_training={'num_steps': 77}, dvae={'num_groups': 4}),
    EMOJI,
  )
  assert (config.data.image_size, config.prior.num_layers, config.prior_training.num_steps) == (96, 7, 77)
  assert config.dvae.num_groups == 4
  assert config.grid_size == 6  # 96 / (2 * 2 ** 3)
  assert config.prior_training.warmup_steps == 7
  for key in ('data.image_size', 'prior.num_layers', 'prior_training.num_steps', 'dvae.num_groups'):
    assert reasons[key] == 'given'
  config, _, _ = choose(mine(prior={'embed_dim': 90}), EMOJI)
  assert config.prior.embed_dim % config.prior.num_heads == 0


def test_steps_that_take_all_the_time_leave_the_smallest_prior():
  config, reasons, _ = choose(mine(dvae_training={'num_steps': 1_000_000}), EMOJI)
  assert (config.dvae_training.num_steps, config.prior.embed_dim, config.prior_training.num_steps) == (10**6, 128, 500)
  assert 'do not fit into 0 s' in reasons['prior.num_layers']
  assert reasons['prior_training.num_steps'].startswith('fewer would not be worth it')


def test_sizes_that_are_all_given_are_measured_once():
  _, _, measured = choose(
    mine(data={'image_size': 64}, dvae={'num_groups': 3, 'patch_size': 2, 'hidden_size': 32}), EMOJI
  )
  assert measured.count('dvae') == 1


def test_pictures_without_captions_train_a_model_without_text():
  facts = dataclasses.replace(EMOJI, captioned=30)
  config, reasons, measured = choose(mine(), facts)
  assert (config.task, config.model.tokens, config.reads_captions) == ('sequence', 'image', False)
  assert reasons['task'] == (
    '30 of 3,097 pictures have captions, so a model of image tokens without text follows the dVAE'
  )
  assert {stage.name for stage in config.trained_stages} == set(measured) == {'dvae', 'sequence'}
  assert config.model.embed_dim == 192
  assert config.sequence_training.num_steps > 100
  assert not any(key.startswith(('tokenizer.', 'prior')) for key in reasons)


def test_a_dvae_alone_gets_all_the_time():
  alone, _, measured = choose(mine(task='dvae'), ICONS)
  both, _, _ = choose(mine(), ICONS)
  assert set(measured) == {'dvae'}
  assert alone.grid_size > both.grid_size or alone.dvae_training.num_steps > both.dvae_training.num_steps


def test_a_pretrained_dvae_determines_the_sizes_of_images():
  pretrained = Config.from_dict({'data': {'image_size': 128}, 'dvae': {'image_vocab_size': 1_234, 'num_groups': 5}})
  draft = Draft(mine(dvae={'pretrained': 'models/a'}), pretrained)
  measured = []
  sizes.choose(draft, EMOJI, LAPTOP, lambda config, stage: measured.append(stage) or 0.1, lambda size: [3])
  config = draft.config()
  assert (config.data.image_size, config.dvae.image_vocab_size, config.dvae.num_groups) == (128, 1_234, 5)
  assert config.grid_size == 8
  assert set(measured) == {'prior'}
  assert ChosenKey('dvae.num_groups', 5, 'as in the model of config.dvae.pretrained') in draft.chosen


@pytest.mark.parametrize(
  ('pictures', 'captioned', 'what'), [(19, 19, 'captions '), (19, 0, 'pictures '), (0, 0, 'pictures ')]
)
def test_too_few_pictures_are_refused(pictures, captioned, what):
  facts = PictureFacts(pictures=pictures, captioned=captioned)
  with pytest.raises(ValueError, match=rf'config\.data\.path has {pictures} .*{what}.*at least 20 are needed'):
    choose(mine(), facts)
  choose(mine(), PictureFacts(pictures=20, captioned=20))


def test_given_tasks_need_their_captions():
  with pytest.raises(ValueError, match=r'has 3 pictures with captions.*config\.task=sequence'):
    choose(mine(task='all'), PictureFacts(pictures=3_000, captioned=3))


@pytest.mark.parametrize(
  ('pictures', 'fraction'), [(100, 0.1), (10_000, 0.1), (24_237, 0.04), (10**6, 0.001), (10**7, 0.0001)]
)
def test_about_a_thousand_pictures_are_held_out(pictures, fraction):
  assert sizes.held_out(pictures)[0] == fraction


@pytest.mark.parametrize(
  ('words', 'characters', 'size'),
  [(20, 30, 512), (1_100, 60, 2_048), (200, 42, 512), (200, 43, 1_024), (10**6, 90, 16_384)],
)
def test_the_vocabulary_has_room_for_the_words(words, characters, size):
  assert sizes.vocabulary(words, characters)[0] == size


@pytest.mark.parametrize(
  ('lengths', 'length', 'reason'),
  [
    ([3, 7, 2], 8, 'the longest caption has 7 tokens'),
    ([8], 16, 'the longest caption has 8 tokens'),
    ([63], 64, 'the longest caption has 63 tokens'),
    ([10] * 99 + [500], 16, '99% of captions have at most 10 tokens'),
    ([400] * 100, 256, '99% of captions have at most 400 tokens'),
  ],
)
def test_captions_determine_the_text_length(lengths, length, reason):
  assert sizes.text_length(lengths) == (length, reason)


def test_captions_with_the_same_beginning_stay_together():
  assert choose(mine(), EMOJI)[0].data.group_separator == ':'
  for shares in ({'prefix_share': 0.0}, {'largest_prefix': 0.9}):  # 'photo: a cat' is no group
    assert choose(mine(), dataclasses.replace(EMOJI, **shares))[0].data.group_separator == ''


def test_long_pictures_are_cropped_at_random():
  assert sizes.crop(1.0) == ('center', 'a square in the middle leaves out 0% of a picture')
  assert sizes.crop(1.5) == ('random', 'a square leaves out 33% of a picture, so its place varies')


def test_reading_hides_behind_the_steps_of_accelerators():
  assert sizes.with_reading(0.2, 0.1, 'gpu') == 0.2
  assert sizes.with_reading(0.2, 0.3, 'tpu') == 0.3
  assert sizes.with_reading(0.25, 0.5, 'cpu') == 0.75


@pytest.mark.parametrize(
  ('machine', 'size', 'batch'),
  [
    (LAPTOP, 32, 16),
    (Machine('cpu', divisor=3), 32, 15),
    (Machine('cpu', divisor=64), 32, 64),
    (GPU, 64, 32),
    (GPU, 256, 16),
    (POD, 64, 512),
    (Machine('tpu', divisor=1_024), 64, 1_024),
  ],
)
def test_devices_share_a_batch(machine, size, batch):
  assert sizes.batch_size(machine, size)[0] == batch
  assert batch % machine.divisor == 0
