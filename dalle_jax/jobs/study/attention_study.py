"""Make the HTML page of a model's attention weights for a prompt."""

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
from dalle_jax.config import BlocksConfig, Config, SamplingConfig, SequenceConfig
from dalle_jax.data.pictures import crops
from dalle_jax.data.pictures.image import MAX_PIXELS, read_picture
from dalle_jax.data.text.caption_text import check_prompt
from dalle_jax.data.text.tokenizer import PAD
from dalle_jax.evaluation import attention_weights, reconstruction
from dalle_jax.files import check_out
from dalle_jax.jobs import examples
from dalle_jax.models.attention import Pattern
from dalle_jax.models.language import TransformerLanguageModel
from dalle_jax.models.prior import Prior
from dalle_jax.reporting import attention_page as page
from dalle_jax.reporting.attention_page import PictureArticle
from dalle_jax.sampling import memory
from dalle_jax.sampling.continuation import continue_text
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sampling.sampler import encode_prompts, make_sampler, paint_rows

BUDGET = 6_000_000  # bytes of weights on a page, unless the user chooses both layers and heads
MOST = 40_000_000  # maximum bytes of weights on a page
MAX_FRAMES = 16  # steps in which a picture grows on the page


@dataclasses.dataclass(frozen=True)
class Choice:
  """The layers and heads that the page shows."""

  layers: tuple[int, ...]  # from 0
  heads: tuple[int, ...]  # from 0
  reduced: bool = False  # whether some were left out because the page would be too large


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
  overwrite: bool = False,
  max_image_pixels: int = MAX_PIXELS,
) -> Path:
  """Write the page for one prompt, and return its path.

  Args:
    model: a model directory.
    prompt: the caption of the images to generate or of `image`; for a text model the text to continue.
    out: the HTML file to write. It may exist only with `overwrite`.
    image: a picture file to analyse instead of generated images; '' to generate.
    num_images: the number of images or texts to generate. Image i equals image i of `generate`.
    seed: the seed for sampling.
    temperature: the sampling temperature; None for the model's default.
    top_k: how many of the likeliest tokens to sample from; 0 for all, None for the model's default.
    layers: layers to show, from 1; None for all, or for as many as fit on a page.
    heads: heads to show, from 1; empty for only the mean of each layer; None for all, or for as many as fit.
    truncate: whether to cut a caption that is too long.
    continuation: whether a text model continues the prompt; False analyses the prompt alone.
    overwrite: whether `out` may exist.
    max_image_pixels: the largest number of pixels of the picture file.

  Raises:
    ValueError: the model, the prompt, the picture or a setting cannot be used, or the file cannot be written.
  """
  wanted = DrawSettings(num_images=num_images, seed=seed, temperature=temperature, top_k=top_k)
  is_text_model = _check(model, prompt, image, num_images, continuation)
  check_out(Path(out), overwrite)
  config = bundle.read_config(Path(model))
  picture = _read_picture(config, image, max_image_pixels) if image else None
  _check_layers(model, group := config.model if is_text_model else config.prior, layers, heads)
  mesh = sharding.make_mesh()
  loaded = bundle.load(Path(model), mesh, _needed_parts(is_text_model))
  choice = _choice(loaded, group, num_images, layers, heads)
  settings = wanted.sampling(config.sampling, num_images)
  articles: list[PictureArticle | page.Text] = []
  if is_text_model:
    texts, prompt_length = _texts(loaded, prompt, num_images, mesh, seed, settings, continuation)
    articles += [_text_article(loaded, ids, prompt_length, i, choice) for i, ids in enumerate(texts)]
    origin = _sampling_note(seed, settings) if continuation else 'The prompt itself; nothing was sampled.'
  else:
    text = encode_prompts(loaded.caption_tokenizer, [prompt], config.tokenizer.text_length, truncate)
    codes, images = _pictures(loaded, text, picture, num_images, mesh, seed, settings)
    assert choice is not None, 'a prior has attention'
    articles += [_picture_article(loaded, text[0], codes[i], images[i], picture, i, choice) for i in range(num_images)]
    origin = f'The picture {Path(image).name}, encoded as image tokens.' if image else _sampling_note(seed, settings)
  return _write(Path(out), prompt, origin, choice, group, articles)


