"""Python API of a trained model: generate, complete, vary, encode and decode images.

import dalle_jax
model = dalle_jax.load('runs/quickstart/model')
images = model.generate(['a large red circle above a small blue square'], num_images=8)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from dalle_jax import bundle, precision, sharding
from dalle_jax.config import MeshConfig, SamplingConfig
from dalle_jax.data.pictures.crops import fit
from dalle_jax.data.text.caption_text import check_prompt, shortened
from dalle_jax.data.text.tokenizer import PAD, Tokenizer
from dalle_jax.evaluation import reconstruction
from dalle_jax.jobs import ranker
from dalle_jax.jobs.draw import ranking
from dalle_jax.sampling import completion, memory
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sampling.sampler import Known, Preview, SampledImages, Sampler, encode_prompts, make_sampler

# Candidates per image if a kept code follows a sampled code. The sampled code is chosen without seeing the kept one.
CANDIDATES_OF_HOLES = 8

ProgressOf = Callable[[int, int], None]


class Drawing(NamedTuple):
  """All candidates of P prompts, N each, and which of them are kept."""

  images: np.ndarray  # uint8 [P, N, H, W, 3]
  codes: np.ndarray  # int32 [P, N, h, w]
  nats: np.ndarray  # float32 [P, N, h, w], as in `sampling.sampler.SampledImages`
  scores: np.ndarray | None  # float32 [P, N], higher is better; None if there was no ranking
  kept: np.ndarray  # int [P, K], indices of the kept candidates of each prompt, best first
  settings: DrawSettings  # the settings used, with the candidates that a completion adds
  sampling: SamplingConfig  # all sampling settings, with the batch size that fitted in memory

  @property
  def best(self) -> np.ndarray:
    """The kept images, uint8 [P, K, H, W, 3], best first."""
    return np.take_along_axis(self.images, self.kept[:, :, None, None, None], axis=1)


class Model:
  """A loaded model directory. Without a prior or sequence model, it can only encode and decode.

  Args:
    loaded: the contents of the model directory.
    mesh: the device mesh that holds its parameters.
    verify: whether to compare the files of a reranker with their checksums, as in `load`.
  """

  def __init__(self, loaded: bundle.Bundle, mesh: Mesh, verify: bool | None = None):
    self.config, self.tokenizer, self.info = loaded.config, loaded.caption_tokenizer, loaded.info
    self.mesh, self._loaded, self._verify = mesh, loaded, verify
    self.part = loaded.drawing_part

  @property
  def reads_captions(self) -> bool:
    """Whether the model was trained with captions, and so generates images for prompts."""
    return self.tokenizer is not None

  @property
  def params(self) -> dict[str, Any]:
    return self._loaded.params

  def generate(
    self, prompts: str | Sequence[str] = '', num_images: int = 1, *, known: Known | None = None, **settings: Any
  ) -> np.ndarray:
    """Generates images for prompts.

    Args:
      prompts: one prompt, or a list of P prompts; '' for a model that reads no captions.
      num_images: the number of images per prompt. Image i of a seed is always the same image.
      known: known codes, from `known` or `varied`.
      **settings: fields of `DrawSettings`, such as seed, temperature, top_k, top_p, guidance_scale, negative_prompt,
        candidates and rank. Also `reranker`, `progress`, `preview` and `preview_every` as in `draw`; `reranker` may be
        the path of its model directory.

    Returns:
      The kept images, best first, uint8 [P, num_images, H, W, 3]; [num_images, H, W, 3] if `prompts` is a string.

    Raises:
      ValueError: a prompt or a setting cannot be used.
    """
    names = ('reranker', 'progress', 'preview', 'preview_every')
    options = {name: settings.pop(name) for name in names if name in settings}
    if isinstance(options.get('reranker'), str | Path):
      options['reranker'] = ranker.load(str(options['reranker']), self.mesh, verify=self._verify)
    unknown = set(settings) - {field.name for field in dataclasses.fields(DrawSettings)}
    if unknown:
      raise ValueError(
        f'Unknown setting {sorted(unknown)[0]!r}; allowed are the fields of '
        'dalle_jax.sampling.draw_settings.DrawSettings, and reranker, progress, preview and preview_every.'
      )
    draw_settings = DrawSettings(num_images=num_images, **settings)
    if isinstance(prompts, str):
      return self.draw([prompts], draw_settings, known=known, **options).best[0]
    return self.draw(prompts, draw_settings, known=known, **options).best

  def draw(
    self,
    prompts: Sequence[str],
    settings: DrawSettings,
    *,
    known: Known | None = None,
    index: Sequence[int] | np.ndarray | None = None,
    reranker: ranking.Scorer | None = None,
    progress: ProgressOf | None = None,
    preview: Callable[[Preview], None] | None = None,
    preview_every: int = 1,
    finished: Callable[[np.ndarray, SampledImages, SamplingConfig], None] | None = None,
  ) -> Drawing:
    """Samples all candidates of every prompt and chooses which to keep.

    Args:
      prompts: the prompts; '' if the model reads no captions or, with `known`, for no caption.
      settings: the sampling settings, the number of images and the ranking.
      known: known codes [1, h, w], shared by all images, from `known` or `varied`.
      index: the images' numbers under the seed, [N] shared by all prompts, or [P, N]; None for 0, 1, ...
      reranker: scores images for `rank='reranker'`.
      progress: called with (tokens done, tokens in all).
      preview: called with a batch's unfinished images. An image's number is its position among all P * N images: the
        images of the first prompt come first, then the images of the second.
      preview_every: rows of tokens between two previews.
      finished: called after each batch with (the positions of its images, numbered as for `preview`; the images; the
        sampling settings).

    Raises:
      ValueError: a prompt or a setting cannot be used.
    """
    settings = self.effective(settings, known)
    if not len(prompts):
      raise ValueError('There are no prompts; give at least one.')
    for prompt in prompts:
      check_prompt(prompt)
    memory.check_images(len(prompts) * (settings.num_drawn if index is None else np.shape(index)[-1]), self.config)
    text = self._encode(prompts, settings.truncate, known is not None)
    rank = ranking.check(settings, self.config, self.part, reranker, prompts)
    index = np.arange(settings.num_drawn) if index is None else np.asarray(index)
    if index.min() < 0 or index.max() >= 2**31:
      raise ValueError(f'Image numbers (index) must lie in [0, 2^31); given {index.min()} to {index.max()}.')
    numbers = np.broadcast_to(index, (len(text), index.shape[-1]))
    rows = text.repeat(numbers.shape[1], axis=0)
    sampler = self._sampler(settings, len(rows))
    self._check_dvae()
    drawn = sampler.draw(
      self.params, rows, settings.seed, progress, index=numbers.reshape(-1),
      unconditional=self._unconditional(settings, rows), known=_repeated(known, len(rows)), preview=preview,
      preview_every=preview_every, finished=_with_sampling(finished, sampler) if finished else None,
    )  # fmt: skip
    codes, images, nats = (x.reshape(*numbers.shape, *x.shape[1:]) for x in drawn)
    num_prompts, num_drawn = numbers.shape
    kept = ranking.best(None, num_prompts, num_drawn, num_drawn)
    candidates = Drawing(images, codes, nats, None, kept, settings, _used_sampling(sampler))
    if not rank:
      return candidates
    scores = self.scores(rank, prompts, candidates, reranker)
    return candidates._replace(scores=scores, kept=ranking.best(scores, num_prompts, num_drawn, settings.num_images))

  def scores(
    self, rank: str, prompts: Sequence[str], drawn: Drawing, reranker: ranking.Scorer | None = None
  ) -> np.ndarray:
    """Scores all candidates, float32 [P, N]; higher is better.

    Args:
      rank: one of `draw_settings.RANKS`.
      prompts: the prompts of the candidates.
      drawn: the candidates.
      reranker: needed for rank 'reranker'.

    Raises:
      ValueError: the rank needs a reranker, prompts, or a model trained with dropped captions.
    """
    ranking.check(dataclasses.replace(drawn.settings, rank=rank), self.config, self.part, reranker, prompts)
    if rank == 'reranker':
      assert reranker is not None, 'ranking.check refuses this rank without a reranker'
      return reranker.scores(prompts, drawn.images)
    if rank == 'likelihood':
      return -drawn.nats.sum(axis=(2, 3))
    text = self._encode(prompts, drawn.settings.truncate, True)
    return ranking.caption_likelihood(self._loaded, text, drawn.codes, self.mesh, drawn.sampling.batch_size)

  def effective(self, settings: DrawSettings, known: Known | None) -> DrawSettings:
    """The settings, with more candidates for a completion in which a kept code follows a sampled code."""
    if known is None or settings.candidates is not None or not completion.has_holes(known.keep[0]):
      return settings
    return dataclasses.replace(settings, candidates=CANDIDATES_OF_HOLES * settings.num_images)

  def complete(
    self, image: np.ndarray, keep: np.ndarray, prompts: str | Sequence[str] = '', num_images: int = 1, **settings: Any
  ) -> np.ndarray:
    """Generates images that keep part of an image's codes; shapes as in `generate`.

    Args:
      image: uint8 [H, W, 3] of any size; only the central square is used.
      keep: a mask that is True for what to keep, bool [H, W] of pixels or [h, w] of codes. A code is kept if all its
        pixels are.
      prompts: captions of the whole image; '' for no caption.
      num_images: the number of images per prompt.
      **settings: as in `generate`. If a kept code follows a sampled code in raster order, the default is 8 candidates
        per image, of which the likeliest are returned.

    Raises:
      ValueError: the mask has another size, or it keeps all codes or none.
    """
    return self.generate(prompts, num_images, known=self.known(image, keep), **settings)

  def vary(
    self, image: np.ndarray, strength: float, prompts: str | Sequence[str] = '', num_images: int = 1, **settings: Any
  ) -> np.ndarray:
    """Generates variations of an image; shapes as in `generate`.

    Args:
      image: uint8 [H, W, 3] of any size; only the central square is used.
      strength: above 0 and at most 1. Near 0 keeps the image; 1 ignores it. See `sampling.completion.variation_bonus`.
      prompts: captions of the variations; '' for no caption.
      num_images: the number of images per prompt.
      **settings: as in `generate`.

    Raises:
      ValueError: the strength or a setting cannot be used.
    """
    return self.generate(prompts, num_images, known=self.varied(image, strength), **settings)

  def known(self, image: np.ndarray, keep: np.ndarray) -> Known:
    """Encodes an image and marks the codes to keep; the arguments are those of `complete`."""
    _check_picture(image)
    codes, keep = self.encode(image[None]), np.asarray(keep, bool)
    size = codes.shape[1]
    if keep.shape != codes.shape[1:]:
      if keep.shape != image.shape[:2]:
        raise ValueError(
          f'The mask (--mask) has {keep.shape[1]} x {keep.shape[0]} pixels, but the image (--image) has '
          f'{image.shape[1]} x {image.shape[0]}; give a mask of the same size, or of {size} x {size}, the size of the '
          'code grid.'
        )
      # A resized pixel is 255 only if all mask pixels that it averages are kept.
      mask = np.where(keep, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=-1)
      fitted_mask = fit(mask, self.config.data.image_size, resampling=self.config.data.resampling)
      keep = completion.from_pixels(fitted_mask[..., 0] == 255, size)
    if not keep.any():
      raise ValueError(
        f'No code of the image is kept. A code covers 1/{size} of a side of the central square, and is kept only if '
        'all its pixels are. Change --mask, or the shares of --keep_top, --keep_box or --redraw_box.'
      )
    return Known(codes, keep[None])

  def varied(self, image: np.ndarray, strength: float) -> Known:
    """Encodes an image and makes its codes likelier; the arguments are those of `vary`."""
    bonus = completion.variation_bonus(strength)
    codes = self.encode(image[None])
    return Known(codes, np.zeros(codes.shape, bool), bonus)

  def encode(self, images: np.ndarray) -> np.ndarray:
    """Encodes images with the dVAE.

    Args:
      images: uint8 [N, H, W, 3] of any size; only the central squares are used.

    Returns:
      The codes, int32 [N, h, w].
    """
    size, resampling = self.config.data.image_size, self.config.data.resampling
    for image in images:
      _check_picture(image)
    self._check_dvae()
    fitted = np.stack([fit(image, size, resampling=resampling) for image in images])
    batch_size = self.config.sampling.batch_size
    return reconstruction.encode(self._loaded.dvae, self.params['dvae'], fitted, self.mesh, batch_size)

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """Decodes codes, int [N, h, w], to images, uint8 [N, H, W, 3].

    Raises:
      ValueError: the codes have a wrong shape or type, the array is empty, or a code is not in the vocabulary.
    """
    codes, size, vocab = np.asarray(codes), self.config.grid_size, self.config.dvae.image_vocab_size
    if codes.ndim != 3 or codes.shape[1:] != (size, size) or not np.issubdtype(codes.dtype, np.integer):
      raise ValueError(f'Codes must be integers of shape [N, {size}, {size}]; given {codes.dtype} {list(codes.shape)}.')
    if codes.size and not (0 <= codes.min() and codes.max() < vocab):
      raise ValueError(f'Codes must lie in 0 to {vocab - 1}; given {codes.min()} to {codes.max()}.')
    if not len(codes):
      raise ValueError('There are no codes to decode: the array is empty.')
    self._check_dvae()
    batch_size = self.config.sampling.batch_size
    return reconstruction.decode(self._loaded.dvae, self.params['dvae'], codes.astype(np.int32), self.mesh, batch_size)

  @functools.cached_property
  def _dvae_is_finite(self) -> bool:
    leaves = jax.tree.leaves(self.params['dvae'])
    return all(bool(jnp.isfinite(leaf).all()) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact))

  def _check_dvae(self) -> None:
    if not self._dvae_is_finite:
      raise ValueError("The dVAE's parameters hold NaN or infinite numbers; train it again, or use an earlier model.")

  def _sampler(self, settings: DrawSettings, number: int) -> Sampler:
    if self.part is None:
      raise ValueError('The model directory holds the dVAE only, which encodes and decodes. Generating needs a prior.')
    sampling = settings.sampling(self.config.sampling, number)
    caption_drop = self.part == 'prior' and self.config.prior.caption_drop
    if sampling.guidance_scale != 1 and self.reads_captions and not caption_drop:
      if not settings.negative_prompt:
        logging.warning(
          'guidance_scale is %g, but the model was trained without dropped captions (config.prior.caption_drop is 0). '
          'It has not learned to generate images without a caption, so guidance will help little.',
          sampling.guidance_scale,
        )  # fmt: skip
    return make_sampler(self.config, self.tokenizer, self.mesh, sampling)

  def _encode(self, prompts: Sequence[str], truncate: bool, optional: bool) -> np.ndarray:
    """Encodes prompts as token ids [P, text_length - 1]; [1, 0] if the model reads no captions.

    Args:
      prompts: the P prompts.
      truncate: whether to cut prompts that are too long instead of refusing them.
      optional: whether '' may stand for no caption.
    """
    if self.tokenizer is None:
      if list(prompts) != ['']:
        raise ValueError(
          'Prompts (--prompt, --prompts_file) are for models that have read captions, but this model has read images '
          'only (config.model.tokens=image); leave them out.'
        )
      return np.zeros((1, 0), np.int32)
    length = self.config.tokenizer.text_length
    if optional and list(prompts) == ['']:
      return np.full((1, length - 1), PAD, np.int32)
    text = encode_prompts(self.tokenizer, prompts, length, truncate)
    self._warn_of_prompts(self.tokenizer, prompts)
    return text

  def _warn_of_prompts(self, tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
    """Warns about prompts that are cut and about characters that the tokenizer has never seen."""
    length = self.config.tokenizer.text_length - 1
    unseen: dict[str, str] = {}  # each unseen character, and the first prompt that contains it
    for prompt in prompts:
      ids = tokenizer.encode(prompt)
      if len(ids) > length:
        beginning = tokenizer.decode(ids[:length])
        logging.warning('A prompt of %d tokens is cut to %d tokens: %r.', len(ids), length, shortened(beginning))
      unseen |= {character: prompt for character in tokenizer.unseen(prompt) if character not in unseen}
    if unseen:
      logging.warning(
        'The captions that the model was trained on never contain %s, as in %r. Do not expect it to understand them.',
        ' '.join(map(repr, unseen)), shortened(next(iter(unseen.values()))),
      )  # fmt: skip

  def _unconditional(self, settings: DrawSettings, rows: np.ndarray) -> np.ndarray | None:
    """The token ids of the negative prompt for each row of `rows`; None if there is no negative prompt."""
    if not settings.negative_prompt:
      return None
    if settings.sampling(self.config.sampling, 1).guidance_scale == 1:
      raise ValueError(
        '--negative_prompt needs guidance, but the scale is 1 (no guidance); set --guidance_scale, for instance to 3.'
      )
    return self._encode([settings.negative_prompt], settings.truncate, False).repeat(len(rows), axis=0)


def _check_picture(image: Any) -> None:
  """Raises ValueError unless `image` is a uint8 array [H, W, 3]."""
  if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    kind = f'{image.dtype} {list(image.shape)}' if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f'An image must be a uint8 array [H, W, 3]; given {kind}.')


def _with_sampling(
  finished: Callable[[np.ndarray, SampledImages, SamplingConfig], None], sampler: Sampler
) -> Callable[[np.ndarray, SampledImages], None]:
  """A callback for the sampler that calls `finished` with the sampling settings in use."""
  return lambda positions, batch: finished(positions, batch, _used_sampling(sampler))


def _used_sampling(sampler: Sampler) -> SamplingConfig:
  """The sampling settings, with the batch size that fitted in memory."""
  return dataclasses.replace(sampler.settings, batch_size=sampler.batch_size)


def _repeated(known: Known | None, count: int) -> Known | None:
  """The known codes of one image, repeated for `count` images."""
  if known is None:
    return None
  return known._replace(codes=known.codes.repeat(count, axis=0), keep=known.keep.repeat(count, axis=0))


def load(path: str | Path, mesh_config: MeshConfig | None = None, verify: bool | None = None) -> Model:
  """Loads a model directory that contains a dVAE, with or without a prior or a model of image tokens.

  Args:
    path: the model directory, WORKDIR/model of a training run.
    mesh_config: the device mesh; None splits the batch over all devices.
    verify: whether to compare the files with their checksums; None: as --verify_model says, else True.

  Raises:
    ValueError: the directory is missing, incomplete, damaged, of a newer version, or has no dVAE.
  """
  precision.use_32_bits()
  bundle.check(Path(path), needs=('dvae',), verify=verify)
  mesh = sharding.make_mesh(mesh_config)
  return Model(bundle.load(Path(path), mesh, needs=('dvae',), verify=verify), mesh, verify)
