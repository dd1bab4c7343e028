"""From prompts to images with a trained model."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config, SamplingConfig
from dalle_jax.factory import make_dvae, make_stream_model
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.stream import PAD, StreamModel
from dalle_jax.sampling import decode, memory

GREY = 128  # what previews show where no token is drawn yet


class Known(NamedTuple):
  """What is known of the images beforehand."""

  codes: np.ndarray  # int32 [N, h, w]
  keep: np.ndarray  # bool [N, h, w]: the codes that stay
  bonus: float | None = None  # the log of what multiplies the odds of the other codes, in nats


class SampledImages(NamedTuple):
  """Images, and what they were made of."""

  codes: np.ndarray  # int32 [N, h, w]
  images: np.ndarray  # uint8 [N, H, W, 3]
  # float32 [N, h, w]: -ln p of each code by the model alone, at temperature 1; 0 in codes kept before the first drawn.
  nats: np.ndarray


class Preview(NamedTuple):
  """Images on the way."""

  numbers: np.ndarray  # [B], which of the N images
  rows: int  # rows of codes that are drawn
  images: np.ndarray  # uint8 [B, H, W, 3], grey below


class Programs(NamedTuple):
  """The jitted parts of drawing."""

  prepare: Callable
  begin: Callable
  advance: Callable
  finish: Callable
  paint: Callable
  paint_rows: Callable


class Sampler:
  """Draws images in batches of one fixed shape, so that everything compiles once.

  Image number i is drawn with the key fold_in(key(seed), i), whatever the batch it falls into.
  """

  def __init__(self, model: Prior | StreamModel, dvae: Dvae, mesh: Mesh, settings: SamplingConfig, part: str = 'prior'):
    """`part` is the collection of parameters that the model has.

    Raises:
      ValueError: the settings do not fit the model.
    """
    self.model, self.mesh, self.settings, self._dvae, self._part = model, mesh, settings, dvae, part
    # The devices must divide a batch; the surplus rows are computed and dropped.
    self.batch_size = sharding.rounded_batch(settings.batch_size, mesh)
    if settings.top_k > model.image_vocab_size:
      raise ValueError(
        f'top_k {settings.top_k} is more than the {model.image_vocab_size} image tokens there are; '
        'give --top_k (config.sampling.top_k) at most that, or 0 for all.'
      )
    if settings.guidance_scale != 1 and not model.text_length:
      raise ValueError(
        f'guidance_scale is {settings.guidance_scale:g}, but the model has read no captions, which guidance needs; '
        'leave --guidance_scale (config.sampling.guidance_scale) at 1.'
      )
    self._programs = jitted_programs(model, dvae, mesh, settings.top_k)
    self._most_known = -1  # codes for which the batch size has been compared with memory

  def __call__(
    self, params: dict[str, Any], text: np.ndarray, seed: int, progress: Callable[[int, int], None] | None = None
  ) -> np.ndarray:
    """Draws one image per row, uint8 [N, H, W, 3]; arguments as for `draw`."""
    return self.draw(params, text, seed, progress).images

  def draw(
    self,
    params: dict[str, Any],
    text: np.ndarray,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    index: np.ndarray | None = None,
    unconditional: np.ndarray | None = None,
    known: Known | None = None,
    preview: Callable[[Preview], None] | None = None,
    preview_every: int = 1,
    finished: Callable[[np.ndarray, SampledImages], None] | None = None,
  ) -> SampledImages:
    """Draws one image per row.

    Args:
      params: {'dvae', part} on the mesh.
      text: token ids [N, text_length - 1]; [N, 0] for a model of images alone.
      seed: of the noise.
      progress: called with (tokens done, of how many) after each row of tokens.
      index: int [N], the images' numbers under the seed; None for 0, 1, ...
      unconditional: ids [N, text_length - 1] that guidance compares with; None for no caption.
      known: codes that stay, or that are to be likelier.
      preview: called with the images so far.
      preview_every: rows of tokens between two previews.
      finished: called after each batch with the numbers [B] of its images among the N, and the images.

    Raises:
      ValueError: the logits are not finite (`decode.NotFiniteError`), or nothing is left to draw.
    """
    rows = {'text': text, 'index': np.arange(len(text)) if index is None else np.asarray(index)}
    if self.settings.guidance_scale != 1:
      rows['unconditional'] = np.full_like(text, PAD) if unconditional is None else unconditional
    start, bonus = 0, None
    if known is not None:
      flat = (len(text), self.model.image_length)
      rows |= {'codes': known.codes.reshape(flat).astype(np.int32), 'keep': known.keep.reshape(flat)}
      start, bonus = _first_drawn(rows['keep']), None if known.bonus is None else np.float32(known.bonus)
    self._cut_to_memory(params, start)
    prepared = self._prepare(params)
    done, batches = 0, []
    while done < len(text):
      numbers = np.arange(done, min(done + self.batch_size, len(text)))
      watch = _Watch(progress, preview, preview_every, numbers, len(text), self.model.grid_size)
      try:
        batch = self._draw_batch(params, prepared, _batch(rows, done, self.batch_size), seed, start, bonus, watch)
      except jax.errors.JaxRuntimeError as error:
        self._halve(error)
        continue
      batches.append(SampledImages(*(part[: len(numbers)] for part in batch)))
      done += len(numbers)
      if finished:
        finished(numbers, batches[-1])
    return SampledImages(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))

  def _prepare(self, params: dict[str, Any]) -> Any:
    with sharding.use_mesh(self.mesh):
      return self._programs.prepare(params[self._part])

  def _draw_batch(
    self, params: Any, prepared: Any, rows: dict, seed: int, start: int, bonus: float | None, watch: '_Watch'
  ) -> tuple:
    """Codes, images and nats of one batch; the first `start` codes are kept ones."""
    model, programs, size, settings = self.model, self._programs, self.model.grid_size, self.settings
    with sharding.use_mesh(self.mesh):
      on_mesh = sharding.from_whole(rows, self.mesh)
      lead = on_mesh['codes'][:, :start] if start else None
      state = programs.begin(prepared, on_mesh['text'], on_mesh.get('unconditional'), lead)
      arguments = loop_arguments(
        settings, model, seed, on_mesh['index'], on_mesh.get('codes'), on_mesh.get('keep'), bonus
      )
      last = model.length - 1
      for row in range(start // size + 1, size + 1) if watch.wanted else (size,):
        state = programs.advance(prepared, state, min(model.text_length + row * size, last), *arguments)
        if watch.wanted and row < size:
          jax.block_until_ready(state.position)
          watch.row(row, functools.partial(self._paint_rows, params, state.tokens, row))
      tokens, nats, not_finite = programs.finish(state, *arguments)
      codes, images, is_finite = programs.paint(params['dvae'], tokens)
      drawn = jax.device_get((codes, images, nats, not_finite, is_finite))
    self._check_finite(drawn[3], drawn[4], rows['index'])
    watch.row(size, lambda: drawn[1])
    return drawn[0], drawn[1], drawn[2][:, model.text_length :].reshape(drawn[0].shape)

  def _paint_rows(self, params: Any, tokens: jax.Array, rows: int) -> np.ndarray:
    return jax.device_get(self._programs.paint_rows(params['dvae'], tokens, rows))

  def _check_finite(self, not_finite: np.ndarray, is_finite: np.ndarray, index: np.ndarray) -> None:
    begin, length = self.model.text_length, self.model.length
    decode.check_finite(not_finite, length, lambda row, at: f'image token {at - begin} of image {index[row]}')
    if not is_finite.all():
      raise decode.NotFiniteError(
        f'The dVAE makes NaN or infinite pixels of the tokens of image {index[np.argmin(is_finite)]}: its parameters '
        'are damaged, or its dtype is too narrow (config.dvae.dtype). Train it again, or take an earlier model.'
      )

  def _cut_to_memory(self, params: Any, num_known: int) -> None:
    """Lowers the batch size to what memory holds, the first time and when more is known beforehand than before."""
    if num_known <= self._most_known:
      return
    self._most_known = num_known
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    with sharding.use_mesh(self.mesh):
      one = memory.row_bytes(self.model, self._dvae, shapes, self._part, self.settings.guidance_scale != 1, num_known)
    size = memory.fitting_batch(self.batch_size, one, memory.free_bytes(self.mesh), self.mesh)
    if jax.process_count() > 1:  # all hosts compute the same batches
      size = int(multihost_utils.process_allgather(np.int32(size)).min())
    if size < self.batch_size:
      logging.warning(
        'batch_size %d is cut to %d: an image takes about %.3g MB and memory is short.',
        self.batch_size,
        size,
        one / 1e6,
      )
      self.batch_size = size

  def _halve(self, error: Exception) -> None:
    """Halves the batch where memory was too short for it; passes on any other error, and one of a single row."""
    if 'RESOURCE_EXHAUSTED' not in str(error) or jax.process_count() > 1:  # the other hosts know nothing of it
      raise error
    if self.batch_size <= sharding.batch_divisor(self.mesh):
      raise ValueError(f'Memory does not hold a single image on each device: {str(error)[:200]}') from error
    size = sharding.rounded_batch((self.batch_size + 1) // 2, self.mesh)
    logging.warning('Memory does not hold %d images at a time; going on with %d.', self.batch_size, size)
    self.batch_size = size


class _Watch:
  """Tells how far the drawing of one batch is."""

  def __init__(
    self, progress: Callable | None, preview: Callable | None, every: int, numbers: np.ndarray, total: int, size: int
  ):
    """`numbers` says which of `total` images the batch draws, each of `size` rows of codes."""
    self._progress, self._preview, self._every = progress, preview, every
    self._numbers, self._total, self._size = numbers, total, size
    self.wanted = progress is not None or preview is not None

  def row(self, row: int, images: Callable[[], np.ndarray]) -> None:
    """Called when `row` rows of codes are drawn; `images` decodes them."""
    if self._preview and (row == self._size or row % self._every == 0):
      self._preview(Preview(self._numbers, row, images()[: len(self._numbers)]))
    if self._progress:
      tokens = self._size * (self._numbers[0] * self._size + len(self._numbers) * row)
      self._progress(int(tokens), self._total * self._size**2)


def _first_drawn(keep: np.ndarray) -> int:
  """Codes that stay in every row, from the first on; keep [N, L]."""
  drawn = np.flatnonzero(~keep.all(axis=0))
  if not len(drawn):
    raise ValueError(
      'Nothing of the picture is to be drawn: all its tokens stay (--mask, --keep_top, --keep_box, --redraw_box).'
    )
  return int(drawn[0])


def _batch(rows: dict[str, np.ndarray], first: int, size: int) -> dict[str, np.ndarray]:
  """`size` rows from `first` on; past the end the last one is repeated."""
  take = np.minimum(np.arange(first, first + size), len(rows['text']) - 1)
  return {name: values[take] for name, values in rows.items()}


def loop_arguments(
  settings: SamplingConfig,
  model: Prior | StreamModel,
  seed: jax.Array | np.int32 | int,
  index: jax.Array | jax.ShapeDtypeStruct,
  codes: jax.Array | None = None,
  keep: jax.Array | None = None,
  bonus: np.float32 | None = None,
) -> tuple[Any, ...]:
  """The arguments that `Programs.advance` and `Programs.finish` both take last, in their order.

  Args:
    settings: the sampling settings.
    model: the model that draws the tokens.
    seed: the seed of the noise.
    index: int32 [B], the number of each image under the seed.
    codes: int32 [B, image_length], the known codes; None if all codes are drawn.
    keep: bool [B, image_length], which of the known codes stay; None with `codes`.
    bonus: added to the logits of the other known codes, in nats; None for no bonus.
  """
  return seed, index, _decode_settings(settings, model), codes, keep, bonus


def _decode_settings(settings: SamplingConfig, model: Prior | StreamModel) -> decode.Settings:
  """The settings as arguments of the compiled programs. What is off is None and is not computed."""
  guidance = None
  if settings.guidance_scale != 1:
    ramp = settings.guidance_ramp * model.image_length
    guidance = decode.Guidance(np.float32(settings.guidance_scale), np.int32(model.text_length), np.float32(ramp))
  top_p = np.float32(settings.top_p) if settings.top_p < 1 else None
  return decode.Settings(np.float32(settings.temperature), top_p, guidance)


@functools.lru_cache(maxsize=8)
def jitted_programs(model: Prior | StreamModel, dvae: Dvae, mesh: Mesh, top_k: int) -> Programs:
  """The parts of drawing, jitted once for all samplers of one model, whatever their other settings."""
  whole = sharding.replicated(mesh)

  def begin(params: Any, text: jax.Array, unconditional: jax.Array | None, lead: jax.Array | None) -> decode.State:
    def prefix(text: jax.Array) -> jax.Array:
      kept = [] if lead is None else [(lead + model.text_vocab_size).astype(text.dtype)]
      return jnp.concatenate([model.prefix(text), *kept], axis=1)

    return decode.begin(model, params, prefix(text), None if unconditional is None else prefix(unconditional))

  def given(codes: jax.Array | None, keep: jax.Array | None, bonus: jax.Array | None) -> decode.Given | None:
    if codes is None:
      return None
    front = ((0, 0), (model.text_length, 0))
    return decode.Given(jnp.pad(codes + model.text_vocab_size, front), jnp.pad(keep, front), bonus)

  def advance(params, state, stop, seed, index, settings, codes, keep, bonus):
    keys, known = decode.row_keys(seed, index), given(codes, keep, bonus)
    return decode.advance(model, params, state, keys, stop, settings, top_k, known)

  def finish(state, seed, index, settings, codes, keep, bonus):
    return decode.finish(state, decode.row_keys(seed, index), settings, top_k, given(codes, keep, bonus))

  def grid(tokens: jax.Array) -> jax.Array:
    return model.codes(tokens).reshape(-1, model.grid_size, model.grid_size)

  def paint(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes [B, h, w] and uint8 images [B, H, W, 3] of streams [B, length], and whether they are numbers [B]."""
    codes = grid(tokens)
    images = dvae.apply({'params': params}, codes, method='decode')
    return codes, _pixels(images), jnp.isfinite(images).all(axis=(1, 2, 3))

  return Programs(
    jax.jit(model.decode_params),
    jax.jit(begin),
    jax.jit(advance, donate_argnums=1),
    jax.jit(finish, out_shardings=whole),
    jax.jit(paint, out_shardings=whole),
    jax.jit(lambda params, tokens, rows: paint_rows(dvae, params, grid(tokens), rows), out_shardings=whole),
  )


