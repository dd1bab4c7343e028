"""Limits on what a compressed file may ask of a decoder. Flags of `python -m dalle_jax.compress decode` raise them."""

import dataclasses

from dalle_jax import sharding
from dalle_jax.compression.container import Unreadable
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.sampling import memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingLimits:
  """The fields are flags of `python -m dalle_jax.compress decode`."""

  max_image_pixels: int = CompressionSettings.max_image_pixels  # of a picture in the file
  max_batch_size: int = 4096  # sequences coded side by side

  def check_batch(self, batch_size: int) -> None:
    """Check how many sequences a file's header asks for. Raises Unreadable."""
    if batch_size > self.max_batch_size:
      raise Unreadable(
        f'its header says {batch_size:,} sequences side by side, more than the limit of {self.max_batch_size:,}; raise '
        'it with --max_batch_size if you trust the file'
      )


def check_memory(batch_size: int, num_bytes: int) -> None:
  """Check that the sequences of a batch fit in memory, before it is taken.

  Args:
    batch_size: the number of sequences.
    num_bytes: an estimate of their size.

  Raises:
    Unreadable: they do not fit.
  """
  free = memory.free_bytes(sharding.one_device_mesh())
  if free is not None and num_bytes > memory.HEADROOM * free:
    raise Unreadable(
      f'{batch_size:,} sequences side by side need about {num_bytes / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free; '
      'encode with a lower --batch_size, or use a machine with more memory'
    )
