"""The shapes of the two models, and what their losses are made of."""

import dataclasses
import math

from dalle_jax.config.checks import require, require_choice, require_fraction, require_positive

DTYPES = ('float32', 'bfloat16')
# What the parameters of a dVAE depend on, and what they mean.
DVAE_SHAPE = (
  'image_vocab_size', 'hidden_size', 'decoder_input_size', 'num_groups', 'blocks_per_group', 'patch_size',
  'residual_gain', 'bottleneck', 'fsq_levels',
)  # fmt: skip
BOTTLENECKS = ('gumbel', 'vq', 'fsq')
PATTERNS = ('full', 'row', 'column', 'conv')
# Deviations at the start: those of Child et al. 2019 (section 6); or kernels of fan_in^-1/2 and embeddings of about 1,
# with which small models learn faster at high learning rates.
INITS = ('sparse_transformer', 'unit')
BLOCK_CHOICES = {
  'dtype': DTYPES,
  'init': INITS,
  'remat': ('none', 'attention', 'dots', 'full'),
  'position': ('learned', 'rotary'),
  'norm': ('layernorm', 'rmsnorm'),
  'mlp': ('quick_gelu', 'gelu', 'swiglu'),
}
TOKENS = ('text', 'image', 'text_image')
SEQUENCE_KINDS = ('transformer', 'lstm', 'rnn', 'neural_ngram', 'ngram')
SMOOTHINGS = ('kneser_ney', 'backoff', 'add_k', 'maximum_likelihood')
MAX_ORDER = 8
STEMS = ('patch', 'conv')
ACTIVATIONS = ('gelu', 'quick_gelu')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DvaeConfig:
  """The discrete VAE's shape and the schedules of its loss (appendix A)."""

  pretrained: str = ''  # a model directory whose dVAE is taken as it is; 'joint' starts from it
  image_vocab_size: int = 8192
  hidden_size: int = 256  # channels at full resolution; they double with each group
  decoder_input_size: int = 128  # channels of the decoder's input, the "codebook" width
  num_groups: int = 4  # groups of blocks, with a factor 2 in resolution between neighbours
  blocks_per_group: int = 2
  patch_size: int = 1  # pixels folded into channels before the encoder; above 1 saves work at full resolution
  dtype: str = 'float32'  # of the convolutions; parameters are float32
  bottleneck: str = 'gumbel'  # 'gumbel' as in the paper, 'vq' as in VQ-VAE, or 'fsq', finite scalar quantisation
  # Of 'gumbel' alone:
  straight_through: bool = False  # one-hot samples on the way forward; the paper's are soft both ways
  temperature_start: float = 1.0
  temperature_end: float = 1 / 16
  temperature_steps: int = 150_000  # cosine from start to end
  kl_weight: float = 6.6 / 192  # on the KL per position; 6.6/192 at 256x256 (appendix A.2)
  kl_warmup_steps: int = 5_000  # cosine from 0 to kl_weight
  # Of 'vq' alone:
  commitment_weight: float = 0.25  # on the squared distance from encoder output to code
  codebook_decay: float = 0.99  # of the moving averages that make the codebook
  restart_threshold: float = 0.1  # codes used less than this part of an even share begin anew; 0: none do
  # Of 'fsq' alone:
  fsq_levels: tuple[int, ...] = ()  # values that each channel takes; image_vocab_size is their product
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
    require_choice('dvae', self, 'bottleneck', BOTTLENECKS)
    self._check_bottleneck()
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

  def _check_bottleneck(self) -> None:
    require_fraction('dvae', self, 'codebook_decay', 'restart_threshold')
    require(
      self.commitment_weight >= 0, f'config.dvae.commitment_weight is {self.commitment_weight}; it must be 0 or more.'
    )
    if self.bottleneck == 'fsq':
      require(
        len(self.fsq_levels) > 0 and all(level >= 3 for level in self.fsq_levels),
        f'config.dvae.fsq_levels is {self.fsq_levels}; fsq needs one or more numbers of at least 3, such as 8,5,5,5.',
      )
      require(
        math.prod(self.fsq_levels) == self.image_vocab_size,
        f'config.dvae.image_vocab_size is {self.image_vocab_size}, but the product of config.dvae.fsq_levels '
        f'{self.fsq_levels} is {math.prod(self.fsq_levels)}; make them equal.',
      )
    else:
      require(
        not self.fsq_levels,
        f'config.dvae.fsq_levels is {self.fsq_levels}, which only config.dvae.bottleneck=fsq reads; given '
        f'{self.bottleneck!r}.',
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksConfig:
  """The blocks of a transformer (section 2.2, appendix B), of the prior or of a model of text."""

  num_layers: int = 64
  embed_dim: int = 3968
  num_heads: int = 62
  mlp_ratio: int = 4
  init: str = 'sparse_transformer'  # one of INITS
  dtype: str = 'float32'  # of activations and matrix products; parameters are float32
  # What the backward pass computes again: 'none'; 'attention', all but the results of the linear maps and of attention;
  # 'dots', all but those of the linear maps; or 'full', all but the layers' inputs.
  remat: str = 'none'
  # What later work found better; models.transformer and models.layers name the sources.
  position: str = 'learned'  # 'learned' embeddings of positions, rows and columns, or 'rotary' in two dimensions
  norm: str = 'layernorm'  # or 'rmsnorm'
  mlp: str = 'quick_gelu'  # or 'gelu', 'swiglu'
  qk_norm: bool = False  # normalise queries and keys
  sandwich_norm: bool = False  # normalise the end of each branch too

  def _check_blocks(self, group: str) -> None:
    for name, choices in BLOCK_CHOICES.items():
      require_choice(group, self, name, choices)
    require_positive(group, self, 'num_layers', 'embed_dim', 'num_heads', 'mlp_ratio')
    d, n = self.embed_dim, self.num_heads
    divisors = [k for k in range(1, d + 1) if d % k == 0]
    require(
      d % n == 0,
      f'config.{group}.embed_dim {d} is not divisible by config.{group}.num_heads {n}; the nearest numbers of heads '
      f'that divide it are {", ".join(map(str, sorted(sorted(divisors, key=lambda k: abs(k - n))[:2])))}.',
    )
    require(
      self.position != 'rotary' or d // n % 4 == 0,
      f'config.{group}.position is rotary, which needs heads of a multiple of 4 channels; embed_dim {d} / num_heads '
      f'{n} is {d // n}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig(BlocksConfig):
  """The transformer over text tokens followed by image tokens (section 2.2, appendix B)."""

  text_loss_weight: float = 1 / 8
  image_loss_weight: float = 7 / 8
  # What the layers see, one after the other and again from the first. The paper's, row,column,row,row and at last conv
  # (appendix B.1), make sense on large grids only; configs/dalle.py has them.
  attention_pattern: tuple[str, ...] = ('full',)
  last_attention_pattern: str = ''  # of the last layer; empty: the next one of attention_pattern
  conv_kernel_size: int = 11  # side of the conv pattern's window
  attention_block: int = 32  # queries that share a window of keys in sparse patterns; TPUs want 128
  # What later work found better; training.tasks.prior names the sources.
  z_loss_weight: float = 0.0  # on the square of the logits' log-partition function
  caption_drop: float = 0.0  # share of captions that training replaces with pads, for guidance without a classifier

  def __post_init__(self) -> None:
    self._check_blocks('prior')
    require_fraction('prior', self, 'caption_drop')
    require_positive('prior', self, 'attention_block')
    require(self.z_loss_weight >= 0, f'config.prior.z_loss_weight is {self.z_loss_weight}; it must be 0 or more.')
    self._check_patterns()
    require(
      self.text_loss_weight >= 0 and self.image_loss_weight >= 0 and self.text_loss_weight + self.image_loss_weight > 0,
      'config.prior.text_loss_weight and image_loss_weight must be 0 or more, and not both 0; '
      f'given {self.text_loss_weight} and {self.image_loss_weight}.',
    )

  def _check_patterns(self) -> None:
    allowed = ', '.join(PATTERNS)
    require(
      len(self.attention_pattern) > 0 and set(self.attention_pattern) <= set(PATTERNS),
      f'config.prior.attention_pattern is {self.attention_pattern}; it must list one or more of {allowed}.',
    )
    require(
      self.last_attention_pattern in ('', *PATTERNS),
      f'config.prior.last_attention_pattern is {self.last_attention_pattern!r}; allowed are {allowed}, or nothing.',
    )
    require(
      self.conv_kernel_size > 0 and self.conv_kernel_size % 2 == 1,
      f'config.prior.conv_kernel_size is {self.conv_kernel_size}; it must be odd and above 0.',
    )

  @property
  def uses_conv(self) -> bool:
    """Whether some layer has the conv pattern."""
    return 'conv' in (*self.attention_pattern, self.last_attention_pattern)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig(BlocksConfig):
  """A sequence model over one flat vocabulary (`config.task='sequence'`).

  The keys of the blocks are those of kind 'transformer'; `embed_dim` serves every neural kind, `num_layers` 'rnn' and
  'lstm' as well, `dtype` all but 'ngram'.
  """

  kind: str = 'transformer'  # one of SEQUENCE_KINDS
  # 'text'; 'image': the codes of a trained dVAE; 'text_image': a caption's tokens, then its image's, as in the prior
  tokens: str = 'text'
  length: int = 256  # tokens of a sequence of text; grid and text slots say how many there are with an image
  order: int = 5  # 'ngram' and 'neural_ngram': tokens that a token's probability depends on, itself among them
  smoothing: str = 'kneser_ney'  # 'ngram': one of SMOOTHINGS; training.ngram_counts has the formulas
  discount: float = 0.0  # 'ngram', of 'kneser_ney' and 'backoff'; 0: estimated from the counts, for each order
  add_k: float = 0.01  # 'ngram': k of 'add_k'
  hidden_size: int = 256  # 'neural_ngram', 'rnn' and 'lstm': units of a hidden layer
  num_layers: int = 4
  embed_dim: int = 128
  num_heads: int = 4
  init: str = 'unit'

  def __post_init__(self) -> None:
    require_choice('model', self, 'kind', SEQUENCE_KINDS)
    require_choice('model', self, 'tokens', TOKENS)
    require_choice('model', self, 'smoothing', SMOOTHINGS)
    self._check_blocks('model')
    require_positive('model', self, 'hidden_size', 'add_k')
    require(self.length >= 2, f'config.model.length is {self.length}; it must be at least 2.')
    least = 2 if self.kind == 'neural_ngram' else 1
    require(
      least <= self.order <= MAX_ORDER,
      f'config.model.order is {self.order}; it must lie in {least} to {MAX_ORDER}.',
    )
    require(0 <= self.discount < 1, f'config.model.discount is {self.discount}; it must lie in [0, 1).')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerConfig:
  """The contrastive model of images and captions (`config.task='reranker'`), of CLIP's architecture.

  Pictures have config.data.image_size, and texts config.tokenizer.text_length slots.
  """

  embed_dim: int = 128  # of the space that images and texts share
  patch_size: int = 4  # pixels along the side of what a token of an image stands for
  stem: str = 'patch'  # how patches become tokens: 'patch', one linear map as in CLIP, or 'conv', some convolutions
  image_num_layers: int = 4
  image_width: int = 128
  image_num_heads: int = 4
  text_num_layers: int = 2
  text_width: int = 128
  text_num_heads: int = 4
  activation: str = 'gelu'  # or 'quick_gelu', as in the published CLIP
  dtype: str = 'float32'  # of activations and matrix products; parameters are float32
  pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of pixels in [0, 1], by channel: taken off,
  pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)  # and what the rest is divided by

  wrong_captions: bool = True  # a negative more for each image: its caption with parts exchanged, or a word replaced

  def __post_init__(self) -> None:
    require_choice('reranker', self, 'stem', STEMS)
    require_choice('reranker', self, 'activation', ACTIVATIONS)
    require_choice('reranker', self, 'dtype', DTYPES)
    sizes = [f'{part}_{name}' for part in ('image', 'text') for name in ('num_layers', 'width', 'num_heads')]
    require_positive('reranker', self, 'embed_dim', 'patch_size', *sizes)
    for part in ('image', 'text'):
      width, heads = getattr(self, f'{part}_width'), getattr(self, f'{part}_num_heads')
      require(
        width % heads == 0,
        f'config.reranker.{part}_width {width} is not divisible by config.reranker.{part}_num_heads {heads}.',
      )
    require(
      self.stem == 'patch' or self.patch_size in (2, 4, 8, 16),
      f'config.reranker.patch_size is {self.patch_size}; with config.reranker.stem=conv it must be 2, 4, 8 or 16.',
    )
    for name in ('pixel_mean', 'pixel_std'):
      values = getattr(self, name)
      require(
        len(values) == 3 and (name == 'pixel_mean' or min(values) > 0),
        f'config.reranker.{name} is {values}; it must be 3 numbers{" above 0" if name == "pixel_std" else ""}.',
      )
