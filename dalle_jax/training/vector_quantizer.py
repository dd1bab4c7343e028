"""The codebook of a VQ-VAE as a moving average of what the encoder gives (van den Oord et al. 2017, appendix A.1).

Shares of tokens stand in for counts, so that nothing depends on the size of the batch. All sums run over the whole
batch, on however many devices it lies.
"""

from typing import Any

import jax
import jax.numpy as jnp

EPSILON = 1e-5  # Laplace smoothing of the shares, in parts of an even share


def statistics(z: jax.Array, codes: jax.Array, vocab_size: int, key: jax.Array) -> dict[str, jax.Array]:
  """What an update needs to know of a batch.

  Args:
    z: encoder outputs [B, h, w, C].
    codes: int [B, h, w].
    vocab_size: K.
    key: chooses the candidates.

  Returns:
    'share' [K], of the batch's tokens that each code got; 'total' [K, C], the sums of their outputs over the number of
    all tokens; 'candidates' [K, C], outputs picked at random.
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
  state: dict[str, jax.Array], parts: dict[str, jax.Array], key: jax.Array, *, decay: float, restart_threshold: float
) -> dict[str, jax.Array]:
  """The codebook after a step.

  Each code becomes the average of the outputs it got. At the first step the codebook is filled with outputs of this
  batch (as in Jukebox). Later, a code whose averaged share falls below `restart_threshold` of an even share begins anew
  at a random output, with an even share.

  Args:
    state: 'codebook' [K, C], 'share' [K], 'total' [K, C], 'started' scalar.
    parts: `statistics` of each micro-batch, stacked: [M, K], [M, K, C], [M, K, C].
    key: chooses among the micro-batches' candidates, and adds a little noise, so that no two codes start equal.
    decay: of the averages.
    restart_threshold: 0: no restarts.

  Returns:
    The new state.
  """
  k, c = state['codebook'].shape
  share = decay * state['share'] + (1 - decay) * parts['share'].mean(0)
  total = decay * state['total'] + (1 - decay) * parts['total'].mean(0)
  part_key, noise_key = jax.random.split(key)
  part = jax.random.randint(part_key, (k,), 0, len(parts['candidates']))
  fresh = parts['candidates'][part, jnp.arange(k)]
  fresh += 0.01 * jnp.std(fresh) * jax.random.normal(noise_key, (k, c))
  anew = (share * k < restart_threshold) | (state['started'] == 0)
  share = jnp.where(anew, 1 / k, share)
  total = jnp.where(anew[:, None], fresh / k, total)
  smoothed = (share * k + EPSILON) / (share.sum() * k + k * EPSILON) * share.sum()
  return {
    'codebook': total / smoothed[:, None], 'share': share, 'total': total, 'started': jnp.ones_like(state['started']),
  }  # fmt: skip


def merged(collections: dict[str, Any]) -> Any:
  """The dVAE's parameters in one tree, from the collections of its task: what everything else takes."""
  if 'codebook' not in collections:
    return collections['dvae']
  return {**collections['dvae'], 'code': collections['codebook']}


def merge_parts(collections: dict[str, Any]) -> dict[str, Any]:
  """The collections as parts of a model: a dVAE's codebook becomes part of 'dvae' again."""
  if 'codebook' not in collections:
    return collections
  parts = {name: tree for name, tree in collections.items() if name != 'codebook'}
  return parts | {'dvae': merged(collections)}
