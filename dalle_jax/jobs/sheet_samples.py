"""Images sampled for a sheet: several for each of a few prompts."""

from typing import NamedTuple

import numpy as np

from dalle_jax.config import Config
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.sampling.sampler import Sampler, encode_prompts


class PromptSamples(NamedTuple):
  """N images for each of P prompts."""

  text: np.ndarray  # int32 [P, text_length - 1]; [P, 0] without prompts
  codes: np.ndarray  # int32 [P, N, h, w]
  images: np.ndarray  # uint8 [P, N, H, W, 3]


def draw_sheet(
  config: Config, tokenizer: Tokenizer | None, sampler: Sampler, params: dict, prompts: list[str]
) -> PromptSamples:
  """Draws N = config.evaluation.images_per_prompt images for each of P prompts.

  Without a tokenizer, and so without prompts, P is config.evaluation.sheet_prompts.
  """
  count = config.evaluation.images_per_prompt
  text = np.zeros((config.evaluation.sheet_prompts, 0), np.int32)
  if tokenizer:
    text = encode_prompts(tokenizer, prompts, config.tokenizer.text_length, truncate=True)
  drawn = sampler.draw(params, text.repeat(count, axis=0), seed=config.seed)
  shaped = (found.reshape(len(text), count, *found.shape[1:]) for found in (drawn.codes, drawn.images))
  return PromptSamples(text, *shaped)
