import errno
import json
import os
import pickle

import numpy as np
import pytest
from absl import logging

from dalle_jax import files
from dalle_jax.data import unreadable
from dalle_jax.data.batches import ATTEMPTS, Batches
from dalle_jax.data.checks import pinned
from dalle_jax.data.sources.folder import Entry


class Damaged:
  """Records 0, 1, ... Reading a record in `bad` raises an error of one of the types that readers raise."""

  def __init__(self, length, bad=(), error=None):
    self._length, self._bad, self._error = length, frozenset(bad), error

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    if index in self._bad:
      raise self._error or [ValueError('a bad\npicture'), RuntimeError('a bad chunk'), KeyError('x')][index % 3]
    return {'key': f'{index}.png', 'number': index}


def number(record, rng):
  return {'number': np.int64(record['number']), 'noise': rng.random()}


@pytest.fixture
def warnings(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda message, *args: lines.append(message % args))
  return lines


def _read(count, bad=(), *, rows=None, **options):
  """The numbers, noise and replaced rows of the first batches of a stream."""
  batches = Batches(Damaged(20, bad), number, 4, seed=3, rows=rows, max_bad_share=0.2, **options)
  read = [(next(batches), batches.replaced()) for _ in range(count)]
  batches.close()
  return [np.stack([x[name] for x, _ in read]) for name in ('number', 'noise')] + [np.stack([r for _, r in read])]


def test_a_bad_record_is_replaced_and_nothing_else_changes():
  whole, whole_noise, no_rows = _read(10)
  numbers, noise, replaced = _read(10, {7, 11})
  assert not no_rows.any()
  np.testing.assert_array_equal(replaced, np.isin(whole, [7, 11]))
  assert replaced.sum() == 4  # two records in two epochs
  assert not np.isin(numbers, [7, 11]).any()
  np.testing.assert_array_equal(numbers[~replaced], whole[~replaced])
  np.testing.assert_array_equal(noise[~replaced], whole_noise[~replaced])
  assert len(set(numbers[replaced])) > 1 and len(set(noise[replaced])) == 4


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('hosts', [2, 4])
def test_replacements_do_not_depend_on_threads_or_hosts(threads, hosts):
  expected = _read(6, {7, 11, 12}, num_threads=2)
  shares = [range(4)[i * 4 // hosts : (i + 1) * 4 // hosts] for i in range(hosts)]
  parts = [_read(6, {7, 11, 12}, rows=rows, num_threads=threads) for rows in shares]
  for values, *joined in zip(expected, *parts, strict=True):
    np.testing.assert_array_equal(np.concatenate(joined, axis=1), values)


def test_replacements_are_the_same_after_a_resume():
  expected = _read(8, {7, 11})
  batches = Batches(Damaged(20, {7, 11}), number, 4, seed=3)
  batches.restore({**batches.state(), 'batches': 3})
  np.testing.assert_array_equal(np.stack([next(batches)['number'] for _ in range(5)]), expected[0][3:])
  batches.close()


@pytest.mark.slow
def test_replaced_rows_are_counted_and_named_across_worker_processes(warnings):
  expected = _read(6, {7, 11, 12})
  warnings.clear()
  for values, want in zip(_read(6, {7, 11, 12}, num_workers=2), expected, strict=True):
    np.testing.assert_array_equal(values, want)
  assert len(warnings) == 3 and any('Cannot read record 7: a bad chunk' in line for line in warnings)


def test_each_bad_record_is_named_once_on_one_line(warnings):
  _read(15, {9, 10})
  assert sorted(warnings) == [
    'Cannot read record 10: a bad chunk. Another record takes its place.',
    'Cannot read record 9: a bad. Another record takes its place.',
  ]


def test_names_of_a_batch_name_the_records_that_it_holds():
  batches = Batches(Damaged(20, {7, 11}), number, 4, seed=3)
  held = [[f'{i}.png' for i in next(batches)['number']] for _ in range(6)]
  assert [batches.records(i, 9) for i in range(6)] == held


def test_a_stream_without_a_readable_record_ends():
  batches = Batches(Damaged(20, range(20)), number, 4, seed=3)
  with pytest.raises(unreadable.UnreadableError, match=f'None of {ATTEMPTS} records .* The last one was record'):
    next(batches)


@pytest.mark.parametrize(
  'error', [MemoryError(), OSError(errno.EMFILE, 'too many'), OSError(errno.ENOMEM, 'no memory')]
)
def test_shortages_of_the_machine_are_not_bad_records(error):
  with pytest.raises(type(error)):
    next(Batches(Damaged(20, range(20), error), number, 4, seed=3))


@pytest.mark.parametrize('length, share, batches, expected', [
  (100, 0.03, 25, 3), (100, 0.29, 1, 29),
  (100, 0.03, 26, 6), (100, 0.039, 1, 3), (12, 0.01, 1, 1), (12, 0.01, 4, 2), (12, 0.0, 9, 0),
  (4, 1.0, 2, 8),
])  # fmt: skip
def test_the_limit_is_a_share_of_each_epoch_and_at_least_one_record(length, share, batches, expected):
  assert Batches(Damaged(length), number, 4, seed=0, max_bad_share=share).most_replaced(batches) == expected


def test_readable_leaves_out_what_cannot_be_decoded():
  def odd(record):
    assert record['number'] % 2, 'even'

  records, problems = unreadable.readable(Damaged(10, {3}), odd, most=7)
  assert [records[i]['number'] for i in range(len(records))] == [1, 5] and len(records.left_out) == 5
  assert problems[0] == '0.png: even' and problems[1] == '2.png: even' and problems[2] == 'record 3: a bad'
  assert pickle.loads(pickle.dumps(records)).name(1) == '5.png'


def test_shown_escapes_control_characters_and_is_short():
  assert unreadable.first_line('a\x1b[31m\u202eb\nc') == 'a\\x1b[31m\\u202eb'
  assert len(unreadable.first_line('x' * 9999)) == 200
  assert unreadable.first_line(KeyError()) == 'KeyError'
  missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), 'a.png')
  assert unreadable.first_line(missing) == files.reason(missing) and 'Errno' not in unreadable.first_line(missing)


