"""Tests of sheets locate pictures by colour: every picture has a unique flat colour."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from dalle_jax import files
from dalle_jax.reporting import sheets


def flat(count, size=32, first=0):
  """Pictures [count, size, size, 3]. Picture i has the colour (10, 200, first + i), which is unique in a sheet."""
  images = np.empty((count, size, size, 3), np.uint8)
  images[:] = np.array([(10, 200, first + i) for i in range(count)], np.uint8)[:, None, None]
  return images


def box(sheet, colour):
  """(left, top, right, bottom) of the rectangle of a colour. Fails if the colour does not fill a rectangle."""
  rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
  left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
  assert len(rows) == (right - left) * (bottom - top)
  return left, top, right, bottom


def test_reconstructions_are_below_their_originals_and_rows_wrap():
  sheet = sheets.reconstruction_sheet(flat(5), flat(5, first=100), columns=3)
  above = [box(sheet, (10, 200, i)) for i in range(5)]
  below = [box(sheet, (10, 200, 100 + i)) for i in range(5)]
  for (l0, t0, r0, b0), (l1, t1, r1, b1) in zip(above, below, strict=True):
    assert (r0 - l0, b0 - t0) == (r1 - l1, b1 - t1) == (96, 96)
    assert (l0, r0) == (l1, r1) and b0 < t1 < b0 + 20
  assert above[0][1] == above[1][1] == above[2][1] and above[0][0] < above[1][0] < above[2][0]
  assert above[3][0] == above[0][0] and above[3][1] > below[0][3]
  # There are dark labels to the left of both rows.
  for _, top, _, bottom in (above[0], below[0]):
    assert np.asarray(sheet)[top:bottom, : above[0][0] - 2].min() < 160


@pytest.mark.parametrize(('size', 'expected'), [(32, 96), (40, 120), (96, 96), (128, 128), (1, 96)])
def test_pictures_are_enlarged_by_a_whole_factor(size, expected):
  assert box(sheets.contact_sheet(flat(1, size)), (10, 200, 0))[2:] == (sheets.MARGIN + 1 + expected,) * 2


def test_enlarged_pixels_are_squares():
  image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
  enlarged = np.asarray(sheets.enlarge(image, cell=96))
  np.testing.assert_array_equal(enlarged, image.repeat(4, axis=0).repeat(4, axis=1))


def test_frames_have_the_colour_of_the_verdict():
  images = flat(6).reshape(2, 3, 32, 32, 3)
  right = np.array([[True, False, True], [False, False, True]])
  sheet = np.asarray(sheets.sample_sheet(['one', 'two'], images, right))
  for i, ok in enumerate(right.ravel()):
    left, top, r, bottom = box(sheet, (10, 200, i))
    expected = sheets.RIGHT if ok else sheets.WRONG
    for y, x in ((top - 2, left), (bottom + 1, left), (top, left - 2), (top, r + 1), (top - 4, left - 4)):
      assert tuple(sheet[y, x]) == expected
    assert tuple(sheet[top - 5, left]) == (255, 255, 255)


def test_without_verdicts_there_is_neither_frame_nor_legend():
  images = flat(2).reshape(1, 2, 32, 32, 3)
  plain, judged = (sheets.sample_sheet(['a'], images, right) for right in (None, [[True, False]]))
  for colour in (sheets.RIGHT, sheets.WRONG):
    assert not (np.asarray(plain) == colour).all(-1).any()
  assert plain.height < judged.height


def test_legend_counts_right_and_wrong():
  images = flat(4).reshape(2, 2, 32, 32, 3)
  first = sheets.sample_sheet(['a', 'b'], images, [[True, False], [False, False]])
  second = sheets.sample_sheet(['a', 'b'], images, [[True, False], [False, True]])
  legend = slice(sheets.MARGIN, sheets.MARGIN + 14)
  assert (np.asarray(first)[legend] != np.asarray(second)[legend]).any()


def test_prompts_are_above_their_images():
  sheet = np.asarray(sheets.sample_sheet(['first', 'second'], flat(2).reshape(2, 1, 32, 32, 3)))
  first, second = (box(sheet, (10, 200, i)) for i in range(2))
  assert sheet[: first[1] - 2].min() < 100
  assert sheet[first[3] + 2 : second[1] - 2].min() < 100
  assert sheet[second[3] + 2 :].min() == 255


def test_long_prompts_wrap_instead_of_widening_the_sheet():
  images = flat(4).reshape(1, 4, 32, 32, 3)
  short, long = (sheets.sample_sheet([text], images) for text in ('a', 'word ' * 60 + 'x' * 400))
  assert long.width == short.width and long.height > short.height + 100


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet='abW .', max_size=120), st.integers(20, 200))
def test_wrapped_lines_keep_all_letters_and_fit_the_width(text, width):
  font = ImageFont.load_default(sheets.TEXT_SIZE)
  lines = sheets._wrap(text, font, width)
  assert ''.join(lines).replace(' ', '') == text.replace(' ', '')
  assert all(font.getlength(line) <= width for line in lines)


def test_many_images_of_a_prompt_fill_several_rows():
  many, few = (sheets.sample_sheet(['a'], flat(n).reshape(1, n, 32, 32, 3)) for n in (33, 16))
  assert many.width == few.width
  assert many.height == few.height + 2 * (96 + 2 + sheets.GAP)


def test_non_ascii_letters_are_drawn():
  images = flat(1).reshape(1, 1, 32, 32, 3)
  drawn = {np.asarray(sheets.sample_sheet([text], images)).tobytes() for text in ('ä', 'é', 'ж', '—')}
  assert len(drawn) == 4  # a font without these letters draws the same box for each


def test_contact_sheet_is_near_square_and_takes_a_title():
  plain, titled = sheets.contact_sheet(flat(10)), sheets.contact_sheet(flat(10), title='Ten pictures')
  boxes = [box(plain, (10, 200, i)) for i in range(10)]
  assert len({b[0] for b in boxes}) == 4 and len({b[1] for b in boxes}) == 3
  assert titled.height > plain.height
  assert len({box(sheets.contact_sheet(flat(4), columns=1), (10, 200, i))[0] for i in range(4)}) == 1


def test_invalid_arrays_are_refused_with_their_shape():
  with pytest.raises(ValueError, match=r'float32 \(2, 8, 8, 3\)'):
    sheets.contact_sheet(np.zeros((2, 8, 8, 3), np.float32))
  with pytest.raises(ValueError, match=r'\(0, 8, 8, 3\)'):
    sheets.contact_sheet(np.zeros((0, 8, 8, 3), np.uint8))
  with pytest.raises(ValueError, match='same shape'):
    sheets.reconstruction_sheet(flat(2), flat(3))
  with pytest.raises(ValueError, match='columns is 0'):
    sheets.reconstruction_sheet(flat(2), flat(2), columns=0)
  with pytest.raises(ValueError, match='1 prompts'):
    sheets.sample_sheet(['a'], flat(4).reshape(2, 2, 32, 32, 3))
  with pytest.raises(ValueError, match=r'right has shape \(4,\)'):
    sheets.sample_sheet(['a', 'b'], flat(4).reshape(2, 2, 32, 32, 3), np.ones(4, bool))


def test_png_keeps_pixels_and_text(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
  path = tmp_path / 'new' / 'a.png'
  text = {'prompt': 'красный круг, naïve', 'seed': '3'}
  sheets.save_png(image, path, text)
  with Image.open(path) as read:
    np.testing.assert_array_equal(np.asarray(read), image)
    assert read.text == text
  with pytest.raises(ValueError, match='keyword'):
    sheets.save_png(image, path, {'': 'x'})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  sheets.save_png(flat(1)[0], path)
  before = path.read_bytes()

  def fail(source, target):
    raise OSError('disk full')

  monkeypatch.setattr(files.os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    sheets.save_png(flat(1, first=9)[0], path)
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
