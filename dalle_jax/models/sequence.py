"""The interface of sequence models: logits of a whole sequence, prefill and step.

The decode loop, the evaluation of likelihoods, compression and training use any sequence model through this interface.
"""

from collections.abc import Hashable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
Cache = Any
Tokens = jax.Array | np.ndarray  # ids; NumPy if they are constants of the traced program


class SequenceModel(Hashable, Protocol):
  """A distribution over token sequences [B, length] with ids in [0, vocab_size). Jitted functions are cached by it."""

  @property
  def length(self) -> int:
    """Number of tokens in a whole sequence."""

  @property
  def vocab_size(self) -> int:
    """Number of token ids."""

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, boxed with their logical axis names."""

  def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Logits [B, T, V] for tokens [B, T].

    Entry [:, t] scores the candidates for tokens[:, t] given tokens[:, :t]. Impossible tokens have the logit -inf.
    """

  def decode_params(self, params: Params) -> Params:
    """Convert parameters to the layout that `prefill` and `step` read; call it once, outside the decode loop."""

  def prefill(self, params: Params, tokens: Tokens) -> tuple[Cache, jax.Array]:
    """Read a prefix [B, P], P < length. Returns the cache and the logits [B, V] of token P."""

  def step(self, params: Params, cache: Cache, token: jax.Array) -> tuple[Cache, jax.Array]:
    """Append one token [B]. Returns the cache and the logits [B, V] of the next token."""


def token_nll(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Negative log-likelihood of each token in nats: logits [..., V] and tokens [...] to [...]."""
  return jax.nn.logsumexp(logits, axis=-1) - chosen(logits, tokens)


def chosen(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Select the logit of each token: logits [..., V] and tokens [...] to [...]."""
  # A masked sum is better than a gather: with the vocabulary split over devices it only adds one all-reduce, and its
  # gradient is not a scatter.
  ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
  return jnp.sum(jnp.where(ids == tokens[..., None], logits, 0), axis=-1)
