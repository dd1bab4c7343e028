import functools
import json
import pickle
import threading
import time

import numpy as np
import pytest
from absl import logging

from dalle_jax.data import fingerprints
from dalle_jax.data.batches import Batches, Preprocess
from dalle_jax.data.pictures.image import encode_png
from dalle_jax.data.text.tokenizer import train_tokenizer
from dalle_jax.data.text.wrong_captions import WrongCaptions


class Images:
  """A source of small random images. All records have different images."""

  def __init__(self, length):
    self._length = length

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    image = np.random.default_rng(index).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return {'image': encode_png(image), 'caption': f'picture {index}', 'key': str(index)}


class Numbers(Images):
  """A source whose records have only a key: their index."""

  def __getitem__(self, index):
    if not 0 <= index < self._length:
      raise IndexError(index)
    return {'caption': '', 'key': str(index), 'image': b''}


def number(record, rng):
  """A transform that returns the record's index and one random number."""
  return {'number': np.int64(record['key']), 'noise': rng.random()}


PREPROCESS = Preprocess(6, 'random', True, train_tokenizer([f'picture {i}' for i in range(10)], 300), 8, 0.3)


def take(batches, count):
  return [next(batches) for _ in range(count)]


def numbers(batches):
  return [batch['number'].tolist() for batch in batches]


def assert_equal(batches, expected):
  assert len(batches) == len(expected)
  for batch, expected_batch in zip(batches, expected, strict=True):
    assert batch.keys() == expected_batch.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], expected_batch[name])


def test_batches_have_the_documented_shapes_and_dtypes():
  batch = next(Batches(Images(10), PREPROCESS, 4, seed=0))
  assert batch['image'].shape == (4, 6, 6, 3) and batch['image'].dtype == np.uint8
  assert batch['text'].shape == (4, 7) and batch['text'].dtype == np.int32
  assert next(Batches(Images(10), Preprocess(6), 4, seed=0)).keys() == {'image'}


def test_each_epoch_is_a_new_permutation():
  stream = np.concatenate(numbers(take(Batches(Numbers(12), number, 4, seed=3), 9)))
  epochs = stream.reshape(3, 12)
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert len({tuple(epoch) for epoch in epochs}) == 3
  other_seed = np.concatenate(numbers(take(Batches(Numbers(12), number, 4, seed=4), 3)))
  assert other_seed.tolist() != epochs[0].tolist()


def test_a_batch_can_span_two_epochs():
  batches = take(Batches(Numbers(5), number, 3, seed=0, shuffle=False), 4)
  assert numbers(batches) == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]


def test_a_batch_can_be_larger_than_the_data_set():
  assert numbers([next(Batches(Numbers(2), number, 5, seed=0, shuffle=False))]) == [[0, 1, 0, 1, 0]]


def test_augmentation_depends_only_on_seed_epoch_and_record():
  def noise(shuffle, seed):
    batches = take(Batches(Numbers(6), number, 3, seed=seed, shuffle=shuffle), 4)
    stream = [(int(n), r) for b in batches for n, r in zip(b['number'], b['noise'], strict=True)]
    return dict(stream[:6]), dict(stream[6:])

  first, second = noise(True, 0)
  assert len(set(first.values()) | set(second.values())) == 12
  assert noise(False, 0) == (first, second)
  assert noise(True, 1)[0] != first


def test_without_repeat_the_stream_ends_after_one_pass():
  def one_pass(**options):
    return numbers(Batches(Numbers(7), number, 3, seed=0, shuffle=False, repeat=False, **options))

  assert one_pass() == [[0, 1, 2], [3, 4, 5]]
  assert one_pass(drop_remainder=False) == [[0, 1, 2], [3, 4, 5], [6]]


