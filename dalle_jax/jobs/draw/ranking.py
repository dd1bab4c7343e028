"""Choose among candidates by a reranker, or by the likelihood of the image or of its caption."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from dalle_jax.bundle import Bundle
from dalle_jax.config import Config
from dalle_jax.data.text.tokenizer import PAD
from dalle_jax.evaluation.token_likelihood import token_nats
from dalle_jax.sampling.draw_settings import DrawSettings


class Scorer(Protocol):
  """Protocol for classes that score images by their prompts, such as `jobs.ranker.Ranker`."""

  info: dict[str, Any]  # facts about the model; 'params' is the fingerprint of its parameters

  def scores(self, prompts: Sequence[str], images: np.ndarray) -> np.ndarray:
    """Scores images, uint8 [P, N, H, W, 3], by their P prompts: float32 [P, N]; higher is better."""


def check(
  settings: DrawSettings, config: Config, part: str | None, reranker: Scorer | None, prompts: Sequence[str]
) -> str:
  """The rank to use, one of `draw_settings.RANKS`; '' if all images are kept, in the order of their numbers.

  Args:
    settings: the settings, whose `rank` may be '' for the default.
    config: the model's configuration.
    part: the part of the model that generates images; None if it has none.
    reranker: the reranker, if there is one.
    prompts: the prompts; '' for no caption.

  Raises:
    ValueError: the rank needs a reranker, prompts, or a model trained with dropped captions.
  """
  rank = settings.rank
  if not rank and settings.num_drawn > settings.num_images:
    rank = 'reranker' if reranker and all(prompts) else 'likelihood'
  if rank in ('reranker', 'caption_likelihood') and not all(prompts):
    raise ValueError(f'--rank={rank} compares images with prompts, but no prompt was given; use --rank=likelihood.')
  if rank == 'reranker' and reranker is None:
    raise ValueError(
      '--rank=reranker needs --reranker=DIR, a model directory from configs/reranker.py or tools/import_openai_clip.py.'
    )
  if rank == 'reranker' and not config.reads_captions:
    raise ValueError(
      '--rank=reranker compares images with prompts, but this model reads no captions; use --rank=likelihood.'
    )
  if rank == 'caption_likelihood' and not (part == 'prior' and config.prior.caption_drop):
    raise ValueError(
      '--rank=caption_likelihood needs a prior that was trained with config.prior.caption_drop above 0, because it '
      'compares with the likelihood without a caption; this model was not. Use --rank=likelihood.'
    )
  return rank


def caption_likelihood(loaded: Bundle, text: np.ndarray, codes: np.ndarray, mesh: Mesh, batch_size: int) -> np.ndarray:
  """ln p(caption | image) in nats, float32 [P, N], up to a term that depends only on the caption.

  By Bayes' rule this is ln p(image | caption) - ln p(image). A prior trained with dropped captions gives both terms.

  Args:
    loaded: a model with a prior.
    text: token ids of the prompts, [P, text_length - 1].
    codes: the candidates' codes, int32 [P, N, h, w].
    mesh: the device mesh.
    batch_size: images per batch.
  """
  prior, flat, rows = loaded.prior, codes.reshape(-1, *codes.shape[2:]), text.repeat(codes.shape[1], axis=0)
  conditional, unconditional = (
    token_nats(prior, loaded.params['prior'], caption, flat, mesh, batch_size)[:, prior.text_length :].sum(axis=1)
    for caption in (rows, np.full_like(rows, PAD))
  )
  return (unconditional - conditional).reshape(codes.shape[:2]).astype(np.float32)


def check_scores(scores: np.ndarray) -> None:
  """Raises ValueError if a score is not finite."""
  if not np.isfinite(scores).all():
    raise ValueError(
      f'{(~np.isfinite(scores)).sum()} of {scores.size} scores are NaN or infinite. The parameters of the ranking '
      'model are damaged, or its dtype is too narrow. Use another --rank.'
    )


def best(scores: np.ndarray | None, num_prompts: int, num_drawn: int, num_kept: int) -> np.ndarray:
  """The indices of the candidates to keep, int [P, num_kept], best first.

  Args:
    scores: float32 [P, N], higher is better; None keeps the first candidates.
    num_prompts: P.
    num_drawn: N, the number of candidates per prompt.
    num_kept: the number of candidates to keep per prompt.

  Raises:
    ValueError: a score is not finite.
  """
  if scores is None:
    return np.tile(np.arange(num_drawn)[:num_kept], (num_prompts, 1))
  check_scores(scores)
  return np.argsort(-scores, axis=1, kind='stable')[:, :num_kept]
