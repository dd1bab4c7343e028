import io

import icc
import numpy as np
import pytest
from PIL import Image, ImageCms

from dalle_jax.data.pictures import image as image_lib

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB')).tobytes()
FORMATS = {
  'PNG': {}, 'JPEG': {'quality': 100, 'subsampling': 0}, 'WEBP': {'lossless': True}, 'TIFF': {},
  'AVIF': {'quality': 100, 'subsampling': '4:4:4'},
}  # fmt: skip


def encoded(image, format='PNG', **options):
  buffer = io.BytesIO()
  image.save(buffer, format, **options)
  return buffer.getvalue()


def srgb_encoded(linear):
  """sRGB's tone curve, from light in [0, 1] to [0, 255]."""
  return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def signed(profile, kind, space):
  """The profile with the signatures of another kind and another colour space."""
  return profile[:12] + kind + space + profile[20:]


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize('format', FORMATS)
def test_pictures_in_srgb_are_bit_for_bit_those_without_a_profile(format):
  image = Image.fromarray(noise(8, 8, 3))
  plain = image_lib.read(encoded(image, format, **FORMATS[format]))
  tagged = image_lib.read(encoded(image, format, icc_profile=SRGB, **FORMATS[format]))
  np.testing.assert_array_equal(tagged.pixels, plain.pixels)
  assert tagged.notes == plain.notes == ()


@pytest.mark.parametrize('format', FORMATS)
def test_linear_pictures_with_red_and_blue_exchanged_are_converted(format):
  profile = icc.rgb_profile(colorants=icc.SRGB[::-1], gamma=1.0)
  image = Image.new('RGB', (8, 8), (200, 100, 20))
  picture = image_lib.read(encoded(image, format, icc_profile=profile, **FORMATS[format]))
  expected = srgb_encoded(np.array([20, 100, 200]) / 255)
  assert np.abs(picture.pixels - expected).max() < (2 if format in ('PNG', 'WEBP', 'TIFF') else 6)
  assert picture.notes == ()


def test_a_grey_profile_converts_grey_pictures_with_and_without_transparency():
  profile, values = icc.grey_profile(1.0), np.array([[0, 10, 100, 255]], np.uint8)
  expected = srgb_encoded(values / 255)[..., None]
  assert np.abs(image_lib.decode(encoded(Image.fromarray(values), icc_profile=profile)) - expected).max() < 1.5
  two = Image.merge('LA', [Image.fromarray(values), Image.fromarray(np.array([[255, 255, 0, 255]], np.uint8))])
  expected[0, 2] = 255
  assert np.abs(image_lib.decode(encoded(two, icc_profile=profile)) - expected).max() < 1.5
  deep = Image.fromarray(values.astype(np.uint16) * 257)
  expected[0, 2] = srgb_encoded(np.array(100 / 255))
  assert np.abs(image_lib.decode(encoded(deep, icc_profile=profile)) - expected).max() < 1.5


@pytest.mark.parametrize('format', ['TIFF', 'JPEG'])
def test_a_cmyk_profile_converts_cmyk_pictures(format):
  # Ink of any kind makes the paper a grey of L* 50, which is 18.4 % of the light, or 119 in sRGB.
  profile = icc.cmyk_profile(lambda *inks: 50 if any(inks) else 100)
  image = Image.new('CMYK', (16, 8), (0, 0, 0, 0))
  image.paste((0, 255, 0, 0), (0, 0, 8, 8))
  pixels = image_lib.decode(encoded(image, format, icc_profile=profile)).astype(int)
  assert np.abs(pixels[:, :8] - 119).max() < 8 and np.abs(pixels[:, 8:] - 255).max() < 8
  np.testing.assert_array_equal(image_lib.decode(encoded(image, 'TIFF'))[0, 0], [255, 0, 255])


def test_transparency_survives_the_conversion():
  image = Image.fromarray(np.array([[[200, 100, 20, 255], [200, 100, 20, 0]]], np.uint8))
  profile = icc.rgb_profile(colorants=icc.SRGB[::-1], gamma=1.0)
  pixels = image_lib.decode(encoded(image, icc_profile=profile))
  assert np.abs(pixels[0, 0] - srgb_encoded(np.array([20, 100, 200]) / 255)).max() < 2
  np.testing.assert_array_equal(pixels[0, 1], [255] * 3)


@pytest.mark.parametrize(
  ('mode', 'profile', 'note'),
  [
    ('RGB', b'', None),
    ('RGB', bytes(500), 'it is damaged'),
    ('RGB', SRGB[:200], 'it is damaged'),
    ('RGB', SRGB[:300] + bytes(len(SRGB) - 300), 'it is damaged'),
    ('RGB', icc.grey_profile(1.8), 'it is for GRAY, the pixels are RGB'),
    ('RGB', icc.cmyk_profile(lambda *inks: 50), 'it is for CMYK, the pixels are RGB'),
    ('CMYK', SRGB, 'it is for RGB, the pixels are CMYK'),
    ('L', SRGB, None),
    ('RGB', LAB, 'it is for LAB, the pixels are RGB'),
    ('L', LAB, 'it is for LAB, the pixels are L'),
    ('LAB', LAB, None),
    ('LAB', SRGB, 'it is for RGB, the pixels are LAB'),
    ('LAB', bytes(500), 'it is damaged'),
    ('RGB', LAB[:150], 'it is damaged'),
    ('RGB', signed(SRGB, b'prtr', b'6CLR'), 'it is for 6 inks, the pixels are RGB'),
    ('RGB', signed(SRGB, b'mntr', b'????'), 'it is damaged'),
    ('RGB', signed(SRGB, b'link', b'RGB '), 'it is a device link, which leads from one device to another'),
    ('RGB', signed(SRGB, b'nmcl', b'RGB '), 'it is a list of named colours'),
  ],
)
def test_profiles_that_cannot_be_used_are_notes_and_change_no_pixel(mode, profile, note):
  image = Image.fromarray(noise(4, 4, 3))
  image = Image.frombytes('LAB', (4, 4), image.tobytes()) if mode == 'LAB' else image.convert(mode)
  plain, tagged = (image_lib.read(encoded(image, 'TIFF', icc_profile=p)) for p in (b'', profile))
  np.testing.assert_array_equal(tagged.pixels, plain.pixels)
  assert tagged.notes == ((f'colour profile not converted: {note}',) if note else ())


def test_a_lossless_coder_refuses_other_profiles_than_srgb():
  image = Image.fromarray(noise(4, 4, 3))
  image_lib.check_lossless(encoded(image, icc_profile=SRGB))
  image_lib.check_lossless(encoded(image.convert('L'), icc_profile=SRGB))
  for profile in (icc.rgb_profile(), SRGB[:200]):
    with pytest.raises(ValueError, match='a colour profile other than sRGB'):
      image_lib.check_lossless(encoded(image, icc_profile=profile))


def test_adobe_rgb_of_exif_is_noted():
  exif = Image.Exif()
  exif.get_ifd(0x8769)[0xA001] = 2
  assert image_lib.read(encoded(Image.new('RGB', (8, 8)), 'JPEG', exif=exif)).notes == (
    'Adobe RGB of EXIF not converted',
  )
