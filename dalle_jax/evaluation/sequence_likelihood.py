"""Likelihood of text under a sequence model: bits per token, bits per byte, and the effect of context length."""

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
  """Compute -ln p of each token given the earlier tokens in its row, float64 [N, T].

  Args:
    model: any sequence model.
    params: the model's parameters, on the mesh.
    rows: token ids [N, T]; T <= model.length.
    mesh: the device mesh that splits the rows.
    batch_size: rows per batch, rounded up to a multiple of the devices that split it.
    progress: called with (rows done, N) after each batch.
  """
  row_nats = in_batches(_bound(model), params, rows.astype(np.int32), mesh, batch_size, progress)
  return row_nats.astype(np.float64)


@functools.lru_cache(maxsize=8)
def _bound(model: SequenceModel) -> Callable[[Any, jax.Array], jax.Array]:
  """Bind `_nats` to a model. Equal models give the same function object, so that jit finds its compiled program."""
  return functools.partial(_nats, model)


def _nats(model: SequenceModel, params: Any, tokens: jax.Array) -> jax.Array:
  return token_nll(model.logits(params, tokens), tokens)


def _last_nats(model: SequenceModel, params: Any, tokens: jax.Array) -> jax.Array:
  """-ln p of the last token in each row of tokens [B, T] given the tokens before it: [B]."""
  _, logits = model.prefill(model.decode_params(params), tokens[:, :-1])
  return token_nll(logits, tokens[:, -1])


def summarize(row_nats: np.ndarray, num_bytes: int) -> dict[str, float]:
  """Summarize the likelihood of a text as flat metrics.

  Args:
    row_nats: -ln p of each token, [N, T].
    num_bytes: the length of the text in bytes.

  Returns:
    Bits per token with its standard error over rows (if there is more than one), bits per byte, perplexity, and the
    numbers of tokens and bytes.
  """
  mean, stderr = mean_and_stderr(row_nats.mean(axis=1) / math.log(2))
  return {
    'bits_per_token': mean,
    **({} if stderr is None else {'bits_per_token_stderr': stderr}),
    'bits_per_byte': float(row_nats.sum() / math.log(2) / num_bytes),
    'perplexity': perplexity(float(row_nats.mean())),
    'num_tokens': float(row_nats.size),
    'num_bytes': float(num_bytes),
  }


def perplexity(nats_per_token: float) -> float:
  """exp of the nats per token; infinite if that overflows a float."""
  return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def mean_and_stderr(values: np.ndarray) -> tuple[float, float | None]:
  """The mean of values [N] and its standard error: None for a single value, infinite if a value is infinite.

  A value is infinite if the model gave probability 0 to a token that occurred.
  """
  stderr = None if len(values) < 2 else math.inf
  if len(values) > 1 and np.isfinite(values).all():
    stderr = float(values.std(ddof=1) / math.sqrt(len(values)))
  return float(values.mean()), stderr


def context_lengths(length: int) -> list[int]:
  """The context lengths 0, 1, 2, 3, 4, 6, 8, 12, ... below `length`, ending with length - 1."""
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
  """Measure bits per token as a function of context length, [len(lengths)].

  Every length predicts the same target tokens, evenly spaced in the text. The model reads only the context, as if a
  sequence began there.

  Args:
    model: any sequence model.
    params: the model's parameters, on the mesh.
    tokens: the token ids of the text [N].
    mesh: the device mesh that splits the targets.
    batch_size: targets per batch.
    lengths: context lengths in tokens.
    num_targets: the number of target tokens.
    progress: called with (lengths done, number of lengths).

  Raises:
    ValueError: there are fewer tokens than the longest context needs.
  """
  longest = max(lengths)
  if len(tokens) <= longest:
    raise ValueError(
      f'{len(tokens)} tokens are too few for a context of {longest} tokens; at least {longest + 1} are needed.'
    )
  targets = np.unique(np.linspace(longest, len(tokens) - 1, num_targets).astype(int))
  bits = []
  for i, length in enumerate(lengths):
    rows = np.stack([tokens[target - length : target + 1] for target in targets]).astype(np.int32)
    target_nats = in_batches(functools.partial(_last_nats, model), params, rows, mesh, batch_size)
    bits.append(target_nats.astype(np.float64).mean() / math.log(2))
    if progress:
      progress(i + 1, len(lengths))
  return np.asarray(bits)


def num_values(params: Any) -> int:
  """The number of values in a model's parameters; for an n-gram, in its tables."""
  return sum(int(jnp.size(leaf)) for leaf in jax.tree.leaves(params))
