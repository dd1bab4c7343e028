"""Both stages at once, on the whole evidence lower bound with the prior inside the KL (section 2, footnote 3).

For an image x of D dimensions, its caption y and its N codes z, the bound is (section 2, equation 1)

    ln p(x, y) >= E_q [ln p(x | z)] - KL(q(z | x) || p(z | y)) + ln p(y),

where q is the encoder, p(x | z) the decoder, and p(z | y) and p(y) the prior. Phase 1 maximises it with a uniform
p(z | y), phase 2 over the prior alone with q held still; here all of it moves. The loss is that of phase 1 with the KL
to the prior in place of the one to the uniform distribution, and the caption's cost beside it:

    loss = distortion / D + kl_weight * (KL - ln p(y)) / N,

so that with kl_weight = N / D, where beta is 1, loss * D is the negative bound in nats. If the prior is uniform and
there is no text, it is phase 1's loss to the last digit.

Gradients. The decoder gets the relaxed sample, as in phase 1. The prior reads one-hot codes, sampled by the same noise,
so they are true samples of q; towards the encoder each passes the gradient of its relaxed sample (straight-through),
which is biased. Given the codes before it, a position's KL is computed exactly from the encoder's probabilities and the
prior's, without another sample.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.config import Config
from dalle_jax.factory import make_prior
from dalle_jax.models import bottleneck
from dalle_jax.models import prior as prior_model
from dalle_jax.models.prior import Prior
from dalle_jax.training.tasks import dvae, prior
from dalle_jax.training.tasks.dvae import DvaeTask, psnr


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
    """Nats of the KL and of the caption.

    Args:
      params: of both models.
      text: ids [B, text_length - 1].
      logits: the encoder's, [B, N, K].
      codes: what the prior reads, one-hot [B, N, K].

    Returns:
      'kl' per position, and 'text' per caption; float32 scalars.
    """
    text_logits, image_logits = self.model.split_logits(params['prior'], text, codes)
    posterior = jax.nn.log_softmax(logits.astype(jnp.float32))
    kl = jnp.sum(jnp.exp(posterior) * (posterior - jax.nn.log_softmax(image_logits)), axis=-1)
    return {'kl': kl.mean(), 'text': prior_model.text_nats(text_logits, text).mean()}

  def loss(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """Mean NLL per dimension of the relaxed reconstruction, plus kl_weight * (KL + text) per position."""
    image, task = batch['image'], self.dvae
    logits = task.apply(params, image, method='encode_latents')
    soft = bottleneck.gumbel_softmax(logits, key, task.temperature(step))
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1])
    codes = bottleneck.straight_through(hard, soft)
    stats = task.apply(params, codes if self.config.dvae.straight_through else soft, method='mixed_stats')
    nll, mse = task.nll(image, stats)
    rates = self._rates(params, batch['text'], _in_line(logits), _in_line(codes))
    kl_weight = task.kl_weight(step)
    loss = task.distortion(nll, image, stats, step) + kl_weight * (
      rates['kl'] + rates['text'] / self.model.image_length
    )
    return loss, {
      'nll_relaxed': nll,
      'psnr_relaxed': psnr(mse),
      'kl_per_position': rates['kl'],
      'kl_to_uniform': bottleneck.kl_to_uniform(logits).mean(),
      'text_nats': rates['text'],
      'kl_weight': kl_weight,
      'temperature': task.temperature(step),
      'codebook_perplexity': bottleneck.perplexity(bottleneck.code_histogram(jnp.argmax(logits, -1), logits.shape[-1])),
    }

  def evaluate(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    """Phase 1's figures with the KL to the prior, given sampled codes; and the prior's, of the likeliest codes."""
    logits = _in_line(self.dvae.apply(params, batch['image'], method='encode_latents'))
    means = self.dvae.evaluate(params, batch, key, step)
    sampled = jax.random.categorical(key, logits)
    rates = self._rates(params, batch['text'], logits, jax.nn.one_hot(sampled, logits.shape[-1]))
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
    """Phase 1's summary with the prior's KL in it, and the prior's figures."""
    names = ('kl_to_uniform', 'text_nats', 'text_nats_per_token', 'image_nats_per_token')
    summary = self.dvae.summarize(means) | {name: float(means[name]) for name in names}
    text = summary['text_nats'] / self.model.image_length
    return {**summary, 'loss': summary['loss'] + self.config.dvae.kl_weight * text}


def _in_line(grid: jax.Array) -> jax.Array:
  """[B, h, w, K] in raster order: [B, h * w, K]."""
  return grid.reshape(grid.shape[0], -1, grid.shape[-1])


def make_task(config: Config, text_vocab_size: int) -> JointTask:
  """The task of joint training for a tokenizer of `text_vocab_size` ids."""
  return JointTask(config, text_vocab_size)


batch_fields = prior.batch_fields
tokens_per_example = prior.tokens_per_example
CURVES = (*dvae.CURVES, *prior.TOKEN_CURVES)
