"""Recurrent sequence models: the simple RNN (Elman 1990) and the LSTM (Hochreiter and Schmidhuber 1997)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models.layers import Norm
from dalle_jax.models.sequence import Tokens
from dalle_jax.models.tokens import Vocabulary, after_start

Carry = list[Any]  # one per layer


class _Stack(nn.Module):
  """A stack of recurrent layers with embeddings and an output matrix.

  The output of each layer is normalised by RMSNorm, because it is small at first. Without normalisation, a stack learns
  so slowly that in short runs it is worse than a single layer.
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

    # We do not split the kernels over `fsdp`, because the partitioner then computed wrong gradients on meshes with more
    # than one device along each of the three axes.
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
    # The embeddings have an initial standard deviation of 1, because the first layer's inputs are not normalised.
    self.vocabulary = Vocabulary(self.vocab_size, self.embed_dim, self.hidden_size, self.dtype, self.embed_dim**0.5)

  def __call__(self, tokens: jax.Array, carry: Carry | None = None) -> tuple[Carry, jax.Array]:
    """Read input tokens [B, T], which may include the start token.

    Returns:
      The carry after the tokens, and the logits [B, T, V]: entry [:, t] predicts the token after input t.
    """
    x, new_carry = self.vocabulary.embed(tokens), []
    for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
      layer_carry, x = layer(x, initial_carry=None if carry is None else carry[i])
      new_carry.append(layer_carry)
      x = norm(nn.with_logical_constraint(x, ('batch', 'length', 'mlp')))
    return new_carry, self.vocabulary.logits(x)


@dataclasses.dataclass(frozen=True)
class Recurrent:
  """A recurrent language model (see `models.sequence` for the interface).

  The cache is the carry of the layers. Its size does not depend on the length of the sequence.
  """

  kind: str  # 'rnn' or 'lstm'
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

  def prefill(self, params: Any, tokens: Tokens) -> tuple[Carry, jax.Array]:
    carry, logits = self._read(params, after_start(tokens, self.vocab_size))
    return carry, logits[:, -1]

  def step(self, params: Any, cache: Carry, token: jax.Array) -> tuple[Carry, jax.Array]:
    carry, logits = self._read(params, token[:, None], cache)
    return carry, logits[:, 0]
