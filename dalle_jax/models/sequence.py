"""The contract of sequence models: whole-sequence logits, prefill and step.

The decode loop, the likelihood evaluation and whatever else reads a sequence are written once against it.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

Params = Any
Cache = Any


class SequenceModel(Protocol):
  """A distribution over token sequences [B, length] with ids in [0, vocab_size)."""

  @property
  def length(self) -> int:
    """Tokens of a whole sequence."""

  @property
  def vocab_size(self) -> int:
    """Number of token ids."""

  def init(self, key: jax.Array) -> Params:
    """Parameters, boxed with their logical axis names."""

  def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Logits [B, T, V]: entry [:, t] scores tokens[:, t] given tokens[:, :t]; impossible tokens get -inf."""

  def decode_params(self, params: Params) -> Params:
    """Parameters in the layout in which `prefill` and `step` are fastest; call it once, outside any loop."""

  def prefill(self, params: Params, tokens: jax.Array) -> tuple[Cache, jax.Array]:
    """Reads a prefix [B, P], P < length; returns the cache and the logits [B, V] of token P."""

  def step(self, params: Params, cache: Cache, token: jax.Array) -> tuple[Cache, jax.Array]:
    """Appends one token [B]; returns the cache and the logits [B, V] of the token after it."""


def token_nll(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """-ln softmax(logits)[tokens] in nats: logits [..., V] and tokens [...] to [...]."""
  return jax.nn.logsumexp(logits, axis=-1) - chosen(logits, tokens)


def chosen(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """The logits [...] of tokens [...], of logits [..., V]."""
  # A sum needs nothing but another sum where the vocabulary is split over devices, and has no scatter for a gradient.
  ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
  return jnp.sum(jnp.where(ids == tokens[..., None], logits, 0), axis=-1)