def _write(
  out: Path,
  prompt: str,
  origin: str,
  choice: Choice | None,
  group: Any,
  articles: Sequence[PictureArticle | page.Text],
) -> Path:
  """Write the page and return its path. `origin` says where its texts or pictures come from."""
  notes = [origin, page.SLOTS, *_choice_notes(choice, group)] if choice else [origin]
  page.write(out, f'Attention: {prompt}', notes, list(articles))
  return out


def _sampling_note(seed: int, settings: SamplingConfig) -> str:
  return (
    f'Sampled with seed {seed}, temperature {settings.temperature:g}, top_k {settings.top_k}, '
    f'top_p {settings.top_p:g}, guidance_scale {settings.guidance_scale:g}.'
  )


def _needed_parts(is_text_model: bool) -> tuple[str, ...]:
  return ('model',) if is_text_model else ('dvae', 'prior')


def _check(model: str, prompt: str, image: str, num_images: int, continuation: bool) -> bool:
  """Whether the model is a text model. Raises ValueError if the arguments do not fit the model."""
  if not prompt.strip():
    raise ValueError('--prompt is empty; give at least one word.')
  check_prompt(prompt)
  is_text_model = holds_text(model)
  if not is_text_model and drawing_parts(model)[1] == 'model':
    raise ValueError(
      f'{model} (--model) is a model of config.task=sequence that generates images, which the page cannot show; give a '
      'prior, or a model of text.'
    )
  bundle.check(Path(model), _needed_parts(is_text_model))
  memory.check_images(num_images, bundle.read_config(Path(model)))
  if image and (is_text_model or num_images > 1):
    raise ValueError('--image analyses one picture; use it with an image model and with --num_images=1.')
  if not continuation and (not is_text_model or num_images > 1):
    raise ValueError('--nocontinuation analyses one text; use it with a text model and with --num_images=1.')
  return is_text_model


def _kind_without_layers(group: BlocksConfig) -> str:
  """The kind of a sequence model that has no attention layers; '' for models that have them."""
  return group.kind if isinstance(group, SequenceConfig) and group.kind != 'transformer' else ''


def _check_layers(model: str, group: BlocksConfig, layers: Sequence[int] | None, heads: Sequence[int] | None) -> None:
  """Check that the model has these layers and heads. Raises ValueError if not."""
  kind = _kind_without_layers(group)
  if (layers is not None or heads is not None) and kind:
    raise ValueError(f'A model of kind {kind} has no attention ({model}); omit --layers and --heads.')
  _check_range('--layers', layers, group.num_layers)
  _check_range('--heads', heads, group.num_heads)


