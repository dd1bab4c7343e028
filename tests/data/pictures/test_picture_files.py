import ast
import concurrent.futures
import io
import os
import pathlib
import struct
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from dalle_jax import flags
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.data.pictures import image as image_lib
from dalle_jax.data.pictures import picture_files

ROOT = pathlib.Path(__file__).parents[3]
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


def encoded(image, format='PNG', **options):
  buffer = io.BytesIO()
  image.save(buffer, format, **options)
  return buffer.getvalue()


def test_pictures_are_opened_in_one_place():
  places = [
    path.name
    for directory in ('dalle_jax', 'tools', 'configs')
    for path in sorted((ROOT / directory).rglob('*.py'))
    if path.parent.name not in ('soaking', 'benchmarking')  # they compare with Pillow
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and node.attr == 'open' and ast.unparse(node.value).endswith('Image')
  ]
  assert places == ['picture_files.py']
  assert flags.MAX_IMAGE_PIXELS == CompressionSettings.max_image_pixels == image_lib.MAX_PIXELS


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'MPO'])
def test_the_listed_formats_are_read(format):
  assert image_lib.decode(encoded(IMAGE, format)).shape == (6, 9, 3)


OTHERS = {
  'JPEG2000': 'JPEG 2000', 'ICO': 'Windows icon', 'PPM': 'netpbm', 'PDF': 'PDF', 'EPS': 'PostScript', 'SGI': 'SGI',
  'DDS': 'DDS', 'TGA': 'TGA', 'PCX': 'it begins with', 'DIB': 'it begins with',
}  # fmt: skip
CONTENTS = {
  b'%!PS-Adobe-3.0\n(x) (w) file': 'PostScript', b'\xc5\xd0\xd3\xc6' + bytes(28) + b'%!PS': 'PostScript',
  b'\x04%!PS': 'PostScript', b'\xd7\xcd\xc6\x9a' + bytes(40): 'WMF', b'\1\0\0\0' + bytes(36) + b' EMF': 'EMF',
  b'\0\0\0\x18ftypheic\0\0\0\0mif1heic': 'HEIC', b'<?xml version="1.0"?><svg>': 'SVG', b'\n<!DOCTYPE HTML>': 'HTML',
  b'version https://git-lfs.github.com/spec/v1': 'Git LFS', b'': 'it is empty', b'\x1b[31m\r\n': r'\\x1b\[31m',
}  # fmt: skip


@pytest.mark.parametrize('name', [*OTHERS, *CONTENTS], ids=ascii)
def test_other_formats_are_refused_by_name_without_a_reader(name, monkeypatch):
  data, message = (encoded(IMAGE, name), OTHERS[name]) if name in OTHERS else (name, CONTENTS[name])
  monkeypatch.setattr(Image, 'open', lambda *args, **kwargs: pytest.fail('a reader was started'))
  with pytest.raises(ValueError, match=f'{message}.*a picture must be one of PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF'):
    image_lib.decode(data)


def changed(data, position, content):
  return data[:position] + content + data[position + len(content) :]


def claims(columns, rows):
  """Small files of each format whose headers claim a size."""
  exif = Image.Exif()
  exif[0x0112] = 1
  webp = encoded(IMAGE, 'WEBP', exif=exif, lossless=True)
  sides = (columns - 1).to_bytes(3, 'little') + (rows - 1).to_bytes(3, 'little')
  jpeg, tiff = encoded(IMAGE, 'JPEG'), encoded(IMAGE, 'TIFF')
  for tag, value in ((256, columns), (257, rows)):
    position = tiff.find(struct.pack('<HH', tag, 4))
    if position < 0:
      position = tiff.find(struct.pack('<HH', tag, 3))
    tiff = changed(tiff, position, struct.pack('<HHII', tag, 4, 1, value))
  assert webp[12:16] == b'VP8X'
  gif = encoded(IMAGE.quantize(), 'GIF')
  return {
    'GIF screen': changed(gif, 6, struct.pack('<HH', columns, rows)),
    'GIF frame': changed(
      gif, gif.find(b',' + bytes(4) + struct.pack('<HH', 9, 6)) + 5, struct.pack('<HH', columns, rows)
    ),
    'WEBP': changed(webp, 24, sides),
    'BMP': changed(encoded(IMAGE, 'BMP'), 18, struct.pack('<ii', columns, rows)),
    'JPEG': changed(jpeg, jpeg.find(b'\xff\xc0') + 5, struct.pack('>HH', rows, columns)),
    'TIFF': tiff,
  }


