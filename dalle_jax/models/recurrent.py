"""Recurrent sequence models: the simple RNN (Elman 1990) and the LSTM (Hochreiter and Schmidhuber 1997)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models.layers import Norm
from dalle_jax.models.tokens import Vocabulary, after_start

Carry = list[Any]  # one per layer


class _Stack(nn.Module):
  """Layers one over the other; each reads the outputs of the one below.

  Outputs are normalised (RMSNorm) before they are read on, as they are small at first: without that, stacks learn so
  much more slowly that in short runs they fall behind a single layer.
  """

  kind: str
  vocab_size: int
  num_layers: int
  embed_dim: int
  hidden_size: int
  dtype: jnp.dtype

  def setup(self) -> None:
    def named(init: nn.initializers.Initializer, *axes: str) -> nn.initializers.Initializer:
      return nn.with_logical_partitioning(init, axes)

    # Split over `fsdp` too, the partitioner gave wrong gradients where three axes of the mesh are above 1.
    cell = {'rnn': nn.SimpleCell, 'lstm': nn.OptimizedLSTMCell}[self.kind]
    options = {
      'kernel_init': named(nn.initializers.lecun_normal(), 'recurrent', 'mlp'),
      'recurrent_kernel_init': named(nn.initializers.orthogonal(), 'recurrent', 'mlp'),
      'bias_init': named(nn.initializers.zeros, 'mlp'),
    }
    self.layers = [
      nn.RNN(cell(self.hidden_size, dtype=self.dtype, **options), return_carry=True) for _ in range(self.num_layers)
    ]
    self.norms = [Norm('rmsnorm', self.dtype, 'mlp') for _ in range(self.num_layers)]
    # Embeddings of deviation 1: what the cells read is not normalised.
    self.vocabulary = Vocabulary(self.vocab_size, self.embed_dim, self.hidden_size, self.dtype, self.embed_dim**0.5)

  def __call__(self, tokens: jax.Array, carry: Carry | None = None) -> tuple[Carry, jax.Array]:
    """Reads tokens [B, T], the start among them; the carry after them and the logits [B, T, V] of those that follow."""
    x, after = self.vocabulary.embed(tokens), []
    for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
      kept, x = layer(x, initial_carry=None if carry is None else carry[i])
      after.append(kept)
      x = norm(nn.with_logical_constraint(x, ('batch', 'length', 'mlp')))
    return after, self.vocabulary.logits(x)


@dataclasses.dataclass(frozen=True)
class Recurrent:
  """A sequence model (see `models.sequence`) whose cache has one size, however long the sequence."""

  kind: str
  vocab_size: int
  length: int
  num_layers: int
  embed_dim: int
  hidden_size: int
  dtype: jnp.dtype = jnp.float32

  @property
  def _stack(self) -> _Stack:
    return _Stack(self.kind, self.vocab_size, self.num_layers, self.embed_dim, self.hidden_size, self.dtype)

  def init(self, key: jax.Array) -> Any:
    return self._stack.init(key, jnp.zeros((1, 1), jnp.int32))['params']

  def _read(self, params: Any, tokens: jax.Array, carry: Carry | None = None) -> tuple[Carry, jax.Array]:
    return self._stack.apply({'params': params}, tokens, carry)

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    return self._read(params, after_start(tokens[:, :-1], self.vocab_size))[1]

  def decode_params(self, params: Any) -> Any:
    return params

  def prefill(self, params: Any, tokens: jax.Array) -> tuple[Carry, jax.Array]:
    carry, logits = self._read(params, after_start(tokens, self.vocab_size))
    return carry, logits[:, -1]

  def step(self, params: Any, cache: Carry, token: jax.Array) -> tuple[Carry, jax.Array]:
    carry, logits = self._read(params, token[:, None], cache)
    return carry, logits[:, 0]
