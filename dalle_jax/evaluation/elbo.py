"""The evidence lower bound of images and captions, with a uniform and with the learned prior (section 2, equation 1).

For an image x of D dimensions with caption y, and its N codes z of K values:

    -ln p(x, y) <= E_q [-ln p(x | z)] + KL(q(z | x) || p(z | y)) - ln p(y).

Phase 1 of training minimises the first two terms with p(z | y) = K^-N. Phase 2 minimises the last two terms over the
prior, with q fixed. We measure both priors on the same codes, which gives the gain of phase 2 for every image.

We measure two posteriors:
- 'sampled' is the encoder's distribution q. One z is sampled from it per image; the entropy of q is exact.
- 'argmax' is the point mass on the likeliest codes, which phase 2 trains on. Its entropy is 0, so its KL to the
  uniform prior is N ln K.

Likelihoods are probabilities of 8-bit pixels: the density of the mapped pixels (appendix A.3), integrated over each
pixel's bin (`likelihood.pixel_nll`). Training minimises the density itself; only 'phase_1_loss' and 'density_nll' use
it.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.models import likelihood
from dalle_jax.models import prior as prior_model
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.sequence import token_nll

POSTERIORS = ('sampled', 'argmax')


def nats(
  dvae: Dvae, prior: Prior | None, min_log_scale: float, params: Any, batch: dict, index: jax.Array, seed: jax.Array
) -> dict[str, jax.Array]:
  """Compute the terms of the bound for each image of a batch, in nats.

  Args:
    dvae: the dVAE module.
    prior: the learned prior; None measures the uniform prior only.
    min_log_scale: the lower limit of the likelihood's ln b, as in training.
    params: the parameters of the dVAE and the prior, under 'dvae' and 'prior'.
    batch: 'image' uint8 [B, H, W, 3] and, with a prior, 'text' [B, text_length - 1].
    index: int [B], the images' numbers; image i samples its codes with fold_in(key(seed), i).
    seed: the seed of the sampled codes.

  Returns:
    Arrays [B] by name. For each posterior P: 'P/distortion' (-ln p(x | z) of the 8-bit pixels), 'P/density_nll' (-ln of
    the density of the mapped pixels), 'P/kl_uniform' and, with a prior, 'P/kl_prior'. With a prior also 'text' (-ln
    p(y)). A dVAE with deterministic codes has only the posterior 'argmax'.
  """
  image = batch['image']
  variables = {'params': params['dvae']}
  z = dvae.apply(variables, image, method='encode_latents')
  terms = {}
  for posterior in POSTERIORS if dvae.bottleneck == 'gumbel' else ('argmax',):
    codes, entropy = _draw(dvae, variables, z, posterior, index, seed)
    stats = dvae.apply(variables, codes, method='decode_stats')
    density = likelihood.logit_laplace_nll(likelihood.map_pixels(image), stats, min_log_scale)
    terms[f'{posterior}/distortion'] = jnp.sum(likelihood.pixel_nll(image, stats, min_log_scale), axis=(1, 2, 3))
    terms[f'{posterior}/density_nll'] = jnp.sum(density, axis=(1, 2, 3))
    terms[f'{posterior}/kl_uniform'] = codes[0].size * math.log(dvae.image_vocab_size) - entropy
    if prior is not None:
      flat = codes.reshape(len(image), -1)
      text_logits, image_logits = prior.split_logits(params['prior'], batch['text'], flat)
      terms[f'{posterior}/kl_prior'] = token_nll(image_logits, flat).sum(-1) - entropy
      terms['text'] = prior_model.text_nats(text_logits, batch['text'])
  return terms


def _draw(
  dvae: Dvae, variables: Any, z: jax.Array, posterior: str, index: jax.Array, seed: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Get codes from a posterior: int32 [B, h, w], and the posterior's entropy in nats, [B]."""
  if posterior == 'argmax':
    return dvae.apply(variables, z, method='codes'), jnp.zeros(len(z))
  base = jax.random.key(seed)
  keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(index)
  log_probs = jax.nn.log_softmax(z.astype(jnp.float32), axis=-1)
  codes = jax.vmap(jax.random.categorical)(keys, log_probs).astype(jnp.int32)
  return codes, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=(1, 2, 3))


