"""The same pictures as a folder, tar files, Parquet files and prepared shards."""

import functools
import io
import itertools
import pickle
import tarfile

import numpy as np
import pytest
from numbered_pictures import save_numbered

from dalle_jax.config import DataConfig
from dalle_jax.data import picture_kinds, registry
from dalle_jax.data.account import Account
from dalle_jax.data.batches import Batches, Preprocess
from dalle_jax.data.shards import picture_records, tar_index, tars
from dalle_jax.data.shards.picture_records import NewRecord, Writer
from dalle_jax.data.text.tokenizer import train_tokenizer

NUM = 13


def add_to_tar(tar, name, content):
  info = tarfile.TarInfo(name)
  info.size = len(content)
  tar.addfile(info, io.BytesIO(content))


def write_tars(directory, files, num_shards=2, **options):
  """Write samples to tar files in turn, where `files` maps names to contents."""
  directory.mkdir(parents=True, exist_ok=True)
  names = sorted(files)
  for shard in range(num_shards):
    with tarfile.open(directory / f'{shard:05d}.tar', 'w', **options) as tar:
      for name in names:
        if hash_of(name) % num_shards == shard:
          add_to_tar(tar, name, files[name])
  return directory


def hash_of(name):
  return int(''.join(filter(str.isdigit, name)) or 0)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = save_numbered(tmp_path_factory.mktemp('pictures') / 'folder', NUM)
  (root / '03.txt').write_text('number 3\nthe third of them\n')
  return root


@pytest.fixture(scope='module')
def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope='module')
def forms(folder, files):
  """The pictures in every form, by the kind of source."""
  root = folder.parent
  write_tars(root / 'tars', files)
  pictures = [name for name in sorted(files) if name.endswith('.png')]
  texts = {name: files[name.replace('.png', '.txt')].decode().splitlines() for name in pictures}
  records = [NewRecord(name, texts[name], lambda name=name: files[name]) for name in reversed(pictures)]
  Writer(root / 'records', records, {}, per_shard=5).run(2)
  forms = {'folder': folder, 'tars': root / 'tars', 'records': root / 'records'}
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    return forms
  (root / 'parquet').mkdir()
  rows = [{'image': {'bytes': files[name], 'path': name}, 'caption': texts[name]} for name in reversed(pictures)]
  parquet.write_table(pyarrow.Table.from_pylist(rows), root / 'parquet' / 'train.parquet', row_group_size=4)
  return {**forms, 'parquet': root / 'parquet'}


def prepare(path, tmp_path, **values):
  return registry.prepare(DataConfig(path=str(path), **{'validation_fraction': 0.2, **values}), tmp_path / 'data')


@functools.cache
def transform_of():
  tokenizer = train_tokenizer([f'number {i} the third of them' for i in range(NUM)], 300)
  return Preprocess(32, 'random', True, tokenizer, 20, bpe_dropout=0.1)


def stream(source, **options):
  return Batches(source, transform_of(), 4, seed=1, **options)


def batches_of(dataset, split='train', count=8):
  return list(itertools.islice(stream(dataset.open(split)), count))


def assert_equal(batches, expected):
  for batch, other in zip(batches, expected, strict=True):
    assert batch.keys() == other.keys()
    assert all(np.array_equal(batch[name], other[name]) for name in other)


def test_every_form_is_found_and_gives_bit_equal_batches(forms, tmp_path):
  if 'parquet' not in forms:
    pytest.skip('pyarrow is not installed')
  expected = None
  for kind, path in forms.items():
    dataset = prepare(path, tmp_path)
    assert dataset.account.used == NUM
    assert registry.detect.source_of(DataConfig(path=str(path))) == kind
    batches = batches_of(dataset)
    expected = expected or batches
    for batch, other in zip(batches, expected, strict=True):
      assert all(np.array_equal(batch[name], other[name]) for name in other), kind
    pickle.loads(pickle.dumps(dataset.open('train')))[0]


