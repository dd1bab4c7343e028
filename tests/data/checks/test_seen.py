import io

import pytest
from PIL import Image

from dalle_jax.config import DataConfig
from dalle_jax.data.checks import seen

CONFIG = DataConfig(image_size=32, num_threads=2)


def encoded(value, file_format='PNG', size=(32, 32)):
  """A flat image of one grey value with a white corner, encoded."""
  image = Image.new('RGB', size, (value,) * 3)
  image.putpixel((0, 0), (255, 255, 255))
  file = io.BytesIO()
  image.save(file, file_format)
  return file.getvalue()


def records(*pairs):
  return [{'image': image, 'caption': caption, 'key': str(i)} for i, (image, caption) in enumerate(pairs)]


def digests(source):
  counts = []
  result = seen.digests(CONFIG, source, len(source), counts.append)
  assert counts[-1] == len(source)
  return result


def test_images_are_compared_by_pixels_and_captions_without_case_and_spacing():
  train = digests(records((encoded(10), 'A red cat.'), (encoded(20), 'two'), (encoded(30), '')))
  source = records(
    (encoded(10, 'BMP'), 'new'),  # the same pixels in another format
    (encoded(11), 'a  RED cat'),
    (encoded(20), 'Two'),
    (encoded(12), ''),  # an empty caption equals none
    (b'no image', 'x'),
    (encoded(13), 'three'),
  )
  for reads_captions, expected in ((True, [3, 4, 5]), (False, [1, 3, 4, 5])):
    indices, overlap = seen.compare('validation', digests(source), train, (6, 3), reads_captions)
    assert indices == expected
    assert (overlap.images, overlap.captions, overlap.left_out) == (2, 2, 6 - len(expected))
  assert 'the images of 2 of 6 records and the captions of 2 also occur' in overlap.describe()
  assert 'Only the first' not in overlap.describe()


def test_captions_do_not_count_if_none_is_new():
  train = digests(records((encoded(1), 'a dog'), (encoded(2), 'a cat')))
  held_out = digests(records((encoded(3), 'a dog'), (encoded(2), 'a cat'), (encoded(4), 'a cat')))
  indices, overlap = seen.compare('validation', held_out, train, (3, 2), True)
  assert indices == [0, 2]
  assert overlap.captions == 3
  assert 'no other remain' in overlap.describe()


def test_a_limit_is_reported():
  train = digests(records((encoded(1), 'a dog')))
  _, overlap = seen.compare('validation', train, train, (9, 4), True)
  assert 'Only the first 1 of 4 training records and the first 1 of 9 held-out records' in overlap.describe()


@pytest.mark.parametrize(('first', 'second'), [('Ａ  cat ', 'a cat'), ('a cat.', 'A CAT'), ('STRASSE', 'straße')])
def test_captions_are_normalized(first, second):
  assert seen.normalized(first) == seen.normalized(second) != seen.normalized('a cat on a mat')


def test_records_that_cannot_be_read_occur_nowhere():
  class Damaged(list):
    def __getitem__(self, index):
      if index == 1:
        raise RuntimeError('chunk data hash mismatch')  # what array_record raises
      return super().__getitem__(index)

  source = Damaged(records((encoded(1), 'a'), (encoded(2), 'b'), (b'no image', 'c')))
  assert [bool(row.any()) for row in digests(source)] == [True, False, False]

  class Short(list):
    def __getitem__(self, index):
      raise MemoryError

  with pytest.raises(MemoryError):
    digests(Short(source))
