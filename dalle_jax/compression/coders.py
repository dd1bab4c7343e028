"""The entropy coders by name, and the protocols that they implement."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from dalle_jax.compression.container import Damaged
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


def check_capacity(coder: str, payload: bytes, num_symbols: int, what: str) -> None:
  """Check that a payload can hold the symbols that its chunk claims.

  A Huffman code has at least one bit for a symbol. A range coder has no such limit: a symbol may cost almost nothing.

  Args:
    coder: a key of CODERS.
    payload: the bytes of the chunk.
    num_symbols: the symbols that the chunk claims, at least.
    what: what they are, such as 'tokens'.

  Raises:
    Damaged: it cannot.
  """
  if coder == 'huffman' and num_symbols > 8 * len(payload):
    raise Damaged(f'a chunk claims {num_symbols:,} {what}, which its {len(payload):,} bytes cannot hold')