def paint_rows(dvae: Dvae, params: Any, codes: jax.Array, rows: jax.Array | int) -> jax.Array:
  """Images uint8 [B, H, W, 3] of which only the first `rows` rows of codes [B, h, w] are there; grey below."""
  size = codes.shape[1]
  known = jnp.arange(size)[:, None] < rows
  codes = jnp.where(known, codes, 0)  # what is not drawn yet may be no code
  pixels = dvae.apply({'params': params}, codes, jnp.broadcast_to(known, codes.shape), method='decode_part')
  below = jnp.arange(pixels.shape[1]) >= rows * pixels.shape[1] // size
  return jnp.where(below[:, None, None], jnp.uint8(GREY), _pixels(pixels))


def _pixels(images: jax.Array) -> jax.Array:
  return jnp.round(images).astype(jnp.uint8)


def encode_prompts(tokenizer: Any, prompts: Sequence[str], text_length: int, truncate: bool = False) -> np.ndarray:
  """Token ids int32 [N, text_length - 1] of prompts.

  Raises:
    ValueError: a prompt is empty, or too long and `truncate` is not set.
  """
  return np.stack([tokenizer.encode_padded(prompt, text_length - 1, truncate=truncate) for prompt in prompts])


def make_sampler(config: Config, tokenizer: Any | None, mesh: Mesh, settings: SamplingConfig) -> Sampler:
  """What draws with the models of a configuration: its prior, or the sequence model that stands in its place."""
  model, part = make_stream_model(config, tokenizer.vocab_size if tokenizer else 0)
  return Sampler(model, make_dvae(config.dvae), mesh, settings, part)