def test_each_epoch_draws_one_of_several_captions(forms, tmp_path):
  source = prepare(forms['tars'], tmp_path, validation_fraction=0.0).open('train')
  index = next(i for i in range(len(source)) if source.name(i).endswith('03.png'))
  tokenizer = train_tokenizer([f'number {i} the third of them' for i in range(NUM)], 300)
  transform = Preprocess(32, tokenizer=tokenizer, text_length=20)
  seen = {tokenizer.decode(transform(source[index], np.random.default_rng(i))['text']) for i in range(20)}
  assert seen == {'number 3', 'the third of them'}


def test_pictures_without_captions_are_split_alike_in_every_form(folder, files, tmp_path):
  pictures = {f'cats/{name}': data for name, data in files.items() if name.endswith('.png')}
  (tmp_path / 'folder' / 'cats').mkdir(parents=True)
  for name, data in pictures.items():
    (tmp_path / 'folder' / name).write_bytes(data)
  write_tars(tmp_path / 'tars', pictures)
  for values in ({'needs_captions': False}, {'caption_template': 'a {class}'}):
    needed = values.pop('needs_captions', True)
    names = []
    for form in ('folder', 'tars'):
      config = DataConfig(path=str(tmp_path / form), validation_fraction=0.4, **values)
      dataset = registry.prepare(config, tmp_path / 'data', needs_captions=needed)
      names.append([[entry.path.split('/')[-1] for entry in dataset.open(split).entries] for split in dataset.splits])
    assert names[0] == names[1] and len(names[0]) == 2


class CountedStore:
  """A store that records what is read."""

  def __init__(self, store):
    self.store, self.paths = store, []

  def read(self, path, most_bytes=None):
    self.paths.append(path)
    return self.store.read(path, most_bytes)


def test_a_host_reads_only_its_rows_and_resumes_exactly(forms, tmp_path):
  small = save_numbered(tmp_path / 'small', 4)
  for path in (forms['tars'], f'{forms["tars"]}:0.75,{small}:0.25'):
    dataset = prepare(path, tmp_path)
    whole = batches_of(dataset, count=6)
    source = dataset.open('train')
    share = itertools.islice(stream(source, rows=[1, 2]), 6)
    assert_equal(share, [{name: values[1:3] for name, values in batch.items()} for batch in whole])
    batches = stream(dataset.open('train'))
    for _ in range(2):
      next(batches)
    state = batches.state()
    again = stream(prepare(path, tmp_path).open('train'))
    again.restore(state)
    assert_equal(itertools.islice(again, 4), whole[2:])


def test_a_host_opens_no_other_pictures_than_those_of_its_rows(forms, tmp_path):
  source = prepare(forms['tars'], tmp_path).open('train')
  source.store = CountedStore(source.store)
  num_batches = len(list(stream(source, rows=[1, 2], repeat=False)))
  assert num_batches >= 2 and len(source.store.paths) == len(set(source.store.paths)) == 2 * num_batches


