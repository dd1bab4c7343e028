"""Coding of token sequences with a sequence model, a batch of rows at a time."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dalle_jax.compression import frequencies
from dalle_jax.compression.coders import SymbolDecoder, SymbolEncoder
from dalle_jax.models.sequence import SequenceModel, token_nll

IRREPRODUCIBLE = (
  'The compressed data do not decode to the input: the model does not give the same probabilities twice on this '
  'device. No file is written. Try JAX_PLATFORMS=cpu.'
)


def rows_for(count: int, most: int) -> int:
  """Batch size of a coder for `count` sequences: the next power of two, at most `most`."""
  return min(most, 1 << max(count - 1, 0).bit_length())


class SequenceCoder:
  """Codes rows of tokens with one entropy coder.

  Position by position, the coder codes the tokens of all rows, row by row. Encoder and decoder run the same compiled
  programs with the same batch shape, so both get the same probabilities.
  """

  def __init__(self, model: SequenceModel, params: Any, batch_size: int):
    """Args:
    model: any sequence model.
    params: its parameters, on one device.
    batch_size: rows that the model processes together. The decoder needs the same value, because another batch
      size changes the rounding of the probabilities.
    """
    self.length, self.batch_size = model.length, batch_size
    self._params = jax.jit(model.decode_params)(params)
    self._start = jax.jit(lambda params: model.prefill(params, np.zeros((batch_size, 0), np.int32)))
    self._step = jax.jit(model.step, donate_argnums=1)
    self._frequencies = jax.jit(frequencies.of_logits)
    self._nll = jax.jit(token_nll)

  @property
  def state_bytes(self) -> int:
    """Bytes of the model's cache and logits for all rows."""
    leaves = jax.tree.leaves(jax.eval_shape(self._start, self._params))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

  def _run(self, lengths: Sequence[int], code: Callable[[int, np.ndarray, jax.Array], np.ndarray]) -> None:
    """Run the model over all positions.

    Args:
      lengths: tokens of each row.
      code: called as `code(t, cumulative [B, V + 1], logits [B, V])` at position t; returns the tokens [B] there.
    """
    with frequencies.exactly():
      cache, logits = self._start(self._params)
      for t in range(max(lengths, default=0)):
        sums = frequencies.cumulative(np.asarray(self._frequencies(logits)))
        tokens = code(t, sums, logits)
        if t + 1 < max(lengths):
          cache, logits = self._step(self._params, cache, tokens)

  def encode(self, rows: Sequence[np.ndarray], encoder: SymbolEncoder) -> float:
    """Encode rows of token ids.

    Args:
      rows: at most `batch_size` rows of at most `length` ids each.
      encoder: gets the symbols.

    Returns:
      -ln p of all tokens under the model, in nats.

    Raises:
      ValueError: the model's outputs have NaN.
    """
    assert len(rows) <= self.batch_size
    lengths = [len(row) for row in rows]
    tokens = np.zeros((self.batch_size, max(lengths, default=0)), np.int32)
    for row, ids in zip(tokens, rows, strict=False):
      row[: len(ids)] = ids
    costs = []

    def code(t: int, sums: np.ndarray, logits: jax.Array) -> np.ndarray:
      costs.append(self._nll(logits, tokens[:, t]))
      for row, count in enumerate(lengths):
        if t < count:
          encoder.put(sums[row], int(tokens[row, t]))
      return tokens[:, t]

    self._run(lengths, code)
    # [T, B]: False at the padding of short rows and in rows that only fill the batch.
    is_token = np.arange(tokens.shape[1])[:, None] < np.pad(lengths, (0, self.batch_size - len(rows)))[None]
    return float(np.sum(np.asarray(jax.device_get(costs), np.float64)[is_token])) if costs else 0.0

  def decode(self, lengths: Sequence[int], decoder: SymbolDecoder) -> list[np.ndarray]:
    """Decode rows of token ids, int32, with the given lengths."""
    tokens = np.zeros((self.batch_size, max(lengths, default=0)), np.int32)

    def code(t: int, sums: np.ndarray, logits: jax.Array) -> np.ndarray:
      del logits
      for row, count in enumerate(lengths):
        if t < count:
          tokens[row, t] = decoder.get(sums[row])
      return tokens[:, t]

    self._run(lengths, code)
    return [row[:count] for row, count in zip(tokens, lengths, strict=False)]
