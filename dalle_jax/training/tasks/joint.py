"""Joint training of dVAE and prior on the full evidence lower bound, with the prior in the KL (section 2, footnote 3).

For an image x with D dimensions, its caption y and its N codes z, the bound is (section 2, equation 1)

    ln p(x, y) >= E_q [ln p(x | z)] - KL(q(z | x) || p(z | y)) + ln p(y),

where q is the encoder, p(x | z) is the decoder, and p(z | y) and p(y) are the prior. Stage 1 maximises the bound with a
uniform p(z | y). Stage 2 maximises it over the prior with a fixed q. Here, both are trained together. The loss is that
of stage 1 with two changes: the KL is to the prior instead of the uniform distribution, and the NLL of the caption is
added:

    loss = distortion / D + kl_weight * (KL - ln p(y)) / N.

With kl_weight = N / D, which means beta = 1, loss * D is the negative bound in nats. With a uniform prior and no text,
the loss equals that of stage 1 to the last digit.

Gradients: the decoder reads the relaxed sample, as in stage 1. The prior reads one-hot codes that are sampled with the
same noise, so they are true samples of q. Their gradient with respect to the encoder is that of the relaxed sample
(straight-through), which is biased. Given the previous codes, the KL at a position is computed exactly from the
probabilities of the encoder and the prior, without another sample.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.config import Config
from dalle_jax.factory import make_prior
from dalle_jax.models import bottleneck, likelihood
from dalle_jax.models import prior as prior_model
from dalle_jax.models.prior import Prior
from dalle_jax.training.tasks import dvae, prior
from dalle_jax.training.tasks.dvae import DvaeTask


@dataclasses.dataclass(frozen=True)
class JointTask:
  """Trains 'dvae' and 'prior' on batches with 'image' uint8 [B, H, W, 3] and 'text' int32 [B, text_length - 1]."""

  config: Config
  text_vocab_size: int
  name: str = 'joint'
  trainable: tuple[str, ...] = ('dvae', 'prior')
  updated: tuple[str, ...] = ()

  @property
  def dvae(self) -> DvaeTask:
    return DvaeTask(self.config.dvae, self.config.data.image_size)

  @property
  def model(self) -> Prior:
    return make_prior(self.config, self.text_vocab_size)

  def init(self, key: jax.Array) -> dict[str, Any]:
    prior_key, dvae_key = jax.random.split(key)
    return {**self.dvae.init(dvae_key), 'prior': self.model.init(prior_key)}

  def _rates(self, params: Any, text: jax.Array, logits: jax.Array, codes: jax.Array) -> dict[str, jax.Array]:
    """KL and caption NLL in nats.

    Args:
      params: parameters of both models.
      text: caption ids [B, text_length - 1].
      logits: encoder logits [B, N, K].
      codes: input of the prior, one-hot [B, N, K].

    Returns:
      Float32 scalars: 'kl' per position, and 'text' per caption.
    """
    text_logits, image_logits = self.model.split_logits(params['prior'], text, codes)
    posterior = jax.nn.log_softmax(logits.astype(jnp.float32))
    kl = jnp.sum(jnp.exp(posterior) * (posterior - jax.nn.log_softmax(image_logits)), axis=-1)
    return {'kl': kl.mean(), 'text': prior_model.text_nats(text_logits, text).mean()}

  def weight(self, batch: dict, key: jax.Array | None = None) -> dict[str, jax.Array]:
    """The number of counted text tokens, for `evaluate`. The terms of the loss are means over all examples."""
    return {'text_nats_per_token': prior_model.count_text(batch['text'])}

  def loss(
    self, params: Any, batch: dict, key: jax.Array, step: jax.Array, scales: dict[str, jax.Array] | None = None
  ) -> tuple[jax.Array, dict]:
    """Mean NLL per dimension of the relaxed reconstruction, plus kl_weight * (KL + text) per position."""
    del scales  # no term counts tokens
    image, task = batch['image'], self.dvae
    logits = task.apply(params, image, method='encode_latents')
    soft = bottleneck.gumbel_softmax(logits, key, task.temperature(step))
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1])
    codes = bottleneck.straight_through(hard, soft)
    stats = task.apply(params, codes if self.config.dvae.straight_through else soft, method='mixed_stats')
    nll, mse = task.nll(image, stats)
    rates = self._rates(params, batch['text'], _flatten_grid(logits), _flatten_grid(codes))
    kl_weight = task.kl_weight(step)
    loss = task.distortion(nll, image, stats, step) + kl_weight * (
      rates['kl'] + rates['text'] / self.model.image_length
    )
    return loss, {
      'nll_relaxed': nll,
      'psnr_relaxed': likelihood.psnr(mse),
      'kl_per_position': rates['kl'],
      'kl_to_uniform': bottleneck.kl_to_uniform(logits).mean(),
      'text_nats': rates['text'],
      'kl_weight': kl_weight,
      'temperature': task.temperature(step),
      'codebook_perplexity': bottleneck.perplexity(bottleneck.code_histogram(jnp.argmax(logits, -1), logits.shape[-1])),
    }

  def evaluate(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    """Metrics of stage 1, with the KL to the prior at its sampled codes, and of stage 2 at the likeliest codes."""
    grid = self.dvae.apply(params, batch['image'], method='encode_latents')
    logits, sampled = _flatten_grid(grid), dvae.sample_codes(grid, key)  # the codes of `DvaeTask.evaluate`
    means = self.dvae.evaluate(params, batch, key, step)
    one_hot = jax.nn.one_hot(sampled, grid.shape[-1])
    rates = self._rates(params, batch['text'], logits, _flatten_grid(one_hot))
    codes = jnp.argmax(logits, axis=-1)
    text_logits, image_logits = self.model.split_logits(params['prior'], batch['text'], codes)
    losses = prior_model.losses(text_logits, image_logits, batch['text'], codes)
    return means | {
      'kl_to_uniform': means['kl_per_position'],
      'kl_per_position': rates['kl'],
      'text_nats': rates['text'],
      'text_nats_per_token': losses['text'],
      'image_nats_per_token': losses['image'],
    }

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """Summary of stage 1 with the KL to the prior, and the metrics of the prior.

    'loss' includes the caption's NLL. 'bits_per_dim' is the bound of the image given its caption, without it.
    """
    names = ('kl_to_uniform', 'text_nats', 'text_nats_per_token', 'image_nats_per_token')
    summary = self.dvae.summarize(means) | {name: float(means[name]) for name in names}
    text = summary['text_nats'] / self.model.image_length
    return {**summary, 'loss': summary['loss'] + self.config.dvae.kl_weight * text}


def _flatten_grid(grid: jax.Array) -> jax.Array:
  """Reshape [B, h, w, K] to [B, h * w, K], in raster order."""
  return grid.reshape(grid.shape[0], -1, grid.shape[-1])


def make_task(config: Config, text_vocab_size: int) -> JointTask:
  """The task of joint training for a tokenizer of `text_vocab_size` ids."""
  return JointTask(config, text_vocab_size)


batch_fields = prior.batch_fields
tokens_per_example = prior.tokens_per_example
CURVES = (*dvae.CURVES, *prior.TOKEN_CURVES)