@pytest.mark.parametrize('name', claims(9, 6))
def test_headers_that_claim_too_many_pixels_are_refused_before_memory_is_taken(name):
  data = claims(16_000, 16_000)[name]
  tracemalloc.start()
  with pytest.raises(
    ValueError, match=r'16,000 x 16,000 pixels, more than the limit of 89,478,485; raise .*--max_image_'
  ):
    image_lib.decode(data)
  assert tracemalloc.get_traced_memory()[1] < 5_000_000
  tracemalloc.stop()
  assert Image.MAX_IMAGE_PIXELS == 89_478_485


def test_the_limit_can_be_raised_beyond_pillows_and_lowered():
  data = encoded(Image.new('1', (20_000, 10_000)), 'PNG')
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    with pytest.raises(ValueError, match='limit of 89,478,485'):
      image_lib.decode(data)
    with picture_files.opened(data, 200_000_000) as opened:
      assert opened.image.size == (20_000, 10_000)
  for format in ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF'):
    assert image_lib.decode(encoded(IMAGE, format), 54).shape == (6, 9, 3)
    with pytest.raises(ValueError, match='9 x 6 pixels, more than the limit of 53'):
      image_lib.decode(encoded(IMAGE, format), 53)


def test_a_jpeg_must_be_large_enough_for_its_pixels():
  with pytest.raises(ValueError, match=r'8,000 x 8,000 pixels, which its .* bytes cannot hold'):
    image_lib.decode(claims(8000, 8000)['JPEG'])
  for progressive in (False, True):
    blank = encoded(Image.new('L', (2000, 2000)), 'JPEG', progressive=progressive, quality=1)
    assert image_lib.decode(blank).shape == (2000, 2000, 3)


def test_pillows_limit_is_set_again_after_threads():
  limit, data = Image.MAX_IMAGE_PIXELS, [encoded(IMAGE, 'JPEG'), b'\xff\xd8\xffdamaged']

  def decode(number):
    try:
      return image_lib.decode(data[number % 2]).shape
    except ValueError:
      return None

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert set(pool.map(decode, range(200))) == {(6, 9, 3), None}
  assert Image.MAX_IMAGE_PIXELS == limit == 89_478_485


def test_tiles_of_a_tiff_may_not_be_larger_than_the_limit():
  # Columns, rows, bits, compression, colours, samples, and the tiles: columns, rows, offset and bytes.
  tags = {256: 9, 257: 6, 258: 8, 259: 1, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 54}
  tiff = b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags))
  tiff += b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items()) + bytes(4)
  with pytest.raises(ValueError, match='60,000 x 60,000 pixels'):
    image_lib.decode(tiff)


def _turned(format, orientation, **more):
  exif = Image.Exif()
  exif[0x0112] = orientation
  for tag, value in more.items():
    exif[int(tag[1:])] = value
  options = {'lossless': True} if format == 'WEBP' else {'quality': 100, 'subsampling': '4:4:4'}
  return encoded(IMAGE, format, exif=exif, **({} if format in ('PNG', 'TIFF') else options))


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'TIFF', 'AVIF', 'MPO'])
def test_every_orientation_is_applied_in_every_format(format):
  upright = image_lib.decode(_turned(format, 1)).astype(int)
  expected = {
    1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
    6: np.rot90(upright, -1), 7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright),
  }  # fmt: skip
  for orientation, pixels in expected.items():
    decoded = image_lib.decode(_turned(format, orientation))
    assert decoded.shape == pixels.shape and np.abs(decoded - pixels).max() <= (12 if format == 'AVIF' else 0)
  for wrong in (0, 9, 77):
    np.testing.assert_array_equal(image_lib.decode(_turned(format, wrong)), upright)


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP'])
def test_exif_data_that_cannot_be_written_back_or_read_do_not_matter(format):
  body = b'Exif\0\0MM\0*\0\0\0\x08' + struct.pack('>H', 2)
  body += struct.pack('>HHIHH', 0x0112, 3, 1, 6, 0)
  # A positive rational with a negative numerator, as signed numbers under an unsigned tag.
  body += struct.pack('>HHII', 0x011A, 10, 1, 38) + bytes(4) + struct.pack('>ii', -72, 1)
  options = {'lossless': True} if format == 'WEBP' else {'quality': 100} if format == 'JPEG' else {}
  upright = image_lib.decode(encoded(IMAGE, format, **options))
  picture = image_lib.read(encoded(IMAGE, format, exif=body, **options))
  np.testing.assert_array_equal(picture.pixels, np.rot90(upright, -1))
  assert picture.notes == ()
  damaged = image_lib.read(encoded(IMAGE, format, exif=b'Exif\0\0no TIFF header', **options))
  np.testing.assert_array_equal(damaged.pixels, upright)
  assert damaged.notes == (() if format == 'JPEG' else ('EXIF data not read: damaged',))