def measure(
  dvae: Dvae,
  prior: Prior | None,
  min_log_scale: float,
  params: Any,
  batches: Iterable[tuple[int, dict[str, np.ndarray]]],
  mesh: Mesh,
  seed: int,
  progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
  """Compute `nats` for M images in batches.

  Args:
    dvae: as for `nats`.
    prior: as for `nats`.
    min_log_scale: as for `nats`.
    params: as for `nats`, on the mesh.
    batches: pairs (number of real rows, numpy batch); all batches have one shape. Rows after the real ones are padding.
    mesh: the device mesh that splits the batches.
    seed: as for `nats`.
    progress: called with the number of images done after each batch.

  Returns:
    The arrays of `nats`, float64 [M] each.
  """
  run = jax.jit(functools.partial(nats, dvae, prior, min_log_scale), out_shardings=sharding.replicated(mesh))
  results, done = [], 0
  for count, batch in batches:
    index = np.arange(done, done + len(batch['image']))
    with sharding.use_mesh(mesh):
      terms = jax.device_get(run(params, *sharding.from_whole((batch, index), mesh), seed))
    results.append({name: np.asarray(values, np.float64)[:count] for name, values in terms.items()})
    done += count
    if progress:
      progress(done)
  return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def summarize(terms: dict[str, np.ndarray], num_dims: int, num_codes: int, kl_weight: float) -> dict[str, float]:
  """Average the terms from `measure` over images.

  Args:
    terms: the terms by name, [M] each, in nats.
    num_dims: D, the number of dimensions of an image.
    num_codes: N, the number of codes of an image.
    kl_weight: the weight of the KL term, per code position, in phase 1's loss.

  Returns:
    Flat metrics, each with its standard error over images as '..._stderr' if M > 1. For each posterior P:
    - 'P/distortion': -ln p(x | z) per image, a probability of 8-bit pixels.
    - 'P/density_nll': -ln of the density of the mapped pixels, per dimension; it may be negative.

    For each posterior P and each prior R, 'uniform' or 'prior':
    - 'P/R/nats': the upper bound on -ln p(x | y) per image.
    - 'P/R/bits_per_dim': the same bound in bits per dimension.
    - 'P/R/phase_1_loss': 'P/density_nll' plus the weighted KL to prior R, in nats per dimension of mapped pixels. It is
      the loss of phase 1 with codes of the posterior instead of relaxed codes.
    - 'P/gain/...': the mean over images of the value with the uniform prior minus the value with the learned prior.

    'text/nats' is the mean of -ln p(y) per caption.
  """
  figures: dict[str, float] = {}

  def put(name: str, values: np.ndarray) -> None:
    figures[name] = float(np.mean(values))
    if len(values) > 1:
      figures[f'{name}_stderr'] = float(np.std(values, ddof=1) / np.sqrt(len(values)))

  for posterior in POSTERIORS:
    if f'{posterior}/distortion' not in terms:
      continue
    distortion = terms[f'{posterior}/distortion']
    density = terms[f'{posterior}/density_nll'] / num_dims
    put(f'{posterior}/distortion', distortion)
    put(f'{posterior}/density_nll', density)
    totals = {}
    for prior in ('uniform', 'prior'):
      if f'{posterior}/kl_{prior}' not in terms:
        continue
      kl = terms[f'{posterior}/kl_{prior}']
      totals[prior] = {
        'nats': distortion + kl,
        'bits_per_dim': (distortion + kl) / (num_dims * math.log(2)),
        'phase_1_loss': density + kl_weight * kl / num_codes,
      }
      put(f'{posterior}/kl_{prior}', kl)
    for prior, values in totals.items():
      for unit, by_image in values.items():
        put(f'{posterior}/{prior}/{unit}', by_image)
    if len(totals) == 2:
      for unit in totals['prior']:
        put(f'{posterior}/gain/{unit}', totals['uniform'][unit] - totals['prior'][unit])
  if 'text' in terms:
    put('text/nats', terms['text'])
  return figures
