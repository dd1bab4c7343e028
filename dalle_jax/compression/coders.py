"""The entropy coders by name, and what they share."""

from typing import Protocol

import numpy as np

from dalle_jax.compression.huffman import HuffmanDecoder, HuffmanEncoder
from dalle_jax.compression.range_coder import RangeDecoder, RangeEncoder


class SymbolEncoder(Protocol):
  def put(self, cumulative: np.ndarray, symbol: int) -> None:
    """Codes a symbol by its distribution, cumulative frequencies int32 [V + 1] (see `frequencies`)."""

  def finish(self) -> bytes:
    """All that was coded; call it once."""


class SymbolDecoder(Protocol):
  def get(self, cumulative: np.ndarray) -> int:
    """The next symbol, given the distribution that it was coded by."""


CODERS: dict[str, tuple[type[SymbolEncoder], type[SymbolDecoder]]] = {
  'range': (RangeEncoder, RangeDecoder),
  'huffman': (HuffmanEncoder, HuffmanDecoder),
}
