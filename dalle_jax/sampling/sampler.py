"""Generate images from prompts with a trained model."""

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

GREY = 128  # previews show this value where no token is sampled yet


class Known(NamedTuple):
  """Known codes of the images to generate."""

  codes: np.ndarray  # int32 [N, h, w]
  keep: np.ndarray  # bool [N, h, w]: the codes that stay
  bonus: float | None = None  # added to the log odds of the known codes that need not stay, in nats


class SampledImages(NamedTuple):
  """Generated images with their codes and likelihoods."""

  codes: np.ndarray  # int32 [N, h, w]
  images: np.ndarray  # uint8 [N, H, W, 3]
  # float32 [N, h, w]: -ln p of each code at temperature 1, without guidance, top-k, top-p or bonus. Kept codes before
  # the first sampled code have 0.
  nats: np.ndarray


class Preview(NamedTuple):
  """Unfinished images of one batch."""

  numbers: np.ndarray  # int [B], the positions of the batch's images among the N images
  rows: int  # rows of codes that are sampled
  images: np.ndarray  # uint8 [B, H, W, 3], grey below these rows


class Programs(NamedTuple):
  """The jitted functions that generate one batch of images, in the order of their calls."""

  prepare: Callable  # parameters -> the parameters that `begin` and `advance` take
  begin: Callable  # captions -> `decode.State` with the prefixes read
  advance: Callable  # samples tokens up to a position; donates the state
  finish: Callable  # samples the last token -> tokens, nats, not_finite
  paint: Callable  # tokens -> codes, images, whether the pixels are finite
  paint_rows: Callable  # tokens, number of rows -> unfinished images


def check_settings(settings: SamplingConfig, image_vocab_size: int, reads_captions: bool) -> None:
  """Check that sampling settings fit a model.

  Args:
    settings: the settings.
    image_vocab_size: the model's number of image tokens.
    reads_captions: whether the model reads captions.

  Raises:
    ValueError: they do not fit it.
  """
  if settings.top_k > image_vocab_size:
    raise ValueError(
      f'top_k {settings.top_k} is more than the {image_vocab_size} image tokens of the model; '
      'set --top_k (config.sampling.top_k) to at most that number, or to 0 for all.'
    )
  if settings.guidance_scale != 1 and not reads_captions:
    raise ValueError(
      f'guidance_scale is {settings.guidance_scale:g}, but guidance needs a model that reads captions; '
      'leave --guidance_scale (config.sampling.guidance_scale) at 1 for this model.'
    )


