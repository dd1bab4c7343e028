"""Stage 1: the discrete VAE's relaxed evidence lower bound (section 2.1, appendix A.2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.config import DvaeConfig
from dalle_jax.factory import make_dvae
from dalle_jax.models import bottleneck, likelihood
from dalle_jax.models.dvae import Dvae


def cosine_ramp(step: jax.Array, start: float, end: float, num_steps: int) -> jax.Array:
  """From `start` to `end` along half a cosine over `num_steps`, constant afterwards (appendix A.2)."""
  progress = jnp.clip(step.astype(jnp.float32) / num_steps, 0, 1)
  return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


@dataclasses.dataclass(frozen=True)
class DvaeTask:
  """Trains the collection 'dvae' on batches with 'image' uint8 [B, H, W, 3]."""

  config: DvaeConfig
  image_size: int
  name: str = 'dvae'
  trainable: tuple[str, ...] = ('dvae',)

  @property
  def model(self) -> Dvae:
    return make_dvae(self.config)

  def init(self, key: jax.Array) -> dict[str, Any]:
    image = jnp.zeros((1, self.image_size, self.image_size, 3), jnp.uint8)
    return {'dvae': self.model.init(key, image)['params']}

  def temperature(self, step: jax.Array) -> jax.Array:
    config = self.config
    return cosine_ramp(step, config.temperature_start, config.temperature_end, config.temperature_steps)

  def kl_weight(self, step: jax.Array) -> jax.Array:
    return cosine_ramp(step, 0.0, self.config.kl_weight, self.config.kl_warmup_steps)

  def _decode(self, params: Any, codes: jax.Array) -> jax.Array:
    """Pixel statistics [B, H, W, 6] of relaxed or integer codes."""
    return self.model.apply({'params': params['dvae']}, codes, method='decode_stats')

  def _nll(self, image: jax.Array, stats: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nats per dimension, and mean squared error of the reconstruction in [0, 1]."""
    nll = likelihood.logit_laplace_nll(likelihood.map_pixels(image), stats, self.config.min_log_scale).mean()
    error = (likelihood.reconstruction(stats) - image.astype(jnp.float32)) / 255
    return nll, jnp.mean(error**2)

  def _distortion(self, nll: jax.Array, image: jax.Array, stats: jax.Array, step: jax.Array) -> jax.Array:
    """The NLL that is trained on: logit-Laplace, or during the first `normal_steps` its mixture with the normal's."""
    if not self.config.normal_steps:
      return nll
    normal = likelihood.normal_nll(likelihood.map_pixels(image), stats, self.config.normal_scale).mean()
    weight = cosine_ramp(step, 1.0, 0.0, self.config.normal_steps)
    return weight * normal + (1 - weight) * nll

  def loss(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """Mean NLL per dimension of the relaxed reconstruction, plus the weighted mean KL per position."""
    image = batch['image']
    logits = self.model.apply({'params': params['dvae']}, image, method='encode_logits')
    temperature, kl_weight = self.temperature(step), self.kl_weight(step)
    stats = self._decode(params, bottleneck.gumbel_softmax(logits, key, temperature))
    nll, mse = self._nll(image, stats)
    kl = bottleneck.kl_to_uniform(logits).mean()
    histogram = bottleneck.code_histogram(jnp.argmax(logits, -1), self.config.image_vocab_size)
    loss = self._distortion(nll, image, stats, step) + kl_weight * kl
    return loss, {
      'nll_relaxed': nll,
      'psnr_relaxed': _psnr(mse),
      'kl_per_position': kl,
      'kl_weight': kl_weight,
      'temperature': temperature,
      'codebook_perplexity': bottleneck.perplexity(histogram),
    }

  def evaluate(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    """Relaxed figures at the step's temperature, hard ones with argmax codes, and the code histogram [K]."""
    image = batch['image']
    logits = self.model.apply({'params': params['dvae']}, image, method='encode_logits')
    relaxed = bottleneck.gumbel_softmax(logits, key, self.temperature(step))
    codes = jnp.argmax(logits, -1)
    nll_relaxed, mse_relaxed = self._nll(image, self._decode(params, relaxed))
    nll_hard, mse_hard = self._nll(image, self._decode(params, codes))
    return {
      'nll_relaxed': nll_relaxed,
      'nll_hard': nll_hard,
      'mse_relaxed': mse_relaxed,
      'mse_hard': mse_hard,
      'kl_per_position': bottleneck.kl_to_uniform(logits).mean(),
      'histogram': bottleneck.code_histogram(codes, self.config.image_vocab_size),
    }

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """Adds PSNR in dB, bits per dimension, and how the codebook is used.

    Bits per dimension are those of 8-bit pixels under the evidence lower bound: the likelihood's density is turned
    into a probability with the width of a pixel's bin, 0.8/255, and the KL is counted at its true weight.
    """
    histogram = np.asarray(means['histogram'], np.float64)
    loss = float(means['nll_hard']) + self.config.kl_weight * float(means['kl_per_position'])
    return {
      'loss': loss,
      'nll_relaxed': float(means['nll_relaxed']),
      'nll_hard': float(means['nll_hard']),
      'psnr_relaxed': float(_psnr(means['mse_relaxed'])),
      'psnr_hard': float(_psnr(means['mse_hard'])),
      'kl_per_position': float(means['kl_per_position']),
      'bits_per_dim': self._bits_per_dim(float(means['nll_hard']), float(means['kl_per_position'])),
      'codebook_perplexity': float(bottleneck.perplexity(jnp.asarray(histogram, jnp.float32))),
      'codebook_use': float(np.mean(histogram > 0)),
    }

  def _bits_per_dim(self, nll: float, kl: float) -> float:
    positions_per_dim = 1 / (3 * self.config.downsampling**2)
    bin_width = (1 - 2 * likelihood.EPSILON) / 255
    return (nll - np.log(bin_width) + kl * positions_per_dim) / np.log(2)


def _psnr(mse: Any) -> Any:
  """Peak signal-to-noise ratio in dB of a mean squared error on [0, 1]."""
  return -10 * jnp.log10(jnp.maximum(mse, 1e-10))
