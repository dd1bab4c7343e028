"""Figures leave out the records that cannot be read, and say so."""

import numpy as np
import pytest

from dalle_jax.config import Config, MeshConfig
from dalle_jax.data.pictures.image import encode_png
from dalle_jax.data.registry import Dataset
from dalle_jax.jobs import examples
from dalle_jax.sharding import make_mesh

CONFIG = Config.from_dict({'data': {'source': 'folder', 'path': 'unused', 'image_size': 8}})


class Grey:
  """Image i has brightness i; those in `bad` cannot be decoded."""

  def __init__(self, length, bad):
    self.length, self.bad = length, bad

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    image = b'broken' if index in self.bad else encode_png(np.full((8, 8, 3), index, np.uint8))
    return {'image': image, 'caption': f'grey {index}', 'key': f'{index}.png'}


def _dataset(source):
  return Dataset(('train',), '', lambda split: source)


def test_batches_and_sheets_hold_the_readable_images_only():
  source = Grey(9, {0, 4, 7})
  batches = list(examples.batches(CONFIG, None, source, 8, 4, make_mesh(MeshConfig())))
  assert [rows for rows, _ in batches] == [4, 1]
  assert [batch['image'][:, 0, 0, 0].tolist() for _, batch in batches] == [[1, 2, 3, 5], [6, 6, 6, 6]]
  images = examples.first_images(CONFIG, _dataset(source), 'train', 4)
  assert images[:, 0, 0, 0].tolist() == [1, 2, 3, 5]


def test_readable_says_what_it_leaves_out(capsys):
  records = examples.readable(CONFIG, Grey(9, {0, 4, 7}), 'validation', 6)
  assert [records[i]['key'] for i in range(len(records))] == ['1.png', '2.png', '3.png', '5.png']
  shown = capsys.readouterr().out
  assert "2 of 6 records of the split 'validation' cannot be read (0.png: " in shown
  assert shown.count('4.png: ') == 1 and 'measure 4 records' in shown and shown.count('\n') == 1
  assert len(examples.readable(CONFIG, Grey(3, {}), 'train')) == 3 and not capsys.readouterr().out


def test_a_split_without_a_readable_record_is_an_error():
  source = Grey(3, {0, 1, 2})
  with pytest.raises(ValueError, match=r'3 of 3 records .* nothing to measure'):
    examples.readable(CONFIG, source, 'train')
  with pytest.raises(ValueError, match='No record can be read'):
    examples.first_images(CONFIG, _dataset(source), 'train', 2)
