"""What the flags of commands say: how to sample, with the model's own settings for the rest; how to compress."""

import dataclasses

from dalle_jax.compression.coders import CODERS
from dalle_jax.config import SamplingConfig


def check_sampling(
  number: int, seed: int, batch_size: int | None, temperature: float | None, top_k: int | None
) -> None:
  """Refuses what cannot be, before a model is read.

  Raises:
    ValueError: names the flag.
  """
  if number < 1:
    raise ValueError(f'--num_images is {number}; it must be at least 1.')
  if not 0 <= seed < 2**31:
    raise ValueError(f'--seed is {seed}; it must lie in [0, 2^31).')
  if batch_size is not None and batch_size < 1:
    raise ValueError(f'--batch_size is {batch_size}; it must be at least 1.')
  if temperature is not None and temperature < 0:
    raise ValueError(f'--temperature is {temperature}; it must be 0 or more.')
  if top_k is not None and top_k < 0:
    raise ValueError(f'--top_k is {top_k}; it must be 0 (all tokens) or more.')


def sampling_settings(
  own: SamplingConfig, number: int, batch_size: int | None, temperature: float | None, top_k: int | None
) -> SamplingConfig:
  """The model's settings with what the command line says instead, for `number` samples."""
  return SamplingConfig(
    temperature=own.temperature if temperature is None else temperature,
    top_k=own.top_k if top_k is None else top_k,
    batch_size=min(own.batch_size if batch_size is None else batch_size, number),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionSettings:
  """How to encode; the fields are flags of `python -m dalle_jax.compress encode`.

  Raises:
    ValueError: a value that cannot be.
  """

  coder: str = 'range'
  batch_size: int = 64
  verify: bool = True
  lossy: bool = False
  resize: bool = False
  caption: str = ''

  def __post_init__(self) -> None:
    if self.coder not in CODERS:
      raise ValueError(f'--coder is {self.coder!r}; allowed are {", ".join(CODERS)}.')
    if not 1 <= self.batch_size <= 1 << 16:
      raise ValueError(f'--batch_size is {self.batch_size}; it must lie in 1 to {1 << 16}.')