def _choice(
  loaded: bundle.Bundle, group: BlocksConfig, count: int, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> Choice | None:
  """The layers and heads to show for `count` sequences; None if the model has no attention."""
  if _kind_without_layers(group):
    return None
  sequence = loaded.prior if loaded.drawing_part == 'prior' else loaded.model
  assert isinstance(sequence, Prior | TransformerLanguageModel), 'these are the models with attention layers'
  patterns = sequence.transformer.layer_patterns
  kinds = [pattern.kind for pattern in patterns if isinstance(pattern, Pattern)]  # only encoders have other patterns
  return choose(kinds, group.num_heads, sequence.length, count, layers, heads)


def choose(
  kinds: Sequence[str],
  num_heads: int,
  length: int,
  count: int,
  layers: Sequence[int] | None,
  heads: Sequence[int] | None,
) -> Choice:
  """Choose the layers and heads to show: the requested ones, or else all, or else as many as fit.

  If all do not fit, the single heads are left out first, then layers. The first layer of each attention pattern stays,
  and further layers are evenly spaced.

  Args:
    kinds: the attention pattern of each layer of the model.
    num_heads: the number of heads of the model.
    length: slots of a sequence.
    count: sequences on the page.
    layers: the requested layers, from 1; None if not requested.
    heads: the requested heads, from 1; None if not requested.

  Raises:
    ValueError: the requested layers and heads make a page too large for a browser.
  """
  size = page.packed_size(length) * count
  chosen_layers = tuple(range(len(kinds))) if layers is None else tuple(i - 1 for i in layers)
  chosen_heads = tuple(range(num_heads)) if heads is None else tuple(i - 1 for i in heads)

  def total(layers: tuple[int, ...], heads: tuple[int, ...]) -> int:
    return size * (1 + len(layers) * (1 + len(heads)))

  if total(chosen_layers, chosen_heads) <= (BUDGET if layers is None or heads is None else MOST):
    return Choice(chosen_layers, chosen_heads)
  if heads is None:
    chosen_heads = ()
  room = max(1, BUDGET // (size * (1 + len(chosen_heads))) - 1)
  if layers is None and len(chosen_layers) > room:
    first_of_each_kind = map(kinds.index, dict.fromkeys(kinds))
    evenly_spaced = np.linspace(0, len(kinds) - 1, room).round().astype(int).tolist()
    chosen_layers = tuple(sorted(list(dict.fromkeys([*first_of_each_kind, *evenly_spaced]))[:room]))
  if total(chosen_layers, chosen_heads) > MOST:
    raise ValueError(
      f'These --layers and --heads make a page of about {total(chosen_layers, chosen_heads) / 1e6:.0f} MB; at most '
      f'{MOST / 1e6:.0f} MB are allowed. Give fewer layers, fewer heads (--heads=mean for only the mean) or fewer '
      '--num_images.'
    )
  return Choice(chosen_layers, chosen_heads, reduced=True)


def _check_range(flag: str, numbers: Sequence[int] | None, count: int) -> None:
  wrong = [number for number in numbers or () if not 1 <= number <= count]
  if wrong:
    raise ValueError(
      f'{flag}={wrong[0]}: the numbers must be from 1 to {count}, as many as the model has. Change {flag}.'
    )


def _choice_notes(choice: Choice, group: Any) -> list[str]:
  """A note about the layers and heads on the page, if some are left out."""
  incomplete = len(choice.layers) < group.num_layers or len(choice.heads) < group.num_heads
  if not incomplete:
    return []
  heads = f'heads {", ".join(str(i + 1) for i in choice.heads)}' if choice.heads else 'no single heads'
  why = ' Showing all would make the page too large; choose others with --layers and --heads.' if choice.reduced else ''
  return [
    f'The page shows layers {", ".join(str(i + 1) for i in choice.layers)} of {group.num_layers} and {heads} of '
    f'{group.num_heads}.{why} Means are over all heads; the first view is also the mean over all layers.'
  ]


def _read_picture(config: Config, file: str, max_pixels: int) -> np.ndarray:
  """Read a picture and preprocess it as in training: the central square, resized to the model's image size."""
  pixels = read_picture(file, max_pixels=max_pixels)
  return crops.fit(pixels, config.data.image_size, resampling=config.data.resampling)


def _pictures(
  loaded: bundle.Bundle, text: np.ndarray, picture: np.ndarray | None, count: int, mesh: Mesh, seed: int, settings: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Sample codes for captions, or encode a picture.

  Args:
    loaded: the model.
    text: ids of the caption, int32 [1, L].
    picture: the picture to encode, uint8 [H, W, 3]; None to sample.
    count: images to sample.
    mesh: the devices.
    seed: the seed for sampling.
    settings: the settings for sampling.

  Returns:
    Codes [N, g, g], and the images uint8 [N, H, W, 3] that they decode to.
  """
  if picture is None:
    sampler = make_sampler(loaded.config, loaded.caption_tokenizer, mesh, settings)
    return sampler.draw(loaded.params, text.repeat(count, axis=0), seed)[:2]
  return reconstruction.reconstruct(loaded.dvae, loaded.params['dvae'], picture[None], mesh, batch_size=1)


def _frames(loaded: bundle.Bundle, codes: np.ndarray) -> list[tuple[str, np.ndarray]]:
  """Decode the first rows of codes [g, g], for increasing numbers of rows. Returns labelled images with grey rests."""
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
  model, tokenizer = loaded.prior, loaded.caption_tokenizer
  assert tokenizer is not None, 'a prior reads captions'
  grid, length = model.grid_size, model.text_length
  stream = np.asarray(model.stream(jnp.asarray(text)[None], jnp.asarray(codes).reshape(1, -1)))[0]
  views, layers, tokens = _look(model, loaded.params['prior'], stream, choice, grid)
  words = [(word, [place + 1 for place in places]) for word, places in tokenizer.words(text)]
  pads = [int(slot) for slot in np.flatnonzero(text == PAD) + 1]
  keys = [('start of text', [0]), *words]
  keys += [(f'padding ({len(pads)})', pads)] if pads else []
  keys.append(('start of image', [length]))
  word_indices = range(1, 1 + len(words))
  mean, chosen = views[0].weights, grid // 2 * grid + grid // 2  # the page starts with the token in the centre
  caption = [(piece, i) for i, piece in enumerate(examples.caption_pieces(tokenizer, text))]
  title = 'The picture' if picture is not None else f'Image {number}'
  return PictureArticle(
    title=title, image=image, original=picture, frames=_frames(loaded, codes), grid_size=grid, text_length=length,
    caption=caption, keys=keys, words=word_indices,
    word_maps=attention_weights.image_maps(mean, [keys[i][1] for i in word_indices], length, grid),
    chosen=chosen, chosen_map=attention_weights.image_map(mean[length + chosen], length, grid), tokens=tokens,
    views=views, layers=layers,
  )  # fmt: skip


def _texts(
  loaded: bundle.Bundle, prompt: str, count: int, mesh: Mesh, seed: int, settings: Any, continuation: bool
) -> tuple[list[np.ndarray], int]:
  """The ids of each text to analyse, and the number of ids in the prompt."""
  ids, length = loaded.text_tokenizer.encode(prompt.encode()), loaded.model.length
  if len(ids) > length - continuation:
    raise ValueError(
      f'--prompt has {len(ids)} tokens; the model takes at most {length - continuation}'
      + (', to have room for a continuation' if continuation else '')
      + '. Shorten the prompt.'
    )
  if not continuation:
    return [ids], len(ids)
  if settings.top_k > loaded.model.vocab_size:
    raise ValueError(f'--top_k is {settings.top_k}; the model has {loaded.model.vocab_size} tokens.')
  texts = continue_text(
    loaded.model, loaded.params['model'], [ids], count, mesh, seed=seed, temperature=settings.temperature,
    top_k=settings.top_k, top_p=settings.top_p, batch_size=settings.batch_size,
  )  # fmt: skip
  return texts[0], len(ids)


def _text_article(
  loaded: bundle.Bundle, ids: np.ndarray, prompt_length: int, number: int, choice: Choice | None
) -> page.Text:
  pieces = [loaded.text_tokenizer.decode([i]).decode('utf-8', 'replace') for i in ids]
  views, layers, tokens = _look(loaded.model, loaded.params['model'], ids, choice, 0)
  return page.Text(f'Text {number}', pieces, prompt_length, tokens, views, layers)


def _look(
  model: Any, params: Any, tokens: np.ndarray, choice: Choice | None, grid: int
) -> tuple[list[page.View], list[page.Layer], page.Tokens]:
  """Run the model on a sequence [T].

  Returns:
    The views that the reader can choose, the matrices of each layer, and the certainty of the model at each token.
    There are no views and layers if `choice` is None.
  """
  if choice is None:
    logits = np.asarray(jax.jit(model.logits)(params, np.asarray(tokens)[None]))[0]
    return [], [], page.Tokens(*attention_weights.certainty(logits, tokens))
  logits, captured = attention_weights.capture(model, params, tokens, choice.layers, choice.heads)
  patterns, size = model.transformer.layer_patterns, len(tokens)
  views, layers = [page.View('all layers and heads, mean', captured.mean)], []
  for layer in choice.layers:
    pattern = patterns[layer]
    name = f'layer {layer + 1} of {len(patterns)}'
    weights = [('mean of all heads', captured.layers[layer])]
    weights += [(f'head {head + 1}', captured.heads[layer, head]) for head in choice.heads]
    views += [page.View(f'{name} ({pattern.kind}), {label}', matrix) for label, matrix in weights]
    matrices = [page.Matrix(label, matrix, _offsets(matrix, pattern, grid)) for label, matrix in weights]
    layers.append(page.Layer(f'{name.capitalize()}: {pattern.kind}', pattern.mask()[:size, :size], matrices))
  return views, layers, page.Tokens(*attention_weights.certainty(logits, tokens))


def _offsets(weights: np.ndarray, pattern: Any, grid: int) -> np.ndarray | None:
  return attention_weights.by_offset(weights, pattern.text_length, grid) if grid else None
