"""How well a sequence model predicts text: bits per token and per byte, and how far back it looks."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dalle_jax.evaluation.row_batches import Progress, in_batches
from dalle_jax.models.sequence import SequenceModel, token_nll


def nats(
  model: SequenceModel, params: Any, rows: np.ndarray, mesh: Mesh, batch_size: int, progress: Progress | None = None
) -> np.ndarray:
  """-ln p of each token of sequences [N, T] given those before it in its row, float64 [N, T].

  Args:
    model: any sequence model over the rows' ids; T <= model.length.
    params: its parameters, on the mesh.
    rows: ids.
    mesh: the rows are split over it.
    batch_size: rows at a time, rounded up to what the devices divide.
    progress: called with (rows done, N) after each batch.
  """
  found = in_batches(_bound(model), params, rows.astype(np.int32), mesh, batch_size, progress)
  return found.astype(np.float64)


@functools.lru_cache(maxsize=8)
def _bound(model: SequenceModel) -> Callable[[Any, jax.Array], jax.Array]:
  """One function for one model, whose compiled program is found again."""
  return functools.partial(_nats, model)


def _nats(model: SequenceModel, params: Any, tokens: jax.Array) -> jax.Array:
  return token_nll(model.logits(params, tokens), tokens)


def _last_nats(model: SequenceModel, params: Any, tokens: jax.Array) -> jax.Array:
  """-ln p of the last of tokens [B, T] given the others: [B]."""
  _, logits = model.prefill(model.decode_params(params), tokens[:, :-1])
  return token_nll(logits, tokens[:, -1])


def summarize(found: np.ndarray, num_bytes: int) -> dict[str, float]:
  """Figures of the nats [N, T] that cost `num_bytes` bytes of text; the standard error is over rows."""
  mean, stderr = mean_and_stderr(found.mean(axis=1) / math.log(2))
  return {
    'bits_per_token': mean,
    'bits_per_token_stderr': stderr,
    'bits_per_byte': float(found.sum() / math.log(2) / num_bytes),
    'perplexity': perplexity(float(found.mean())),
    'num_tokens': float(found.size),
    'num_bytes': float(num_bytes),
  }


def perplexity(nats_per_token: float) -> float:
  """exp of the mean nats; infinite where that is more than a float holds."""
  return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def mean_and_stderr(values: np.ndarray) -> tuple[float, float]:
  """The mean of values [N] and its standard error: 0 of a single value, infinite where a value is.

  A model that holds for impossible what occurred has such values.
  """
  stderr = 0.0 if len(values) < 2 else math.inf
  if len(values) > 1 and np.isfinite(values).all():
    stderr = float(values.std(ddof=1) / math.sqrt(len(values)))
  return float(values.mean()), stderr


def context_lengths(length: int) -> list[int]:
  """0, 1, 2, 3, 4, 6, 8, 12, ... below `length`, and length - 1."""
  powers = [step for power in range(16) for step in (2**power, 3 * 2 ** (power - 1)) if step == int(step)]
  return sorted({0, *(int(step) for step in powers if step < length - 1), length - 1})


def by_context(
  model: SequenceModel,
  params: Any,
  tokens: np.ndarray,
  mesh: Mesh,
  batch_size: int,
  lengths: Sequence[int],
  num_targets: int,
  progress: Progress | None = None,
) -> np.ndarray:
  """Bits per token when only so many tokens before are given, [len(lengths)].

  The same tokens are predicted for every length, at even distances in `tokens` [N]; what stands before the given ones
  is cut off, so that the model sees the start of a sequence there.

  Raises:
    ValueError: there are fewer tokens than the longest context needs.
  """
  longest = max(lengths)
  if len(tokens) <= longest:
    raise ValueError(f'{len(tokens)} tokens are too few for a context of {longest}.')
  targets = np.unique(np.linspace(longest, len(tokens) - 1, num_targets).astype(int))
  bits = []
  for i, length in enumerate(lengths):
    rows = np.stack([tokens[target - length : target + 1] for target in targets]).astype(np.int32)
    found = in_batches(functools.partial(_last_nats, model), params, rows, mesh, batch_size)
    bits.append(found.astype(np.float64).mean() / math.log(2))
    if progress:
      progress(i + 1, len(lengths))
  return np.asarray(bits)


def num_values(params: Any) -> int:
  """Numbers that a model keeps."""
  return sum(int(jnp.size(leaf)) for leaf in jax.tree.leaves(params))
