"""A trained model in Python: drawing, completing, varying, encoding and decoding pictures.

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

from dalle_jax import bundle, sharding
from dalle_jax.config import MeshConfig, SamplingConfig
from dalle_jax.data.crops import fit
from dalle_jax.data.tokenizer import PAD, shortened
from dalle_jax.evaluation import reconstruction
from dalle_jax.jobs import ranker
from dalle_jax.jobs.draw import ranking
from dalle_jax.sampling import completion
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sampling.sampler import Known, Preview, SampledImages, Sampler, encode_prompts, make_sampler

CANDIDATES_OF_HOLES = 8  # drawn for each completion whose mask is followed by something that stays

ProgressOf = Callable[[int, int], None]


class Drawing(NamedTuple):
  """All candidates of P prompts, N each; number i is the one that the seed gives that number."""

  images: np.ndarray  # uint8 [P, N, H, W, 3]
  codes: np.ndarray  # int32 [P, N, h, w]
  nats: np.ndarray  # float32 [P, N, h, w], as in `sampling.sampler.SampledImages`
  scores: np.ndarray | None  # float32 [P, N]; None where all are kept as they come
  kept: np.ndarray  # int [P, K]: which are kept, best first
  settings: DrawSettings  # as they were carried out
  sampling: SamplingConfig  # the model's settings where no others were given, and the batch size that fitted

  @property
  def best(self) -> np.ndarray:
    """The kept images, uint8 [P, K, H, W, 3], best first."""
    return np.take_along_axis(self.images, self.kept[:, :, None, None, None], axis=1)


class Model:
  """A model directory, loaded; it may hold the dVAE alone, and then encodes and decodes only."""

  def __init__(self, loaded: bundle.Bundle, mesh: Mesh):
    self.config, self.tokenizer, self.info = loaded.config, loaded.tokenizer, loaded.info
    self.mesh, self._loaded = mesh, loaded
    self.part = loaded.drawing_part

  @property
  def reads_captions(self) -> bool:
    """Whether it draws for prompts."""
    return self.tokenizer is not None

  @property
  def params(self) -> dict[str, Any]:
    return self._loaded.params

  def generate(
    self, prompts: str | Sequence[str] = '', num_images: int = 1, *, known: Known | None = None, **settings: Any
  ) -> np.ndarray:
    """Images for prompts, uint8 [P, num_images, H, W, 3]; [num_images, H, W, 3] for one prompt that is no list.

    Args:
      prompts: what to draw; '' for a model that has read no captions.
      num_images: of each prompt; image i of a seed is the same, however many are asked for.
      known: codes that are known, as `known` and `varied` make them.
      **settings: of `DrawSettings`, such as seed, temperature, top_k, top_p, guidance_scale, negative_prompt,
        candidates and rank; and `reranker`, also as a model directory, `progress`, `preview` and `preview_every` as in
        `draw`.

    Raises:
      ValueError: a prompt or a setting cannot be used.
    """
    names = ('reranker', 'progress', 'preview', 'preview_every')
    options = {name: settings.pop(name) for name in names if name in settings}
    if isinstance(options.get('reranker'), str | Path):
      options['reranker'] = ranker.load(str(options['reranker']), self.mesh)
    unknown = set(settings) - {field.name for field in dataclasses.fields(DrawSettings)}
    if unknown:
      raise ValueError(f'Unknown setting {sorted(unknown)[0]!r}; see dalle_jax.sampling.draw_settings.DrawSettings.')
    single = isinstance(prompts, str)
    whole = DrawSettings(num_images=num_images, **settings)
    drawn = self.draw([prompts] if single else prompts, whole, known=known, **options)
    return drawn.best[0] if single else drawn.best

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
    """Draws the candidates of every prompt, and says which to keep.

    Args:
      prompts: what to draw; '' for a model that has read no captions, and with `known` for no caption.
      settings: how.
      known: codes [1, h, w] of all images that are known, as `complete` and `vary` make them.
      index: numbers of the images under the seed, [N] for all prompts alike or [P, N]; None: 0, 1, ...
      reranker: scores images for `rank='reranker'`.
      progress: called with (tokens drawn, of how many).
      preview: called with the images so far, whose numbers count those of the first prompt, then the second's, ...
      preview_every: rows of tokens between two previews.
      finished: called after each batch with the numbers of its images, counted as those of previews, the images, and
        the settings of sampling.

    Raises:
      ValueError: a prompt or a setting cannot be used.
    """
    settings = self.effective(settings, known)
    if not len(prompts):
      raise ValueError('There are no prompts; give one at least.')
    text = self._encode(prompts, settings.truncate, known is not None)
    rank = ranking.check(settings, self.config, self.part, reranker, prompts)
    index = np.arange(settings.num_drawn) if index is None else np.asarray(index)
    if index.min() < 0 or index.max() >= 2**31:
      raise ValueError(f'Numbers of images must lie in [0, 2^31); given {index.min()} to {index.max()}.')
    numbers = np.broadcast_to(index, (len(text), index.shape[-1]))
    rows = text.repeat(numbers.shape[1], axis=0)
    sampler = self._sampler(settings, len(rows))
    self._check_dvae()

    def tell(numbers: np.ndarray, batch: SampledImages) -> None:
      finished(numbers, batch, _carried_out(sampler))

    drawn = sampler.draw(
      self.params, rows, settings.seed, progress, index=numbers.reshape(-1),
      unconditional=self._unconditional(settings, rows), known=_repeated(known, len(rows)), preview=preview,
      preview_every=preview_every, finished=finished and tell,
    )  # fmt: skip
    codes, images, nats = (x.reshape(*numbers.shape, *x.shape[1:]) for x in drawn)
    kept = ranking.best(None, *numbers.shape, numbers.shape[1])
    whole = Drawing(images, codes, nats, None, kept, settings, _carried_out(sampler))
    if not rank:
      return whole
    scores = self.scores(rank, prompts, whole, reranker)
    return whole._replace(scores=scores, kept=ranking.best(scores, *numbers.shape, settings.num_images))

  def scores(
    self, rank: str, prompts: Sequence[str], drawn: Drawing, reranker: ranking.Scorer | None = None
  ) -> np.ndarray:
    """Scores of all candidates, float32 [P, N]; more is better.

    Args:
      rank: of `settings.RANKS`.
      prompts: that they were drawn for.
      drawn: the candidates.
      reranker: for the rank of that name.

    Raises:
      ValueError: the model, or the reranker, is not there for it.
    """
    ranking.check(dataclasses.replace(drawn.settings, rank=rank), self.config, self.part, reranker, prompts)
    if rank == 'reranker':
      return reranker.scores(prompts, drawn.images)
    if rank == 'likelihood':
      return -drawn.nats.sum(axis=(2, 3))
    text = self._encode(prompts, drawn.settings.truncate, True)
    return ranking.caption_likelihood(self._loaded, text, drawn.codes, self.mesh, drawn.sampling.batch_size)

  def effective(self, settings: DrawSettings, known: Known | None) -> DrawSettings:
    """The settings with the candidates that a completion needs where something that stays follows what is drawn."""
    if known is None or settings.candidates is not None or not completion.has_holes(known.keep[0]):
      return settings
    return dataclasses.replace(settings, candidates=CANDIDATES_OF_HOLES * settings.num_images)

  def complete(
    self, image: np.ndarray, keep: np.ndarray, prompts: str | Sequence[str] = '', num_images: int = 1, **settings: Any
  ) -> np.ndarray:
    """Images that have a picture's codes where `keep` says so, and the model's elsewhere; shapes as in `generate`.

    Args:
      image: uint8 [H, W, 3] of any size; the middle square is taken.
      keep: bool, of the picture's shape [H, W] or of the codes' [h, w]; a code stays if all its pixels do.
      prompts: what the whole image shows; '' for no caption.
      num_images: of each prompt.
      **settings: as in `generate`. Where something that stays comes after something that is drawn, the likeliest of 8
        candidates for each image are kept, unless `candidates` says otherwise.

    Raises:
      ValueError: the mask has another size, or nothing is left to draw.
    """
    return self.generate(prompts, num_images, known=self.known(image, keep), **settings)

  def vary(
    self, image: np.ndarray, strength: float, prompts: str | Sequence[str] = '', num_images: int = 1, **settings: Any
  ) -> np.ndarray:
    """Images like a picture, shapes as in `generate`.

    Args:
      image: uint8 [H, W, 3] of any size; the middle square is taken.
      strength: above 0, which leaves the picture as it is, and at most 1, which leaves nothing of it; see
        `sampling.completion.variation_bonus`.
      prompts: what the images show; '' for no caption.
      num_images: of each prompt.
      **settings: as in `generate`.

    Raises:
      ValueError: the strength or a setting cannot be used.
    """
    return self.generate(prompts, num_images, known=self.varied(image, strength), **settings)

  def known(self, image: np.ndarray, keep: np.ndarray) -> Known:
    """The codes of a picture with those that stay; see `complete`."""
    _check_picture(image)
    codes, keep = self.encode(image[None]), np.asarray(keep, bool)
    size = codes.shape[1]
    if keep.shape != codes.shape[1:]:
      if keep.shape != image.shape[:2]:
        raise ValueError(
          f'The mask (--mask) is of {keep.shape[1]} x {keep.shape[0]} pixels and the picture (--image) of '
          f'{image.shape[1]} x {image.shape[0]}; give a mask of the same size'
          f', or of {size} x {size}, the size of the code grid.'
        )
      # A pixel of the model's picture stays if all the pixels under it do.
      white = np.where(keep, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=-1)
      shown = fit(white, self.config.data.image_size, resampling=self.config.data.resampling)
      keep = completion.from_pixels(shown[..., 0] == 255, size)
    if not keep.any():
      raise ValueError(
        f'Everything of the picture is to be drawn: what stays is counted in whole codes, of which one is 1/{size} of '
        'a side, and of the middle square. Change --mask, or the shares of --keep_top, --keep_box or --redraw_box.'
      )
    return Known(codes, keep[None])

  def varied(self, image: np.ndarray, strength: float) -> Known:
    """The codes of a picture as what is likelier; see `vary`."""
    bonus = completion.variation_bonus(strength)
    codes = self.encode(image[None])
    return Known(codes, np.zeros(codes.shape, bool), bonus)

  def encode(self, images: np.ndarray) -> np.ndarray:
    """The dVAE's codes int32 [N, h, w] of pictures uint8 [N, H, W, 3] of any size; of each the middle square."""
    size, resampling = self.config.data.image_size, self.config.data.resampling
    for image in images:
      _check_picture(image)
    self._check_dvae()
    fitted = np.stack([fit(image, size, resampling=resampling) for image in images])
    batch_size = self.config.sampling.batch_size
    return reconstruction.encode(self._loaded.dvae, self.params['dvae'], fitted, self.mesh, batch_size)

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] of codes int [N, h, w].

    Raises:
      ValueError: the codes are of another shape, or beyond the vocabulary.
    """
    codes, size, vocab = np.asarray(codes), self.config.grid_size, self.config.dvae.image_vocab_size
    if codes.ndim != 3 or codes.shape[1:] != (size, size) or not np.issubdtype(codes.dtype, np.integer):
      raise ValueError(
        f'Codes must be whole numbers of shape [N, {size}, {size}]; given {codes.dtype} {list(codes.shape)}.'
      )
    if codes.size and not (0 <= codes.min() and codes.max() < vocab):
      raise ValueError(f'Codes must lie in 0 to {vocab - 1}; given {codes.min()} to {codes.max()}.')
    if not len(codes):
      raise ValueError('There are no codes to decode; the array is empty.')
    self._check_dvae()
    batch_size = self.config.sampling.batch_size
    return reconstruction.decode(self._loaded.dvae, self.params['dvae'], codes.astype(np.int32), self.mesh, batch_size)

  @functools.cached_property
  def _dvae_is_finite(self) -> bool:
    leaves = jax.tree.leaves(self.params['dvae'])
    return all(bool(jnp.isfinite(leaf).all()) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact))

  def _check_dvae(self) -> None:
    if not self._dvae_is_finite:
      raise ValueError("The dVAE's parameters hold NaN or infinite numbers; train it again, or take an earlier model.")

  def _sampler(self, settings: DrawSettings, number: int) -> Sampler:
    if self.part is None:
      raise ValueError('The model directory holds the dVAE only, which encodes and decodes; drawing needs a prior.')
    own = self.config.sampling
    sampling = settings.sampling(own, number)
    drops = self.part == 'prior' and self.config.prior.caption_drop
    if sampling.guidance_scale != 1 and self.reads_captions and not drops:
      if not settings.negative_prompt:
        logging.warning(
          'guidance_scale is %g, but the model was trained without dropped captions (config.prior.caption_drop is 0), '
          'so it does not know images without one; expect little of guidance.', sampling.guidance_scale,
        )  # fmt: skip
    return make_sampler(self.config, self.tokenizer, self.mesh, sampling)

  def _encode(self, prompts: Sequence[str], truncate: bool, optional: bool) -> np.ndarray:
    """Text ids [P, text_length - 1]; [1, 0] where the model draws without one."""
    if self.tokenizer is None:
      if list(prompts) != ['']:
        raise ValueError(
          'Prompts (--prompt, --prompts_file) are for models that have read captions, and this one has not '
          '(config.model.tokens=image); leave them out.'
        )
      return np.zeros((1, 0), np.int32)
    length = self.config.tokenizer.text_length
    if optional and list(prompts) == ['']:
      return np.full((1, length - 1), PAD, np.int32)
    text = encode_prompts(self.tokenizer, prompts, length, truncate)
    self._warn_of_prompts(prompts)
    return text

  def _warn_of_prompts(self, prompts: Sequence[str]) -> None:
    """Says what is cut off prompts, and what of them the tokenizer never saw."""
    length, unseen = self.config.tokenizer.text_length - 1, {}
    for prompt in prompts:
      ids = self.tokenizer.encode(prompt)
      if len(ids) > length:
        kept = self.tokenizer.decode(ids[:length])
        logging.warning('A prompt of %d tokens is cut to %d and reads %r now.', len(ids), length, shortened(kept))
      unseen |= {character: prompt for character in self.tokenizer.unseen(prompt) if character not in unseen}
    if unseen:
      logging.warning(
        'The captions that the model has read have no %s, as in %r; expect nothing of them.',
        ' '.join(map(repr, unseen)), shortened(next(iter(unseen.values()))),
      )  # fmt: skip

  def _unconditional(self, settings: DrawSettings, rows: np.ndarray) -> np.ndarray | None:
    """What guidance compares with, for each row; None for no caption."""
    if not settings.negative_prompt:
      return None
    if settings.sampling(self.config.sampling, 1).guidance_scale == 1:
      raise ValueError('--negative_prompt needs guidance: give --guidance_scale, 3 for instance; 1 is none.')
    return self._encode([settings.negative_prompt], settings.truncate, False).repeat(len(rows), axis=0)


def _check_picture(image: Any) -> None:
  """Raises ValueError for what is no picture."""
  if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    kind = f'{image.dtype} {list(image.shape)}' if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f'A picture must be a uint8 array [H, W, 3]; given {kind}.')


def _carried_out(sampler: Sampler) -> SamplingConfig:
  """The settings of sampling with the batch size that memory held."""
  return dataclasses.replace(sampler.settings, batch_size=sampler.batch_size)


def _repeated(known: Known | None, count: int) -> Known | None:
  if known is None:
    return None
  return known._replace(codes=known.codes.repeat(count, axis=0), keep=known.keep.repeat(count, axis=0))


def load(path: str | Path, mesh_config: MeshConfig | None = None) -> Model:
  """Loads a model directory that has pictures: with a prior, a model of image tokens in its place, or the dVAE alone.

  Args:
    path: the directory, as training writes it (WORKDIR/model).
    mesh_config: how to use the devices; None: the batch is split over all.

  Raises:
    ValueError: it is missing, half-written, damaged, of a newer version, or holds no pictures' model.
  """
  bundle.check(Path(path), needs=('dvae',))
  mesh = sharding.make_mesh(mesh_config)
  return Model(bundle.load(Path(path), mesh, needs=('dvae',)), mesh)
