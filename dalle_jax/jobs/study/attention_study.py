"""The page of what a model attends to: draws or reads, looks, and writes."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dalle_jax import bundle, sharding
from dalle_jax.bundle import drawing_parts, holds_text
from dalle_jax.config import BlocksConfig, Config, SequenceConfig
from dalle_jax.data import crops
from dalle_jax.data.image import read_picture
from dalle_jax.data.tokenizer import PAD
from dalle_jax.evaluation import attention_weights, reconstruction
from dalle_jax.files import check_out
from dalle_jax.jobs import examples
from dalle_jax.reporting import attention_page as page
from dalle_jax.reporting.attention_page import PictureArticle
from dalle_jax.sampling.continuation import continue_text
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sampling.sampler import encode_prompts, make_sampler, paint_rows

BUDGET = 6_000_000  # bytes of weights on a page, unless layers or heads are asked for
MOST = 40_000_000  # bytes of weights that a page may hold at all
MAX_FRAMES = 16  # steps in which a picture grows


@dataclasses.dataclass(frozen=True)
class Choice:
  """The layers and heads that are shown, from 0, and whether they are fewer than there are for want of room."""

  layers: tuple[int, ...]
  heads: tuple[int, ...]
  reduced: bool = False


def show(
  model: str,
  prompt: str,
  *,
  out: str,
  image: str = '',
  num_images: int = 1,
  seed: int = 0,
  temperature: float | None = None,
  top_k: int | None = None,
  layers: Sequence[int] | None = None,
  heads: Sequence[int] | None = None,
  truncate: bool = False,
  continuation: bool = True,
) -> Path:
  """Writes the page for one prompt.

  Args:
    model: a model directory.
    prompt: what to draw, or the caption of `image`; for a model of text what to continue.
    out: the file to write.
    image: a picture to look at instead of drawing.
    num_images: of the prompt, or texts; number i is the one that `generate` gives that number.
    seed: of the noise.
    temperature: of sampling; None takes the model's own, as for the next.
    top_k: tokens to choose among.
    layers: numbers from 1; None: all, or as many as there is room for.
    heads: numbers from 1, or none for the means of the layers alone; None as above.
    truncate: cuts a prompt that is too long for a picture's caption.
    continuation: of a model of text; False looks at the prompt alone.

  Raises:
    ValueError: the model, the prompt, the picture or a setting cannot be used, or the file cannot be written.
  """
  asked = DrawSettings(num_images=num_images, seed=seed, temperature=temperature, top_k=top_k)
  of_text = _check(model, prompt, image, num_images, continuation)
  check_out(Path(out))
  config = bundle.read_config(Path(model))
  picture = _read_picture(config, image) if image else None
  group = config.model if of_text else config.prior
  _check_layers(model, group, layers, heads)
  mesh = sharding.make_mesh()
  loaded = bundle.load(Path(model), mesh, _needs(of_text))
  choice = _choice(loaded, group, num_images, layers, heads)
  settings = asked.sampling(config.sampling, num_images)
  origin = f'Drawn with seed {seed}, temperature {settings.temperature:g}, top_k {settings.top_k}, '
  origin += f'top_p {settings.top_p:g}, guidance_scale {settings.guidance_scale:g}.'
  if of_text:
    rows, given = _texts(loaded, prompt, num_images, mesh, seed, settings, continuation)
    articles = [_text_article(loaded, row, given, i, choice) for i, row in enumerate(rows)]
    origin = origin if continuation else 'The text as given.'
  else:
    text = encode_prompts(loaded.tokenizer, [prompt], config.tokenizer.text_length, truncate)
    codes, images = _pictures(loaded, text, picture, num_images, mesh, seed, settings)
    articles = [_picture_article(loaded, text[0], codes[i], images[i], picture, i, choice) for i in range(num_images)]
    origin = origin if picture is None else f'The picture {Path(image).name}, as its tokens.'
  notes = [page.SLOTS, *_choice_notes(choice, group)] if choice else []
  page.write(Path(out), f'Attention: {prompt}', [origin, *notes], articles)
  return Path(out)


def _needs(of_text: bool) -> tuple[str, ...]:
  return ('model',) if of_text else ('dvae', 'prior')


def _check(model: str, prompt: str, image: str, num_images: int, continuation: bool) -> bool:
  """Whether the model is one of text. Raises ValueError where it cannot be shown, or not so."""
  if not prompt.strip():
    raise ValueError('--prompt is empty; give at least one word.')
  of_text = holds_text(model)
  if not of_text and drawing_parts(model)[1] == 'model':
    raise ValueError(
      f'{model} (--model) holds a model of config.task=sequence that draws; give a prior, or a model of text.'
    )
  bundle.check(Path(model), _needs(of_text))
  if image and (of_text or num_images > 1):
    raise ValueError('--image looks at one picture: it goes with a model that draws, and with --num_images=1.')
  if not continuation and (not of_text or num_images > 1):
    raise ValueError('--nocontinuation looks at one text: it goes with a model of text, and with --num_images=1.')
  return of_text


def _has_layers(group: BlocksConfig) -> bool:
  return not isinstance(group, SequenceConfig) or group.kind == 'transformer'


def _check_layers(model: str, group: BlocksConfig, layers: Sequence[int] | None, heads: Sequence[int] | None) -> None:
  """Refuses layers and heads that the model has not. Raises ValueError."""
  if (layers is not None or heads is not None) and not _has_layers(group):
    raise ValueError(f'A model of kind {group.kind} has no attention ({model}): leave out --layers and --heads.')
  _check_range('--layers', layers, group.num_layers)
  _check_range('--heads', heads, group.num_heads)


def _choice(
  loaded: bundle.Bundle, group: BlocksConfig, count: int, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> Choice | None:
  """What is shown of `count` sequences; None where there is no attention."""
  if not _has_layers(group):
    return None
  sequence = loaded.prior if loaded.drawing_part == 'prior' else loaded.model
  kinds = [pattern.kind for pattern in sequence.transformer.layer_patterns]
  return choose(kinds, group.num_heads, sequence.length, count, layers, heads)


def choose(
  kinds: Sequence[str],
  num_heads: int,
  length: int,
  count: int,
  layers: Sequence[int] | None,
  heads: Sequence[int] | None,
) -> Choice:
  """Which layers and heads are shown: those asked for, else all, else as many as fit.

  What does not fit first loses its single heads, then layers: those are kept that are the first of their pattern, and
  others at even distances.

  Args:
    kinds: the pattern of every layer of the model.
    num_heads: of the model.
    length: slots of a sequence.
    count: sequences on the page.
    layers: asked for, from 1.
    heads: asked for, from 1.

  Raises:
    ValueError: what is asked for makes a page that no browser likes.
  """
  size = page.packed_size(length) * count
  chosen_layers = tuple(range(len(kinds))) if layers is None else tuple(i - 1 for i in layers)
  chosen_heads = tuple(range(num_heads)) if heads is None else tuple(i - 1 for i in heads)

  def total(layers: tuple[int, ...], heads: tuple[int, ...]) -> int:
    return size * (1 + len(layers) * (1 + len(heads)))

  whole = Choice(chosen_layers, chosen_heads)
  if total(chosen_layers, chosen_heads) <= (BUDGET if layers is None or heads is None else MOST):
    return whole
  if heads is None:
    chosen_heads = ()
  room = max(1, BUDGET // (size * (1 + len(chosen_heads))) - 1)
  if layers is None and len(chosen_layers) > room:
    spread = np.linspace(0, len(kinds) - 1, room).round().astype(int).tolist()
    chosen_layers = tuple(sorted(list(dict.fromkeys([*map(kinds.index, dict.fromkeys(kinds)), *spread]))[:room]))
  if total(chosen_layers, chosen_heads) > MOST:
    raise ValueError(
      f'These --layers and --heads make a page of about {total(chosen_layers, chosen_heads) / 1e6:.0f} MB; at most '
      f'{MOST / 1e6:.0f} MB are written. Give fewer layers, fewer heads (--heads=mean for none) or fewer --num_images.'
    )
  return Choice(chosen_layers, chosen_heads, reduced=True)


def _check_range(flag: str, numbers: Sequence[int] | None, count: int) -> None:
  wrong = [number for number in numbers or () if not 1 <= number <= count]
  if wrong:
    raise ValueError(f'{flag}: there is no {wrong[0]}; the model has 1 to {count}.')


def _choice_notes(choice: Choice, group: Any) -> list[str]:
  """Which layers and heads are on the page, where some are not."""
  shown = len(choice.layers) < group.num_layers or len(choice.heads) < group.num_heads
  if not shown:
    return []
  heads = f'heads {", ".join(str(i + 1) for i in choice.heads)}' if choice.heads else 'no single heads'
  why = ' All would make too large a page; --layers and --heads choose others.' if choice.reduced else ''
  return [
    f'Shown are layers {", ".join(str(i + 1) for i in choice.layers)} of {group.num_layers} and {heads} of '
    f'{group.num_heads}.{why} Means are over all heads, and the first view over all layers too.'
  ]


def _read_picture(config: Config, file: str) -> np.ndarray:
  """The picture in a file as the model sees its own: the middle square, resized."""
  return crops.fit(read_picture(file), config.data.image_size, resampling=config.data.resampling)


def _pictures(
  loaded: bundle.Bundle, text: np.ndarray, picture: np.ndarray | None, count: int, mesh: Mesh, seed: int, settings: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Codes [N, g, g] and what they decode to, uint8 [N, H, W, 3]: drawn, or those of a given picture."""
  if picture is None:
    sampler = make_sampler(loaded.config, loaded.tokenizer, mesh, settings)
    return sampler.draw(loaded.params, text.repeat(count, axis=0), seed)[:2]
  return reconstruction.reconstruct(loaded.dvae, loaded.params['dvae'], picture[None], mesh, batch_size=1)


