import numpy as np
import pytest
from PIL import Image

from dalle_jax.jobs.draw.given_picture import InputPicture, read_mask


@pytest.fixture
def picture(tmp_path):
  file = tmp_path / 'picture.png'
  Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(file)
  return str(file)


def test_a_mask_keeps_dark_pixels_or_opaque_ones_if_some_are_transparent(tmp_path):
  white = np.array([[0, 255], [127, 128]], np.uint8)
  Image.fromarray(white).save(tmp_path / 'grey.png')
  np.testing.assert_array_equal(read_mask(str(tmp_path / 'grey.png')), [[True, False], [True, False]])
  clear = np.dstack([np.full((2, 2, 3), 255, np.uint8), np.array([[0, 255], [255, 0]], np.uint8)])
  Image.fromarray(clear, 'RGBA').save(tmp_path / 'clear.png')
  np.testing.assert_array_equal(read_mask(str(tmp_path / 'clear.png')), [[False, True], [True, False]])
  opaque = np.dstack([white, white, white, np.full((2, 2), 255, np.uint8)])
  Image.fromarray(opaque, 'RGBA').save(tmp_path / 'opaque.png')
  np.testing.assert_array_equal(read_mask(str(tmp_path / 'opaque.png')), [[True, False], [True, False]])
  Image.fromarray(white.astype(np.uint16) * 257).save(tmp_path / 'deep.png')
  np.testing.assert_array_equal(read_mask(str(tmp_path / 'deep.png')), [[True, False], [True, False]])


def test_facts_hold_a_hash_of_the_image_and_the_kept_part(picture, tmp_path):
  facts = InputPicture(image=picture, keep_box=(0.0, 0.0, 0.5, 1.0)).facts()
  assert facts == {'image': facts['image'], 'keep_box': [0.0, 0.0, 0.5, 1.0]} and len(facts['image']) == 16
  Image.fromarray(np.ones((6, 9, 3), np.uint8)).save(tmp_path / 'other.png')
  assert InputPicture(image=str(tmp_path / 'other.png'), variation=0.5).facts()['image'] != facts['image']


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({}, r'With --image give exactly one of --mask, --keep_top, .*; given none'),
    ({'keep_top': 0.5, 'variation': 0.5}, r'given keep_top, variation'),
    ({'keep_top': 2.0}, r'--keep_top is 2'),
    ({'keep_box': (0.0, 1.0)}, r'--keep_box needs four numbers'),
    ({'redraw_box': (0.5, 0.0, 0.1, 1.0)}, r'--redraw_box is'),
    ({'variation': 0.0}, r'--variation is 0'),
    ({'mask': 'missing.png'}, r'--mask missing\.png cannot be read'),
    ({'image': 'missing.png', 'keep_top': 0.5}, r'--image missing\.png cannot be read'),
  ],
)
def test_bad_flags_are_refused_without_a_model(picture, values, message):
  with pytest.raises(ValueError, match=message):
    InputPicture(**{'image': picture, **values})


def _mask(tmp_path, name, alpha, mode='RGBA', **options):
  """A picture file that is transparent where `alpha` is 0."""
  clear = Image.fromarray(np.dstack([np.full((*alpha.shape, 3), 200, np.uint8), alpha]), 'RGBA')
  if mode == 'P':
    palette = Image.fromarray((alpha > 0).astype(np.uint8), 'P')
    palette.putpalette([200] * 6)
    palette.save(tmp_path / name, transparency=0, **options)
  else:
    clear.convert(mode).save(tmp_path / name, **options)
  return str(tmp_path / name)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_masks_by_transparency_follow_the_orientation(tmp_path, mode):
  alpha = np.zeros((4, 6), np.uint8)
  alpha[:2, :3] = 255
  exif = Image.Exif()
  upright = read_mask(_mask(tmp_path, 'up.png', alpha, mode))
  np.testing.assert_array_equal(upright, alpha > 0)
  for orientation, stored in ((6, np.rot90(alpha)), (3, alpha[::-1, ::-1]), (2, alpha[:, ::-1])):
    exif[0x0112] = orientation
    turned = read_mask(_mask(tmp_path, 'turned.png', np.ascontiguousarray(stored), mode, exif=exif))
    np.testing.assert_array_equal(turned, upright)


@pytest.mark.parametrize('content', [b'', b'%!PS-Adobe-3.0 EPSF-3.0', b'\x89PNG\r\n\x1a\n' + bytes(30)])
def test_broken_masks_and_images_are_named_with_their_flag(picture, tmp_path, content):
  file = tmp_path / 'a\x1b[31m.png'
  file.write_bytes(content)
  for name, values in (('mask', {'mask': str(file)}), ('image', {'image': str(file), 'keep_top': 0.5})):
    with pytest.raises(ValueError, match=rf'--{name} .*a\\x1b\[31m\.png cannot be read: cannot decode'):
      InputPicture(**{'image': picture, **values})


def test_the_limit_of_pixels_holds_for_image_and_mask(picture, tmp_path):
  mask = _mask(tmp_path, 'mask.png', np.zeros((6, 9), np.uint8))
  assert 'max_image_pixels' not in InputPicture(image=picture, mask=mask, max_image_pixels=54).facts()
  for values, name in (({'mask': mask}, 'mask'), ({'keep_top': 0.5}, 'image')):
    with pytest.raises(ValueError, match=rf'--{name} .* 9 x 6 pixels, more than the limit of 53'):
      InputPicture(image=picture, max_image_pixels=53, **values)
