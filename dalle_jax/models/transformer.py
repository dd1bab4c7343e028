"""Transformer blocks and stacks of blocks (section 2.2; blocks as in Child et al. 2019, section 5.2).

The attention patterns of the layers repeat periodically. The parameters of whole periods are stacked along a leading
`layers` axis, and the stack scans over them, so that compile time does not grow with depth. The remaining layers follow
one by one: an incomplete period, and the last layer if it has its own pattern.

Decoding splits the stacked parameters into a list of layers (`unstack`), once and outside the decode loop, and runs the
layers unrolled.
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
from dalle_jax.models.layout import Layout

Cache = list[attention_cache.Cache]  # one per layer

MIXED = 'mixed'  # name of the attention output, for rematerialisation policies
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
  """The shape and options of all blocks in a stack. The default options are the paper's.

  Options beyond the paper:

  - `norm` and `mlp`: see `layers.Norm` and `layers.Mlp`.
  - `qk_norm` normalises queries and keys separately in each head (Chameleon, section 2.3).
  - `sandwich_norm` also normalises the output of each branch (CogView, section 2.4).
  - `rotary` rotates queries and keys by their position (see `layers.rotate`).
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
  init_scale: float = 0.125  # initial deviation of kernels, in units of fan_in^-1/2 (Child et al. 2019, section 6)
  attention_block: int = sparse_attention.BLOCK  # number of queries that share a window of keys
  dtype: jnp.dtype = jnp.float32

  @property
  def head_dim(self) -> int:
    return self.embed_dim // self.num_heads