RECORDS = [pinned.Described(Entry(f'{i}.png', f'number {i}'), f'digest {i}') for i in range(10)]
FRESH = pinned.RecordLists({'train': RECORDS[:8], 'validation': RECORDS[8:]}, 'hash')
CHANGED = [
  pinned.Described(Entry('0.png', 'changed'), 'digest 0'),
  pinned.Described(Entry('0.png', 'number 0'), 'other'),
]


def _kept(file, fresh, began, max_bad_share):
  return pinned.keep(pinned.first(file, fresh, began), fresh, max_bad_share)


def _without(*numbers):
  lists = {split: [r for r in rows if int(r.entry.path[0]) not in numbers] for split, rows in FRESH.lists.items()}
  return pinned.RecordLists(lists, f'hash without {numbers}')


def test_a_run_keeps_the_records_that_it_began_with_when_some_are_lost(tmp_path, warnings):
  file = tmp_path / 'records.json'
  assert _kept(file, FRESH, False, 0.1) == FRESH
  assert _kept(file, _without(3), True, 0.1) == FRESH
  assert len(warnings) == 1 and '1 of the 10 records' in warnings[0] and '3.png' in warnings[0]
  assert _kept(file, FRESH, True, 0.1) == FRESH and len(warnings) == 1
  with pytest.raises(ValueError, match=r'2 of the 10 .*3\.png, 9\.png.*at most 1 may be.*max_bad_share'):
    _kept(file, _without(3, 9), True, 0.1)
  assert _kept(file, _without(3, 9), True, 0.2) == FRESH


@pytest.mark.parametrize('changed', CHANGED, ids=['caption', 'contents'])
def test_other_data_are_not_taken_for_losses(tmp_path, changed):
  file = tmp_path / 'records.json'
  _kept(file, FRESH, False, 0.5)
  other = pinned.RecordLists({'train': [*RECORDS[2:8], changed], 'validation': RECORDS[8:]}, 'x')
  assert _kept(file, other, True, 0.5) == other
  assert _kept(file, _without(1), False, 0.5) == _without(1)  # before training, the data may change
  assert json.loads(file.read_text())['lists']['train'][1] == [['2.png', 'number 2'], 'digest 2']


@pytest.mark.parametrize('damage', ['', '{', '[]', 'null', '{"lists": {"train": 5}}', '{"lists": {}}', '[' * 10**5])
def test_a_damaged_list_is_named_and_kept_if_the_run_has_begun(tmp_path, damage):
  file = tmp_path / 'records.json'
  file.write_text(damage)
  with pytest.raises(ValueError, match=r'records\.json is damaged or cannot be read: .*remove it to go on'):
    _kept(file, FRESH, True, 0.5)
  assert file.read_text() == damage
  assert _kept(file, FRESH, False, 0.5) == FRESH
  assert _kept(file, _without(1), True, 0.5) == FRESH
