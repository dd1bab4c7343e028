"""Coding token sequences with a sequence model, many streams at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dalle_jax.compression import frequencies
from dalle_jax.compression.coders import SymbolDecoder, SymbolEncoder
from dalle_jax.models.sequence import SequenceModel, token_nll

IRREPRODUCIBLE = (
  'What was coded does not decode to the same: the model does not give the same probabilities twice on this device. '
  'Nothing is written; try JAX_PLATFORMS=cpu.'
)


def rows_for(count: int, most: int) -> int:
  """How many rows a coder is made with for so many sequences: a power of two that holds them, at most `most`."""
  return min(most, 1 << max(count - 1, 0).bit_length())


class SequenceCoder:
  """Rows of tokens to and from one entropy coder.

  The rows are read side by side: of each position the symbols of all rows are coded, row by row. Encoder and decoder
  advance through the same compiled programs with batches of one shape, and so see the same probabilities.
  """

  def __init__(self, model: SequenceModel, params: Any, batch_size: int):
    """Args:
    model: any sequence model.
    params: its parameters, on one device.
    batch_size: rows at a time. It is a part of what the coded data mean: another one gives other roundings.
    """
    self.length, self.batch_size = model.length, batch_size
    self._params = jax.jit(model.decode_params)(params)
    self._start = jax.jit(lambda params: model.prefill(params, np.zeros((batch_size, 0), np.int32)))
    self._step = jax.jit(model.step, donate_argnums=1)
    self._frequencies = jax.jit(frequencies.of_logits)
    self._nll = jax.jit(token_nll)

  def _run(self, lengths: Sequence[int], code: Callable[[int, np.ndarray, jax.Array], np.ndarray]) -> None:
    """Walks through the positions; `code(t, cumulative [B, V + 1], logits [B, V])` gives the tokens [B] there."""
    with frequencies.exactly():
      cache, logits = self._start(self._params)
      for t in range(max(lengths, default=0)):
        sums = frequencies.cumulative(np.asarray(self._frequencies(logits)))
        tokens = code(t, sums, logits)
        if t + 1 < max(lengths):
          cache, logits = self._step(self._params, cache, tokens)

  def encode(self, rows: Sequence[np.ndarray], encoder: SymbolEncoder) -> float:
    """Codes up to `batch_size` rows of at most `length` ids; returns their cost in nats by the model itself.

    Raises:
      ValueError: the model gives NaN.
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
    real = np.arange(tokens.shape[1])[:, None] < np.pad(lengths, (0, self.batch_size - len(rows)))[None]
    return float(np.sum(np.asarray(jax.device_get(costs), np.float64)[real])) if costs else 0.0

  def decode(self, lengths: Sequence[int], decoder: SymbolDecoder) -> list[np.ndarray]:
    """The rows, int32, of these lengths."""
    tokens = np.zeros((self.batch_size, max(lengths, default=0)), np.int32)

    def code(t: int, sums: np.ndarray, logits: jax.Array) -> np.ndarray:
      del logits
      for row, count in enumerate(lengths):
        if t < count:
          tokens[row, t] = decoder.get(sums[row])
      return tokens[:, t]

    self._run(lengths, code)
    return [row[:count] for row, count in zip(tokens, lengths, strict=False)]