def test_a_cut_tar_gives_the_members_before_the_cut(files, tmp_path):
  root = write_tars(tmp_path / 'a', files, 1)
  data = (root / '00000.tar').read_bytes()
  (root / '00000.tar').write_bytes(data[: len(data) // 2])
  account = Account('pictures')
  _, found = tars.scan(root, account)
  assert 0 < len(found) < NUM
  assert 'a tar file that is cut or damaged; its members up to there are used (00000.tar)' in str(account)


def test_bad_shards_are_named_and_the_others_are_read(files, tmp_path):
  root = write_tars(tmp_path / 'a', files, 1)
  (root / '00001.tar').write_bytes(b'not a tar file' * 100)
  with tarfile.open(root / '00002.tar', 'w:gz') as tar:
    add_to_tar(tar, 'a.png', b'')
  account = Account('pictures')
  _, found = tars.scan(root, account)
  assert len(found) == NUM
  (root / '00000.tar').unlink()
  with pytest.raises(ValueError, match=r'no tar file .* 00001\.tar is not a readable tar file.*; 00002\.tar is compr'):
    tars.scan(root, Account('pictures'))
  assert 'is compressed with gzip' in str(account) and '00001.tar' in str(account)


@pytest.mark.parametrize(
  ('added', 'reason'),
  [
    ({'05.jpg': b'x'}, 'its tar file has another picture with the same key before it'),
    ({'50.png': b'x', '50.txt': 'k\xe4se'.encode('latin-1')}, 'its .txt member is not UTF-8 text'),
    ({'50.png': b'x', '50.txt': 'katze'.encode('utf-16')}, 'its .txt member is UTF-16'),
    ({'50.png': b'x', '50.json': b'[1]'}, 'its .json member is not a JSON object'),
    ({'50.png': b'x', '50.json': b'{"caption": 5}'}, 'its .json member has a caption that is not a string'),
  ],
)
def test_members_that_cannot_be_used_are_counted(files, tmp_path, added, reason):
  root = tmp_path / 'a'
  root.mkdir()
  with tarfile.open(root / '0.tar', 'w') as tar:
    for name, content in {**files, **added}.items():
      add_to_tar(tar, name, content)
  account = Account('pictures')
  _, found = tars.scan(root, account)
  assert len(found) == NUM and account.num_left_out == 1 and reason in str(account)


def test_captions_of_json_members_and_class_folders(files, tmp_path):
  png = files['00.png']
  root = write_tars(tmp_path / 'a', {'cats/big_cat.1.png': b'', 'red_fox/1.png': png, '2.png': png,
                                     '2.json': b'{"caption": "two", "width": NaN}'}, 1)  # fmt: skip
  dataset = prepare(root, tmp_path, caption_template='a photo of a {class}', validation_fraction=0.0)
  source = dataset.open('train')
  assert {source.name(i): source.captions(i) for i in range(2)} == {
    '00000.tar/2.png': ('two',), '00000.tar/red_fox/1.png': ('a photo of a red fox',)
  }  # fmt: skip


def test_an_index_is_kept_and_made_again_when_the_tar_changes(files, tmp_path, monkeypatch):
  root, memory = write_tars(tmp_path / 'a', files, 1), tmp_path / 'memory'
  memory.mkdir()
  scan = tar_index._scan
  scanned = []
  monkeypatch.setattr(tar_index, '_scan', lambda path: scanned.append(path) or scan(path))
  for _ in range(2):
    assert len(tars.scan(root, Account('pictures'), memory)[1]) == NUM
  assert len(scanned) == 1
  next(memory.iterdir()).write_bytes(b'{')
  assert len(tars.scan(root, Account('pictures'), memory)[1]) == NUM and len(scanned) == 2
  store, found = tars.scan(root, Account('pictures'), memory)
  write_tars(root, {**files, '99.png': files['00.png'], '99.txt': b'more'}, 1)
  with pytest.raises(OSError, match='has changed since the start'):
    store.read(found[0].path)
  assert len(tars.scan(root, Account('pictures'), memory)[1]) == NUM + 1


def test_a_header_that_leads_backwards_ends_the_scan(files, tmp_path):
  root = write_tars(tmp_path / 'a', files, 1)
  data = bytearray((root / '00000.tar').read_bytes())
  second = data.index(b'00.txt') // 512 * 512
  data[second + 124 : second + 136] = b'\xff' * 10 + b'\xf0\x00'  # a negative size in base 256
  header = data[second : second + 512]
  header[148:156] = b' ' * 8
  data[second + 148 : second + 156] = b'%06o\0 ' % sum(header)
  (root / '00000.tar').write_bytes(data)
  account = Account('pictures')
  _, found = tars.scan(root, account)
  assert [picture.key for picture in found] == ['00.png'] and 'cut or damaged' in str(account)


def test_pictures_without_captions_serve_tasks_that_need_none(files, tmp_path):
  pictures = {name: data for name, data in files.items() if name.endswith('.png')}
  root = write_tars(tmp_path / 'a', pictures, 1)
  with pytest.raises(ValueError, match=r'no captioned images[\s\S]*config\.task=dvae'):
    prepare(root, tmp_path)
  config = DataConfig(path=str(root), validation_fraction=0.2)
  dataset = registry.prepare(config, tmp_path, needs_captions=False)
  assert sum(len(dataset.open(split)) for split in dataset.splits) == NUM
  assert dataset.open('train')[0]['caption'] == ''


def test_writing_shards_goes_on_after_a_stop_without_loss_or_repeats(files, tmp_path):
  calls = []

  def record(name, fails=False):
    def read():
      calls.append(name)
      if fails and len(calls) > 8:
        raise KeyboardInterrupt
      return files[name]

    return NewRecord(name, ['x'], read)

  names = [name for name in sorted(files) if name.endswith('.png')]
  with pytest.raises(KeyboardInterrupt):
    Writer(tmp_path / 'a', [record(name, True) for name in names], {'seed': 1}, per_shard=4).run(1)
  with pytest.raises(ValueError, match='is not finished'):
    picture_records.scan(tmp_path / 'a', Account('pictures'))
  calls.clear()
  Writer(tmp_path / 'a', [record(name) for name in names], {'seed': 1}, per_shard=4).run(1)
  assert set(calls).isdisjoint(names[:4])
  store, found = picture_records.scan(tmp_path / 'a', Account('pictures'))
  assert [picture.key for picture in found] == names
  assert all(store.read(name)[1] == files[name] for name in names)
  with pytest.raises(ValueError, match='beginning of other data'):
    Writer(tmp_path / 'a', [], {'seed': 2})


def test_damaged_shards_and_listings_are_named(forms, tmp_path):
  root = forms['records']
  copy = tmp_path / 'copy'
  copy.mkdir()
  for path in root.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
  data = bytearray((copy / 'pictures-00000.array_record').read_bytes())
  data[1000] ^= 255
  (copy / 'pictures-00000.array_record').write_bytes(data)
  dataset = prepare(copy, tmp_path, max_bad_share=1.0)
  assert 1 <= dataset.account.num_left_out <= 5 and 'pictures-00000.array_record' in str(dataset.account)
  (copy / 'pictures-00001.json').write_text('{}')
  with pytest.raises(ValueError, match='is damaged'):
    prepare(copy, tmp_path)
  (copy / 'manifest.json').unlink()
  with pytest.raises(ValueError, match='is not finished'):
    prepare(copy, tmp_path)


def test_a_mixture_gives_each_source_its_share_of_every_batch(folder, forms, tmp_path):
  small = save_numbered(tmp_path / 'small', 4)
  path = f'{forms["tars"]}:0.75,{small}:0.25'
  dataset = prepare(path, tmp_path, validation_fraction=0.2)
  source = dataset.open('train')
  order = source.order(3, True)
  boundary = len(source) - len(prepare(small, tmp_path).open('train'))
  indices = [order[i] for i in range(80)]
  for start in range(0, 80, 8):
    assert sum(index >= boundary for index in indices[start : start + 8]) == 2
  epoch = [index for index in indices if index < boundary][:boundary]
  assert sorted(epoch) == list(range(boundary))
  assert '75% of each batch' in str(dataset.account)
  first, again = batches_of(dataset), batches_of(dataset)
  assert all(np.array_equal(a['image'], b['image']) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('{tars}:0.5,nowhere:0.5', r'Part 2 of the mixture in config.data.path \(nowhere\).*no folder nowhere'),
    ('{tars}:0.5,{empty}:0.5', r'Part 2 .*no captioned images'),
    ('{tars}:0.5,{tars}:-1', 'is not a source with a share'),
    ('{tars}:0.5,{tars}', 'is not a source with a share'),
    ('{tars}:0.5,{tars}:a', 'is not a source with a share'),
  ],
)
def test_parts_of_a_mixture_that_cannot_be_used_are_named(forms, tmp_path, path, message):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=message):
    prepare(path.format(tars=forms['tars'], empty=tmp_path / 'empty'), tmp_path)


