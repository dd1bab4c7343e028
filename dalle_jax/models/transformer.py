"""Transformer blocks and their stack (section 2.2; block form of Child et al. 2019, section 5.2).

The attention patterns of the layers repeat with a period. Whole periods are stacked along a leading `layers` axis and
scanned, so that compile time does not grow with depth; the layers that are left, and a last layer with a pattern of its
own, follow one by one. A decode loop takes the layers apart once, outside the loop (`unstack`), and runs them unrolled.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from dalle_jax.models import attention, attention_cache, sparse_attention
from dalle_jax.models.attention import Pattern, Unmasked
from dalle_jax.models.layers import Mlp, Norm, Projection, rotate

Cache = list[attention_cache.Cache]  # one per layer

MIXED = 'mixed'  # what attention gives, as policies of rematerialisation name it
_LINEAR = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
REMAT_POLICIES = {
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': _LINEAR,
  'attention': jax.checkpoint_policies.save_from_both_policies(
    _LINEAR, jax.checkpoint_policies.save_only_these_names(MIXED)
  ),
}


@dataclasses.dataclass(frozen=True)
class BlockShape:
  """What all blocks of a stack have in common.

  The defaults are the paper's. Of the others, `qk_norm` normalises queries and keys, each head by itself (Chameleon,
  section 2.3); `sandwich_norm` normalises the end of each branch as well (CogView, section 2.4); `rotary` turns queries
  and keys by their position; `norm` and `mlp` are described in `models.layers`.
  """

  num_layers: int
  embed_dim: int
  num_heads: int
  mlp_ratio: int = 4
  norm: str = 'layernorm'
  mlp: str = 'quick_gelu'
  qk_norm: bool = False
  sandwich_norm: bool = False
  rotary: bool = False
  init_scale: float = 0.125  # of the kernels, times fan_in^-1/2 (Child et al. 2019, section 6)
  attention_block: int = sparse_attention.BLOCK  # queries that share a window of keys
  dtype: jnp.dtype = jnp.float32

  @property
  def head_dim(self) -> int:
    return self.embed_dim // self.num_heads


class Block(nn.Module):
  """One layer: x + attention(norm(x)), then x + mlp(norm(x)); the residual stream stays float32."""

  shape: BlockShape
  pattern: Pattern | Unmasked

  def setup(self) -> None:
    s = self.shape
    d, n, h = s.embed_dim, s.num_heads, s.head_dim
    residual = (2 * s.num_layers) ** -0.5  # keeps the variance of the residual stream independent of depth
    scale = s.init_scale * d**-0.5
    self.attention_norm, self.mlp_norm = (Norm(s.norm, s.dtype) for _ in range(2))
    self.qkv = Projection((d,), (3, n, h), ('embed', 'qkv', 'heads', 'head_dim'), scale, s.dtype)
    self.out = Projection((n, h), (d,), ('heads', 'head_dim', 'embed'), residual * scale, s.dtype)
    self.mlp = Mlp(s.mlp, s.mlp_ratio * d, s.init_scale, residual, s.dtype)
    if s.qk_norm:
      self.query_norm, self.key_norm = (Norm(s.norm, s.dtype, 'head_dim') for _ in range(2))
    if s.sandwich_norm:
      self.attention_end_norm, self.mlp_end_norm = (Norm(s.norm, jnp.float32) for _ in range(2))

  def _qkv(self, x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values [B, T, N, H] of x [B, T, D], which is in the slots `index` [T]."""
    qkv = self.qkv(self.attention_norm(x))
    qkv = nn.with_logical_constraint(qkv, ('batch', 'length', 'qkv', 'heads', 'head_dim'))
    query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    if self.shape.qk_norm:
      query, key = self.query_norm(query), self.key_norm(key)
    if self.shape.rotary:
      positions = slot_positions(self.pattern, index)
      query, key = rotate(query, positions), rotate(key, positions)
    return query, key, value

  def _attend(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    mixed = sparse_attention.attend(self.pattern, query, key, value, self.shape.attention_block)
    return checkpoint_name(mixed, MIXED)

  def _finish(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
    """The residual stream [B, T, D] after this layer, from what attention gave, [B, T, N, H]."""
    branch = self.out(mixed).astype(jnp.float32)
    x = x + (self.attention_end_norm(branch) if self.shape.sandwich_norm else branch)
    branch = self.mlp(self.mlp_norm(x)).astype(jnp.float32)
    x = x + (self.mlp_end_norm(branch) if self.shape.sandwich_norm else branch)
    return nn.with_logical_constraint(x, ('batch', 'length', 'activation'))

  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] in the first T slots to the layer's output [B, T, D]."""
    query, key, value = self._qkv(x, jnp.arange(x.shape[1]))
    return self._finish(x, self._attend(query, key, value))

  def observe(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same, computed densely, with the weights of attention, float32 [B, N, T, T]; see `attention.weigh`."""
    length = x.shape[1]
    query, key, value = self._qkv(x, jnp.arange(length))
    weights = attention.weigh(query, key, self.pattern.mask()[:length, :length])
    return self._finish(x, attention.mix(weights, value)), weights

  def prefill(self, x: jax.Array) -> tuple[jax.Array, attention_cache.Cache]:
    """The same, with the cache that `step` continues from."""
    query, key, value = self._qkv(x, jnp.arange(x.shape[1]))
    cache = attention_cache.from_prefix(self.pattern, key, value)
    return self._finish(x, self._attend(query, key, value)), cache

  def step(
    self, x: jax.Array, cache: attention_cache.Cache, index: jax.Array
  ) -> tuple[jax.Array, attention_cache.Cache]:
    """The same for the one token [B, 1, D] in the slot `index`, with the layer's cache."""
    mixed, cache = attention_cache.attend(self.pattern, *self._qkv(x, index[None]), cache, index)
    return self._finish(x, mixed), cache


def slot_positions(pattern: Pattern, index: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Row and column of slots [T] for rotary positions.

  Text lies on the diagonal, slot t at (t, t), and the image continues from its end: row r and column c are at
  (text_length + r, text_length + c). So text alone has the usual positions in one dimension, in all channels.
  """
  text, g = pattern.text_length, max(pattern.grid_size, 1)
  image = index - text
  row, column = (jnp.where(image < 0, index, text + part) for part in (image // g, image % g))
  return row, column


class _Period(nn.Module):
  """The blocks of one period, as the body of the scan."""

  shape: BlockShape
  patterns: tuple[Pattern | Unmasked, ...]
  remat: str

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    block = _rematerialised(self.remat, prevent_cse=False)  # the scan keeps XLA from undoing it
    for i, pattern in enumerate(self.patterns):
      x = block(self.shape, pattern, name=f'block_{i}')(x)
    return x, None


def _rematerialised(policy: str, prevent_cse: bool) -> Any:
  if policy == 'none':
    return Block
  return nn.remat(Block, prevent_cse=prevent_cse, policy=REMAT_POLICIES[policy])


class Transformer(nn.Module):
  """A stack of blocks over embedded tokens [B, T, D].

  Layer i has the pattern i modulo the period; `last_pattern`, where there is one, is that of the last layer. `remat`
  says what the backward pass computes again: 'none'; 'full', everything but the layers' inputs; 'dots', everything but
  the results of the linear maps; 'attention', everything but those and what attention gives.
  """

  shape: BlockShape
  patterns: tuple[Pattern | Unmasked, ...]
  last_pattern: Pattern | None = None
  remat: str = 'none'

  @property
  def num_periods(self) -> int:
    return (self.shape.num_layers - (self.last_pattern is not None)) // len(self.patterns)

  @property
  def layer_patterns(self) -> list[Pattern | Unmasked]:
    """The pattern of every layer."""
    count, period = self.shape.num_layers, len(self.patterns)
    found = [self.patterns[i % period] for i in range(count)]
    return found if self.last_pattern is None else [*found[:-1], self.last_pattern]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    if self.num_periods:
      layers = nn.scan(
        _Period,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=self.num_periods,
        metadata_params={nn.PARTITION_NAME: 'layers'},
      )
      x, _ = layers(self.shape, self.patterns, self.remat, name='layers')(x, None)
    rest = self.layer_patterns[self.num_periods * len(self.patterns) :]
    block = _rematerialised(self.remat, prevent_cse=True)
    for i, pattern in enumerate(rest):
      x = block(self.shape, pattern, name=f'rest_{i}')(x)
    return Norm(self.shape.norm, self.shape.dtype, name='norm')(x)


def unstack(model: Transformer, params: Any) -> Any:
  """Parameters of a `Transformer` with the layers as a list, for `prefill` and `step`."""
  period = len(model.patterns)
  layers = [
    jax.tree.map(lambda leaf, i=i: leaf[i], params['layers'][f'block_{j}'])
    for i in range(model.num_periods)
    for j in range(period)
  ]
  layers += [params[f'rest_{i}'] for i in range(model.shape.num_layers - len(layers))]
  # The barrier keeps XLA from moving the slices into the decode loop, where they would be taken for every token.
  layers = jax.lax.optimization_barrier(layers)
  return {'layers': layers, 'norm': params['norm']}


def prefill(model: Transformer, params: Any, x: jax.Array) -> tuple[Cache, jax.Array]:
  """Runs a prefix [B, P, D] through the stack.

  Args:
    model: the stack.
    params: its parameters, as `unstack` returns them.
    x: embedded tokens.

  Returns:
    The cache, filled with P tokens, and the normalised output [B, P, D].
  """
  caches, x = [], x.astype(jnp.float32)
  for layer, pattern in zip(params['layers'], model.layer_patterns, strict=True):
    x, cache = Block(model.shape, pattern).apply({'params': layer}, x, method='prefill')
    caches.append(cache)
  return caches, final_norm(model, params, x)


def step(model: Transformer, params: Any, x: jax.Array, cache: Cache, index: jax.Array) -> tuple[Cache, jax.Array]:
  """Runs the one token [B, 1, D] at `index`; returns the cache with it and the normalised output [B, 1, D]."""
  caches, x = [], x.astype(jnp.float32)
  for layer, pattern, kept in zip(params['layers'], model.layer_patterns, cache, strict=True):
    x, kept = Block(model.shape, pattern).apply({'params': layer}, x, kept, index, method='step')
    caches.append(kept)
  return caches, final_norm(model, params, x)


def final_norm(model: Transformer, params: Any, x: jax.Array) -> jax.Array:
  """What follows the last layer; `params` as `unstack` returns them."""
  return Norm(model.shape.norm, model.shape.dtype).apply({'params': params['norm']}, x)
