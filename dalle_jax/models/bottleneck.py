"""Discrete bottlenecks between encoder and decoder: three kinds with one interface.

Each kind is a Flax module with these members:

    channels                      number of channels of the encoder's output
    codes(z)                      encoder outputs [..., channels] to integer codes, int32 [...]
    vectors(codes)                integer codes [...] to decoder inputs [..., C]
    relax(z, key, temperature)    encoder outputs [..., channels] to decoder inputs [..., C], differentiable in z

The kinds:

- `GumbelCodebook` is the paper's bottleneck (section 2.1, appendix A.2).
- `VectorCodebook` is VQ-VAE's (van den Oord et al. 2017). Its codebook is a moving average of encoder outputs and gets
  no gradient.
- `ScalarCodebook` is finite scalar quantisation, FSQ (Mentzer et al. 2023). It rounds a few channels and has no
  codebook.

The last two are deterministic: their `relax` ignores `key` and `temperature`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

FSQ_MARGIN = 1e-3  # keeps bounded values from rounding to a level outside the valid range


def gumbel_softmax(logits: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
  """Sample from the Gumbel-softmax distribution: softmax((logits + Gumbel noise) / temperature).

  The sample is soft in the forward and in the backward pass.

  Args:
    logits: [..., K].
    key: typed PRNG key for the noise.
    temperature: positive scalar; the sample approaches a one-hot vector as the temperature approaches 0.

  Returns:
    Points on the simplex, float32 [..., K].
  """
  noise = jax.random.gumbel(key, logits.shape, jnp.float32)
  return jax.nn.softmax((logits.astype(jnp.float32) + noise) / temperature, axis=-1)


def straight_through(hard: jax.Array, soft: jax.Array) -> jax.Array:
  """Return the value of `hard` with the gradient of `soft`; both have the same shape."""
  return soft + jax.lax.stop_gradient(hard - soft)


def kl_to_uniform(logits: jax.Array) -> jax.Array:
  """KL(softmax(logits) || uniform) = ln K - entropy, in nats: logits [..., K] to [...], without a temperature."""
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return math.log(logits.shape[-1]) + jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def code_histogram(codes: jax.Array, vocab_size: int) -> jax.Array:
  """Relative frequency of each code, float32 [vocab_size], among integer codes of any shape."""
  return jnp.bincount(codes.reshape(-1), length=vocab_size).astype(jnp.float32) / codes.size


def perplexity(histogram: jax.Array) -> jax.Array:
  """exp(entropy) of a distribution [K]: the effective number of codes in use, from 1 to K."""
  logs = jnp.log(jnp.where(histogram > 0, histogram, 1.0))
  return jnp.exp(-jnp.sum(histogram * logs))


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """`x @ matrix` in full float32, as in the released models; accelerators use a lower precision by default."""
  return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def _projection(
  module: nn.Module, rows: int, features: int, scale: float, axes: tuple[str, str]
) -> tuple[jax.Array, jax.Array]:
  """Create the kernel [rows, features] and the bias [features] of the decoder's input convolution in `module`."""
  init = nn.with_logical_partitioning(nn.initializers.normal(scale * rows**-0.5), axes)
  kernel = module.param('kernel', init, (rows, features), jnp.float32)
  # The kernel is gathered over `fsdp` before use, like the kernels of convolutions (see `dvae.Conv`).
  kernel = nn.with_logical_constraint(kernel, tuple(None if axis == 'code' else axis for axis in axes))
  return kernel, module.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)), (features,))


