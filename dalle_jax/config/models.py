"""Configuration of the models: their shapes, and the terms of their losses."""

import dataclasses
import math

from dalle_jax.config.checks import require, require_choice, require_fraction, require_positive

DTYPES = ('float32', 'bfloat16')
# Keys of `DvaeConfig` that determine the shapes or the meaning of a dVAE's parameters.
DVAE_SHAPE = (
  'image_vocab_size', 'hidden_size', 'decoder_input_size', 'num_groups', 'blocks_per_group', 'patch_size',
  'residual_gain', 'bottleneck', 'fsq_levels',
)  # fmt: skip
BOTTLENECKS = ('gumbel', 'vq', 'fsq')
PATTERNS = ('full', 'row', 'column', 'conv')
# Standard deviations at initialisation. 'sparse_transformer': as in Child et al. 2019 (section 6). 'unit': kernels of
# fan_in^-1/2 and embeddings of about 1, with which small models learn faster at high learning rates.
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
MAX_GROUPS = 16
MAX_WIDTH = 2**20
STEMS = ('patch', 'conv')
ACTIVATIONS = ('gelu', 'quick_gelu')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DvaeConfig:
  """The discrete VAE's shape and the schedules of its loss (appendix A)."""

  # Model directory with a trained dVAE. Only config.task=joint trains it further. Empty: train a new dVAE.
  pretrained: str = ''
  image_vocab_size: int = 8192  # number of image tokens (codes)
  hidden_size: int = 256  # channels at full resolution; each group doubles them
  decoder_input_size: int = 128  # channels of the decoder's input, the width of the "codebook"
  num_groups: int = 4  # groups of blocks; the resolution halves from one group to the next
  blocks_per_group: int = 2
  patch_size: int = 1  # pixels per side folded into channels before the encoder; above 1 saves work at full resolution
  dtype: str = 'float32'  # of the convolutions, 'float32' or 'bfloat16'; parameters are float32
  bottleneck: str = 'gumbel'  # 'gumbel' as in the paper, 'vq' as in VQ-VAE, or 'fsq' (finite scalar quantisation)
  # Only for bottleneck 'gumbel':
  straight_through: bool = False  # True: one-hot samples in the forward pass; False: soft samples, as in the paper
  temperature_start: float = 1.0  # of the Gumbel-softmax relaxation at step 0
  temperature_end: float = 1 / 16  # of the Gumbel-softmax relaxation from temperature_steps on
  temperature_steps: int = 150_000  # steps of the cosine from temperature_start to temperature_end
  kl_weight: float = 6.6 / 192  # weight of the KL divergence per position; 6.6/192 at 256x256 (appendix A.2)
  kl_warmup_steps: int = 5_000  # steps of the cosine from 0 to kl_weight
  # Only for bottleneck 'vq':
  commitment_weight: float = 0.25  # weight of the squared distance between encoder output and code
  codebook_decay: float = 0.99  # decay of the moving averages that form the codebook
  restart_threshold: float = 0.1  # reset codes used less often than this fraction of uniform use; 0: never reset
  # Only for bottleneck 'fsq':
  fsq_levels: tuple[int, ...] = ()  # number of values of each channel; their product is image_vocab_size
  # The next six keys help short runs. Their defaults are the recipe of the released models.
  logits_init_scale: float = 1.0  # initial scale of the encoder's output weights
  residual_gain: float = 0.0  # factor on residual branches; 0: 1 / (number of blocks)^2, as in the released models
  codebook_init_scale: float = 1.0  # initial scale of the decoder's input weights
  normal_steps: int = 0  # steps in which the pixel likelihood changes from normal to logit-Laplace; 0: only the latter
  normal_scale: float = 0.1  # standard deviation of that normal likelihood, on mapped pixels
  min_log_scale: float = -4.6  # lower bound of ln b; half a step of 8-bit pixels is about 0.01 in logit space

  @property
  def downsampling(self) -> int:
    """Image pixels per code, along one side."""
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
      self.num_groups <= MAX_GROUPS,
      f'config.dvae.num_groups is {self.num_groups}; it must be at most {MAX_GROUPS}, because each group halves the '
      'resolution.',
    )
    require(
      self.image_vocab_size >= 2, f'config.dvae.image_vocab_size is {self.image_vocab_size}; it must be at least 2.'
    )
    require(
      self.hidden_size % 4 == 0,
      f'config.dvae.hidden_size is {self.hidden_size}; it must be a multiple of 4, because blocks use a '
      'quarter of it internally.',
    )
    require(self.normal_steps >= 0, f'config.dvae.normal_steps is {self.normal_steps}; it must be 0 or more.')
    require(self.residual_gain >= 0, f'config.dvae.residual_gain is {self.residual_gain}; it must be 0 or more.')
    require(self.kl_weight >= 0, f'config.dvae.kl_weight is {self.kl_weight}; it must be 0 or more.')
    require(
      self.temperature_end <= self.temperature_start,
      f'config.dvae.temperature_end is {self.temperature_end}; it must be at most config.dvae.temperature_start '
      f'{self.temperature_start}.',
    )

  def _check_bottleneck(self) -> None:
    require_fraction('dvae', self, 'codebook_decay', 'restart_threshold')
    require(
      self.commitment_weight >= 0, f'config.dvae.commitment_weight is {self.commitment_weight}; it must be 0 or more.'
    )
    if self.bottleneck == 'fsq':
      require(
        len(self.fsq_levels) > 0 and all(level >= 3 for level in self.fsq_levels),
        f'config.dvae.fsq_levels is {self.fsq_levels}; config.dvae.bottleneck=fsq needs one or more numbers '
        'of at least 3, such as 8,5,5,5.',
      )
      require(
        math.prod(self.fsq_levels) == self.image_vocab_size,
        f'config.dvae.image_vocab_size is {self.image_vocab_size}, but the product of config.dvae.fsq_levels '
        f'{self.fsq_levels} is {math.prod(self.fsq_levels)}; make them equal.',
      )
    else:
      require(
        not self.fsq_levels,
        f'config.dvae.fsq_levels is {self.fsq_levels}, but only config.dvae.bottleneck=fsq reads it; given '
        f'{self.bottleneck!r}.',
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksConfig:
  """The transformer blocks of the prior or of a sequence model (section 2.2, appendix B)."""

  num_layers: int = 64
  embed_dim: int = 3968  # channels of the residual stream
  num_heads: int = 62  # attention heads; must divide embed_dim
  mlp_ratio: int = 4  # width of the MLP, as a multiple of embed_dim
  init: str = 'sparse_transformer'  # scales at initialisation, one of INITS
  dtype: str = 'float32'  # of activations and matrix products, 'float32' or 'bfloat16'; parameters are float32
  # Rematerialisation: the activations that the backward pass recomputes to save memory. 'none' recomputes nothing.
  # 'attention' keeps only the outputs of linear maps and of attention; 'dots' keeps only the outputs of linear maps;
  # 'full' keeps only the inputs of layers.
  remat: str = 'none'
  # Improvements after the paper; models.transformer and models.layers name the sources.
  position: str = 'learned'  # 'learned' embeddings of positions, rows and columns; or 'rotary' in two dimensions
  norm: str = 'layernorm'  # 'layernorm' or 'rmsnorm'
  mlp: str = 'quick_gelu'  # 'quick_gelu', 'gelu' or 'swiglu'
  qk_norm: bool = False  # normalise queries and keys
  sandwich_norm: bool = False  # also normalise the output of each residual branch

  def _check_blocks(self, group: str) -> None:
    for name, choices in BLOCK_CHOICES.items():
      require_choice(group, self, name, choices)
    require_positive(group, self, 'num_layers', 'embed_dim', 'num_heads', 'mlp_ratio')
    width, heads = self.embed_dim, self.num_heads
    require(width <= MAX_WIDTH, f'config.{group}.embed_dim is {width}; it must be at most {MAX_WIDTH}.')
    divisors = [divisor for divisor in range(1, width + 1) if width % divisor == 0] if width % heads else []
    nearest = sorted(sorted(divisors, key=lambda divisor: abs(divisor - heads))[:2])
    require(
      width % heads == 0,
      f'config.{group}.embed_dim {width} is not divisible by config.{group}.num_heads {heads}; the nearest numbers of '
      f'heads that divide it are {", ".join(map(str, nearest))}.',
    )
    require(
      self.position != 'rotary' or width // heads % 4 == 0,
      f'config.{group}.position is rotary, which needs a multiple of 4 channels per head; embed_dim {width} / '
      f'num_heads {heads} is {width // heads}.',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig(BlocksConfig):
  """The transformer over text tokens followed by image tokens (section 2.2, appendix B)."""

  text_loss_weight: float = 1 / 8  # weight of the cross-entropy of text tokens
  image_loss_weight: float = 7 / 8  # weight of the cross-entropy of image tokens
  # Attention patterns of the layers, repeated in this order: 'full', 'row', 'column' or 'conv'. The paper repeats
  # row,column,row,row and ends with conv (appendix B.1), which pays off on large grids only; see configs/dalle.py.
  attention_pattern: tuple[str, ...] = ('full',)
  last_attention_pattern: str = ''  # pattern of the last layer; empty: the next one of attention_pattern
  conv_kernel_size: int = 11  # side of the 'conv' pattern's window, in image tokens; an odd number
  attention_block: int = 32  # queries per block in sparse patterns; a block shares a window of keys. Use 128 on TPUs
  # Improvements after the paper; training.tasks.prior names the sources.
  z_loss_weight: float = 0.0  # weight of the square of the logits' log-partition function
  caption_drop: float = 0.0  # share of training captions replaced by padding, for classifier-free guidance

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
      f'config.prior.last_attention_pattern is {self.last_attention_pattern!r}; allowed are {allowed}, or an empty '
      'value.',
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
  """A sequence model over a single vocabulary (`config.task='sequence'`).

  Kind 'transformer' reads all keys of the blocks. All neural kinds read `embed_dim` and `dtype`; 'rnn' and 'lstm' also
  read `num_layers`.
  """

  kind: str = 'transformer'  # one of SEQUENCE_KINDS
  # 'text'; 'image': the codes of a trained dVAE; 'text_image': caption tokens, then image tokens, as in the prior
  tokens: str = 'text'
  length: int = 256  # tokens per sequence of text; with images, the grid and the text positions determine the length
  order: int = 5  # 'ngram' and 'neural_ngram': n; a token depends on the previous n - 1 tokens
  smoothing: str = 'kneser_ney'  # 'ngram': one of SMOOTHINGS; training.ngram_counts has the formulas
  discount: float = 0.0  # 'ngram' with 'kneser_ney' or 'backoff': the discount; 0: estimate one for each order
  add_k: float = 0.01  # 'ngram' with 'add_k': the count k that is added
  hidden_size: int = 256  # 'neural_ngram', 'rnn' and 'lstm': units per hidden layer
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
  """The contrastive model of images and captions (`config.task='reranker'`), with the architecture of CLIP.

  Images have config.data.image_size pixels per side, and captions config.tokenizer.text_length positions.
  """

  embed_dim: int = 128  # dimension of the space that images and captions share
  patch_size: int = 4  # pixels along one side of an image patch
  stem: str = 'patch'  # how patches become tokens: 'patch', a linear map as in CLIP; or 'conv', a few convolutions
  image_num_layers: int = 4
  image_width: int = 128  # channels of the image encoder
  image_num_heads: int = 4
  text_num_layers: int = 2
  text_width: int = 128  # channels of the text encoder
  text_num_heads: int = 4
  activation: str = 'gelu'  # 'gelu', or 'quick_gelu' as in the published CLIP
  dtype: str = 'float32'  # of activations and matrix products, 'float32' or 'bfloat16'; parameters are float32
  pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # subtracted from pixels in [0, 1], per channel
  pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)  # then pixels are divided by this, per channel

  # Add a hard negative for each image: its caption with two parts swapped, or with one word replaced.
  wrong_captions: bool = True

  def __post_init__(self) -> None:
    require_choice('reranker', self, 'stem', STEMS)
    require_choice('reranker', self, 'activation', ACTIVATIONS)
    require_choice('reranker', self, 'dtype', DTYPES)
    sizes = [f'{encoder}_{name}' for encoder in ('image', 'text') for name in ('num_layers', 'width', 'num_heads')]
    require_positive('reranker', self, 'embed_dim', 'patch_size', *sizes)
    for encoder in ('image', 'text'):
      width, heads = getattr(self, f'{encoder}_width'), getattr(self, f'{encoder}_num_heads')
      require(
        width % heads == 0,
        f'config.reranker.{encoder}_width {width} is not divisible by config.reranker.{encoder}_num_heads {heads}.',
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
