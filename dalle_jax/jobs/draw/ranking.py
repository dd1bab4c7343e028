"""Which candidates to keep: by a reranker, or by the likelihood of the image or of its caption."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from dalle_jax.bundle import Bundle
from dalle_jax.config import Config
from dalle_jax.data.tokenizer import PAD
from dalle_jax.evaluation.token_likelihood import token_nats
from dalle_jax.sampling.draw_settings import DrawSettings


class Scorer(Protocol):
  """What scores images by their prompts, such as `jobs.ranker.Ranker`."""

  info: dict[str, Any]

  def scores(self, prompts: Sequence[str], images: np.ndarray) -> np.ndarray:
    """P prompts and uint8 [P, N, H, W, 3] to float32 [P, N]; more is better."""


def check(
  settings: DrawSettings, config: Config, part: str | None, reranker: Scorer | None, prompts: Sequence[str]
) -> str:
  """How candidates are ranked; '' where all are kept as they come.

  Args:
    settings: what is asked for.
    config: of the model.
    part: the collection of its parameters that draws.
    reranker: if there is one.
    prompts: '' for no caption.

  Raises:
    ValueError: the model, or the reranker, is not there for it.
  """
  rank = settings.rank
  if not rank and settings.num_drawn > settings.num_images:
    rank = 'reranker' if reranker and all(prompts) else 'likelihood'
  if rank in ('reranker', 'caption_likelihood') and not all(prompts):
    raise ValueError(f'--rank={rank} compares images with prompts, and there is none; take --rank=likelihood.')
  if rank == 'reranker' and reranker is None:
    raise ValueError(
      '--rank=reranker needs --reranker=DIR, a model directory of configs/reranker.py or tools/import_openai_clip.py.'
    )
  if rank == 'reranker' and not config.reads_captions:
    raise ValueError(
      '--rank=reranker compares images with prompts, and this model draws without; take --rank=likelihood.'
    )
  if rank == 'caption_likelihood' and not (part == 'prior' and config.prior.caption_drop):
    raise ValueError(
      '--rank=caption_likelihood compares with images without a caption, which a prior knows that was trained with '
      'config.prior.caption_drop above 0; this model was not. Take --rank=likelihood.'
    )
  return rank


def caption_likelihood(loaded: Bundle, text: np.ndarray, codes: np.ndarray, mesh: Mesh, batch_size: int) -> np.ndarray:
  """ln p(caption | image) in nats, but for what depends on the caption alone, float32 [P, N].

  By Bayes it is ln p(image | caption) - ln p(image), and a prior that has learnt from dropped captions has both.

  Args:
    loaded: a model with a prior.
    text: ids [P, text_length - 1].
    codes: of the candidates, int32 [P, N, h, w].
    mesh: of the devices.
    batch_size: images at a time.
  """
  prior, flat, rows = loaded.prior, codes.reshape(-1, *codes.shape[2:]), text.repeat(codes.shape[1], axis=0)
  given, alone = (
    token_nats(prior, loaded.params['prior'], caption, flat, mesh, batch_size)[:, prior.text_length :].sum(axis=1)
    for caption in (rows, np.full_like(rows, PAD))
  )
  return (alone - given).reshape(codes.shape[:2]).astype(np.float32)


def check_scores(scores: np.ndarray) -> None:
  """Raises ValueError if a score is not a number."""
  if not np.isfinite(scores).all():
    raise ValueError(
      f'{(~np.isfinite(scores)).sum()} of {scores.size} scores are NaN or infinite: the parameters of what ranks the '
      'candidates are damaged, or its dtype is too narrow. Take another --rank.'
    )


def best(scores: np.ndarray | None, num_prompts: int, num_drawn: int, num_kept: int) -> np.ndarray:
  """The numbers of the candidates to keep, int [P, num_kept], best first; without scores the first ones.

  Raises:
    ValueError: a score is not a number.
  """
  if scores is None:
    return np.tile(np.arange(num_drawn)[:num_kept], (num_prompts, 1))
  check_scores(scores)
  return np.argsort(-scores, axis=1, kind='stable')[:, :num_kept]
