"""The layers of transformer blocks: normalisation, linear projections, MLPs and rotary positions."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

NORMS = ('layernorm', 'rmsnorm')
MLPS = ('quick_gelu', 'gelu', 'swiglu')
EPSILON = 1e-5  # added to the variance or the mean square, in both norms
ROTARY_BASE = 10_000.0  # base of the geometric series of rotation rates


class Norm(nn.Module):
  """Normalisation over the last axis of [..., D], in float32.

  'layernorm' subtracts the mean and divides by the standard deviation; it has a scale and a bias. 'rmsnorm' divides by
  the root mean square; it has only a scale (Zhang and Sennrich 2019).
  """

  kind: str
  dtype: jnp.dtype  # of the output
  axis: str = 'embed'  # logical name of the last axis

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size, leading = x.shape[-1], (1,) * (x.ndim - 1)
    scale = self.param('scale', nn.with_logical_partitioning(nn.initializers.ones, (self.axis,)), (size,))
    x = x.astype(jnp.float32)
    if self.kind == 'layernorm':
      x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + EPSILON) * scale.reshape(*leading, size)
    if self.kind == 'layernorm':
      bias = self.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,)), (size,))
      x = x + bias.reshape(*leading, size)
    return x.astype(self.dtype)


class Projection(nn.Module):
  """An affine map [..., *in_shape] to [..., *out_shape] that contracts one or more trailing axes."""

  in_shape: tuple[int, ...]
  out_shape: tuple[int, ...]
  names: tuple[str, ...]  # logical names of the kernel's axes, in_shape then out_shape
  scale: float  # standard deviation of the kernel at initialisation
  dtype: jnp.dtype  # of the computation and of the output

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    num_in = len(self.in_shape)
    init = nn.with_logical_partitioning(nn.initializers.normal(self.scale), self.names)
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.names[num_in:])
    kernel = self.param('kernel', init, (*self.in_shape, *self.out_shape), jnp.float32).astype(self.dtype)
    bias = self.param('bias', bias_init, self.out_shape, jnp.float32).astype(self.dtype)
    axes = tuple(range(x.ndim - num_in, x.ndim)), tuple(range(num_in))
    y = jax.lax.dot_general(x, kernel, (axes, ((), ())))
    return y + jnp.broadcast_to(bias, y.shape)


def quick_gelu(x: jax.Array) -> jax.Array:
  """x * sigmoid(1.702 x) (Child et al. 2019, section 5.2)."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'quick_gelu': quick_gelu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
}


class Mlp(nn.Module):
  """The MLP of a block, [B, T, D] to [B, T, D].

  - 'quick_gelu' is the paper's: one hidden layer with the activation x * sigmoid(1.702 x).
  - 'gelu' has the activation x * Phi(x) instead (Hendrycks and Gimpel 2016).
  - 'swiglu' multiplies two hidden layers, one of them with the activation x * sigmoid(x) (Shazeer 2020). Their size is
    two thirds of `hidden_size`, rounded up to a multiple of 8, so that the number of parameters is about the same.
  """

  kind: str
  hidden_size: int
  init_scale: float  # initial standard deviation of kernels, in units of fan_in^-1/2
  out_scale: float  # additional factor for the output kernel
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    d = x.shape[-1]
    size = -(-2 * self.hidden_size // 24) * 8 if self.kind == 'swiglu' else self.hidden_size

    def hidden(name: str) -> jax.Array:
      y = Projection((d,), (size,), ('embed', 'mlp'), self.init_scale * d**-0.5, self.dtype, name=name)(x)
      return nn.with_logical_constraint(y, ('batch', 'length', 'mlp'))

    if self.kind == 'swiglu':
      activations = jax.nn.silu(hidden('mlp_gate')) * hidden('mlp_in')
    else:
      activations = ACTIVATIONS[self.kind](hidden('mlp_in'))
    scale = self.init_scale * self.out_scale * size**-0.5
    return Projection((size,), (d,), ('mlp_contracted', 'embed'), scale, self.dtype, name='mlp_out')(activations)


def rotate(x: jax.Array, positions: Sequence[jax.Array]) -> jax.Array:
  """Apply rotary positions of several dimensions (Su et al. 2021; for images, LlamaGen, Sun et al. 2024).

  The channels of a head are split into equal groups, one group for each dimension of the position. Within a group, the
  pair of channels (i, i + half) is rotated by the angle position * base^(-i / half), where half is half the size of the
  group. So the dot product of a query and a key depends only on the difference of their positions.

  Args:
    x: queries or keys [B, T, N, H]; H is divisible by twice the number of dimensions.
    positions: the position of each slot, one array [T] for each dimension.

  Returns:
    Rotated queries or keys [B, T, N, H] in the dtype of `x`.
  """
  groups = jnp.split(x.astype(jnp.float32), len(positions), axis=-1)
  rotated = [_rotate_group(group, position) for group, position in zip(groups, positions, strict=True)]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _rotate_group(x: jax.Array, position: jax.Array) -> jax.Array:
  half = x.shape[-1] // 2
  rates = ROTARY_BASE ** (-jnp.arange(half) / half)
  angles = (position.astype(jnp.float32)[:, None] * rates[None])[None, :, None]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
