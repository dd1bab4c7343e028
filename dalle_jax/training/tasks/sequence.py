"""The cross-entropy of a sequence model over one kind of token."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from dalle_jax.config import Config
from dalle_jax.factory import make_sequence_model
from dalle_jax.models.sequence import SequenceModel, token_nll


@dataclasses.dataclass(frozen=True)
class SequenceTask:
  """Trains the collection 'model' on batches with 'tokens' int32 [B, length]."""

  config: Config
  vocab_size: int
  name: str = 'sequence'
  trainable: tuple[str, ...] = ('model',)
  updated: tuple[str, ...] = ()

  @property
  def model(self) -> SequenceModel:
    return make_sequence_model(self.config, self.vocab_size)

  def init(self, key: jax.Array) -> dict[str, Any]:
    return {'model': self.model.init(key)}

  def _nats(self, params: Any, tokens: jax.Array) -> jax.Array:
    return token_nll(self.model.logits(params['model'], tokens), tokens).mean()

  def loss(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """Mean nats per token."""
    nats = self._nats(params, batch['tokens'])
    return nats, {'nats_per_token': nats}

  def evaluate(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    return {'nats_per_token': self._nats(params, batch['tokens'])}

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """Adds bits per token and perplexity."""
    nats = float(means['nats_per_token'])
    perplexity = math.exp(nats) if nats < 700 else math.inf
    return {'loss': nats, 'nats_per_token': nats, 'bits_per_token': nats / math.log(2), 'perplexity': perplexity}
