"""Stage 1: the relaxed evidence lower bound of the discrete VAE (section 2.1, appendix A.2), and VQ and FSQ losses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.config import Config, DvaeConfig
from dalle_jax.factory import make_dvae
from dalle_jax.models import bottleneck, likelihood
from dalle_jax.models.dvae import Dvae
from dalle_jax.training import vector_quantizer
from dalle_jax.training.tasks import Curve, image_field


def cosine_ramp(step: jax.Array, start: float, end: float, num_steps: int) -> jax.Array:
  """Half a cosine from `start` to `end` over `num_steps`, constant afterwards (appendix A.2)."""
  progress = jnp.clip(step.astype(jnp.float32) / num_steps, 0, 1)
  return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def sample_codes(logits: jax.Array, key: jax.Array) -> jax.Array:
  """Sample hard codes from the encoder's distribution: logits [B, h, w, K] to int32 [B, h, w]."""
  return jax.random.categorical(key, logits.astype(jnp.float32)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class DvaeTask:
  """Trains the collection 'dvae' on batches with 'image' uint8 [B, H, W, 3].

  With the bottleneck 'vq', the additional collection 'codebook' is updated from statistics of each batch.
  """

  config: DvaeConfig
  image_size: int
  name: str = 'dvae'
  trainable: tuple[str, ...] = ('dvae',)

  @property
  def updated(self) -> tuple[str, ...]:
    return ('codebook',) if self.config.bottleneck == 'vq' else ()

  @property
  def model(self) -> Dvae:
    return make_dvae(self.config)

  def init(self, key: jax.Array) -> dict[str, Any]:
    image = jnp.zeros((1, self.image_size, self.image_size, 3), jnp.uint8)
    tree = self.model.init(key, image)['params']
    if not self.updated:
      return {'dvae': tree}
    return {'dvae': {name: params for name, params in tree.items() if name != 'code'}, 'codebook': tree['code']}

  def update(self, collections: dict[str, Any], statistics: Any, key: jax.Array) -> dict[str, Any]:
    """Update the codebook after a step; see `vector_quantizer.update`."""
    codebook = vector_quantizer.update(
      collections['codebook'], statistics, key, decay=self.config.codebook_decay,
      restart_threshold=self.config.restart_threshold,
    )  # fmt: skip
    return {'codebook': codebook}

  def temperature(self, step: jax.Array) -> jax.Array:
    config = self.config
    return cosine_ramp(step, config.temperature_start, config.temperature_end, config.temperature_steps)

  def kl_weight(self, step: jax.Array) -> jax.Array:
    return cosine_ramp(step, 0.0, self.config.kl_weight, self.config.kl_warmup_steps)

  def apply(self, params: Any, *args: jax.Array, method: str) -> jax.Array:
    """Apply a method of the model with the parameters of all collections."""
    return self.model.apply({'params': vector_quantizer.merged(params)}, *args, method=method)

  def nll(self, image: jax.Array, stats: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood in nats per dimension, and mean squared error of the reconstruction in [0, 1]."""
    nll = likelihood.logit_laplace_nll(likelihood.map_pixels(image), stats, self.config.min_log_scale).mean()
    error = (likelihood.reconstruction(stats) - image.astype(jnp.float32)) / 255
    return nll, jnp.mean(error**2)

  def distortion(self, nll: jax.Array, image: jax.Array, stats: jax.Array, step: jax.Array) -> jax.Array:
    """NLL in nats per dimension to train on.

    This is the logit-Laplace NLL. During the first config.normal_steps steps it is a weighted mean with the NLL of a
    normal distribution, whose weight falls from 1 to 0.
    """
    if not self.config.normal_steps:
      return nll
    normal = likelihood.normal_nll(likelihood.map_pixels(image), stats, self.config.normal_scale).mean()
    weight = cosine_ramp(step, 1.0, 0.0, self.config.normal_steps)
    return weight * normal + (1 - weight) * nll

  def _kl(self, z: jax.Array) -> jax.Array:
    """Mean KL to the uniform distribution in nats per position; ln K if codes are deterministic."""
    if self.config.bottleneck == 'gumbel':
      return bottleneck.kl_to_uniform(z).mean()
    return jnp.log(jnp.float32(self.config.image_vocab_size))

  def loss(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """Mean NLL per dimension of the relaxed reconstruction, plus a term that depends on the bottleneck.

    - 'gumbel': the weighted mean KL per position.
    - 'vq': the weighted commitment loss, which is the mean squared distance from encoder outputs to their codes.
    - 'fsq': no term.
    """
    image, config = batch['image'], self.config
    z = self.apply(params, image, method='encode_latents')
    temperature = self.temperature(step)
    stats = self.apply(params, z, key, temperature, method='relaxed_stats')
    nll, mse = self.nll(image, stats)
    codes = self.apply(params, z, method='codes')
    histogram = bottleneck.code_histogram(codes, config.image_vocab_size)
    loss = self.distortion(nll, image, stats, step)
    metrics = {
      'nll_relaxed': nll,
      'psnr_relaxed': likelihood.psnr(mse),
      'codebook_perplexity': bottleneck.perplexity(histogram),
      'codebook_use': jnp.mean(histogram > 0),
    }
    if config.bottleneck == 'gumbel':
      kl, kl_weight = self._kl(z), self.kl_weight(step)
      loss += kl_weight * kl
      metrics |= {'kl_per_position': kl, 'kl_weight': kl_weight, 'temperature': temperature}
    elif config.bottleneck == 'vq':
      nearest = jax.lax.stop_gradient(self.apply(params, codes, method='code_vectors'))
      commitment = jnp.mean((z - nearest) ** 2)
      loss += config.commitment_weight * commitment
      statistics = vector_quantizer.statistics(z, codes, config.image_vocab_size, key)
      metrics |= {'commitment': commitment, 'statistics': statistics}
    return loss, metrics

  def evaluate(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    """Metrics with three kinds of codes, and the histogram [K] of the likeliest codes.

    - relaxed: relaxed codes at the step's temperature, as in training.
    - sampled: hard codes sampled from the encoder's distribution. Its KL belongs to these codes. Deterministic codes
      are their own samples.
    - hard: the likeliest codes, from `encode`.
    """
    image, floor = batch['image'], self.config.min_log_scale
    z = self.apply(params, image, method='encode_latents')
    codes = self.apply(params, z, method='codes')
    relaxed = self.apply(params, z, key, self.temperature(step), method='relaxed_stats')
    nll_relaxed, mse_relaxed = self.nll(image, relaxed)
    hard = self.apply(params, codes, method='decode_stats')
    nll_hard, mse_hard = self.nll(image, hard)
    nll_sampled, sampled = nll_hard, hard
    if self.config.bottleneck == 'gumbel':
      sampled = self.apply(params, sample_codes(z, key), method='decode_stats')
      nll_sampled, _ = self.nll(image, sampled)
    return {
      'nll_relaxed': nll_relaxed,
      'nll_sampled': nll_sampled,
      'nll_hard': nll_hard,
      'pixel_nll_sampled': likelihood.pixel_nll(image, sampled, floor).mean(),
      'mse_relaxed': mse_relaxed,
      'mse_hard': mse_hard,
      'kl_per_position': self._kl(z),
      'histogram': bottleneck.code_histogram(codes, self.config.image_vocab_size),
    }

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """Add the loss, PSNR in dB, bits per dimension, codebook use, and the NLL gap between hard and relaxed codes.

    - 'loss' is the objective of training with sampled codes instead of relaxed ones, and with the final KL weight. The
      NLL is that of the density of mapped pixels, so the loss may be negative.
    - 'bits_per_dim' is the evidence lower bound with the same sampled codes: -log2 of the probability of the 8-bit
      pixels, plus the KL with weight 1.
    - 'psnr_relaxed' and 'psnr_hard' are the PSNR of the mean squared error over all images. The mean of the PSNR of
      each image, which reports give, is higher.
    """
    histogram = np.asarray(means['histogram'], np.float64)
    kl_weight = self.config.kl_weight if self.config.bottleneck == 'gumbel' else 0.0
    loss = float(means['nll_sampled']) + kl_weight * float(means['kl_per_position'])
    return {
      'loss': loss,
      'nll_relaxed': float(means['nll_relaxed']),
      'nll_sampled': float(means['nll_sampled']),
      'nll_hard': float(means['nll_hard']),
      'relaxation_gap': float(means['nll_hard']) - float(means['nll_relaxed']),
      'psnr_relaxed': float(likelihood.psnr(means['mse_relaxed'])),
      'psnr_hard': float(likelihood.psnr(means['mse_hard'])),
      'kl_per_position': float(means['kl_per_position']),
      'bits_per_dim': self._bits_per_dim(float(means['pixel_nll_sampled']), float(means['kl_per_position'])),
      'codebook_perplexity': float(bottleneck.perplexity(jnp.asarray(histogram, jnp.float32))),
      'codebook_use': float(np.mean(histogram > 0)),
    }

  def _bits_per_dim(self, pixel_nll: float, kl: float) -> float:
    positions_per_dim = 1 / (3 * self.config.downsampling**2)
    return (pixel_nll + kl * positions_per_dim) / np.log(2)


def make_task(config: Config, text_vocab_size: int) -> DvaeTask:
  """The dVAE's task. It reads no text."""
  del text_vocab_size
  return DvaeTask(config.dvae, config.data.image_size)


batch_fields = image_field


def tokens_per_example(config: Config) -> int:
  """Image tokens of one picture."""
  return config.image_length


CURVES = (
  Curve(
    'loss', 'nats per dimension, of a density',
    {'training (relaxed codes)': 'loss', 'evaluation (sampled codes, final KL weight)': 'eval/loss'},
  ),
  Curve(
    'negative log likelihood',
    'nats per dimension, of a density',
    {
      'training (relaxed)': 'nll_relaxed',
      'evaluation, relaxed codes': 'eval/nll_relaxed',
      'evaluation, sampled codes': 'eval/nll_sampled',
      'evaluation, likeliest codes': 'eval/nll_hard',
    },
  ),
  Curve(
    'what the likeliest codes cost more than relaxed ones', 'nats per dimension',
    {'evaluation': 'eval/relaxation_gap'},
  ),
  Curve(
    'PSNR of the mean squared error', 'dB',
    {'relaxed codes': 'eval/psnr_relaxed', 'likeliest codes': 'eval/psnr_hard'},
  ),
  Curve('bits per dimension', 'bits', {'evaluation, sampled codes': 'eval/bits_per_dim'}),
  Curve('temperature', '', {'temperature': 'temperature'}),
  Curve('KL divergence', 'nats per position', {'training': 'kl_per_position', 'evaluation': 'eval/kl_per_position'}),
  Curve('commitment loss', '', {'training': 'commitment'}),
  Curve(
    'codebook perplexity', 'codes',
    {'training, within a batch': 'codebook_perplexity', 'evaluation': 'eval/codebook_perplexity'}, log=True,
  ),
  Curve(
    'codebook use', 'share of codes',
    {'training, within a batch': 'codebook_use', 'evaluation': 'eval/codebook_use'},
  ),
)  # fmt: skip