class Sampler:
  """Generate images in batches of one fixed shape, so that everything compiles once.

  Image number i uses the key fold_in(key(seed), i), whatever its batch.
  """

  def __init__(self, model: Prior | StreamModel, dvae: Dvae, mesh: Mesh, settings: SamplingConfig, part: str = 'prior'):
    """Check the settings and get the jitted functions.

    Args:
      model: the model that samples the tokens.
      dvae: the module that decodes the tokens.
      mesh: the device mesh that splits the batch.
      settings: the sampling settings.
      part: the key of the model's parameters.

    Raises:
      ValueError: the settings do not fit the model.
    """
    self.model, self.mesh, self.settings, self._dvae, self._part = model, mesh, settings, dvae, part
    # The number of devices must divide the batch size. Surplus rows are computed and dropped.
    self.batch_size = sharding.rounded_batch(settings.batch_size, mesh)
    check_settings(settings, model.image_vocab_size, bool(model.text_length))
    self._programs = jitted_programs(model, dvae, mesh, settings.top_k)
    self._most_known = -1  # the largest number of known codes for which `_cut_to_memory` has checked the batch size

  def __call__(
    self, params: dict[str, Any], text: np.ndarray, seed: int, progress: Callable[[int, int], None] | None = None
  ) -> np.ndarray:
    """Generate one image per row of `text`, uint8 [N, H, W, 3]; the arguments are those of `draw`."""
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
    """Generate one image per row of `text`.

    Args:
      params: parameters under the keys 'dvae' and `part`, on the mesh.
      text: token ids [N, text_length - 1]; [N, 0] if the model reads no captions.
      seed: the seed of the noise.
      progress: called with (tokens done, tokens in all) after each row of tokens.
      index: int [N], the images' numbers under the seed; None for 0, 1, ...
      unconditional: token ids [N, text_length - 1] for the unconditional logits of guidance; None for no caption.
      known: known codes, which stay or get a bonus.
      preview: called with the unfinished images of a batch.
      preview_every: rows of tokens between two previews.
      finished: called after each batch with the positions [B] of its images among the N images, and the images.

    Raises:
      ValueError: the logits are not finite (`decode.NotFiniteError`), or all codes are kept.
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
      batches.append(SampledImages(*(values[: len(numbers)] for values in batch)))
      done += len(numbers)
      if finished:
        finished(numbers, batches[-1])
    return SampledImages(*(np.concatenate(values) for values in zip(*batches, strict=True)))

  def _prepare(self, params: dict[str, Any]) -> Any:
    with sharding.use_mesh(self.mesh):
      return self._programs.prepare(params[self._part])

  def _draw_batch(
    self, params: Any, prepared: Any, rows: dict, seed: int, start: int, bonus: np.float32 | None, watch: '_Watch'
  ) -> tuple:
    """Generate one batch: codes, images and nats. The first `start` codes of every image are kept."""
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
      codes, images, nats, not_finite, is_finite = jax.device_get((codes, images, nats, not_finite, is_finite))
    self._check_finite(not_finite, is_finite, rows['index'])
    watch.row(size, lambda: images)
    return codes, images, nats[:, model.text_length :].reshape(codes.shape)

  def _paint_rows(self, params: Any, tokens: jax.Array, rows: int) -> np.ndarray:
    return jax.device_get(self._programs.paint_rows(params['dvae'], tokens, rows))

  def _check_finite(self, not_finite: np.ndarray, is_finite: np.ndarray, index: np.ndarray) -> None:
    begin, length = self.model.text_length, self.model.length
    decode.check_finite(not_finite, length, lambda row, at: f'image token {at - begin} of image {index[row]}')
    if not is_finite.all():
      raise decode.NotFiniteError(
        f'The dVAE decodes NaN or infinite pixels for image {index[np.argmin(is_finite)]}. Either its parameters are '
        'damaged or its dtype is too narrow (config.dvae.dtype). Train the dVAE again, or use an earlier model.'
      )

  def _cut_to_memory(self, params: Any, num_known: int) -> None:
    """Lower the batch size if memory is short.

    Known codes lengthen the prefix, so the check repeats when there are more of them than in all calls before.
    """
    if num_known <= self._most_known:
      return
    self._most_known = num_known
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    with sharding.use_mesh(self.mesh):
      row_bytes = memory.row_bytes(
        self.model, self._dvae, shapes, self._part, self.settings.guidance_scale != 1, num_known
      )
    size = memory.fitting_batch(self.batch_size, row_bytes, memory.free_bytes(self.mesh), self.mesh)
    if jax.process_count() > 1:  # all hosts must use one batch size
      size = int(multihost_utils.process_allgather(np.int32(size)).min())
    if size < self.batch_size:
      logging.warning(
        'batch_size %d is cut to %d: an image takes about %.3g MB and memory is short.',
        self.batch_size,
        size,
        row_bytes / 1e6,
      )
      self.batch_size = size

  def _halve(self, error: Exception) -> None:
    """Halve the batch size after an out-of-memory error.

    Raises:
      Exception: `error` itself, if it is another error or there are several processes.
      ValueError: the batch is already one image per device.
    """
    if 'RESOURCE_EXHAUSTED' not in str(error) or jax.process_count() > 1:  # other hosts would keep the old batch size
      raise error
    if self.batch_size <= sharding.batch_divisor(self.mesh):
      raise ValueError(f'Out of memory with a single image per device: {str(error)[:200]}') from error
    size = sharding.rounded_batch((self.batch_size + 1) // 2, self.mesh)
    logging.warning('Out of memory with a batch of %d images; continuing with %d.', self.batch_size, size)
    self.batch_size = size


class _Watch:
  """Reports the progress of one batch and shows its previews."""

  def __init__(
    self, progress: Callable | None, preview: Callable | None, every: int, numbers: np.ndarray, total: int, size: int
  ):
    """Watch one batch.

    Args:
      progress: called with (tokens done, tokens in all), or None.
      preview: called with a `Preview`, or None.
      every: rows of codes between two previews.
      numbers: [B], the positions of the batch's images among all images.
      total: the number of all images.
      size: rows of codes of an image.
    """
    self._progress, self._preview, self._every = progress, preview, every
    self._numbers, self._total, self._size = numbers, total, size
    self.wanted = progress is not None or preview is not None

  def row(self, row: int, images: Callable[[], np.ndarray]) -> None:
    """Report that `row` rows of codes are sampled; `images` decodes them if a preview is due."""
    if self._preview and (row == self._size or row % self._every == 0):
      self._preview(Preview(self._numbers, row, images()[: len(self._numbers)]))
    if self._progress:
      tokens = self._size * (self._numbers[0] * self._size + len(self._numbers) * row)
      self._progress(int(tokens), self._total * self._size**2)


def _first_drawn(keep: np.ndarray) -> int:
  """The position of the first code that any image samples; `keep` is bool [N, L]."""
  sampled = np.flatnonzero(~keep.all(axis=0))
  if not len(sampled):
    raise ValueError(
      'Nothing of the picture is to be drawn: all its tokens stay. Keep less with --mask, --keep_top or --keep_box, or '
      'enlarge --redraw_box.'
    )
  return int(sampled[0])


def _batch(rows: dict[str, np.ndarray], first: int, size: int) -> dict[str, np.ndarray]:
  """Take `size` rows from row `first` on; after the last row, repeat it."""
  indices = np.minimum(np.arange(first, first + size), len(rows['text']) - 1)
  return {name: values[indices] for name, values in rows.items()}


def loop_arguments(
  settings: SamplingConfig,
  model: Prior | StreamModel,
  seed: jax.Array | np.int32 | int,
  index: jax.Array | jax.ShapeDtypeStruct,
  codes: jax.Array | None = None,
  keep: jax.Array | None = None,
  bonus: np.float32 | None = None,
) -> tuple[Any, ...]:
  """The trailing arguments of `Programs.advance` and `Programs.finish`, in order.

  Args:
    settings: the sampling settings.
    model: the model that samples the tokens.
    seed: the seed of the noise.
    index: int32 [B], the number of each image under the seed.
    codes: int32 [B, image_length], the known codes; None if there are none.
    keep: bool [B, image_length], which of the known codes stay; None with `codes`.
    bonus: added to the log odds of the other known codes, in nats; None for no bonus.
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
  """The jitted functions of a model, shared by all samplers with the same `top_k`, whatever their other settings."""
  replicated = sharding.replicated(mesh)

  def begin(params: Any, text: jax.Array, unconditional: jax.Array | None, lead: jax.Array | None) -> decode.State:
    def prefix(text: jax.Array) -> jax.Array:
      kept_tokens = [] if lead is None else [(lead + model.text_vocab_size).astype(text.dtype)]
      return jnp.concatenate([model.prefix(text), *kept_tokens], axis=1)

    return decode.begin(model, params, prefix(text), None if unconditional is None else prefix(unconditional))

  def known_tokens(codes: jax.Array | None, keep: jax.Array | None, bonus: jax.Array | None) -> decode.Given | None:
    if codes is None:
      return None
    assert keep is not None  # it comes with the codes
    front = ((0, 0), (model.text_length, 0))
    return decode.Given(jnp.pad(codes + model.text_vocab_size, front), jnp.pad(keep, front), bonus)

  def advance(params, state, stop, seed, index, settings, codes, keep, bonus):
    keys, known = decode.row_keys(seed, index), known_tokens(codes, keep, bonus)
    return decode.advance(model, params, state, keys, stop, settings, top_k, known)

  def finish(state, seed, index, settings, codes, keep, bonus):
    return decode.finish(state, decode.row_keys(seed, index), settings, top_k, known_tokens(codes, keep, bonus))

  def grid(tokens: jax.Array) -> jax.Array:
    return model.codes(tokens).reshape(-1, model.grid_size, model.grid_size)

  def paint(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decode tokens [B, length]: codes [B, h, w], images uint8 [B, H, W, 3], whether the pixels are finite [B]."""
    codes = grid(tokens)
    images = dvae.apply({'params': params}, codes, method='decode')
    return codes, _pixels(images), jnp.isfinite(images).all(axis=(1, 2, 3))

  return Programs(
    jax.jit(model.decode_params),
    jax.jit(begin),
    jax.jit(advance, donate_argnums=1),
    jax.jit(finish, out_shardings=replicated),
    jax.jit(paint, out_shardings=replicated),
    jax.jit(lambda params, tokens, rows: paint_rows(dvae, params, grid(tokens), rows), out_shardings=replicated),
  )


def paint_rows(dvae: Dvae, params: Any, codes: jax.Array, rows: jax.Array | int) -> jax.Array:
  """Decode the first `rows` rows of codes [B, h, w]: images uint8 [B, H, W, 3], grey below these rows."""
  size = codes.shape[1]
  known = jnp.arange(size)[:, None] < rows
  codes = jnp.where(known, codes, 0)  # entries that are not sampled yet may be invalid codes
  pixels = dvae.apply({'params': params}, codes, jnp.broadcast_to(known, codes.shape), method='decode_part')
  below = jnp.arange(pixels.shape[1]) >= rows * pixels.shape[1] // size
  return jnp.where(below[:, None, None], jnp.uint8(GREY), _pixels(pixels))


def _pixels(images: jax.Array) -> jax.Array:
  return jnp.round(images).astype(jnp.uint8)


def encode_prompts(tokenizer: Any, prompts: Sequence[str], text_length: int, truncate: bool = False) -> np.ndarray:
  """Tokenize prompts: ids int32 [N, text_length - 1], padded.

  Raises:
    ValueError: a prompt is empty, or too long and `truncate` is not set.
  """
  return np.stack([tokenizer.encode_padded(prompt, text_length - 1, truncate=truncate) for prompt in prompts])


def make_sampler(config: Config, tokenizer: Any | None, mesh: Mesh, settings: SamplingConfig) -> Sampler:
  """Make the sampler for a configuration's prior, or for the sequence model that replaces it."""
  model, part = make_stream_model(config, tokenizer.vocab_size if tokenizer else 0)
  return Sampler(model, make_dvae(config.dvae), mesh, settings, part)
