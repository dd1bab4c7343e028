"""The neural n-gram model (Bengio et al. 2003, section 2): an MLP on the embeddings of the previous n - 1 tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models.layers import Projection
from dalle_jax.models.tokens import Vocabulary, WindowModel, windows


class _Network(nn.Module):
  """The logits b + U tanh(d + H x), where x is the concatenation of the embeddings.

  This is equation 1 of the paper without the direct connections W.
  """

  vocab_size: int
  width: int  # tokens in a window
  embed_dim: int
  hidden_size: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, window: jax.Array) -> jax.Array:
    """Windows [..., width] to logits [..., V]."""
    scale = self.embed_dim**0.5  # initial standard deviation of 1, because no layer normalises the embeddings
    vocabulary = Vocabulary(self.vocab_size, self.embed_dim, self.hidden_size, self.dtype, scale, name='vocabulary')
    x = vocabulary.embed(window).reshape(*window.shape[:-1], self.width * self.embed_dim)
    size = x.shape[-1]
    hidden = Projection((size,), (self.hidden_size,), ('embed', 'mlp'), size**-0.5, self.dtype, name='hidden')
    return vocabulary.logits(jnp.tanh(hidden(x.astype(self.dtype))))


@dataclasses.dataclass(frozen=True)
class NeuralNgram(WindowModel):
  """A neural n-gram model of order n (see `models.sequence` for the interface)."""

  vocab_size: int
  length: int
  order: int  # n; the model reads the previous n - 1 tokens
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
