import io
import pathlib
import struct
import zlib

import numpy as np
import png_bytes
import pytest
from PIL import Image
from png_bytes import chunk, png

from dalle_jax.data.pictures import image as image_lib

WHITE = [255] * 3
GREY = {1: [0, 255], 2: [0, 85, 170, 255], 4: [17 * value for value in range(16)], 8: list(range(256))}
CASES = pathlib.Path(__file__).parents[3].parent / 'shared' / 'cases'


@pytest.mark.parametrize('depth', GREY)
def test_the_transparent_colour_of_grey_pictures_becomes_white_at_every_depth(depth):
  values = [[0, 1, 2**depth - 1, 0]]
  for key in (0, 1, 2**depth - 1):
    data = png(values, depth, 0, chunk(b'tRNS', struct.pack('>H', key)))
    expected = [WHITE if value == key else [GREY[depth][value]] * 3 for value in values[0]]
    np.testing.assert_array_equal(image_lib.decode(data)[0], expected)
    np.testing.assert_array_equal(image_lib.opacity(data)[0], [0 if value == key else 255 for value in values[0]])
    with pytest.raises(ValueError, match='transparency'):
      image_lib.check_lossless(data)


def test_only_the_low_bits_of_a_transparent_colour_count():
  data = png([[3, 1]], 4, 0, chunk(b'tRNS', b'\xff\xf3'))
  np.testing.assert_array_equal(image_lib.decode(data), [[WHITE, [17] * 3]])


def test_the_transparent_colour_of_deep_pictures_is_compared_at_16_bits():
  grey = png([[1000, 1001, 65535]], 16, 0, chunk(b'tRNS', struct.pack('>H', 1001)))
  np.testing.assert_array_equal(image_lib.decode(grey), [[[4] * 3, WHITE, WHITE]])
  np.testing.assert_array_equal(image_lib.opacity(grey), [[255, 0, 255]])
  # The high bytes of all three colours are the same. Filter 1 takes the differences to the left pixel.
  colours = np.array([[[513, 514, 515], [513, 514, 516], [514, 514, 515]]])
  for interlaced in (False, True):
    rows = png_bytes.raw_rows(colours.reshape(1, -1), 16)
    data = png_bytes.SIGNATURE + png_bytes.header(3, 1, 16, 2, interlaced)
    if interlaced:  # passes 1, 4 and 6 of Adam7 have one pixel of this row each
      order = (0, 2, 1)
      rows = b''.join(b'\0' + colours[0, i].astype('>u2').tobytes() for i in order)
    data += chunk(b'tRNS', struct.pack('>3H', 513, 514, 516)) + chunk(b'IDAT', zlib.compress(rows))
    data += chunk(b'IEND', b'')
    np.testing.assert_array_equal(image_lib.decode(data), [[[2] * 3, WHITE, [2] * 3]])
    with pytest.raises(ValueError, match='transparency and more than 8 bits'):
      image_lib.check_lossless(data)


def test_the_transparent_colour_of_8_bit_rgb_and_of_palettes_becomes_white():
  data = png([[1, 2, 3, 4, 5, 6]], 8, 2, chunk(b'tRNS', struct.pack('>3H', 1, 2, 3)))
  np.testing.assert_array_equal(image_lib.decode(data), [[WHITE, [4, 5, 6]]])
  palette = chunk(b'PLTE', bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9]))
  for depth in (2, 4, 8):
    data = png([[0, 1, 2, 3]], depth, 3, palette, chunk(b'tRNS', bytes([255, 0, 51])))
    np.testing.assert_array_equal(image_lib.decode(data), [[[255, 0, 0], WHITE, [204, 204, 255], [9] * 3]])
    with pytest.raises(ValueError, match='transparency'):
      image_lib.check_lossless(data)


def test_a_transparent_colour_that_no_pixel_has_loses_nothing():
  data = png([[1, 2, 3]], 8, 2, chunk(b'tRNS', struct.pack('>3H', 9, 9, 9)))
  image_lib.check_lossless(data)
  assert image_lib.opacity(data) is None