def _tiff_16(values, **tags):
  return encoded(Image.fromarray(values), 'TIFF', tiffinfo={int(tag[1:]): value for tag, value in tags.items()})


def test_grey_tiffs_of_other_depths():
  values = np.array([[0, 257, 65535]], np.uint16)
  np.testing.assert_array_equal(image_lib.decode(_tiff_16(values))[0, :, 0], [0, 1, 255])
  np.testing.assert_array_equal(image_lib.decode(_tiff_16(values, t262=0))[0, :, 0], [255, 254, 0])
  np.testing.assert_array_equal(image_lib.decode(_tiff_16(values.astype(np.int32)))[0, :, 0], [0, 1, 255])
  for wrong in ([[0, 65536]], [[-1, 5]], [[2**31 - 1, 0]]):
    with pytest.raises(ValueError, match=r'they must lie in \[0, 65,535\]: save it with 8 or 16 bits'):
      image_lib.decode(_tiff_16(np.array(wrong, np.int32)))


def test_grey_tiffs_of_12_bits_have_the_right_brightness():
  tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 6}
  tiff = b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags))
  tiff += b''.join(struct.pack('<HHII', tag, 3 if tag < 270 else 4, 1, value) for tag, value in tags.items())
  tiff += bytes(4) + bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])  # 0, 4095, 2048, 16
  np.testing.assert_array_equal(image_lib.decode(tiff)[0, :, 0], [0, 255, 128, 1])


def test_what_is_no_file_or_too_large_for_a_picture_is_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', tmp_path, '/dev/zero'):
    with pytest.raises(ValueError, match=r'--image .* cannot be read: it is a pipe, a device or a directory'):
      image_lib.read_picture(str(path))
  with (tmp_path / 'large').open('wb') as file:
    file.truncate(picture_files.most_bytes(100) + 1)
  with pytest.raises(ValueError, match=r'--image .* cannot be read: it has more than 268,437,056 bytes'):
    image_lib.read_picture(str(tmp_path / 'large'), max_pixels=100)


def test_deep_avif_files_are_not_lossless():
  avif = encoded(IMAGE, 'AVIF')
  image_lib.check_lossless(avif)
  position = avif.find(b'av1C') + 6
  deep = changed(avif, position, bytes([avif[position] | 0x40]))
  opened = picture_files.Opened(IMAGE, 'AVIF', None)
  assert image_lib._bits(opened, avif) == 8 and image_lib._bits(opened, deep) == 10


def test_damaged_files_of_every_format_give_value_errors_only():
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  generator = np.random.default_rng(0)
  exif = Image.Exif()
  exif[0x0112] = 6
  for format in ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'MPO'):
    more = {} if format in ('GIF', 'BMP') else {'icc_profile': profile, 'exif': exif}
    original = encoded(IMAGE, format, **more)
    for _ in range(60):
      data = bytearray(original)
      for position in generator.integers(len(data), size=generator.integers(1, 5)):
        data[position] = generator.integers(256)
      data = bytes(data[: generator.integers(1, len(data) + 1)] if generator.random() < 0.3 else data)
      for function in (image_lib.read, image_lib.check_lossless, image_lib.opacity):
        with warnings.catch_warnings():
          warnings.simplefilter('ignore')
          try:
            function(data, 1_000_000)
          except ValueError as error:
            assert len(str(error)) < 600 and str(error).isprintable()


def test_a_forked_process_opens_pictures_and_has_pillows_limit():
  limit, own = Image.MAX_IMAGE_PIXELS, picture_files._pillow_limit
  with own.lifted(), own._lock:  # as another thread may hold it
    assert Image.MAX_IMAGE_PIXELS is None
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # JAX warns of forks, because it has threads
      child = os.fork()
    if not child:
      right = limit == Image.MAX_IMAGE_PIXELS and image_lib.decode(encoded(IMAGE)).shape == (6, 9, 3)
      os._exit(0 if right else 1)
  assert os.waitpid(child, 0)[1] == 0 and limit == Image.MAX_IMAGE_PIXELS


def test_pillow_prints_nothing_about_damaged_metadata(tmp_path):
  buffer = io.BytesIO()
  Image.new('RGB', (4, 4)).save(buffer, 'TIFF', compression='raw', software='x' * 50)
  data = buffer.getvalue()
  (tmp_path / 'cut.tif').write_bytes(data[: data.index(b'x' * 50) + 3])
  script = (
    'import sys\nfrom dalle_jax.data.pictures import image\n'
    "try:\n  image.decode(open(sys.argv[1], 'rb').read())\nexcept ValueError:\n  print('refused')\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', script, tmp_path / 'cut.tif'], capture_output=True, text=True, check=False
  )
  assert (done.stdout, done.stderr) == ('refused\n', '')
