"""A transformer with full causal attention over a single vocabulary, as a sequence model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models import transformer
from dalle_jax.models.sequence import Tokens
from dalle_jax.models.tokens import Vocabulary, after_start


class _Embeddings(nn.Module):
  """Token embeddings, learned position embeddings unless positions are rotary, and the output matrix."""

  vocab_size: int
  length: int
  embed_dim: int
  init_scale: float
  learned_positions: bool
  dtype: jnp.dtype

  def setup(self) -> None:
    self.vocabulary = Vocabulary(self.vocab_size, self.embed_dim, self.embed_dim, self.dtype, self.init_scale)
    if self.learned_positions:
      scale = self.init_scale * self.embed_dim**-0.5
      init = nn.with_logical_partitioning(nn.initializers.normal(scale), ('position', 'embed'))
      self.position = self.param('position', init, (self.length, self.embed_dim), jnp.float32)

  def embed(self, tokens: jax.Array, slots: jax.Array) -> jax.Array:
    """Embed the tokens [B, T] in the slots [T]: [B, T, D]."""
    x = self.vocabulary.embed(tokens)
    return x + self.position[slots][None] if self.learned_positions else x

  def logits(self, x: jax.Array) -> jax.Array:
    return self.vocabulary.logits(x)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    return self.logits(self.embed(tokens, jnp.arange(tokens.shape[1])))


@dataclasses.dataclass(frozen=True)
class TransformerLanguageModel:
  """A transformer language model (see `models.sequence` for the interface).

  The inputs are the tokens shifted right: slot 0 holds the start token and slot t holds token t - 1. Slot t predicts
  token t.
  """

  vocab_size: int
  transformer: transformer.Transformer
  embedding_init_scale: float = 1.0  # initial standard deviation of embeddings, in units of embed_dim^-1/2

  @property
  def length(self) -> int:
    return self.transformer.patterns[0].length

  @property
  def _embeddings(self) -> _Embeddings:
    shape = self.transformer.shape
    return _Embeddings(
      self.vocab_size, self.length, shape.embed_dim, self.embedding_init_scale, not shape.rotary, shape.dtype
    )

  def _apply(self, params: Any, *args: jax.Array, method: str) -> jax.Array:
    return self._embeddings.apply({'params': params['embeddings']}, *args, method=method)

  def init(self, key: jax.Array) -> Any:
    embed_key, stack_key = jax.random.split(key)
    x = jnp.zeros((1, self.length, self.transformer.shape.embed_dim))
    return {
      'embeddings': self._embeddings.init(embed_key, jnp.zeros((1, 1), jnp.int32))['params'],
      'transformer': self.transformer.init(stack_key, x)['params'],
    }

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    x = self.transformer.apply({'params': params['transformer']}, self.embed(params, tokens))
    return self.read_out(params, x, tokens)

  def embed(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Tokens [B, T] to the inputs [B, T, D] of the transformer stack."""
    x = self._apply(params, after_start(tokens[:, :-1], self.vocab_size), jnp.arange(tokens.shape[1]), method='embed')
    return nn.with_logical_constraint(x, ('batch', 'length', 'activation'))

  def read_out(self, params: Any, x: jax.Array, tokens: jax.Array) -> jax.Array:
    """The stack's outputs [B, T, D] for tokens [B, T] to logits [B, T, V]."""
    del tokens  # the prior needs them to rule out impossible tokens; here every token is possible
    return self._apply(params, x, method='logits')

  def decode_params(self, params: Any) -> Any:
    return {**params, 'transformer': transformer.unstack(self.transformer, params['transformer'])}

  def prefill(self, params: Any, tokens: Tokens) -> tuple[Any, jax.Array]:
    inputs = after_start(tokens, self.vocab_size)
    x = self._apply(params, inputs, jnp.arange(inputs.shape[1]), method='embed')
    layers, x = transformer.prefill(self.transformer, params['transformer'], x)
    logits = self._apply(params, x[:, -1], method='logits')
    return {'layers': layers, 'index': jnp.int32(tokens.shape[1])}, logits

  def step(self, params: Any, cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
    index = cache['index'] + 1  # the token's slot
    x = self._apply(params, token[:, None], index[None], method='embed')
    layers, x = transformer.step(self.transformer, params['transformer'], x, cache['layers'], index)
    return {'layers': layers, 'index': index}, self._apply(params, x[:, 0], method='logits')