def process_rows(batch_size, index, count):
  """The rows of process `index` if `count` processes each hold an equal, contiguous range of rows."""
  return range(index * batch_size // count, (index + 1) * batch_size // count)


@pytest.mark.parametrize('shuffle, repeat', [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize('process_count', [2, 3])
def test_rows_of_all_processes_concatenate_to_the_global_batch(shuffle, repeat, process_count):
  def run(index, count):
    options = {'shuffle': shuffle, 'repeat': repeat, 'rows': process_rows(6, index, count)}
    return take(Batches(Numbers(20), number, 6, seed=5, **options), 3)

  streams = [run(p, process_count) for p in range(process_count)]
  joined = [{name: np.concatenate([s[name] for s in step]) for name in step[0]} for step in zip(*streams, strict=True)]
  assert_equal(joined, run(0, 1))


class RecordingSource(Numbers):
  """Records which indices were read."""

  def __init__(self, length):
    super().__init__(length)
    self.read_indices = []

  def __getitem__(self, index):
    self.read_indices.append(int(index))
    return super().__getitem__(index)


@pytest.mark.parametrize('process_count', [1, 2, 3])
def test_each_process_reads_only_its_own_rows(process_count):
  sources = [RecordingSource(24) for _ in range(process_count)]
  for index, source in enumerate(sources):
    options = {'rows': process_rows(6, index, process_count)}
    take(Batches(source, number, 6, seed=5, repeat=False, num_threads=2, **options), 4)
  assert [len(source.read_indices) for source in sources] == [24 // process_count] * process_count
  assert sorted(i for source in sources for i in source.read_indices) == list(range(24))


@pytest.mark.parametrize('taken', [0, 1, 5])
def test_a_resumed_stream_equals_an_uninterrupted_one(taken):
  expected = take(Batches(Images(10), PREPROCESS, 4, seed=1), 8)
  first = Batches(Images(10), PREPROCESS, 4, seed=1)
  assert_equal(take(first, taken), expected[:taken])
  state = json.loads(json.dumps(first.state()))
  second = Batches(Images(10), PREPROCESS, 4, seed=1, num_threads=2)
  next(second)
  second.restore(state)
  assert_equal(take(second, 8 - taken), expected[taken:])
  assert second.state()['batches'] == 8


def test_states_with_a_fingerprint_of_the_names_alone_can_be_restored():
  earlier = fingerprints.fingerprint_of('folder', {'train': '5'})
  current, other = (fingerprints.fingerprint_of('folder', {'train': '5'}, [digest]) for digest in ('00', '01'))
  make = functools.partial(Batches, Numbers(7), number, 3, seed=0)
  make(fingerprint=current).restore(make(fingerprint=earlier).state())
  with pytest.raises(ValueError, match='fingerprint'):
    make(fingerprint=current).restore(make(fingerprint=other).state())


def test_states_without_a_fingerprint_can_be_restored():
  batches = Batches(Numbers(7), number, 3, seed=0, fingerprint='new')
  batches.restore({'batches': 2, 'dataset_length': 7, 'seed': 0, 'batch_size': 3, 'shuffle': True})
  assert batches.state()['batches'] == 2


def test_a_single_pass_can_be_resumed():
  batches = Batches(Numbers(7), number, 3, seed=0, shuffle=False, repeat=False, drop_remainder=False)
  next(batches)
  state = batches.state()
  assert numbers(batches) == [[3, 4, 5], [6]]
  batches.restore(state)
  assert numbers(batches) == [[3, 4, 5], [6]]
  batches.restore({**state, 'batches': 3})
  assert numbers(batches) == []


def test_a_stream_can_resume_with_another_number_of_processes():
  state = {**Batches(Numbers(20), number, 6, seed=5).state(), 'batches': 2}
  expected = take(Batches(Numbers(20), number, 6, seed=5), 3)[2]
  half_batches = Batches(Numbers(20), number, 6, seed=5, rows=(0, 3, 4))
  half_batches.restore(state)
  np.testing.assert_array_equal(next(half_batches)['number'], expected['number'][[0, 3, 4]])


@pytest.mark.parametrize('change', [
  {'source': Numbers(13)}, {'batch_size': 4}, {'seed': 1}, {'shuffle': False},
])  # fmt: skip
def test_restore_refuses_the_state_of_another_stream(change):
  options = {'source': Numbers(12), 'batch_size': 3, 'seed': 0} | change
  with pytest.raises(ValueError, match=r'has changed since the checkpoint \(.* -> .*\)'):
    Batches(transform=number, **options).restore(Batches(Numbers(12), number, 3, seed=0).state())


@pytest.mark.parametrize('options, message', [
  ({'source': Numbers(0), 'batch_size': 2}, 'no records'),
  ({'source': Numbers(5), 'batch_size': 6, 'repeat': False}, 'too few'),
  ({'source': Numbers(5), 'batch_size': 2, 'repeat': False, 'drop_remainder': False, 'rows': (1,)}, 'share'),
])  # fmt: skip
def test_impossible_streams_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Batches(transform=number, seed=0, **options)


def test_the_error_for_a_damaged_image_names_the_record():
  with pytest.raises(ValueError, match='4: cannot decode'):
    Preprocess(6)({'image': b'x', 'caption': '', 'key': '4'}, np.random.default_rng(0))


def test_close_stops_the_threads_and_reading_can_start_again():
  before = threading.active_count()
  batches = Batches(Numbers(20), number, 2, seed=0)
  expected = numbers(take(batches, 3))
  batches.close()
  for _ in range(100):  # the threads first finish the batches that they are reading
    if threading.active_count() <= before:
      break
    time.sleep(0.05)
  assert threading.active_count() <= before
  batches.restore({**batches.state(), 'batches': 0})
  assert numbers(take(batches, 3)) == expected
  batches.close()


def test_preprocess_flips_half_of_the_images_and_crops_at_random():
  record = Images(1)[0]
  plain = Preprocess(6)(record, np.random.default_rng(0))['image']
  flipped = [Preprocess(6, flip=True)(record, np.random.default_rng(i))['image'] for i in range(40)]
  is_plain = [np.array_equal(image, plain) for image in flipped]
  is_mirrored = [np.array_equal(image, plain[:, ::-1]) for image in flipped]
  assert all(a != b for a, b in zip(is_plain, is_mirrored, strict=True))
  assert 8 < sum(is_plain) < 32
  cropped = {Preprocess(6, 'random')(record, np.random.default_rng(i))['image'].tobytes() for i in range(40)}
  assert len(cropped) == 4


def test_preprocess_truncates_long_captions_with_a_single_warning(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda message, *args: lines.append(message % args))
  preprocess = pickle.loads(pickle.dumps(PREPROCESS))
  for _ in range(3):
    text = preprocess({**Images(1)[0], 'caption': 'x' * 50}, np.random.default_rng(0))['text']
    assert text.shape == (7,) and text.all()
  assert preprocess.num_truncated == 3
  assert len(lines) == 1 and 'cut to 7' in lines[0] and 'config.tokenizer.text_length' in lines[0]


def test_preprocess_pads_short_captions():
  text = PREPROCESS({**Images(1)[0], 'caption': 'Picture'}, np.random.default_rng(0))['text']
  assert text[0] > 0 and not text[-1]
  assert not PREPROCESS({**Images(1)[0], 'caption': ''}, np.random.default_rng(0))['text'].any()


@pytest.mark.slow
def test_worker_processes_give_the_same_stream_and_can_resume():
  expected = take(Batches(Images(10), PREPROCESS, 4, seed=1), 8)
  batches = Batches(Images(10), PREPROCESS, 4, seed=1, num_workers=2)
  assert_equal(take(batches, 5), expected[:5])
  state = batches.state()
  batches.close()
  batches = Batches(Images(10), PREPROCESS, 4, seed=1, num_workers=1)
  batches.restore(state)
  assert_equal(take(batches, 3), expected[5:])
  batches.close()


def test_bpe_dropout_varies_the_tokens_and_never_truncates_a_caption():
  tokenizer = train_tokenizer(['a blue circle'] * 9, 300)
  ids = tokenizer.encode('a blue circle')
  record = {'image': encode_png(np.zeros((2, 2, 3), np.uint8)), 'caption': 'a blue circle', 'key': '0'}
  preprocess = Preprocess(2, tokenizer=tokenizer, text_length=20, bpe_dropout=0.5)
  texts = {tuple(preprocess(record, np.random.default_rng(seed))['text']) for seed in range(20)}
  assert len(texts) > 5
  assert {tokenizer.decode(text) for text in texts} == {'a blue circle'}
  short_preprocess = Preprocess(2, tokenizer=tokenizer, text_length=len(ids) + 1, bpe_dropout=0.5)
  for seed in range(20):
    np.testing.assert_array_equal(short_preprocess(record, np.random.default_rng(seed))['text'], ids)


def test_preprocess_adds_a_wrong_caption_on_request():
  colors = ('red', 'blue')
  captions = [f'a {first} circle above a {second} square' for first in colors for second in colors]
  tokenizer = train_tokenizer(captions, 300)
  preprocess = Preprocess(6, tokenizer=tokenizer, text_length=40, wrong_captions=WrongCaptions(captions))
  record = Images(1)[0] | {'caption': 'a red circle above a blue square'}
  example = preprocess(record, np.random.default_rng(0))
  assert tokenizer.decode(example['text']) == 'a red circle above a blue square'
  phrases = 'blue circle above a red', 'blue circle above a blue', 'red circle above a red'
  assert tokenizer.decode(example['wrong']) in {f'a {phrase} square' for phrase in phrases}
  assert example['wrong'].shape == (39,)


def test_records_returns_the_keys_of_a_global_batch_on_every_process():
  batches = Batches(Numbers(10), number, 4, seed=3)
  read_numbers = numbers(take(batches, 4))
  assert [batches.records(i, 99) for i in range(4)] == [[str(key) for key in batch] for batch in read_numbers]
  processes = [Batches(Numbers(10), number, 4, seed=3, rows=process_rows(4, i, 2)) for i in range(2)]
  assert processes[0].records(1, 3) == processes[1].records(1, 3) == batches.records(1, 99)[:3]


@pytest.mark.parametrize('batch_size, rows', [(1, None), (1, (0,)), (4, (2,)), (2**40, (0, 2**40 - 1))])
def test_any_batch_size_gives_an_endless_stream(batch_size, rows):
  batches = Batches(Numbers(20), number, batch_size, seed=5, rows=rows)
  expected = np.concatenate(numbers(take(Batches(Numbers(20), number, 4, seed=5), 9)))
  if batch_size <= 4:
    read = np.concatenate(numbers(take(batches, 9)))
    np.testing.assert_array_equal(read, expected[:9] if batch_size == 1 else expected[2::4])
  else:
    assert next(batches)['number'].shape == (2,)
  batches.restore({**batches.state(), 'batches': 2**30 // batch_size})  # far into the stream
  assert next(batches)['noise'].shape == (1 if batch_size <= 4 else 2,)
