"""The codebook of a VQ-VAE as a moving average of encoder outputs (van den Oord et al. 2017, appendix A.1).

Codes are weighted by their share of the tokens instead of their counts, so nothing depends on the batch size. All sums
run over the global batch, across all devices.
"""

from typing import Any

import jax
import jax.numpy as jnp

EPSILON = 1e-5  # Laplace smoothing of the shares, as a fraction of an even share 1 / K


def statistics(z: jax.Array, codes: jax.Array, vocab_size: int, key: jax.Array) -> dict[str, jax.Array]:
  """Summarise a batch for `update`.

  Args:
    z: encoder outputs [B, h, w, C].
    codes: int [B, h, w], the code assigned to each output.
    vocab_size: K, the number of codes.
    key: random key that chooses the candidates.

  Returns:
    'share' [K]: fraction of the tokens assigned to each code.
    'total' [K, C]: sum of the outputs assigned to each code, divided by the number of all tokens.
    'candidates' [K, C]: outputs picked at random, for restarts.
  """
  z = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
  codes = codes.reshape(-1)
  picked = jax.random.randint(key, (vocab_size,), 0, len(codes))
  zeros = jnp.zeros((vocab_size, z.shape[-1]))
  return {
    'share': jnp.bincount(codes, length=vocab_size) / len(codes),
    'total': zeros.at[codes].add(z) / len(codes),
    'candidates': z[picked],
  }


def update(
  state: dict[str, jax.Array],
  batch_statistics: dict[str, jax.Array],
  key: jax.Array,
  *,
  decay: float,
  restart_threshold: float,
) -> dict[str, jax.Array]:
  """Update the codebook after a training step.

  Each code moves to the average of the outputs assigned to it. The first step fills the codebook with outputs of its
  batch, as in Jukebox. Later, a code whose averaged share falls below `restart_threshold` times an even share 1 / K
  restarts at a random output, with an even share.

  Args:
    state: 'codebook' [K, C], 'share' [K], 'total' [K, C] and the scalar 'started', which is 0 before the first step.
    batch_statistics: `statistics` of the M micro-batches, stacked: [M, K], [M, K, C], [M, K, C].
    key: random key. It chooses among the micro-batches' candidates, and adds a little noise so that no two codes
      restart at the same point.
    decay: decay of the averages per step.
    restart_threshold: fraction of an even share; 0 disables restarts.

  Returns:
    The new state.
  """
  k, c = state['codebook'].shape
  share = decay * state['share'] + (1 - decay) * batch_statistics['share'].mean(0)
  total = decay * state['total'] + (1 - decay) * batch_statistics['total'].mean(0)
  choice_key, noise_key = jax.random.split(key)
  micro_batch = jax.random.randint(choice_key, (k,), 0, len(batch_statistics['candidates']))
  fresh = batch_statistics['candidates'][micro_batch, jnp.arange(k)]
  fresh += 0.01 * jnp.std(fresh) * jax.random.normal(noise_key, (k, c))
  restarts = (share * k < restart_threshold) | (state['started'] == 0)
  share = jnp.where(restarts, 1 / k, share)
  total = jnp.where(restarts[:, None], fresh / k, total)
  smoothed = (share * k + EPSILON) / (share.sum() * k + k * EPSILON) * share.sum()
  return {
    'codebook': total / smoothed[:, None], 'share': share, 'total': total, 'started': jnp.ones_like(state['started']),
  }  # fmt: skip


def merged(collections: dict[str, Any]) -> Any:
  """Merge the collections of `DvaeTask` into the single parameter tree that all other code takes."""
  if 'codebook' not in collections:
    return collections['dvae']
  return {**collections['dvae'], 'code': collections['codebook']}


def merge_parts(collections: dict[str, Any]) -> dict[str, Any]:
  """The collections as parts of a model: a dVAE's codebook becomes part of 'dvae' again."""
  if 'codebook' not in collections:
    return collections
  parts = {name: tree for name, tree in collections.items() if name != 'codebook'}
  return parts | {'dvae': merged(collections)}