def _frames(loaded: bundle.Bundle, codes: np.ndarray) -> list[tuple[str, np.ndarray]]:
  """What codes [g, g] decode to when only the first rows are there; grey below."""
  side = len(codes)
  rows = np.unique(np.linspace(0, side, min(side, MAX_FRAMES) + 1).round().astype(int))
  paint = jax.jit(functools.partial(paint_rows, loaded.dvae))
  return [
    (f'{row * side} of {side * side} tokens', np.asarray(paint(loaded.params['dvae'], codes[None], row))[0])
    for row in rows
  ]


def _picture_article(
  loaded: bundle.Bundle, text: np.ndarray, codes: np.ndarray, image: np.ndarray, picture: np.ndarray | None,
  number: int, choice: Choice,
) -> PictureArticle:  # fmt: skip
  model = loaded.prior
  grid, length = model.grid_size, model.text_length
  stream = np.asarray(model.stream(jnp.asarray(text)[None], jnp.asarray(codes).reshape(1, -1)))[0]
  views, layers, tokens = _look(model, loaded.params['prior'], stream, choice, grid)
  words = [(word, [place + 1 for place in places]) for word, places in loaded.tokenizer.words(text)]
  pads = [int(slot) for slot in np.flatnonzero(text == PAD) + 1]
  keys = [('start of text', [0]), *words]
  keys += [(f'padding ({len(pads)})', pads)] if pads else []
  keys.append(('start of image', [length]))
  shown = range(1, 1 + len(words))
  mean, chosen = views[0].weights, grid // 2 * grid + grid // 2
  caption = [(piece, i) for i, piece in enumerate(examples.caption_pieces(loaded.tokenizer, text))]
  title = 'The picture' if picture is not None else f'Image {number}'
  return PictureArticle(
    title=title, image=image, original=picture, frames=_frames(loaded, codes), grid_size=grid, text_length=length,
    caption=caption, keys=keys, words=shown,
    word_maps=attention_weights.image_maps(mean, [keys[i][1] for i in shown], length, grid),
    chosen=chosen, chosen_map=attention_weights.image_map(mean[length + chosen], length, grid), tokens=tokens,
    views=views, layers=layers,
  )  # fmt: skip


