"""The evidence lower bound of images and captions, with a uniform and with the learned prior (section 2, equation 1).

For an image x of D dimensions with caption y, and its N codes z of K values:

    -ln p(x, y) <= E_q [-ln p(x | z)] + KL(q(z | x) || p(z | y)) - ln p(y).

Phase 1 of training minimises the first two terms with p(z | y) = K^-N; phase 2 minimises the others over the prior,
with q held still. Both are measured here on the same codes, so that what phase 2 gains is seen image by image.

Two posteriors are measured. 'sampled' is the encoder's distribution q: z is drawn from it once for each image, and the
entropy of q is computed exactly. 'argmax' is the point mass on the likeliest codes, what phase 2 trains on: its entropy
is 0 and its KL to the uniform prior N ln K.

Likelihoods are probabilities of 8-bit pixels: the density of the mapped pixels (appendix A.3) times the width of a
pixel's bin, 0.8/255.
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

BIN_WIDTH = (1 - 2 * likelihood.EPSILON) / 255
POSTERIORS = ('sampled', 'argmax')


def nats(
  dvae: Dvae, prior: Prior | None, min_log_scale: float, params: Any, batch: dict, index: jax.Array, seed: jax.Array
) -> dict[str, jax.Array]:
  """Nats of each image of a batch, by name, [B] each.

  Args:
    dvae: the module.
    prior: the prior; None: the uniform one only.
    min_log_scale: floor of the likelihood's ln b, as in training.
    params: {'dvae', 'prior'}.
    batch: 'image' uint8 [B, H, W, 3] and, with a prior, 'text' [B, text_length - 1].
    index: int [B], the images' numbers; image i draws its codes with fold_in(key(seed), i).
    seed: of the codes.

  Returns:
    For each posterior P: 'P/distortion'; 'P/kl_uniform'; with a prior 'P/kl_prior'. With a prior also 'text'. A dVAE
    with deterministic codes has the posterior 'argmax' alone.
  """
  image = batch['image']
  variables = {'params': params['dvae']}
  z = dvae.apply(variables, image, method='encode_latents')
  found = {}
  for posterior in POSTERIORS if dvae.bottleneck == 'gumbel' else ('argmax',):
    codes, entropy = _draw(dvae, variables, z, posterior, index, seed)
    stats = dvae.apply(variables, codes, method='decode_stats')
    density = likelihood.logit_laplace_nll(likelihood.map_pixels(image), stats, min_log_scale)
    found[f'{posterior}/distortion'] = jnp.sum(density - math.log(BIN_WIDTH), axis=(1, 2, 3))
    found[f'{posterior}/kl_uniform'] = codes[0].size * math.log(dvae.image_vocab_size) - entropy
    if prior is not None:
      flat = codes.reshape(len(image), -1)
      text_logits, image_logits = prior.split_logits(params['prior'], batch['text'], flat)
      found[f'{posterior}/kl_prior'] = token_nll(image_logits, flat).sum(-1) - entropy
      found['text'] = prior_model.text_nats(text_logits, batch['text'])
  return found


def _draw(
  dvae: Dvae, variables: Any, z: jax.Array, posterior: str, index: jax.Array, seed: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Codes int32 [B, h, w] and the entropy of the posterior in nats, [B]."""
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
  """`nats` of many images, [M] each.

  Args:
    batches: (number of real rows, numpy batch) pairs of one shape; rows beyond that number are left out.
    mesh: the batch is split over it.
    progress: called with the number of images done.
    dvae, prior, min_log_scale, params, seed: as for `nats`.
  """
  run = jax.jit(functools.partial(nats, dvae, prior, min_log_scale), out_shardings=sharding.replicated(mesh))
  parts, done = [], 0
  for count, batch in batches:
    index = np.arange(done, done + len(batch['image']))
    with sharding.use_mesh(mesh):
      found = jax.device_get(run(params, *sharding.from_whole((batch, index), mesh), seed))
    parts.append({name: np.asarray(values, np.float64)[:count] for name, values in found.items()})
    done += count
    if progress:
      progress(done)
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summarize(found: dict[str, np.ndarray], num_dims: int, num_codes: int, kl_weight: float) -> dict[str, float]:
  """Means and standard errors over images, from `measure`.

  Args:
    found: nats by name, [M] each.
    num_dims: D, of an image.
    num_codes: N, of an image.
    kl_weight: with which phase 1 weighed the KL per position.

  Returns:
    Flat figures, each with a '..._stderr' beside it. For each posterior P and prior R of 'uniform' and 'prior':
    'P/R/nats', the negative bound on ln p(x | y) per image, and 'P/R/bits_per_dim'; 'P/R/phase_1_loss', phase 1's loss
    with this prior in its KL (nats per dimension of mapped pixels). 'P/gain/...' are the differences, uniform minus
    prior, image by image. 'text/nats' is the caption's own cost.
  """
  figures: dict[str, float] = {}

  def put(name: str, values: np.ndarray) -> None:
    figures[name] = float(np.mean(values))
    figures[f'{name}_stderr'] = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0

  for posterior in POSTERIORS:
    if f'{posterior}/distortion' not in found:
      continue
    distortion = found[f'{posterior}/distortion']
    put(f'{posterior}/distortion', distortion)
    totals = {}
    for prior in ('uniform', 'prior'):
      if f'{posterior}/kl_{prior}' not in found:
        continue
      kl = found[f'{posterior}/kl_{prior}']
      density = distortion / num_dims + math.log(BIN_WIDTH)
      totals[prior] = {
        'nats': distortion + kl,
        'bits_per_dim': (distortion + kl) / (num_dims * math.log(2)),
        'phase_1_loss': density + kl_weight * kl / num_codes,
      }
      put(f'{posterior}/kl_{prior}', kl)
    for prior, values in totals.items():
      for unit, each in values.items():
        put(f'{posterior}/{prior}/{unit}', each)
    if len(totals) == 2:
      for unit in totals['prior']:
        put(f'{posterior}/gain/{unit}', totals['uniform'][unit] - totals['prior'][unit])
  if 'text' in found:
    put('text/nats', found['text'])
  return figures