class GumbelCodebook(nn.Module):
  """The paper's bottleneck: logits over K codes, relaxed with Gumbel noise (appendix A.1).

  The codebook is the kernel of the decoder's input convolution.

  Attributes:
    vocab_size: K.
    features: C, the size of the decoder's inputs.
    init_scale: initial standard deviation of the kernel, in units of K^-1/2.
    hard: use a one-hot sample in the forward pass; the backward pass stays soft (straight-through).
  """

  vocab_size: int
  features: int
  init_scale: float
  hard: bool

  def setup(self) -> None:
    self.kernel, self.bias = _projection(self, self.vocab_size, self.features, self.init_scale, ('vocab', 'code'))

  @property
  def channels(self) -> int:
    return self.vocab_size

  def codes(self, z: jax.Array) -> jax.Array:
    return jnp.argmax(z, axis=-1).astype(jnp.int32)

  def vectors(self, codes: jax.Array) -> jax.Array:
    # Looking up a row equals multiplying with a one-hot vector.
    return jnp.take(self.kernel, codes, axis=0) + self.bias[None, None, None]

  def mix(self, points: jax.Array) -> jax.Array:
    """Points on the simplex [B, h, w, K] to decoder inputs [B, h, w, C]."""
    return _product(points, self.kernel) + self.bias[None, None, None]

  def relax(self, z: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
    soft = gumbel_softmax(z, key, temperature)
    if self.hard:
      soft = straight_through(jax.nn.one_hot(jnp.argmax(soft, axis=-1), self.vocab_size), soft)
    return self.mix(soft)


class VectorCodebook(nn.Module):
  """VQ-VAE's bottleneck: the nearest vector of a codebook [K, C], with a straight-through gradient.

  No gradient trains the parameters. `training.vector_quantizer` updates them: `codebook` is computed from the running
  averages `share` and `total`.

  Attributes:
    vocab_size: K.
    features: C, the size of the encoder's outputs and of the decoder's inputs.
  """

  vocab_size: int
  features: int

  def setup(self) -> None:
    k, c = self.vocab_size, self.features

    def state(name: str, init: nn.initializers.Initializer, *axes: str) -> jax.Array:
      shape = tuple({'vocab': k, 'conv_out': c}[axis] for axis in axes)
      return self.param(name, nn.with_logical_partitioning(init, axes), shape)

    self.codebook = state('codebook', nn.initializers.normal(1.0), 'vocab', 'conv_out')
    self.share = state('share', nn.initializers.zeros, 'vocab')  # average fraction of the tokens that have each code
    self.total = state('total', nn.initializers.zeros, 'vocab', 'conv_out')  # share times mean encoder output
    self.started = state('started', nn.initializers.zeros)  # 0 before the codebook's first update, 1 after it

  @property
  def channels(self) -> int:
    return self.features

  def codes(self, z: jax.Array) -> jax.Array:
    norms = jnp.sum(self.codebook**2, axis=-1)[None, None, None]
    # |z - e|^2 without the term |z|^2, which is the same for every code.
    return jnp.argmin(norms - 2 * _product(z, self.codebook.T), axis=-1).astype(jnp.int32)

  def vectors(self, codes: jax.Array) -> jax.Array:
    return jnp.take(self.codebook, codes, axis=0)

  def relax(self, z: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
    return straight_through(self.vectors(self.codes(z)), z)


class ScalarCodebook(nn.Module):
  """Finite scalar quantisation: bound each channel and round it to one of a few evenly spaced values.

  Attributes:
    levels: number of values of each channel, each above 2. The product is the number of codes.
    features: C, the size of the decoder's inputs.
    init_scale: initial standard deviation of the kernel, in units of channels^-1/2.
  """

  levels: tuple[int, ...]
  features: int
  init_scale: float

  def setup(self) -> None:
    self.kernel, self.bias = _projection(
      self, len(self.levels), self.features, self.init_scale, ('position', 'conv_out')
    )

  @property
  def channels(self) -> int:
    return len(self.levels)

  @property
  def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
    """The number of levels and the place value of each channel, both [channels].

    A code is a number in mixed radix. Its digits are the channels' levels, the first channel least significant.
    """
    levels = np.array(self.levels)
    return levels, np.concatenate([[1], np.cumprod(levels[:-1])])

  def _rounded(self, z: jax.Array) -> jax.Array:
    """Bound z [..., channels] and round it, with a straight-through gradient.

    A channel with L levels takes the L integers from -(L // 2) on. An input of 0 rounds to 0.
    """
    levels, _ = self._sizes
    half_range = (levels - 1) / 2 * (1 - FSQ_MARGIN)
    half_step = np.where(levels % 2 == 0, 0.5, 0.0)
    around = (1,) * (z.ndim - 1)
    shift, reach, offset = (
      jnp.asarray(x, jnp.float32).reshape(*around, -1)
      for x in (np.arctanh(half_step / half_range), half_range, half_step)
    )
    bounded = jnp.tanh(z + shift) * reach - offset
    return straight_through(jnp.round(bounded), bounded)

  def _project(self, rounded: jax.Array) -> jax.Array:
    """Rounded channels [B, h, w, channels] to decoder inputs [B, h, w, C]; rescales to [-1, 1] first."""
    levels, _ = self._sizes
    return _product(rounded / jnp.asarray(levels // 2)[None, None, None], self.kernel) + self.bias[None, None, None]

  def codes(self, z: jax.Array) -> jax.Array:
    levels, place_values = self._sizes
    digits = self._rounded(z).astype(jnp.int32) + jnp.asarray(levels // 2)[None, None, None]
    return jnp.sum(digits * jnp.asarray(place_values)[None, None, None], axis=-1).astype(jnp.int32)

  def vectors(self, codes: jax.Array) -> jax.Array:
    levels, place_values = (jnp.asarray(x)[None, None, None] for x in self._sizes)
    digits = codes[..., None] // place_values % levels
    return self._project((digits - levels // 2).astype(jnp.float32))

  def relax(self, z: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
    return self._project(self._rounded(z))
