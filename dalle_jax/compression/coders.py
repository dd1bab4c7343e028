"""The entropy coders by name, and the protocols that they implement."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from dalle_jax.compression.huffman import HuffmanDecoder, HuffmanEncoder
from dalle_jax.compression.range_coder import RangeDecoder, RangeEncoder


class SymbolEncoder(Protocol):
  def put(self, cumulative: np.ndarray, symbol: int) -> None:
    """Encode one symbol.

    Args:
      cumulative: the symbol's distribution as cumulative frequencies int32 [V + 1] (see `frequencies.cumulative`).
      symbol: in 0 to V - 1.
    """

  def finish(self) -> bytes:
    """Return the code of all symbols. Call this once, at the end."""


class SymbolDecoder(Protocol):
  def get(self, cumulative: np.ndarray) -> int:
    """Return the next symbol. `cumulative` must be the array that `put` got for this symbol."""


CODERS: dict[str, tuple[Callable[[], SymbolEncoder], Callable[[bytes], SymbolDecoder]]] = {
  'range': (RangeEncoder, RangeDecoder),
  'huffman': (HuffmanEncoder, HuffmanDecoder),
}
