"""The shapes of the two models, and what their losses are made of."""

import dataclasses

from dalle_jax.config.checks import require, require_choice, require_positive

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DvaeConfig:
  """The discrete VAE's shape and the schedules of its loss (appendix A)."""

  image_vocab_size: int = 8192
  hidden_size: int = 256  # channels at full resolution; they double with each group
  decoder_input_size: int = 128  # channels of the decoder's input, the "codebook" width
  num_groups: int = 4  # groups of blocks, with a factor 2 in resolution between neighbours
  blocks_per_group: int = 2
  patch_size: int = 1  # pixels folded into channels before the encoder; above 1 saves work at full resolution
  dtype: str = 'float32'  # of the convolutions; parameters are float32
  temperature_start: float = 1.0
  temperature_end: float = 1 / 16
  temperature_steps: int = 150_000  # cosine from start to end
  kl_weight: float = 6.6 / 192  # on the KL per position; 6.6/192 at 256x256 (appendix A.2)
  kl_warmup_steps: int = 5_000  # cosine from 0 to kl_weight
  # The next six are for short runs; their defaults leave the released models' recipe as it is.
  logits_init_scale: float = 1.0  # of the encoder's output weights at initialisation
  residual_gain: float = 0.0  # of the blocks' branches; 0: 1 / (number of blocks)^2 as in the released models
  codebook_init_scale: float = 1.0  # of the decoder's input weights at initialisation
  normal_steps: int = 0  # steps over which a normal likelihood of the pixels gives way to the logit-Laplace
  normal_scale: float = 0.1  # standard deviation of that normal, on mapped pixels
  min_log_scale: float = -4.6  # floor of ln b: half a step of 8-bit pixels is about 0.01 in logit space

  @property
  def downsampling(self) -> int:
    """Pixels per code along one side."""
    return self.patch_size * 2 ** (self.num_groups - 1)

  def __post_init__(self) -> None:
    require_choice('dvae', self, 'dtype', DTYPES)
    require_positive(
      'dvae', self, 'hidden_size', 'decoder_input_size', 'num_groups', 'blocks_per_group', 'patch_size',
      'temperature_start', 'temperature_end', 'temperature_steps', 'kl_warmup_steps', 'logits_init_scale',
      'codebook_init_scale', 'normal_scale',
    )  # fmt: skip
    require(
      self.image_vocab_size >= 2, f'config.dvae.image_vocab_size is {self.image_vocab_size}; it must be at least 2.'
    )
    require(
      self.hidden_size % 4 == 0,
      f'config.dvae.hidden_size is {self.hidden_size}; it must be a multiple of 4, as blocks work at a quarter width.',
    )
    require(self.normal_steps >= 0, f'config.dvae.normal_steps is {self.normal_steps}; it must be 0 or more.')
    require(self.residual_gain >= 0, f'config.dvae.residual_gain is {self.residual_gain}; it must be 0 or more.')
    require(self.kl_weight >= 0, f'config.dvae.kl_weight is {self.kl_weight}; it must be 0 or more.')
    require(
      self.temperature_end <= self.temperature_start,
      f'config.dvae.temperature_end is {self.temperature_end}, above temperature_start {self.temperature_start}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig:
  """The transformer over text tokens followed by image tokens (section 2.2, appendix B)."""

  num_layers: int = 64
  num_heads: int = 62
  head_dim: int = 64
  mlp_ratio: int = 4
  text_loss_weight: float = 1 / 8
  image_loss_weight: float = 7 / 8
  dtype: str = 'float32'  # of activations and matrix products; parameters are float32
  remat: bool = False  # recompute activations in the backward pass

  @property
  def embed_dim(self) -> int:
    return self.num_heads * self.head_dim

  def __post_init__(self) -> None:
    require_choice('prior', self, 'dtype', DTYPES)
    require_positive('prior', self, 'num_layers', 'num_heads', 'head_dim', 'mlp_ratio')
    require(
      self.text_loss_weight >= 0 and self.image_loss_weight >= 0 and self.text_loss_weight + self.image_loss_weight > 0,
      'config.prior.text_loss_weight and image_loss_weight must be 0 or more, and not both 0; '
      f'given {self.text_loss_weight} and {self.image_loss_weight}.',
    )
