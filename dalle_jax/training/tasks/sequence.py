"""Cross-entropy of a sequence model over text, codes of a frozen dVAE, or captions followed by codes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.config import Config
from dalle_jax.factory import make_sequence_model
from dalle_jax.models.sequence import SequenceModel, token_nll
from dalle_jax.models.stream import StreamModel
from dalle_jax.training.tasks import IMAGE_CURVE, TEXT_CURVE, Curve, Fields, image_field, text_field
from dalle_jax.training.tasks.codes import codes_of, init_dvae


@dataclasses.dataclass(frozen=True)
class SequenceTask:
  """Trains the collection 'model' on batches with 'tokens' int32 [B, length]."""

  config: Config
  vocab_size: int  # number of text ids of the tokenizer
  name: str = 'sequence'
  trainable: tuple[str, ...] = ('model',)
  updated: tuple[str, ...] = ()

  @property
  def model(self) -> SequenceModel:
    return make_sequence_model(self.config, self.vocab_size)

  def init(self, key: jax.Array) -> dict[str, Any]:
    return {'model': self.model.init(key)}

  def figures(self, params: Any, batch: dict) -> dict[str, jax.Array]:
    """Mean nats per token by name; 'nats_per_token' is the mean over all tokens."""
    tokens = batch['tokens']
    return {'nats_per_token': token_nll(self.model.logits(params['model'], tokens), tokens).mean()}

  def loss(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """Mean nats per token."""
    figures = self.figures(params, batch)
    return figures['nats_per_token'], figures

  def evaluate(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    return self.figures(params, batch)

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """Add bits per token and perplexity."""
    figures = {name: float(value) for name, value in means.items()}
    nats = figures['nats_per_token']
    perplexity = math.exp(nats) if nats < 700 else math.inf
    return {'loss': nats, **figures, 'bits_per_token': nats / math.log(2), 'perplexity': perplexity}


@dataclasses.dataclass(frozen=True)
class ImageTokensTask(SequenceTask):
  """Trains on image codes: batches hold the fields of `codes_of` and, for 'text_image', 'text' [B, text_length - 1].

  'text' is int32. The frozen collection 'dvae' encodes images. A pad that follows another pad has probability 1, so
  it is not counted.
  """

  @property
  def model(self) -> StreamModel:
    model = make_sequence_model(self.config, self.vocab_size)
    assert isinstance(model, StreamModel), self.config.model.tokens
    return model

  def init(self, key: jax.Array) -> dict[str, Any]:
    model_key, dvae_key = jax.random.split(key)
    return {'model': self.model.init(model_key), 'dvae': init_dvae(self.config, dvae_key)}

  def tokens(self, params: Any, batch: dict) -> jax.Array:
    """Token sequences [B, length] of a batch: caption tokens, if any, and image codes."""
    codes = codes_of(self.config, params, batch)
    text = batch['text'] if self.model.text_length else jnp.zeros((len(codes), 0), codes.dtype)
    return self.model.stream(text, codes)

  def weight(self, batch: dict, key: jax.Array | None = None) -> dict[str, jax.Array]:
    """The number of counted tokens, and of those in captions; nothing without captions, as then all count alike."""
    model = self.model
    if not model.text_length:
      return {}
    codes = jnp.zeros((len(batch['text']), model.image_length), batch['text'].dtype)
    counted = model.counted(model.stream(batch['text'], codes)).astype(jnp.float32)
    return {'nats_per_token': counted.sum(), 'text_nats_per_token': counted[:, : model.text_length].sum()}

  def loss(
    self, params: Any, batch: dict, key: jax.Array, step: jax.Array, scales: dict[str, jax.Array] | None = None
  ) -> tuple[jax.Array, dict]:
    """Mean nats per counted token."""
    figures = self.figures(params, batch)
    figures |= {name: scale * figures[name] for name, scale in (scales or {}).items()}
    return figures['nats_per_token'], figures

  def figures(self, params: Any, batch: dict) -> dict[str, jax.Array]:
    model, tokens = self.model, self.tokens(params, batch)
    counted = model.counted(tokens)
    nats = token_nll(model.logits(params['model'], tokens), tokens) * counted

    def mean(positions: slice) -> jax.Array:
      return nats[:, positions].sum() / counted[:, positions].sum()

    figures = {'nats_per_token': mean(slice(None))}
    if model.text_length:
      figures['text_nats_per_token'] = mean(slice(None, model.text_length))
      figures['image_nats_per_token'] = mean(slice(model.text_length, None))
    return figures


def make_task(config: Config, text_vocab_size: int) -> SequenceTask:
  """The task of `config.model.tokens` for a tokenizer of `text_vocab_size` ids; image tokens alone need none."""
  return (SequenceTask if config.models_text else ImageTokensTask)(config, text_vocab_size)


def batch_fields(config: Config) -> Fields:
  """Windows of text; or pictures, with their captions where the model reads them."""
  if config.models_text:
    return {'tokens': ((config.sequence_length,), np.int32)}
  return image_field(config) | (text_field(config) if config.reads_captions else {})


def tokens_per_example(config: Config) -> int:
  """Tokens of one sequence."""
  return config.sequence_length


CURVES = (
  Curve('loss', 'nats per token', {'training': 'nats_per_token', 'evaluation': 'eval/nats_per_token'}),
  TEXT_CURVE,
  IMAGE_CURVE,
)
