"""Devices, logs, and what is drawn and measured: nothing here changes what is learnt."""

import dataclasses
from collections.abc import Mapping

from dalle_jax.config.checks import require, require_positive

MOST = 1e6  # of temperatures, scales and waits, far from where 32 bits end


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Sizes of the device mesh's axes; one of them may be -1 and takes what is left.

  Where `data` and `fsdp` both are -1, `fsdp` takes as much as divides the model's widths, and `data` the rest.
  """

  dcn_data: int = 1  # slices of TPUs, or groups of other hosts, between which only gradients are summed
  data: int = -1  # splits the batch; parameters are copied
  fsdp: int = 1  # splits the batch, and parameters and optimizer state with it
  tensor: int = 1  # splits attention heads, MLP units and vocabularies

  def __post_init__(self) -> None:
    sizes = dataclasses.asdict(self)
    for name, value in sizes.items():
      require(value == -1 or value > 0, f'config.mesh.{name} is {value}; it must be -1 (what is left) or above 0.')
    open_axes = [name for name, value in sizes.items() if value == -1]
    require(
      len(open_axes) <= 1 or open_axes == ['data', 'fsdp'],
      f'At most one axis of config.mesh may be -1, or data and fsdp; given {sizes}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
  """Where metrics go besides WORKDIR/*/metrics.jsonl and the console."""

  tensorboard: bool = True
  wandb_project: str = ''  # Weights & Biases, only where a project is named
  stall_seconds: float = 300.0  # without a finished step, until a watchdog says where all threads stand; 0: never

  def __post_init__(self) -> None:
    require(
      0 <= self.stall_seconds <= MOST,
      f'config.logging.stall_seconds is {self.stall_seconds}; it must be 0 (never) to {MOST:,.0f}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
  """How images are drawn unless a command says otherwise."""

  temperature: float = 1.0
  top_k: int = 0  # tokens kept at each step; 0: all
  top_p: float = 1.0  # share of the probability kept at each step, after temperature and top_k; 1: all
  guidance_scale: float = 1.0  # classifier-free guidance; 1: none, and half the work
  guidance_ramp: float = 0.0  # share of the image's tokens over which the scale grows from 1
  batch_size: int = 64

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
    'guidance_scale': (lambda value: 0 <= value <= MOST, f'be 0 to {MOST:,.0f}; 1 is none'),
    'guidance_ramp': (lambda value: 0 <= value <= 1, 'lie in [0, 1]'),
    'batch_size': (lambda value: value > 0, 'be above 0'),
  }
  for name, value in values.items():
    is_allowed, allowed = limits[name]
    require(is_allowed(value), f'{prefix}{name} is {value}; it must {allowed}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """What is measured and drawn when training has ended."""

  num_reconstructions: int = 256  # held-out pictures for PSNR and codebook figures
  num_prompts: int = 128  # captions of each split and number of objects whose images are judged (captioned_shapes)
  num_captions: int = 500  # of each split, with a picture each, among which a reranker has to find the right ones
  sheet_prompts: int = 8  # captions on a sample sheet
  images_per_prompt: int = 8  # images of each caption on the sheet
  batch_size: int = 64
  num_tokens: int = 81_920  # held-out tokens on which a sequence model is measured, in whole sequences from the first
  num_context_targets: int = 1_000  # tokens that are predicted from contexts of every length
  num_text_samples: int = 4  # of a model of text

  def __post_init__(self) -> None:
    require_positive('evaluation', self, *(f.name for f in dataclasses.fields(self)))
