"""Configuration of devices, logs, sampling and evaluation; nothing here changes what a model learns."""

import dataclasses
from collections.abc import Mapping

from dalle_jax.config.checks import require, require_positive

MOST_ROWS = 65_536  # upper limit of the examples in a batch of sampling
MOST = 1e6  # upper limit of temperatures, scales and durations, far below float32 overflow


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Sizes of the axes of the device mesh; their product is the number of devices.

  One axis may be -1 and gets the remaining devices. If `data` and `fsdp` are both -1, `fsdp` gets the largest size that
  divides the model's widths, and `data` the rest.
  """

  dcn_data: int = 1  # TPU slices, or groups of hosts on other platforms; only gradients are summed between them
  data: int = -1  # splits the batch; parameters are replicated
  fsdp: int = 1  # splits the batch, the parameters and the optimizer state
  tensor: int = 1  # splits attention heads, MLP units and vocabularies

  def __post_init__(self) -> None:
    sizes = dataclasses.asdict(self)
    for name, value in sizes.items():
      require(
        value == -1 or value > 0, f'config.mesh.{name} is {value}; it must be above 0, or -1 for the remaining devices.'
      )
    open_axes = [name for name, value in sizes.items() if value == -1]
    require(
      len(open_axes) <= 1 or open_axes == ['data', 'fsdp'],
      f'At most one axis of config.mesh may be -1, or data and fsdp; given {sizes}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
  """Where metrics go, besides WORKDIR/*/metrics.jsonl and the console."""

  tensorboard: bool = True  # write TensorBoard event files
  wandb_project: str = ''  # Weights & Biases project; empty: do not use Weights & Biases
  stall_seconds: float = 300.0  # seconds without a finished step until a watchdog prints what all threads do; 0: never

  def __post_init__(self) -> None:
    require(
      0 <= self.stall_seconds <= MOST,
      f'config.logging.stall_seconds is {self.stall_seconds}; it must be 0 (never) to {MOST:,.0f}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
  """Defaults for generating images and text; commands may override them."""

  temperature: float = 1.0  # divides the logits; 0 takes the most likely token
  top_k: int = 0  # number of most likely tokens to sample from at each step; 0: all
  top_p: float = 1.0  # probability mass to sample from at each step, after temperature and top_k; 1: all
  guidance_scale: float = 1.0  # classifier-free guidance; 1: none, which halves the work
  guidance_ramp: float = 0.0  # share of the image tokens over which the guidance scale grows from 1
  batch_size: int = 64  # images or texts generated at a time

  def __post_init__(self) -> None:
    check_sampling(dataclasses.asdict(self))


def check_sampling(values: Mapping[str, float], prefix: str = 'config.sampling.') -> None:
  """Check the ranges of sampling settings.

  Args:
    values: from field names of `SamplingConfig` to values; missing fields are not checked.
    prefix: stands before the field name in messages: 'config.sampling.' for keys of a configuration, '--' for flags.

  Raises:
    ValueError: a value is out of range.
  """
  limits = {
    'temperature': (lambda value: 0 <= value <= MOST, f'be 0 to {MOST:,.0f}'),
    'top_k': (lambda value: value >= 0, 'be 0 (all tokens) or more'),
    'top_p': (lambda value: 0 < value <= 1, 'be above 0 and at most 1 (all)'),
    'guidance_scale': (lambda value: 0 <= value <= MOST, f'be 0 to {MOST:,.0f}; 1 means no guidance'),
    'guidance_ramp': (lambda value: 0 <= value <= 1, 'lie in [0, 1]'),
    'batch_size': (lambda value: 0 < value <= MOST_ROWS, f'be 1 to {MOST_ROWS:,}'),
  }
  for name, value in values.items():
    is_allowed, allowed = limits[name]
    require(is_allowed(value), f'{prefix}{name} is {value}; it must {allowed}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """What is measured and generated at the end of training."""

  num_reconstructions: int = 256  # held-out images for PSNR and codebook statistics
  num_prompts: int = 128  # 'captioned_shapes': judged captions for each split and each number of objects
  num_captions: int = 500  # reranker: captions per split for retrieval, each with one image
  sheet_prompts: int = 8  # captions on a sample sheet
  images_per_prompt: int = 8  # images per caption on a sample sheet
  batch_size: int = 64  # examples measured at a time
  num_compared: int = 200_000  # training records that held-out images and captions are compared with
  num_tokens: int = 81_920  # sequence models: held-out tokens to measure, from the start, in complete sequences
  num_context_targets: int = 1_000  # sequence models: tokens that are predicted from contexts of every length
  num_text_samples: int = 4  # models of text: texts to generate

  def __post_init__(self) -> None:
    require_positive('evaluation', self, *(f.name for f in dataclasses.fields(self)))