class Block(nn.Module):
  """One layer: x + attention(norm(x)), then x + mlp(norm(x)). The residual stream is always float32."""

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
    """Inputs x [B, T, D] in the slots `index` [T] to queries, keys and values, each [B, T, N, H]."""
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
    """Add the branches to the residual stream x [B, T, D], given the attention output [B, T, N, H]."""
    branch = self.out(mixed).astype(jnp.float32)
    x = x + (self.attention_end_norm(branch) if self.shape.sandwich_norm else branch)
    branch = self.mlp(self.mlp_norm(x)).astype(jnp.float32)
    x = x + (self.mlp_end_norm(branch) if self.shape.sandwich_norm else branch)
    return nn.with_logical_constraint(x, ('batch', 'length', 'activation'))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Inputs x [B, T, D] in the first T slots to the layer's outputs [B, T, D]."""
    query, key, value = self._qkv(x, jnp.arange(x.shape[1]))
    return self._finish(x, self._attend(query, key, value))

  def observe(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Like `__call__`, but also returns the attention weights, float32 [B, N, T, T] (see `attention.weigh`).

    Attention is computed densely.
    """
    length = x.shape[1]
    query, key, value = self._qkv(x, jnp.arange(length))
    weights = attention.weigh(query, key, self.pattern.mask()[:length, :length])
    return self._finish(x, attention.mix(weights, value)), weights

  def prefill(self, x: jax.Array) -> tuple[jax.Array, attention_cache.Cache]:
    """Like `__call__`, but also returns the layer's cache for `step`."""
    query, key, value = self._qkv(x, jnp.arange(x.shape[1]))
    cache = attention_cache.from_prefix(_causal(self.pattern), key, value)
    return self._finish(x, self._attend(query, key, value)), cache

  def step(
    self, x: jax.Array, cache: attention_cache.Cache, index: jax.Array
  ) -> tuple[jax.Array, attention_cache.Cache]:
    """Process the single token x [B, 1, D] in the slot `index`.

    Returns:
      The layer's output [B, 1, D], and the layer's cache with the token added.
    """
    mixed, cache = attention_cache.attend(_causal(self.pattern), *self._qkv(x, index[None]), cache, index)
    return self._finish(x, mixed), cache


def _causal(pattern: Pattern | Unmasked) -> Pattern:
  """The pattern of a layer that has a cache; encoders, which are unmasked, have none."""
  assert isinstance(pattern, Pattern), pattern
  return pattern


def slot_positions(layout: Layout, index: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rows and columns of the slots `index` [T] for rotary positions, each [T].

  Text slot t is at (t, t). The image slot in row r and column c is at (text_length + r, text_length + c). So in a
  sequence of text alone, all channels are rotated by the usual one-dimensional positions.
  """
  text, g = layout.text_length, max(layout.grid_size, 1)
  image = index - text
  row, column = (jnp.where(image < 0, index, text + coordinate) for coordinate in (image // g, image % g))
  return row, column


class _Period(nn.Module):
  """The body of the scan: the blocks of one period."""

  shape: BlockShape
  patterns: tuple[Pattern | Unmasked, ...]
  remat: str

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    # Within a scan, XLA cannot undo rematerialisation by common subexpression elimination, so we need not prevent it.
    block = _rematerialised(self.remat, prevent_cse=False)
    for i, pattern in enumerate(self.patterns):
      x = block(self.shape, pattern, name=f'block_{i}')(x)
    return x, None


def _rematerialised(policy: str, prevent_cse: bool) -> Any:
  """The class `Block` with a rematerialisation policy, one of 'none' and `REMAT_POLICIES`."""
  if policy == 'none':
    return Block
  return nn.remat(Block, prevent_cse=prevent_cse, policy=REMAT_POLICIES[policy])


class Transformer(nn.Module):
  """A stack of blocks, followed by a norm: embedded tokens [B, T, D] to outputs [B, T, D].

  Attributes:
    shape: shape and options of the blocks.
    patterns: attention patterns of one period; layer i has the pattern i modulo the period.
    last_pattern: attention pattern of the last layer, instead of the periodic one; None means no exception.
    remat: what the backward pass recomputes. 'none': nothing. 'full': everything but the layers' inputs. 'dots':
      everything but the outputs of linear projections. 'attention': everything but the outputs of linear projections
      and of attention.
  """

  shape: BlockShape
  patterns: tuple[Pattern | Unmasked, ...]
  last_pattern: Pattern | None = None
  remat: str = 'none'

  @property
  def num_periods(self) -> int:
    """Number of whole periods, which are scanned."""
    return (self.shape.num_layers - (self.last_pattern is not None)) // len(self.patterns)

  @property
  def layer_patterns(self) -> list[Pattern | Unmasked]:
    """The attention pattern of every layer, in order."""
    patterns = [self.patterns[i % len(self.patterns)] for i in range(self.shape.num_layers)]
    return patterns if self.last_pattern is None else [*patterns[:-1], self.last_pattern]

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
    remaining = self.layer_patterns[self.num_periods * len(self.patterns) :]
    block = _rematerialised(self.remat, prevent_cse=True)
    for i, pattern in enumerate(remaining):
      x = block(self.shape, pattern, name=f'rest_{i}')(x)
    return Norm(self.shape.norm, self.shape.dtype, name='norm')(x)


def unstack(model: Transformer, params: Any) -> Any:
  """Convert the parameters of a `Transformer` for `prefill` and `step`: {'layers': a list of layers, 'norm': ...}."""
  period = len(model.patterns)
  layers = [
    jax.tree.map(lambda leaf, i=i: leaf[i], params['layers'][f'block_{j}'])
    for i in range(model.num_periods)
    for j in range(period)
  ]
  layers += [params[f'rest_{i}'] for i in range(model.shape.num_layers - len(layers))]
  # Without the barrier, XLA moves the slices into the decode loop and repeats them for every token.
  layers = jax.lax.optimization_barrier(layers)
  return {'layers': layers, 'norm': params['norm']}


def prefill(model: Transformer, params: Any, x: jax.Array) -> tuple[Cache, jax.Array]:
  """Run a prefix of P embedded tokens through the stack.

  Args:
    model: the stack.
    params: the stack's parameters, as returned by `unstack`.
    x: embedded tokens [B, P, D].

  Returns:
    The cache of the P tokens, and the normalised outputs [B, P, D].
  """
  caches, x = [], x.astype(jnp.float32)
  for layer, pattern in zip(params['layers'], model.layer_patterns, strict=True):
    x, cache = Block(model.shape, pattern).apply({'params': layer}, x, method='prefill')
    caches.append(cache)
  return caches, final_norm(model, params, x)


def step(model: Transformer, params: Any, x: jax.Array, cache: Cache, index: jax.Array) -> tuple[Cache, jax.Array]:
  """Run a single embedded token through the stack.

  Args:
    model: the stack.
    params: the stack's parameters, as returned by `unstack`.
    x: embedded token [B, 1, D].
    cache: the cache of the earlier tokens.
    index: slot of the token, int32 scalar.

  Returns:
    The cache with the token added, and the normalised output [B, 1, D].
  """
  caches, x = [], x.astype(jnp.float32)
  for layer, pattern, layer_cache in zip(params['layers'], model.layer_patterns, cache, strict=True):
    x, layer_cache = Block(model.shape, pattern).apply({'params': layer}, x, layer_cache, index, method='step')
    caches.append(layer_cache)
  return caches, final_norm(model, params, x)


def final_norm(model: Transformer, params: Any, x: jax.Array) -> jax.Array:
  """Apply the norm that follows the last layer; `params` as returned by `unstack`."""
  return Norm(model.shape.norm, model.shape.dtype).apply({'params': params['norm']}, x)
