"""Transformer blocks and their stack (section 2.2; block form of Child et al. 2019, section 5.2).

Layers are stacked along a leading `layers` axis and scanned, so that compile time does not grow with depth. A decode
loop takes the layers apart once, outside the loop (`unstack`), and runs them unrolled.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models import attention

Cache = list[dict[str, jax.Array]]  # per layer: key and value, [B, S, N, H]


def quick_gelu(x: jax.Array) -> jax.Array:
  """x * sigmoid(1.702 x) (Child et al. 2019, section 5.2)."""
  return x * jax.nn.sigmoid(1.702 * x)


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis of [B, T, D], in float32."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.with_logical_partitioning(nn.initializers.ones, ('embed',)), (x.shape[-1],))
    bias = self.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, ('embed',)), (x.shape[-1],))
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + 1e-5)
    return (normal * scale[None, None] + bias[None, None]).astype(self.dtype)


class Projection(nn.Module):
  """A linear map with named axes, contracting the last `num_in` axes of its input."""

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


class Block(nn.Module):
  """One layer: x + attention(norm(x)), then x + mlp(norm(x)); the residual stream stays float32."""

  num_layers: int
  num_heads: int
  head_dim: int
  mlp_ratio: int
  dtype: jnp.dtype

  def setup(self) -> None:
    n, h = self.num_heads, self.head_dim
    d = n * h
    hidden = self.mlp_ratio * d
    residual = (2 * self.num_layers) ** -0.5  # keeps the variance of the residual stream independent of depth
    self.attention_norm = LayerNorm(self.dtype)
    self.qkv = Projection((d,), (3, n, h), ('embed', 'qkv', 'heads', 'head_dim'), d**-0.5, self.dtype)
    self.out = Projection((n, h), (d,), ('heads', 'head_dim', 'embed'), residual * d**-0.5, self.dtype)
    self.mlp_norm = LayerNorm(self.dtype)
    self.mlp_in = Projection((d,), (hidden,), ('embed', 'mlp'), d**-0.5, self.dtype)
    self.mlp_out = Projection((hidden,), (d,), ('mlp', 'embed'), residual * hidden**-0.5, self.dtype)

  def _qkv(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    qkv = self.qkv(self.attention_norm(x))
    qkv = nn.with_logical_constraint(qkv, ('batch', 'length', 'qkv', 'heads', 'head_dim'))
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]

  def _mlp(self, x: jax.Array) -> jax.Array:
    hidden = nn.with_logical_constraint(self.mlp_in(self.mlp_norm(x)), ('batch', 'length', 'mlp'))
    return self.mlp_out(quick_gelu(hidden)).astype(jnp.float32)

  def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, T, D] and mask [T, T] to the layer's output [B, T, D] and its keys and values."""
    query, key, value = self._qkv(x)
    x = x + self.out(attention.attend(query, key, value, mask)).astype(jnp.float32)
    x = nn.with_logical_constraint(x + self._mlp(x), ('batch', 'length', 'activation'))
    return x, {'key': key, 'value': value}

  def step(self, x: jax.Array, cache: dict[str, jax.Array], index: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The same for the one token [B, 1, D] at `index`, with the layer's cache."""
    mixed, cache = attention.attend_cached(*self._qkv(x), cache, index)
    x = x + self.out(mixed).astype(jnp.float32)
    return x + self._mlp(x), cache


class _TrainingBlock(nn.Module):
  """A block that keeps no keys and values, as the body of the scan."""

  block: Any

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
    return Block(**self.block, name='block')(x, mask)[0], None


class Transformer(nn.Module):
  """A stack of blocks over embedded tokens [B, T, D]."""

  num_layers: int
  num_heads: int
  head_dim: int
  mlp_ratio: int
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @property
  def block_fields(self) -> dict[str, Any]:
    names = ('num_layers', 'num_heads', 'head_dim', 'mlp_ratio', 'dtype')
    return {name: getattr(self, name) for name in names}

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    body = nn.remat(_TrainingBlock, prevent_cse=False) if self.remat else _TrainingBlock
    layers = nn.scan(
      body,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=self.num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    mask = jnp.asarray(attention.causal_mask(x.shape[1]))
    x, _ = layers(self.block_fields, name='layers')(x.astype(jnp.float32), mask)
    return LayerNorm(self.dtype, name='norm')(x)


def unstack(params: Any) -> Any:
  """Parameters of a `Transformer` with the layers as a list, for `prefill` and `step`."""
  stacked = params['layers']['block']
  num_layers = jax.tree.leaves(stacked)[0].shape[0]
  layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(num_layers)]
  # The barrier keeps XLA from moving the slices into the decode loop, where they would be taken for every token.
  layers = jax.lax.optimization_barrier(layers)
  return {'layers': layers, 'norm': params['norm']}


def prefill(model: Transformer, params: Any, x: jax.Array, length: int) -> tuple[Cache, jax.Array]:
  """Runs a prefix [B, P, D] through the stack.

  Args:
    model: the stack.
    params: its parameters, as `unstack` returns them.
    x: embedded tokens.
    length: slots of the cache.

  Returns:
    The cache, filled with P tokens, and the normalised output [B, P, D].
  """
  block, cache = Block(**model.block_fields), []
  mask = jnp.asarray(attention.causal_mask(x.shape[1]))
  x = x.astype(jnp.float32)
  for layer in params['layers']:
    x, kept = block.apply({'params': layer}, x, mask)
    room = ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))
    cache.append(jax.tree.map(lambda leaf, room=room: jnp.pad(leaf, room), kept))
  return cache, LayerNorm(model.dtype).apply({'params': params['norm']}, x)


def step(model: Transformer, params: Any, x: jax.Array, cache: Cache, index: jax.Array) -> tuple[Cache, jax.Array]:
  """Runs the one token [B, 1, D] at `index`; returns the cache with it and the normalised output [B, 1, D]."""
  block, new_cache = Block(**model.block_fields), []
  x = x.astype(jnp.float32)
  for layer, kept in zip(params['layers'], cache, strict=True):
    x, kept = block.apply({'params': layer}, x, kept, index, method='step')
    new_cache.append(kept)
  return new_cache, LayerNorm(model.dtype).apply({'params': params['norm']}, x)
