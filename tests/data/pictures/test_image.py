import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_jax.data.pictures import image as image_lib


def encoded(image, format='PNG', **options):
  buffer = io.BytesIO()
  image.save(buffer, format, **options)
  return buffer.getvalue()


def palette_with_transparency():
  image = Image.new('P', (2, 1))
  image.putpalette([255, 0, 0, 0, 255, 0])
  image.putdata([0, 1])
  return encoded(image, transparency=1)


def two_pixels(mode, left, right):
  image = Image.new(mode, (2, 1))
  image.putdata([left, right])
  return image


def grey_16_bit():
  return Image.fromarray(np.array([[0, 65535], [32896, 257]], np.uint16))


# For each mode: an encoded file, and its RGB pixels calculated by hand.
MODES = {
  'rgb': (encoded(two_pixels('RGB', (1, 2, 3), (4, 5, 6))), [[[1, 2, 3], [4, 5, 6]]]),
  'grey': (encoded(two_pixels('L', 7, 250)), [[[7] * 3, [250] * 3]]),
  'bilevel': (encoded(two_pixels('1', 0, 255)), [[[0] * 3, [255] * 3]]),
  'palette': (palette_with_transparency(), [[[255, 0, 0], [255, 255, 255]]]),
  # A colour c with alpha a, composited on white, is a / 255 * c + (255 - a).
  'grey alpha': (encoded(two_pixels('LA', (0, 51), (100, 255))), [[[204] * 3, [100] * 3]]),
  'rgb alpha': (encoded(two_pixels('RGBA', (255, 0, 0, 51), (9, 9, 9, 0))), [[[255, 204, 204], [255] * 3]]),
  'transparent colour': (
    encoded(two_pixels('RGB', (1, 2, 3), (4, 5, 6)), transparency=(4, 5, 6)),
    [[[1, 2, 3], [255] * 3]],
  ),
  'cmyk': (encoded(two_pixels('CMYK', (0, 255, 255, 0), (0, 0, 0, 255)), 'TIFF'), [[[255, 0, 0], [0] * 3]]),
  '16 bit': (encoded(grey_16_bit()), [[[0] * 3, [255] * 3], [[128] * 3, [1] * 3]]),
  '16 bit, transparent': (
    encoded(grey_16_bit(), transparency=0),
    [[[255] * 3, [255] * 3], [[128] * 3, [1] * 3]],
  ),
  '16 bit tiff': (encoded(grey_16_bit(), 'TIFF'), [[[0] * 3, [255] * 3], [[128] * 3, [1] * 3]]),
}


@pytest.mark.parametrize('mode', MODES)
def test_decode_converts_every_mode_to_rgb(mode):
  data, expected = MODES[mode]
  image = image_lib.decode(data)
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, expected)


def test_decode_reads_cmyk_jpeg():
  data = encoded(Image.new('CMYK', (16, 16), (0, 255, 255, 0)), 'JPEG', quality=95)
  image = image_lib.decode(data)
  assert image.shape == (16, 16, 3)
  assert np.abs(image.astype(int) - [255, 0, 0]).max() < 8


def test_decode_applies_the_exif_orientation():
  exif = Image.Exif()
  exif[0x0112] = 6  # viewers must rotate the image by 90 degrees clockwise
  image = image_lib.decode(encoded(two_pixels('RGB', (255, 0, 0), (0, 0, 255)), exif=exif))
  np.testing.assert_array_equal(image, [[[255, 0, 0]], [[0, 0, 255]]])


def test_decode_takes_the_first_frame_of_an_animation():
  frames = [Image.new('RGB', (3, 3), color) for color in ('red', 'blue')]
  data = encoded(frames[0], 'WEBP', save_all=True, append_images=frames[1:], lossless=True)
  np.testing.assert_array_equal(image_lib.decode(data), np.broadcast_to(np.uint8([255, 0, 0]), (3, 3, 3)))


@pytest.mark.parametrize('data', [b'', b'hello', encoded(Image.effect_noise((64, 64), 50))[:-500]])
def test_decode_refuses_data_that_is_not_an_image(data):
  with pytest.raises(ValueError, match='cannot decode the image'):
    image_lib.decode(data)


def test_decode_refuses_floating_point_pixels():
  with pytest.raises(ValueError, match='floating point'):
    image_lib.decode(encoded(Image.new('F', (2, 2)), 'TIFF'))


def test_decode_refuses_a_decompression_bomb():
  ihdr = b'IHDR' + struct.pack('>IIBBBBB', 50_000, 50_000, 8, 2, 0, 0, 0)
  data = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + ihdr + struct.pack('>I', zlib.crc32(ihdr))
  with pytest.raises(ValueError, match='cannot decode'):
    image_lib.decode(data)


