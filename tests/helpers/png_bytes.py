"""PNG files written chunk by chunk, for what Pillow cannot write."""

import struct
import zlib

import numpy as np

SIGNATURE = b'\x89PNG\r\n\x1a\n'
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind, content):
  return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def header(columns, rows, depth, colour_type, interlaced=False):
  return chunk(b'IHDR', struct.pack('>IIBBBBB', columns, rows, depth, colour_type, 0, 0, interlaced))


def png(values, depth, colour_type, *chunks, before=b'', rows=None):
  """A PNG file of the values [H, W] or [H, W, channels].

  Args:
    values: integers of `depth` bits.
    depth: bits per channel.
    colour_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
    *chunks: chunks between the header and the pixels.
    before: bytes to put before the end chunk.
    rows: the data of the rows, instead of the compressed values.
  """
  values = np.asarray(values).reshape(len(values), -1)
  columns = values.shape[1] // _CHANNELS[colour_type]
  if rows is None:
    rows = zlib.compress(raw_rows(values, depth))
  pixels = chunk(b'IDAT', rows)
  return SIGNATURE + header(columns, len(values), depth, colour_type) + b''.join(chunks) + pixels + before + chunk(
    b'IEND', b''
  )  # fmt: skip


def raw_rows(values, depth):
  """The rows before compression: the filter number 0, and the values with `depth` bits each."""
  bits = (np.asarray(values)[..., None] >> np.arange(depth - 1, -1, -1)) & 1
  packed = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
  return b''.join(b'\0' + row.tobytes() for row in packed)
