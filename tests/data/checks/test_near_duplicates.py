import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.checks import near_duplicates
from dalle_jax.data.checks.near_duplicates import Look, LookIndex


def look_of(pixels):
  # Beside others, because many looks are computed at once.
  image = near_duplicates.reduced(Image.fromarray(pixels))
  return near_duplicates.looks_of([bytes(32 * 32 * 3), image])[1]


def blocks(seed, size=64):
  pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
  return np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def flipped(bits, places):
  return bits ^ sum(1 << place for place in places)


@pytest.mark.parametrize('seed', range(5))
def test_scaling_compression_and_brightness_hardly_change_a_look(seed, tmp_path):
  pixels = blocks(seed)
  index = LookIndex()
  index.add(3, look_of(pixels))
  Image.fromarray(pixels).save(tmp_path / 'a.jpg', quality=90)
  for other in (np.array(Image.open(tmp_path / 'a.jpg')), blocks(seed, 128), np.clip(pixels, 2, 250)):
    assert index.find(look_of(other)) == 3
  for other in (blocks(seed + 100), pixels[:, ::-1], np.rot90(pixels), 255 - pixels, pixels[..., ::-1]):
    assert index.find(look_of(np.ascontiguousarray(other))) is None


def test_every_hash_within_the_distance_is_found():
  rng = np.random.default_rng(0)
  hashes = [int(bits) for bits in rng.integers(0, 2**63, 300)]
  thumbnail = bytes(192)
  index = LookIndex()
  for number, bits in enumerate(hashes):
    index.add(number, Look(bits, thumbnail))
  for number, bits in enumerate(hashes):
    for distance in range(4):
      places = rng.choice(64, distance, replace=False)
      assert index.find(Look(flipped(bits, [int(place) for place in places]), thumbnail)) == number
    assert index.find(Look(flipped(bits, [1, 20, 40, 60]), thumbnail)) is None


def test_pictures_of_one_colour_are_near_only_in_that_colour():
  index = LookIndex()
  red = np.full((20, 30, 3), (250, 0, 0), np.uint8)
  index.add(0, look_of(red))
  assert index.find(look_of(red + np.uint8(2))) == 0
  assert index.find(look_of(red[..., ::-1].copy())) is None


def test_another_detail_in_an_equal_picture_is_another_picture():
  face = np.full((64, 64, 3), (250, 200, 60), np.uint8)
  face[8:20, 12:20] = face[8:20, 44:52] = 30
  smile, frown = face.copy(), face.copy()
  smile[48:54, 20:44] = smile[42:48, 14:20] = smile[42:48, 44:50] = 30
  frown[42:48, 20:44] = frown[48:54, 14:20] = frown[48:54, 44:50] = 30
  index = LookIndex()
  index.add(0, look_of(smile))
  assert index.find(look_of(smile + np.uint8(1))) == 0
  assert index.find(look_of(frown)) is None