@pytest.mark.filterwarnings('ignore')
@settings(max_examples=200, deadline=None)
@given(
  st.sampled_from(['PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF']),
  st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_decode_raises_only_value_errors_for_damaged_files(format, changes):
  data = bytearray(encoded(Image.effect_noise((8, 8), 50).convert('RGB'), format))
  for relative_position, value in changes:
    data[int(relative_position * (len(data) - 1))] = value
  try:
    assert image_lib.decode(bytes(data)).shape[-1] == 3
  except ValueError as error:
    assert 'cannot decode' in str(error)


def random_image(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 9), st.integers(1, 9), st.text(st.characters(exclude_categories=['Cs']), max_size=30))
def test_png_keeps_pixels_and_text(height, width, caption):
  image = random_image(height, width)
  data = image_lib.encode_png(image, {'prompt': caption})
  np.testing.assert_array_equal(image_lib.decode(data), image)
  assert Image.open(io.BytesIO(data)).text['prompt'] == caption


def test_encode_png_refuses_other_dtypes_and_invalid_keys():
  with pytest.raises(ValueError, match=r'uint8 \[H, W, 3\]'):
    image_lib.encode_png(np.zeros((2, 2, 3), np.float32))
  with pytest.raises(ValueError, match='key'):
    image_lib.encode_png(random_image(2, 2), {'': 'x'})


def deep_png(colour_type: int, channels: int) -> bytes:
  """A PNG of 2 x 2 pixels with 16 bits per channel. Pillow itself can write such files only in grey."""

  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  rows = b''.join(b'\0' + b'\xff' * (2 * channels * 2) for _ in range(2))
  header = struct.pack('>IIBBBBB', 2, 2, 16, colour_type, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


@pytest.mark.parametrize(
  'data',
  [
    *(encoded(Image.new(mode, (3, 2)), 'PNG') for mode in ('1', 'L', 'P', 'RGB')),
    encoded(Image.new('RGBA', (3, 2), (1, 2, 3, 255)), 'PNG'),
    encoded(Image.new('RGB', (3, 2)), 'TIFF'),
    encoded(Image.new('L', (3, 2)), 'JPEG'),
  ],
)
def test_images_that_rgb_can_represent_are_lossless(data):
  image_lib.check_lossless(data)


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (deep_png(2, 3), 'more than 8 bits'),
    (deep_png(6, 4), 'more than 8 bits'),
    (deep_png(4, 2), 'more than 8 bits'),
    (encoded(Image.new('I;16', (3, 2)), 'PNG'), 'more than 8 bits'),
    (encoded(Image.new('I;16', (3, 2)), 'TIFF'), 'more than 8 bits'),
    (encoded(Image.new('RGBA', (3, 2), (1, 2, 3, 254)), 'PNG'), 'transparency'),
    (encoded(Image.new('P', (3, 2)), 'PNG', transparency=0), 'transparency'),
    (encoded(Image.new('CMYK', (3, 2)), 'JPEG'), 'pixels of the mode CMYK'),
    (encoded(Image.new('L', (3, 2)), 'GIF', save_all=True, append_images=[Image.new('L', (3, 2), 9)]), '2 frames'),
    (b'not an image', 'cannot decode'),
  ],
)
def test_images_that_rgb_cannot_represent_are_not_lossless(data, message):
  with pytest.raises(ValueError, match=message):
    image_lib.check_lossless(data)


def _jpeg(image, mode='RGB'):
  buffer = io.BytesIO()
  Image.fromarray(image).convert(mode).save(buffer, 'JPEG', quality=95)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ('shape', 'smallest', 'expected'),
  [
    ((256, 256), 64, (64, 64)),
    ((256, 256), 65, (128, 128)),
    ((256, 256), 128, (128, 128)),
    ((254, 300), 64, (127, 150)),
    ((256, 256), 129, (256, 256)),
    ((2048, 4096), 64, (256, 512)),
    ((256, 256), None, (256, 256)),
    ((40, 40), 64, (40, 40)),
  ],
)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg_files_are_decoded_at_a_fraction_that_keeps_the_smallest_side(shape, smallest, expected, mode):
  ramp = np.add.outer(np.arange(shape[0]) / shape[0], np.arange(shape[1]) / shape[1]) * 120
  data = _jpeg(np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=-1), mode)
  whole, small = image_lib.decode(data), image_lib.decode(data, smallest=smallest)
  assert small.shape == (*expected, 3) and whole.shape == (*shape, 3)
  step = shape[0] // expected[0]
  means = whole.reshape(expected[0], step, expected[1], step, 3).mean((1, 3))
  assert np.abs(small - means).max() < 4


def test_only_jpeg_files_are_decoded_at_a_fraction():
  image = np.zeros((64, 64, 3), np.uint8)
  assert image_lib.decode(image_lib.encode_png(image), smallest=8).shape == (64, 64, 3)
