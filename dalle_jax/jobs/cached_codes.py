"""Data sets of image codes: whether a configuration can use them, and whether its dVAE made them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.data import registry
from dalle_jax.data.shards.code_records import CodeFacts
from dalle_jax.files import shown

STAGES = ('prior', 'sequence')  # they read codes; the other stages read pixels
_ADVICE = 'Set config.data.path to the pictures, or encode them again with tools/encode_images.py.'


def check_config(config: Config) -> None:
  """Check that the stages of a run can read the codes in its data, if there are any.

  Raises:
    ValueError: A stage needs pictures, or the codes were made with other settings.
  """
  if config.models_text:
    return
  for facts in registry.code_facts(config.data):
    _check_stages(config, facts)
    check_settings(config, facts)
    crop = config.data.crop
    if crop != 'center' and crop != facts.crop:
      further = f'{facts.num_crops} crops of kind {facts.crop!r}' if facts.num_crops else 'no random crops'
      raise ValueError(
        f'config.data.crop is {crop!r}, but {shown(facts.path)} has the codes of the centre and {further} of each '
        f'picture. Set config.data.crop to {" or ".join(dict.fromkeys(("center", facts.crop)))}, or encode the '
        'pictures again with this crop.'
      )


def _check_stages(config: Config, facts: CodeFacts) -> None:
  others = [stage.name for stage in config.trained_stages if stage.name not in STAGES]
  if not others:
    return
  hint = (
    f'set config.dvae.pretrained={facts.model}, whose dVAE made the codes'
    if others == ['dvae'] and config.task != 'dvae'
    else f'only the stages {" and ".join(STAGES)} read codes'
  )
  raise ValueError(
    f'config.data.path: {shown(facts.path)} holds image codes, but the stage {others[0]} of config.task={config.task} '
    f'needs pictures. Set config.data.path to pictures, or {hint}.'
  )


def check_settings(config: Config, facts: CodeFacts) -> None:
  """Check that codes stand for pictures of the model's size.

  Args:
    config: The configuration of the models.
    facts: How the codes were made.

  Raises:
    ValueError: The codes were made with another size, resampling or grid.
  """
  grid = (config.grid_size, config.grid_size)
  pairs = {
    'config.data.image_size': (config.data.image_size, facts.image_size),
    'config.data.resampling': (config.data.resampling, facts.resampling),
    'the grid of codes': (grid, facts.grid),
  }
  for name, (value, stored) in pairs.items():
    if value != stored:
      raise ValueError(
        f'config.data.path: the codes in {shown(facts.path)} were made with another setting: {name} is {value!r} here, '
        f'and {stored!r} for the codes. {_ADVICE}'
      )


def check_dvae(codes: Iterable[CodeFacts], params: Any, name: str) -> None:
  """Check that a dVAE made the codes. All hosts must call this together.

  Args:
    codes: How the codes of each part of the data were made; may be empty.
    params: The dVAE's parameters.
    name: What names the dVAE in messages, such as 'config.dvae.pretrained=runs/a/model'.

  Raises:
    ValueError: Another dVAE made the codes.
  """
  codes = list(codes)
  fingerprint = bundle.fingerprint(params) if codes else ''
  for facts in codes:
    if facts.dvae != fingerprint:
      raise ValueError(
        f'config.data.path: {shown(facts.path)} holds codes of the dVAE in {shown(facts.model)} (parameters '
        f'{facts.dvae}), but {name} has another dVAE (parameters {fingerprint}). Codes mean something only to the dVAE '
        f'that made them: set config.dvae.pretrained to it, or encode the pictures again with tools/encode_images.py.'
      )


def tokenizer_note(codes: Iterable[CodeFacts], contents_hash: str) -> str:
  """A sentence on codes whose caption tokens are of another tokenizer; '' if there are none.

  Args:
    codes: How the codes of each part of the data were made.
    contents_hash: The hash of the run's tokenizer.
  """
  paths = [shown(Path(facts.path)) for facts in codes if facts.tokenizer not in ('', contents_hash)]
  if not paths:
    return ''
  return (
    f"the caption tokens in {', '.join(paths)} are of another tokenizer than this run's; its captions are encoded again"
  )
