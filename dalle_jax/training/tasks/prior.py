"""Stage 2: cross-entropy of the prior on text tokens and on the codes of the frozen dVAE (section 2.2)."""

import dataclasses
from typing import Any

import jax
import numpy as np

from dalle_jax.config import Config
from dalle_jax.factory import make_prior
from dalle_jax.models import prior as prior_model
from dalle_jax.models.prior import Prior
from dalle_jax.training.tasks import IMAGE_CURVE, TEXT_CURVE, Curve, Fields, image_field, text_field
from dalle_jax.training.tasks.codes import codes_of, init_dvae


@dataclasses.dataclass(frozen=True)
class PriorTask:
  """Trains the collection 'prior'; batches hold 'text' int32 [B, text_length - 1] and the fields of `codes_of`."""

  config: Config
  text_vocab_size: int
  name: str = 'prior'
  trainable: tuple[str, ...] = ('prior',)
  updated: tuple[str, ...] = ()

  @property
  def model(self) -> Prior:
    return make_prior(self.config, self.text_vocab_size)

  def init(self, key: jax.Array) -> dict[str, Any]:
    prior_key, dvae_key = jax.random.split(key)
    return {'prior': self.model.init(prior_key), 'dvae': init_dvae(self.config, dvae_key)}

  def _losses(self, params: Any, batch: dict, text: jax.Array, captioned: jax.Array | None = None) -> dict:
    codes = codes_of(self.config, params, batch)
    text_logits, image_logits = self.model.split_logits(params['prior'], text, codes)
    return prior_model.losses(text_logits, image_logits, text, codes, captioned)

  def _metrics(self, losses: dict) -> dict:
    weights = self.config.prior
    loss = weights.text_loss_weight * losses['text'] + weights.image_loss_weight * losses['image']
    return {'loss': loss, 'text_nats_per_token': losses['text'], 'image_nats_per_token': losses['image']}

  def _captions(self, batch: dict, key: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """The caption ids that a loss reads, and which examples have kept their captions; None means all."""
    share = self.config.prior.caption_drop
    return prior_model.drop_captions(key, batch['text'], share) if share and key is not None else (batch['text'], None)

  def weight(self, batch: dict, key: jax.Array | None = None) -> dict[str, jax.Array]:
    """The number of counted text tokens."""
    return {'text_nats_per_token': prior_model.count_text(*self._captions(batch, key))}

  def loss(
    self, params: Any, batch: dict, key: jax.Array, step: jax.Array, scales: dict[str, jax.Array] | None = None
  ) -> tuple[jax.Array, dict]:
    """text_loss_weight * nats per text token + image_loss_weight * nats per image token, plus the z-loss.

    The z-loss is z_loss_weight times the mean squared log-partition function, with the same weights for text and image
    tokens. During training each caption is dropped with probability `caption_drop`.
    """
    weights = self.config.prior
    losses = self._losses(params, batch, *self._captions(batch, key))
    if scales:
      losses |= {name: scales['text_nats_per_token'] * losses[name] for name in ('text', 'text_z')}
    metrics = self._metrics(losses)
    loss = metrics.pop('loss')
    if weights.z_loss_weight:
      z = weights.text_loss_weight * losses['text_z'] + weights.image_loss_weight * losses['image_z']
      loss, metrics['z_loss'] = loss + weights.z_loss_weight * z, z
    return loss, metrics

  def evaluate(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    return self._metrics(self._losses(params, batch, batch['text']))

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """Add the loss, and the rate of the image tokens in bits per dimension of the image.

    The loss follows from the means of its two terms, which may count different numbers of tokens in each batch.
    """
    weights = self.config.prior
    loss = (
      weights.text_loss_weight * means['text_nats_per_token']
      + weights.image_loss_weight * means['image_nats_per_token']
    )
    per_dim = self.config.image_length / (3 * self.config.data.image_size**2)
    bits = float(means['image_nats_per_token']) / np.log(2)
    return {
      **{name: float(value) for name, value in {**means, 'loss': loss}.items()},
      'image_bits_per_dim': bits * per_dim,
    }


def make_task(config: Config, text_vocab_size: int) -> PriorTask:
  """The prior's task for a tokenizer of `text_vocab_size` ids."""
  return PriorTask(config, text_vocab_size)


def batch_fields(config: Config) -> Fields:
  """Pictures and their captions."""
  return image_field(config) | text_field(config)


def tokens_per_example(config: Config) -> int:
  """Text and image tokens of one example."""
  return config.image_length + config.tokenizer.text_length


TOKEN_CURVES = (
  TEXT_CURVE,
  IMAGE_CURVE,
  Curve('bits of the image tokens per dimension of the image', 'bits', {'evaluation': 'eval/image_bits_per_dim'}),
)
CURVES = (Curve('loss', 'weighted nats per token', {'training': 'loss', 'evaluation': 'eval/loss'}), *TOKEN_CURVES)