def _texts(
  loaded: bundle.Bundle, prompt: str, count: int, mesh: Mesh, seed: int, settings: Any, continuation: bool
) -> tuple[list[np.ndarray], int]:
  """Ids of the texts that are looked at, and how many of them the prompt has."""
  ids, length = loaded.tokenizer.encode(prompt.encode()), loaded.model.length
  if len(ids) > length - continuation:
    raise ValueError(
      f'--prompt has {len(ids)} tokens, and the model reads {length}'
      + (', some of which it shall write itself' if continuation else '')
      + '; shorten it.'
    )
  if not continuation:
    return [ids], len(ids)
  if settings.top_k > loaded.model.vocab_size:
    raise ValueError(f'--top_k is {settings.top_k}; the model has {loaded.model.vocab_size} tokens.')
  drawn = continue_text(
    loaded.model, loaded.params['model'], [ids], count, mesh, seed=seed, temperature=settings.temperature,
    top_k=settings.top_k, top_p=settings.top_p, batch_size=settings.batch_size,
  )  # fmt: skip
  return drawn[0], len(ids)


def _text_article(loaded: bundle.Bundle, ids: np.ndarray, given: int, number: int, choice: Choice | None) -> page.Text:
  pieces = [loaded.tokenizer.decode([i]).decode('utf-8', 'replace') for i in ids]
  views, layers, tokens = _look(loaded.model, loaded.params['model'], ids, choice, 0)
  return page.Text(f'Text {number}', pieces, given, tokens, views, layers)


def _look(
  model: Any, params: Any, tokens: np.ndarray, choice: Choice | None, grid: int
) -> tuple[list[page.View], list[page.Layer], page.Tokens]:
  """What the page shows of a sequence [T]: views, the matrices of every layer, and how sure the model was."""
  if choice is None:
    logits = np.asarray(jax.jit(model.logits)(params, np.asarray(tokens)[None]))[0]
    return [], [], page.Tokens(*attention_weights.certainty(logits, tokens))
  logits, found = attention_weights.capture(model, params, tokens, choice.layers, choice.heads)
  patterns, size = model.transformer.layer_patterns, len(tokens)
  views, layers = [page.View('all layers and heads, mean', found.mean)], []
  for layer in choice.layers:
    pattern = patterns[layer]
    name = f'layer {layer + 1} of {len(patterns)}'
    weights = [('mean of all heads', found.layers[layer])]
    weights += [(f'head {head + 1}', found.heads[layer, head]) for head in choice.heads]
    views += [page.View(f'{name} ({pattern.kind}), {which}', values) for which, values in weights]
    matrices = [page.Matrix(which, values, _offsets(values, pattern, grid)) for which, values in weights]
    layers.append(page.Layer(f'{name.capitalize()}: {pattern.kind}', pattern.mask()[:size, :size], matrices))
  return views, layers, page.Tokens(*attention_weights.certainty(logits, tokens))


def _offsets(weights: np.ndarray, pattern: Any, grid: int) -> np.ndarray | None:
  return attention_weights.by_offset(weights, pattern.text_length, grid) if grid else None
