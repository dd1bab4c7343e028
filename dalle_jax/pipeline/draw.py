"""Drawing images for prompts, or without, with a trained model, into PNG files and a contact sheet."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from dalle_jax import bundle, sharding
from dalle_jax.config import MeshConfig
from dalle_jax.pipeline.settings import check_sampling, sampling_settings
from dalle_jax.pipeline.sheets import lay_out, make_sampler
from dalle_jax.reporting import sheets
from dalle_jax.sampling.generate import encode_prompts
from dalle_jax.training.progress import Progress


def read_prompts(prompts: Sequence[str], prompts_file: str) -> list[str]:
  """Prompts from the command line followed by those of a file, one a line (empty lines are skipped).

  Raises:
    ValueError: there are none, one is empty, or the file cannot be read.
  """
  found = list(prompts)
  if prompts_file:
    try:
      lines = Path(prompts_file).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise ValueError(f'--prompts_file {prompts_file} cannot be read: {error}') from None
    found += [line.strip() for line in lines if line.strip()]
  if not found:
    raise ValueError('No prompt was given; use --prompt="..." (repeatable) or --prompts_file=FILE with one a line.')
  if any(not prompt.strip() for prompt in found):
    raise ValueError('A prompt is empty; --prompt needs at least one word.')
  return found


def draw(
  model: str,
  prompts: Sequence[str],
  *,
  out: str,
  num_images: int,
  seed: int,
  batch_size: int | None = None,
  temperature: float | None = None,
  top_k: int | None = None,
  truncate: bool = False,
  mesh_config: MeshConfig | None = None,
) -> list[Path]:
  """Draws `num_images` images for each prompt and writes them with a contact sheet.

  Args:
    model: a model directory.
    prompts: what to draw; [''] for a model that draws without a prompt.
    out: directory for the pictures.
    num_images: of each prompt.
    seed: of the noise, 0 or more.
    batch_size: images at a time; None takes the model's own, as for the two below.
    temperature: of sampling.
    top_k: tokens to choose among.
    truncate: cuts prompts that are too long instead of refusing them.
    mesh_config: how to use the devices.

  Returns:
    The files written, the contact sheet last.

  Raises:
    ValueError: the model, a prompt or a setting cannot be used.
  """
  check_sampling(num_images, seed, batch_size, temperature, top_k)
  needs = drawing_parts(model)
  directory = _make_directory(out)
  mesh = sharding.make_mesh(mesh_config or MeshConfig())
  loaded = bundle.load(Path(model), mesh, needs)
  settings = sampling_settings(loaded.config.sampling, len(prompts) * num_images, batch_size, temperature, top_k)
  text = _encode(loaded, prompts, truncate)
  sampler = make_sampler(loaded.config, loaded.tokenizer, mesh, settings)
  with Progress('drawing', len(prompts) * num_images, 'image') as progress:
    progress.message('compiling')
    images = sampler(loaded.params, text.repeat(num_images, axis=0), seed, progress.update_of)
  images = images.reshape(len(prompts), num_images, *images.shape[1:])
  facts = {
    'seed': seed, 'temperature': settings.temperature, 'top_k': settings.top_k,
    'model': loaded.info.get('params', ''), 'batch_size': sampler.batch_size,
  }  # fmt: skip
  return _write(directory, prompts, images, facts)


def drawing_parts(model: str) -> tuple[str, str]:
  """The parts of a model directory that draw: the dVAE, and the prior or what stands in its place.

  Raises:
    ValueError: the directory holds no such model.
  """
  parts = bundle.check(Path(model), needs=('dvae',)).get('parts', [])
  needs = ('dvae', 'model' if 'model' in parts else 'prior')
  bundle.check(Path(model), needs)
  return needs


def takes_prompts(model: str) -> bool:
  """Whether a model directory holds a model that draws for prompts.

  Raises:
    ValueError: it holds no model that draws.
  """
  drawing_parts(model)
  return bundle.read_config(Path(model)).reads_captions


def _encode(loaded: bundle.Bundle, prompts: Sequence[str], truncate: bool) -> np.ndarray:
  """Text ids [N, text_length - 1] of the prompts; [1, 0] where the model draws without one."""
  if loaded.tokenizer is None:
    if list(prompts) != ['']:
      raise ValueError(
        '--prompt and --prompts_file are for models that have read captions, and this one has not '
        '(config.model.tokens=image); leave them out.'
      )
    return np.zeros((1, 0), np.int32)
  text = encode_prompts(loaded.tokenizer, prompts, loaded.config.tokenizer.text_length, truncate)
  _warn_of_cuts(loaded, prompts)
  return text


def _warn_of_cuts(loaded: bundle.Bundle, prompts: Sequence[str]) -> None:
  """Names the prompts that --truncate has cut."""
  length = loaded.config.tokenizer.text_length - 1
  for prompt in prompts:
    ids = loaded.tokenizer.encode(prompt)
    if len(ids) > length:
      kept = loaded.tokenizer.decode(ids[:length])
      logging.warning('A prompt of %d tokens is cut to %d and reads %r now.', len(ids), length, kept)


def _make_directory(out: str) -> Path:
  directory = Path(out)
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'--out {out} cannot be made: {error}') from None
  return directory


def _write(directory: Path, prompts: Sequence[str], images: np.ndarray, facts: dict) -> list[Path]:
  """PNG files PROMPTNUMBER_WORDS_INDEX.png and contact_sheet.png; each picture carries what it was drawn with."""
  written = []
  for number, (prompt, row) in enumerate(zip(prompts, images, strict=True)):
    for index, image in enumerate(row):
      path = directory / f'{number:03d}_{_slug(prompt) if prompt else "image"}_{index:03d}.png'
      position = number * images.shape[1] + index  # of the image among all, which its noise depends on
      text = {'prompt': prompt, 'dalle_jax': json.dumps({**facts, 'index': position})}
      sheets.save_png(image, path, text)
      written.append(path)
  sheet = directory / 'contact_sheet.png'
  sheets.save_png(lay_out([prompt for prompt in prompts if prompt], images), sheet, None)
  return [*written, sheet]


def _slug(prompt: str) -> str:
  """The prompt's first words as part of a file name."""
  return re.sub(r'[^a-z0-9]+', '_', prompt.lower()).strip('_')[:48].strip('_') or 'prompt'
