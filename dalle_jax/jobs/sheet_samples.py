"""Images for a sample sheet: several for each of a few prompts."""

from typing import NamedTuple

import numpy as np

from dalle_jax.config import Config
from dalle_jax.data.text.tokenizer import Tokenizer
from dalle_jax.sampling.sampler import Sampler, encode_prompts


class PromptSamples(NamedTuple):
  """N sampled images for each of P prompts.

  Attributes:
    text: Caption tokens int32 [P, text_length - 1]; [P, 0] for a model without prompts.
    codes: Image tokens int32 [P, N, h, w].
    images: Images uint8 [P, N, H, W, 3].
  """

  text: np.ndarray
  codes: np.ndarray
  images: np.ndarray


def draw_sheet(
  config: Config, tokenizer: Tokenizer | None, sampler: Sampler, params: dict, prompts: list[str]
) -> PromptSamples:
  """Samples N = config.evaluation.images_per_prompt images for each of P prompts.

  Args:
    config: The experiment's configuration.
    tokenizer: The captions' tokenizer; None for a model without prompts, where P is config.evaluation.sheet_prompts.
    sampler: The sampler.
    params: The parameters of each part, on the mesh.
    prompts: The prompts; ignored without a tokenizer. Prompts that are too long are truncated.
  """
  count = config.evaluation.images_per_prompt
  text = np.zeros((config.evaluation.sheet_prompts, 0), np.int32)
  if tokenizer:
    text = encode_prompts(tokenizer, prompts, config.tokenizer.text_length, truncate=True)
  drawn = sampler.draw(params, text.repeat(count, axis=0), seed=config.seed)
  codes, images = (array.reshape(len(text), count, *array.shape[1:]) for array in (drawn.codes, drawn.images))
  return PromptSamples(text, codes, images)
