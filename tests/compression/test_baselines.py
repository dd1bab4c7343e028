import bz2
import gzip
import io
import lzma

import numpy as np
import pytest

from dalle_jax.compression import baselines


@pytest.mark.parametrize('block', [1 << 20, 100])
def test_sizes_of_files_match_the_standard_library_compressors(block, monkeypatch):
  monkeypatch.setattr(baselines, '_BLOCK', block)
  data = b'the cat sat on the mat ' * 40 + bytes(range(256))
  sizes = baselines.of_file(io.BytesIO(data))
  assert sizes['gzip -9'] == len(gzip.compress(data, 9))
  assert sizes['bzip2 -9'] == len(bz2.compress(data, 9))
  assert sizes['xz -9e'] == len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def test_zstd_has_no_size_if_it_is_not_installed(monkeypatch):
  monkeypatch.setattr(baselines, '_zstd', lambda: None)
  assert baselines.of_file(io.BytesIO(b'x' * 100))['zstd --ultra -22'] is None


def test_pictures_of_equal_width_are_also_measured_in_one_file():
  images = [np.full((4, 5, 3), value, np.uint8) for value in (0, 255)]
  sizes = baselines.of_pictures(images)
  assert sizes['PNG, all in one'] < sizes['PNG, one by one']
  assert set(baselines.of_pictures([*images, np.zeros((4, 6, 3), np.uint8)])) == {
    'PNG, one by one', 'WebP lossless, one by one',
  }  # fmt: skip
