"""What transformer blocks are made of: normalisation, linear maps, the MLPs, and rotary positions."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

NORMS = ('layernorm', 'rmsnorm')
MLPS = ('quick_gelu', 'gelu', 'swiglu')
EPSILON = 1e-5  # of both norms
ROTARY_BASE = 10_000.0


class Norm(nn.Module):
  """Normalisation over the last axis of [..., D], in float32.

  'layernorm' takes out mean and deviation, with scale and bias; 'rmsnorm' divides by the root of the mean square, with
  a scale alone (Zhang and Sennrich 2019).
  """

  kind: str
  dtype: jnp.dtype
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size, around = x.shape[-1], (1,) * (x.ndim - 1)
    scale = self.param('scale', nn.with_logical_partitioning(nn.initializers.ones, (self.axis,)), (size,))
    x = x.astype(jnp.float32)
    if self.kind == 'layernorm':
      x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + EPSILON) * scale.reshape(*around, size)
    if self.kind == 'layernorm':
      bias = self.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,)), (size,))
      x = x + bias.reshape(*around, size)
    return x.astype(self.dtype)


class Projection(nn.Module):
  """A linear map with named axes, contracting the last axes of its input, as many as `in_shape` has."""

  in_shape: tuple[int, ...]
  out_shape: tuple[int, ...]
  names: tuple[str, ...]
  scale: float
  dtype: jnp.dtype

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


ACTIVATIONS = {'quick_gelu': quick_gelu, 'gelu': functools.partial(jax.nn.gelu, approximate=False)}


class Mlp(nn.Module):
  """The MLP of a block, [B, T, D] to [B, T, D].

  'quick_gelu' is the paper's: one hidden layer. 'gelu' is the same with x * Phi(x) (Hendrycks and Gimpel 2016).
  'swiglu' multiplies two, one of them through x * sigmoid(x) (Shazeer 2020); its hidden layers are two thirds as wide,
  in whole eighths, so that it has as many parameters.
  """

  kind: str
  hidden_size: int
  init_scale: float
  out_scale: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    d = x.shape[-1]
    size = -(-2 * self.hidden_size // 24) * 8 if self.kind == 'swiglu' else self.hidden_size

    def hidden(name: str) -> jax.Array:
      y = Projection((d,), (size,), ('embed', 'mlp'), self.init_scale * d**-0.5, self.dtype, name=name)(x)
      return nn.with_logical_constraint(y, ('batch', 'length', 'mlp'))

    if self.kind == 'swiglu':
      inner = jax.nn.silu(hidden('mlp_gate')) * hidden('mlp_in')
    else:
      inner = ACTIVATIONS[self.kind](hidden('mlp_in'))
    scale = self.init_scale * self.out_scale * size**-0.5
    return Projection((size,), (d,), ('mlp_contracted', 'embed'), scale, self.dtype, name='mlp_out')(inner)


def rotate(x: jax.Array, positions: Sequence[jax.Array]) -> jax.Array:
  """Rotary positions in several dimensions (Su et al. 2021; for images as in LlamaGen, Sun et al. 2024).

  The channels of a head fall into equal parts, one for each dimension of the position. Within a part, pairs of channels
  (i, i + half) are turned by position * base^(-i / half), so that a query's product with a key depends on the
  difference of their positions.

  Args:
    x: queries or keys [B, T, N, H]; H is divisible by twice the number of dimensions.
    positions: one array [T] for each dimension.
  """
  parts = jnp.split(x.astype(jnp.float32), len(positions), axis=-1)
  turned = [_rotate_one(part, position) for part, position in zip(parts, positions, strict=True)]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _rotate_one(x: jax.Array, position: jax.Array) -> jax.Array:
  half = x.shape[-1] // 2
  rates = ROTARY_BASE ** (-jnp.arange(half) / half)
  angles = (position.astype(jnp.float32)[:, None] * rates[None])[None, :, None]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
