"""Shared pieces of sequence models over a single vocabulary: the start token, token windows and the vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dalle_jax.models.sequence import Tokens


def after_start(tokens: Tokens, start: int, count: int = 1) -> jax.Array:
  """Prepend `count` start tokens, with the id `start`, to tokens [B, T]: [B, count + T]."""
  return jnp.pad(tokens, ((0, 0), (count, 0)), constant_values=start)


def windows(tokens: jax.Array, width: int, start: int) -> jax.Array:
  """The `width` tokens before each token: tokens [B, T] to [B, T, width].

  Start tokens, with the id `start`, precede the sequence.
  """
  indices = np.arange(tokens.shape[1])[:, None] + np.arange(width)[None]
  return after_start(tokens, start, width)[:, indices]


class WindowModel:
  """Base class of sequence models that read only the previous `order` - 1 tokens (see `models.sequence`).

  The cache is the window of these tokens, int [B, order - 1].
  """

  vocab_size: int
  order: int

  def of_windows(self, params: Any, window: jax.Array) -> jax.Array:
    """Logits [B, V] of the token after each window [B, order - 1]."""
    raise NotImplementedError

  def decode_params(self, params: Any) -> Any:
    return params

  def prefill(self, params: Any, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    """Read a prefix [B, P]. Returns the window of its last tokens and the logits [B, V] of token P."""
    padded = after_start(tokens, self.vocab_size, self.order - 1)
    window = padded[:, padded.shape[1] - (self.order - 1) :]
    return window, self.of_windows(params, window)

  def step(self, params: Any, cache: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    window = jnp.concatenate([cache, token[:, None]], axis=1)[:, 1:] if self.order > 1 else cache
    return window, self.of_windows(params, window)


class Vocabulary(nn.Module):
  """Token embeddings and the output matrix.

  The start token has the id `vocab_size`: it has an embedding but no logit. The output matrix starts at zero, so that
  training starts from the uniform distribution.
  """

  vocab_size: int
  embed_dim: int
  out_dim: int
  dtype: jnp.dtype = jnp.float32
  init_scale: float = 1.0  # initial standard deviation of embeddings, in units of embed_dim^-1/2

  def setup(self) -> None:
    scale = self.init_scale * self.embed_dim**-0.5
    init = nn.with_logical_partitioning(nn.initializers.normal(scale), ('vocab', 'embed'))
    self.embedding = self.param('embedding', init, (self.vocab_size + 1, self.embed_dim), jnp.float32)
    zeros = nn.initializers.zeros
    kernel_init = nn.with_logical_partitioning(zeros, ('embed', 'vocab'))
    self.output_kernel = self.param('output_kernel', kernel_init, (self.out_dim, self.vocab_size), jnp.float32)
    bias_init = nn.with_logical_partitioning(zeros, ('vocab',))
    self.output_bias = self.param('output_bias', bias_init, (self.vocab_size,), jnp.float32)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Token ids [...] to embeddings, float32 [..., embed_dim]."""
    # Replicate the table. A gather from a table split over the vocabulary makes XLA rematerialise the table in full.
    return jnp.take(nn.with_logical_constraint(self.embedding, (None, None)), tokens, axis=0)

  def logits(self, x: jax.Array) -> jax.Array:
    """Model outputs [..., out_dim] to logits, float32 [..., vocab_size]."""
    kernel = self.output_kernel.astype(self.dtype)
    product = jnp.matmul(x.astype(self.dtype), kernel, preferred_element_type=jnp.float32)
    # The logits of whole sequences may be split over the vocabulary. The logits of a single token (ndim 2) may not: the
    # sampler filters them next, for which it needs the whole vocabulary on each device.
    if x.ndim == 3:
      product = nn.with_logical_constraint(product, ('batch', 'length', 'vocab'))
    return product + self.output_bias.reshape((1,) * (x.ndim - 1) + (-1,))
