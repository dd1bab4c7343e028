"""The discrete bottleneck, in three kinds with one interface.

Each kind is a module between encoder and decoder:

    channels                            of the encoder's output
    codes(z)                            int32 [...] of encoder outputs [..., channels]
    vectors(codes)                      decoder inputs [..., C] of integer codes
    relax(z, key, temperature)          decoder inputs [..., C] through which gradients reach the encoder

`GumbelCodebook` is the paper's (section 2.1, appendix A.2). `VectorCodebook` is that of VQ-VAE (van den Oord et al.
2017); its codebook is a moving average of encoder outputs and gets no gradient. `ScalarCodebook` is FSQ (Mentzer et
al. 2023), which rounds a few channels and has no codebook. The last two are deterministic: neither reads key or
temperature.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

FSQ_MARGIN = 1e-3  # keeps bounded values away from the point where they would round to a level that is not there


def gumbel_softmax(logits: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
  """A relaxed sample, soft forward and backward: softmax((logits + Gumbel noise) / temperature).

  Args:
    logits: [..., K].
    key: typed PRNG key of the noise.
    temperature: positive scalar; towards 0 the sample becomes one-hot.

  Returns:
    Points [..., K] on the simplex.
  """
  noise = jax.random.gumbel(key, logits.shape, jnp.float32)
  return jax.nn.softmax((logits.astype(jnp.float32) + noise) / temperature, axis=-1)


def straight_through(hard: jax.Array, soft: jax.Array) -> jax.Array:
  """The value of `hard` with the gradient of `soft`, both of one shape."""
  return soft + jax.lax.stop_gradient(hard - soft)


def kl_to_uniform(logits: jax.Array) -> jax.Array:
  """KL(softmax(logits) || uniform) in nats for logits [..., K]: ln K - entropy, whatever the temperature."""
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return math.log(logits.shape[-1]) + jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def code_histogram(codes: jax.Array, vocab_size: int) -> jax.Array:
  """Share of each code, [vocab_size], among integer codes of any shape."""
  return jnp.bincount(codes.reshape(-1), length=vocab_size).astype(jnp.float32) / codes.size


def perplexity(histogram: jax.Array) -> jax.Array:
  """exp(entropy) of a distribution [K]: the number of codes in even use."""
  logs = jnp.log(jnp.where(histogram > 0, histogram, 1.0))
  return jnp.exp(-jnp.sum(histogram * logs))


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """`x @ matrix` in float32 in fact, as in the released models: accelerators take shortcuts by default."""
  return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def _projection(
  module: nn.Module, rows: int, features: int, scale: float, axes: tuple[str, str]
) -> tuple[jax.Array, jax.Array]:
  """The kernel [rows, features] and bias [features] of the decoder's input."""
  init = nn.with_logical_partitioning(nn.initializers.normal(scale * rows**-0.5), axes)
  kernel = module.param('kernel', init, (rows, features), jnp.float32)
  # Gathered over `fsdp` before use, as the kernels of convolutions are.
  kernel = nn.with_logical_constraint(kernel, tuple(None if axis == 'code' else axis for axis in axes))
  return kernel, module.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)), (features,))


class GumbelCodebook(nn.Module):
  """Logits over K codes, relaxed with Gumbel noise; the decoder's input convolution is the codebook (appendix A.1).

  With `hard` the relaxed sample is made one-hot on the way forward and stays soft on the way back (straight-through).
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
    # A row of the matrix is the product with a one-hot code.
    return jnp.take(self.kernel, codes, axis=0) + self.bias[None, None, None]

  def mix(self, points: jax.Array) -> jax.Array:
    """Points on the simplex [B, h, w, K] to vectors [B, h, w, C]."""
    return _product(points, self.kernel) + self.bias[None, None, None]

  def relax(self, z: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
    soft = gumbel_softmax(z, key, temperature)
    if self.hard:
      soft = straight_through(jax.nn.one_hot(jnp.argmax(soft, axis=-1), self.vocab_size), soft)
    return self.mix(soft)


class VectorCodebook(nn.Module):
  """Nearest neighbours in a codebook [K, C], copied straight through.

  The parameters other than `codebook` are what it is averaged from; see `training.vector_quantizer`.
  """

  vocab_size: int
  features: int

  def setup(self) -> None:
    k, c = self.vocab_size, self.features

    def state(name: str, init: nn.initializers.Initializer, *axes: str) -> jax.Array:
      shape = tuple({'vocab': k, 'conv_out': c}[axis] for axis in axes)
      return self.param(name, nn.with_logical_partitioning(init, axes), shape)

    self.codebook = state('codebook', nn.initializers.normal(1.0), 'vocab', 'conv_out')
    self.share = state('share', nn.initializers.zeros, 'vocab')  # of the tokens that each code gets, averaged
    self.total = state('total', nn.initializers.zeros, 'vocab', 'conv_out')  # its encoder outputs, times its share
    self.started = state('started', nn.initializers.zeros)  # 1 once the codebook comes from encoder outputs

  @property
  def channels(self) -> int:
    return self.features

  def codes(self, z: jax.Array) -> jax.Array:
    norms = jnp.sum(self.codebook**2, axis=-1)[None, None, None]
    # |z - e|^2 without |z|^2, which is the same for every code.
    return jnp.argmin(norms - 2 * _product(z, self.codebook.T), axis=-1).astype(jnp.int32)

  def vectors(self, codes: jax.Array) -> jax.Array:
    return jnp.take(self.codebook, codes, axis=0)

  def relax(self, z: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
    return straight_through(self.vectors(self.codes(z)), z)


class ScalarCodebook(nn.Module):
  """Finite scalar quantisation: channel i is bounded and rounded to one of `levels[i]` > 2 values, evenly spaced."""

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
    """Levels, and how much a step of each channel adds to the code."""
    levels = np.array(self.levels)
    return levels, np.concatenate([[1], np.cumprod(levels[:-1])])

  def _rounded(self, z: jax.Array) -> jax.Array:
    """Whole numbers from -(L // 2) on, L of them, in each channel; rounded straight through. 0 stays in the middle."""
    levels, _ = self._sizes
    reach = (levels - 1) / 2 * (1 - FSQ_MARGIN)
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    around = (1,) * (z.ndim - 1)
    shift, reach, offset = (
      jnp.asarray(x, jnp.float32).reshape(*around, -1) for x in (np.arctanh(offset / reach), reach, offset)
    )
    bounded = jnp.tanh(z + shift) * reach - offset
    return straight_through(jnp.round(bounded), bounded)

  def _project(self, rounded: jax.Array) -> jax.Array:
    """The decoder's input for whole numbers [B, h, w, channels], brought to [-1, 1] first."""
    levels, _ = self._sizes
    return _product(rounded / jnp.asarray(levels // 2)[None, None, None], self.kernel) + self.bias[None, None, None]

  def codes(self, z: jax.Array) -> jax.Array:
    levels, steps = self._sizes
    digits = self._rounded(z).astype(jnp.int32) + jnp.asarray(levels // 2)[None, None, None]
    return jnp.sum(digits * jnp.asarray(steps)[None, None, None], axis=-1).astype(jnp.int32)

  def vectors(self, codes: jax.Array) -> jax.Array:
    levels, steps = (jnp.asarray(x)[None, None, None] for x in self._sizes)
    digits = codes[..., None] // steps % levels
    return self._project((digits - levels // 2).astype(jnp.float32))

  def relax(self, z: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
    return self._project(self._rounded(z))
