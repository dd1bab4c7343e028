"""The choice of sizes and steps at the first start of a run, stored in WORKDIR/choice.json and in config.json.

`sizes` chooses. This module finds the facts about the data, measures steps, and stores and restores the result.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dalle_jax import bundle, hardware, hosts, sharding
from dalle_jax.config import Config, overrides
from dalle_jax.data import readers, registry
from dalle_jax.data.text.tokenizer import train_tokenizer
from dalle_jax.files import read_json_object, shown, write_json
from dalle_jax.hosts import say
from dalle_jax.jobs.choose import sizes
from dalle_jax.jobs.choose.draft import ChosenKey, Draft, find_value
from dalle_jax.jobs.choose.picture_facts import Findings, PictureFacts, find_facts
from dalle_jax.jobs.choose.sizes import Machine
from dalle_jax.jobs.run_lock import RunLock
from dalle_jax.jobs.stored_json import CHOICE, CHOICE_ADVICE, are_choices
from dalle_jax.planning import step_time
from dalle_jax.sampling import memory
from dalle_jax.training.progress import Progress
from dalle_jax.training.stage_tasks import training_of

# Accelerators that multiply bfloat16 no faster than float32.
_WITHOUT_BFLOAT16 = ('T4', 'V100')
MOST_TOKENIZED = 10_000  # captions whose tokens are counted

# Groups that hold chosen values.
_GROUPS = ('data', 'tokenizer', 'dvae', 'dvae_training', 'prior', 'prior_training', 'model', 'sequence_training')


def resolve(config: Config, workdir: Path, is_bare: bool, lock: RunLock | None) -> Config:
  """The configuration with its chosen values. An earlier choice is used again if the run has results.

  Args:
    config: a configuration that chooses.
    workdir: the work directory.
    is_bare: whether it has no results yet, so that values may be chosen again if the data or the command changed.
    lock: the lock of the directory, which is confirmed before a file is written.

  Raises:
    ValueError: the data have too few pictures or are image codes, or the values that are given do not fit.
  """
  if not is_bare:
    return _restored(config, workdir)
  for codes in registry.code_facts(config.data):
    raise ValueError(
      f'config.data.path: {shown(codes.path)} holds image codes, from which no sizes can be chosen. Set '
      'config.data.path to pictures, or use a configuration with fixed sizes, such as configs/emoji.py, with those of '
      f'the dVAE in {shown(codes.model)}.'
    )
  mesh = sharding.make_mesh(config.mesh, model=config)
  machine = machine_of(mesh)
  facts, captions, reading = _findings(config, workdir)
  request = _digest([config.to_dict(), dataclasses.asdict(facts), dataclasses.asdict(machine)])
  with hosts.together('reading the chosen sizes'):
    stored = _read(workdir) if jax.process_index() == 0 else {}
  stored = hosts.of_first(stored)
  draft = Draft(config, _pretrained(config))
  if stored.get('request') == request:
    for key, value, reason in stored['choices']:
      draft.set(key, value, reason)
    _say(draft.chosen, 'as chosen by an earlier start')
    return _checked(draft.config())
  times: list[dict[str, Any]] = []
  sizes.choose(draft, facts, machine, _measure(times, reading), functools.partial(_token_lengths, captions))
  chosen = _checked(draft.config())
  if jax.process_index() == 0:
    if lock is not None:
      lock.confirm()
    write_json(workdir / CHOICE, {
      'request': request, 'facts': dataclasses.asdict(facts), 'machine': dataclasses.asdict(machine),
      'measured': times, 'choices': [list(choice) for choice in draft.chosen],
    })  # fmt: skip
  _say(draft.chosen, f'chosen for {config.choice.minutes:g} minutes of training (config.choice.minutes)')
  return chosen


def choices_of(workdir: Path) -> list[ChosenKey]:
  """The stored choices of a run; [] if it chose nothing."""
  return [ChosenKey(key, value, reason) for key, value, reason in _read(workdir).get('choices', [])]


def _restored(config: Config, workdir: Path) -> Config:
  """The configuration with the values that an earlier start stored, except for keys that are given now.

  If the directory holds a run that chose nothing, the configuration stays as it is, and the work directory refuses it.
  """
  with hosts.together('reading the chosen sizes'):
    stored = _stored_values(config, workdir) if jax.process_index() == 0 else []
  draft = Draft(config)
  for key, value, reason in hosts.of_first(stored):
    draft.set(key, value, reason)
  _say(draft.chosen, 'as chosen by an earlier start')
  return _checked(draft.config())


def _stored_values(config: Config, workdir: Path) -> list[list[Any]]:
  """The stored keys, values and reasons of a run with results.

  The values are those of config.json, and the other file has the reasons. Without it, all values are used.
  """
  old = read_json_object(workdir / 'config.json') if (workdir / 'config.json').exists() else {}
  choice = old.get('choice')
  if not (isinstance(choice, dict) and choice.get('enabled')):
    return []
  choices = choices_of(workdir)
  if choices:
    return [[key, find_value(old, key), reason] for key, _, reason in choices]
  reason = f'of an earlier start, whose {CHOICE} is missing'
  keys = ['task', *(f'{group}.{name}' for group in _GROUPS for name in config.to_dict()[group])]
  return [[key, find_value(old, key), reason] for key in keys]


def _read(workdir: Path) -> dict[str, Any]:
  """The contents of the file; {} without it.

  Raises:
    ValueError: the file is damaged.
  """
  file = workdir / CHOICE
  if not file.exists():
    return {}
  values = read_json_object(file, CHOICE_ADVICE)
  if not are_choices(values):
    raise ValueError(f'{file} is damaged: it does not hold chosen values. {CHOICE_ADVICE}')
  return values


def machine_of(mesh: Any) -> Machine:
  """Describe the devices of a mesh."""
  device = mesh.devices.flat[0]
  chip = hardware.chip(device.device_kind)
  bfloat16 = device.platform == 'tpu' or (chip is not None and chip.name not in _WITHOUT_BFLOAT16)
  name = chip.name if chip else device.device_kind
  return Machine(device.platform, name, mesh.devices.size, sharding.batch_divisor(mesh), bfloat16)


def _findings(config: Config, workdir: Path) -> Findings:
  """What host 0 finds about the data. Other hosts do not get the captions."""
  found = None
  is_main = jax.process_index() == 0
  data_dir = Path(config.data.data_dir).absolute() if config.data.data_dir else workdir / 'data'
  with Progress('looking at the data', 1, 'example', enabled=is_main) as progress, hosts.together('reading the data'):
    if is_main:
      needs_captions = overrides.given(config, 'task') and config.reads_captions
      dataset = registry.prepare(config.data, data_dir, progress.update_of, needs_captions=needs_captions)
      found = find_facts(dataset, config.data.max_image_pixels)
  facts, reading = hosts.of_first([dataclasses.asdict(found.facts), found.reading] if found else None)
  return Findings(PictureFacts(**facts), found.captions if found else [], reading)


def _token_lengths(captions: list[str], vocab_size: int) -> list[int]:
  """The numbers of tokens of captions, evenly spread, with a tokenizer that is trained on them. Host 0 counts."""
  lengths: list[int] = []
  with hosts.together('counting tokens'):
    if jax.process_index() == 0:
      step = -(-len(captions) // MOST_TOKENIZED) or 1
      tokenizer = train_tokenizer(captions[::step], vocab_size)
      lengths = [len(tokenizer.encode(text)) for text in captions[::step]]
  return hosts.of_first(lengths)


def _measure(times: list[dict[str, Any]], reading: float) -> sizes.Measure:
  """A function that measures steps and adds what it measured to a list.

  Args:
    times: the list.
    reading: seconds in which a core reads a picture.
  """

  def measure(config: Config, stage: str) -> float | None:
    mesh = sharding.make_mesh(config.mesh, model=config)
    sharding.check(config, mesh)
    say(f'measuring a step of {stage}: {_summary(config, stage)}')
    free = hosts.of_first(memory.free_bytes(mesh))
    time = step_time.measure(config, stage, mesh, free)
    seconds = hosts.of_first(time.seconds)
    pictures = training_of(config, stage).batch_size / jax.process_count()
    cores = hosts.of_first(readers.num_cores())
    threads = min(cores, readers.num_threads(config.data) * max(readers.num_workers(config.data), 1))
    batch_reading = pictures * reading / threads
    times.append({
      'stage': stage, 'sizes': _summary(config, stage), 'seconds': seconds, 'reading_seconds': batch_reading,
      'bytes': time.needed, 'free_bytes': free,
    })  # fmt: skip
    if seconds is not None and batch_reading > seconds:
      say(
        f'reading a batch takes {batch_reading:.2g} s, longer than the step of {seconds:.2g} s. Pictures that '
        'tools/prepare_data.py --size=N has reduced are read faster.'
      )
    return None if seconds is None else sizes.with_reading(seconds, batch_reading, mesh.devices.flat[0].platform)

  return measure


def _summary(config: Config, stage: str) -> str:
  if stage == 'dvae':
    return f'{config.data.image_size} pixels, {config.grid_size} x {config.grid_size} codes'
  blocks = config.prior if stage == 'prior' else config.model
  return f'{blocks.num_layers} layers of width {blocks.embed_dim}'


def _pretrained(config: Config) -> Config | None:
  """The configuration of the model in config.dvae.pretrained, if any."""
  if not config.dvae.pretrained:
    return None
  bundle.check(Path(config.dvae.pretrained), needs=('dvae',), flag='config.dvae.pretrained')
  return bundle.read_config(Path(config.dvae.pretrained))


def _checked(config: Config) -> Config:
  """A chosen configuration, after the check that its task reads the keys that were given."""
  overrides.check(config, [key for key in config.choice.keep if '.' in key])
  return config


def _digest(values: Any) -> str:
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _say(choices: Sequence[ChosenKey], how: str) -> None:
  if choices:
    say('\n'.join([f'sizes and steps, {how}:', *(f'  {choice}' for choice in choices)]))
