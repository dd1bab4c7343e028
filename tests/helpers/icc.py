"""ICC profiles, built by hand from ICC.1:2001-04."""

import itertools
import struct

# The colorants of sRGB relative to D50, as X, Y and Z.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(colorants=SRGB, gamma=2.2):
  """A display profile from the colorants of red, green and blue, and a gamma."""
  tags = {f'{name}XYZ': _xyz(colorant) for name, colorant in zip('rgb', colorants, strict=True)}
  return _profile(b'mntr', b'RGB ', b'XYZ ', {**tags, **{f'{name}TRC': _curve(gamma) for name in 'rgb'}})


def grey_profile(gamma):
  return _profile(b'mntr', b'GRAY', b'XYZ ', {'kTRC': _curve(gamma)})


def cmyk_profile(lightness):
  """An output profile of greys. `lightness` maps each corner (C, M, Y, K) of zeros and ones to CIE L* in 0 to 100."""
  ramp = bytes(range(256))
  grid = b''.join(bytes([round(2.55 * lightness(*corner)), 128, 128]) for corner in itertools.product((0, 1), repeat=4))
  identity = struct.pack('>9i', *(65536 * (i % 4 == 0) for i in range(9)))
  table = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0]) + identity + 4 * ramp + grid + 3 * ramp
  return _profile(b'prtr', b'CMYK', b'Lab ', {'A2B0': table, 'A2B1': table})


def _fixed(value):
  return struct.pack('>i', round(65536 * value))


def _xyz(values):
  return b'XYZ \0\0\0\0' + b''.join(map(_fixed, values))


def _curve(gamma):
  return b'curv\0\0\0\0' + struct.pack('>IH', 1, round(256 * gamma)) + b'\0\0'


def _profile(device, space, connection, tags):
  tags = {'desc': b'desc\0\0\0\0' + struct.pack('>I', 5) + b'test\0' + bytes(79), 'wtpt': _xyz(D50), **tags}
  directory, body, offset = b'', b'', 128 + 4 + 12 * len(tags)
  for name, content in tags.items():
    content += bytes(-len(content) % 4)
    directory += name.encode() + struct.pack('>II', offset + len(body), len(content))
    body += content
  table = struct.pack('>I', len(tags)) + directory + body
  header = struct.pack('>I4sI4s4s4s', 128 + len(table), b'test', 0x02100000, device, space, connection)
  header += bytes(12) + b'acsp' + bytes(28) + b''.join(map(_fixed, D50))
  return header.ljust(128, b'\0') + table
