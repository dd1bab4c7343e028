"""The neural n-gram model (Bengio et al. 2003, section 2): an MLP over the embeddings of the last tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models.layers import Projection
from dalle_jax.models.tokens import Vocabulary, WindowModel, windows


class _Network(nn.Module):
  """b + U tanh(d + H x), x the concatenated embeddings; Bengio's equation 1 without the direct connections W."""

  vocab_size: int
  width: int
  embed_dim: int
  hidden_size: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, window: jax.Array) -> jax.Array:
    """Windows [..., width] to logits [..., V]."""
    scale = self.embed_dim**0.5  # embeddings of deviation 1: nothing normalises them
    vocabulary = Vocabulary(self.vocab_size, self.embed_dim, self.hidden_size, self.dtype, scale, name='vocabulary')
    x = vocabulary.embed(window).reshape(*window.shape[:-1], self.width * self.embed_dim)
    size = x.shape[-1]
    hidden = Projection((size,), (self.hidden_size,), ('embed', 'mlp'), size**-0.5, self.dtype, name='hidden')
    return vocabulary.logits(jnp.tanh(hidden(x.astype(self.dtype))))


@dataclasses.dataclass(frozen=True)
class NeuralNgram(WindowModel):
  """Of order n: it sees the last n - 1 tokens. A sequence model (see `models.sequence`)."""

  vocab_size: int
  length: int
  order: int
  embed_dim: int
  hidden_size: int
  dtype: jnp.dtype = jnp.float32

  @property
  def _network(self) -> _Network:
    return _Network(self.vocab_size, self.order - 1, self.embed_dim, self.hidden_size, self.dtype)

  def init(self, key: jax.Array) -> Any:
    return self._network.init(key, jnp.zeros((1, self.order - 1), jnp.int32))['params']

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    return self.of_windows(params, windows(tokens, self.order - 1, self.vocab_size))

  def of_windows(self, params: Any, window: jax.Array) -> jax.Array:
    return self._network.apply({'params': params}, window)