PASSES = ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8))  # rows and columns of Adam7's passes, for 8 x 8


@pytest.mark.parametrize('interlaced', [False, True])
def test_missing_rows_are_refused_even_if_the_compressed_data_end_in_order(interlaced):
  rows = [
    b'\0' + bytes([200]) * 3 * width for count, width in (PASSES if interlaced else [(8, 8)]) for _ in range(count)
  ]
  for num_rows in range(len(rows) + 1):
    data = png_bytes.SIGNATURE + png_bytes.header(8, 8, 8, 2, interlaced)
    data += chunk(b'IDAT', zlib.compress(b''.join(rows[:num_rows]))) + chunk(b'IEND', b'')
    if num_rows == len(rows):
      assert image_lib.decode(data).min() == 200
    else:
      with pytest.raises(ValueError, match=r'rows are missing|end before its last row'):
        image_lib.decode(data)


def test_black_rows_at_the_end_are_no_missing_rows():
  image = np.zeros((5, 7, 3), np.uint8)
  np.testing.assert_array_equal(image_lib.decode(image_lib.encode_png(image)), image)


def _noise():
  return np.random.default_rng(0).integers(0, 256, (4, 24))


@pytest.mark.parametrize('position', range(8, 8 + 25 + 12 + 40, 3))
def test_one_flipped_bit_of_a_chunk_is_refused(position):
  data = bytearray(png(_noise(), 8, 2, chunk(b'tEXt', b'key\0a text of some length')))
  data[position] ^= 16
  with pytest.raises(ValueError, match='cannot decode'):
    image_lib.decode(bytes(data))


@pytest.mark.parametrize('cut', [1, 4, 11, 12, 13, 40])
def test_files_that_are_cut_off_are_refused(cut):
  with pytest.raises(ValueError, match='cut off'):
    image_lib.decode(png(_noise(), 8, 2)[:-cut])


def test_headers_that_claim_more_than_the_file_can_hold_are_refused_before_decoding():
  for columns, rows in ((80_000_000, 1), (1, 80_000_000), (9000, 9000)):
    data = png_bytes.SIGNATURE + png_bytes.header(columns, rows, 8, 2) + chunk(b'IDAT', zlib.compress(b'\0'))
    with pytest.raises(ValueError, match='bytes of compressed pixels cannot hold'):
      image_lib.decode(data + chunk(b'IEND', b''))
  blank = np.zeros((1000, 3000), int)  # compresses as well as any picture
  assert image_lib.decode(png(blank, 8, 2)).shape == (1000, 1000, 3)


TEXTS = {
  'zTXt': chunk(b'zTXt', b'key\0\0' + zlib.compress(bytes(1 << 26))),
  'iTXt': chunk(b'iTXt', b'key\0\1\0\0\0' + zlib.compress(bytes(1 << 26))),
  'xmp': chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(bytes(1 << 26))),
  'exif': chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(bytes(1 << 26))),
  'long': chunk(b'tEXt', b'key\0' + bytes(1 << 21)),
  'damaged': chunk(b'zTXt', b'key\0\0no zlib'),
  'no key': chunk(b'tEXt', b'\0'),
  'method': chunk(b'zTXt', b'key\0\7abc'),
}


@pytest.mark.parametrize('name', TEXTS)
@pytest.mark.parametrize('place', ['chunks', 'before'])
def test_texts_of_any_size_do_not_matter(name, place):
  data = png([[1, 2, 3]], 8, 2, TEXTS[name]) if place == 'chunks' else png([[1, 2, 3]], 8, 2, before=TEXTS[name])
  picture = image_lib.read(data)
  np.testing.assert_array_equal(picture.pixels, [[[1, 2, 3]]])
  assert picture.notes == ()