def test_parquet_of_another_schema_lists_its_columns(files, tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  rows = [{'url': 'a', 'number': 1}]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'a.parquet')
  with pytest.raises(ValueError, match=r'no column of pictures; its columns are url \(string\), number \(int64\)'):
    prepare(tmp_path, tmp_path)
  rows = [{'image': files['00.png'], 'title': 'a', 'alt': 'b'}]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'a.parquet')
  with pytest.raises(ValueError, match="no column 'caption' of captions; its columns of text are title, alt"):
    prepare(tmp_path, tmp_path)
  assert prepare(tmp_path, tmp_path, caption_key='alt').open('train').captions(0) == ('b',)


def test_bad_parquet_files_are_named_and_the_others_are_read(forms, files, tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  whole = (forms['parquet'] / 'train.parquet').read_bytes()
  root = tmp_path / 'a'
  root.mkdir()
  (root / '0.parquet').write_bytes(whole)
  (root / '1.parquet').write_bytes(whole[: len(whole) // 2])
  (root / '2.parquet').write_bytes(b'no parquet file')
  rows = [{'image': {'bytes': None, 'path': 'gone.png'}, 'caption': ['gone']}, {'image': None, 'caption': ['none']},
          {'image': {'bytes': files['00.png'], 'path': None}, 'caption': None}]  # fmt: skip
  parquet.write_table(pyarrow.Table.from_pylist(rows), root / '3.parquet')
  parquet.write_table(
    pyarrow.table({'image': [files['01.png']], 'text': pyarrow.array(['one']).dictionary_encode()}), root / '4.parquet'
  )
  dataset = prepare(root, tmp_path)
  assert dataset.account.used == NUM + 1
  text = str(dataset.account)
  assert '1.parquet' in text and '2.parquet' in text and 'a Parquet file that cannot be read' in text
  assert dataset.account.num_left_out == 3 and 'its row has no bytes of a picture' in text


def test_the_copy_of_parquet_files_is_continued_kept_and_made_again(forms, tmp_path, monkeypatch):
  pytest.importorskip('pyarrow')
  root, config = tmp_path / 'a', DataConfig(source='parquet', path=str(tmp_path / 'a'))
  root.mkdir()
  (root / '0.parquet').write_bytes((forms['parquet'] / 'train.parquet').read_bytes())
  write, written = picture_records.Writer._write, []

  def stopped(self, name, *arguments):
    written.append(name)
    if len(written) == 2:
      raise KeyboardInterrupt
    return write(self, name, *arguments)

  monkeypatch.setattr(
    picture_records.Writer.__init__, '__defaults__', (5, *picture_records.Writer.__init__.__defaults__[1:])
  )
  monkeypatch.setattr(picture_records.Writer, '_write', stopped)
  with pytest.raises(KeyboardInterrupt):
    picture_kinds.listed(config, tmp_path, Account('pictures'))
  for _ in range(2):
    assert len(picture_kinds.listed(config, tmp_path, Account('pictures'))[1]) == NUM
  assert written == ['pictures-00000', 'pictures-00001', 'pictures-00001', 'pictures-00002']
  (root / '1.parquet').write_bytes((root / '0.parquet').read_bytes())
  assert len(picture_kinds.listed(config, tmp_path, Account('pictures'))[1]) == 2 * NUM


def test_icons_are_read_from_tars(shared_data, tmp_path):
  root = shared_data / 'icons'
  if not root.is_dir():
    pytest.skip(f'no icons at {root}')
  account = Account('pictures')
  store, found = picture_kinds.listed(DataConfig(source='tars', path=str(root)), tmp_path, account)
  assert len(found) == 24_237 and not account.left_out
  assert store.read(found[0].path)[1].startswith(b'\x89PNG') and found[0].captions