def test_the_orientation_may_be_in_a_text():
  data = png([[1, 2, 3, 4, 5, 6]], 8, 2, chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0<a tiff:Orientation="6"/>'))
  np.testing.assert_array_equal(image_lib.decode(data), [[[1, 2, 3]], [[4, 5, 6]]])


def test_text_entries_are_read():
  data = image_lib.encode_png(np.zeros((1, 1, 3), np.uint8), {'a': 'x' * 2_000_000, 'b': 'größer\n'})
  assert image_lib.png_text(data) == {'a': 'x' * 2_000_000, 'b': 'größer\n'}
  texts = chunk(b'zTXt', b'z\0\0' + zlib.compress(b'caf\xe9')), chunk(b'tEXt', b't\0caf\xe9')
  assert image_lib.png_text(png([[1]], 8, 0, *texts)) == {'z': 'café', 't': 'café'}
  jpeg = io.BytesIO()
  Image.new('L', (1, 1)).save(jpeg, 'JPEG')
  with pytest.raises(ValueError, match='it is a JPEG file; only PNG'):
    image_lib.png_text(jpeg.getvalue())


@pytest.mark.parametrize(
  ('chunks', 'notes'),
  [
    ([], ()),
    ([chunk(b'gAMA', struct.pack('>I', 45455))], ()),
    ([chunk(b'gAMA', struct.pack('>I', 100_000))], ('gamma 1 not converted',)),
    ([chunk(b'gAMA', struct.pack('>I', 100_000)), chunk(b'sRGB', b'\0')], ()),
    ([chunk(b'cHRM', struct.pack('>8I', 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))], ()),
    ([chunk(b'cHRM', struct.pack('>8I', 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))],
     ('primaries of cHRM not converted',)),
    ([chunk(b'cICP', bytes([1, 13, 0, 1]))], ()),
    ([chunk(b'cICP', bytes([9, 16, 0, 1]))], ('colour space of cICP not converted',)),
    ([chunk(b'iCCP', b'name\0\0no zlib')], ('colour profile not converted: it is damaged',)),
    ([chunk(b'iCCP', b'name\0\0' + zlib.compress(bytes(1 << 25)))], ('colour profile not converted: it is damaged',)),
  ],
)  # fmt: skip
def test_other_colour_spaces_are_noted(chunks, notes):
  picture = image_lib.read(png([[1, 2, 3]], 8, 2, *chunks))
  np.testing.assert_array_equal(picture.pixels, [[[1, 2, 3]]])
  assert picture.notes == notes


def test_animations_are_no_pictures_without_loss_even_with_one_frame():
  control = chunk(b'acTL', struct.pack('>II', 2, 0)), chunk(b'fcTL', struct.pack('>5I2H2B', 0, 1, 1, 0, 0, 1, 1, 0, 0))
  data = png([[1, 2, 3]], 8, 2, *control)
  np.testing.assert_array_equal(image_lib.decode(data), [[[1, 2, 3]]])
  with pytest.raises(ValueError, match='2 frames'):
    image_lib.check_lossless(data)
  with pytest.raises(ValueError, match='2 frames'):  # the picture itself is no frame of the animation
    image_lib.check_lossless(png([[1, 2, 3]], 8, 2, chunk(b'acTL', struct.pack('>II', 1, 0))))


@pytest.mark.skipif(not CASES.exists(), reason='the shared cases are absent')
def test_shared_cases():
  def pixels(name):
    return image_lib.decode((CASES / name).read_bytes())

  assert pixels('brk_rational_neg.jpg').shape == (32, 48, 3)
  np.testing.assert_array_equal(pixels('grey4_trns1.png')[0, :3], [[0] * 3, WHITE, [34] * 3])
  np.testing.assert_array_equal(pixels('rgb16_trns.png')[0, 1], WHITE)
  for name, message in {
    'postscript_named.png': 'PostScript', 'idat_short_rows.png': 'end before its last row', 'I32_big.tif': '6,300,000',
    'broken_from.png': 'IDAT chunk at byte 109 is damaged',
  }.items():  # fmt: skip
    with pytest.raises(ValueError, match=message):
      pixels(name)
