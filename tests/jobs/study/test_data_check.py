"""The check of pictures before training, on generated pictures of every kind."""

import io
import json
import os
import signal

import numpy as np
import pytest
from numbered_pictures import save_numbered
from PIL import Image
from png_bytes import png
from web_page import NASTY, Page

from dalle_jax.config import DataConfig
from dalle_jax.data import registry
from dalle_jax.data.account import Account
from dalle_jax.data.checks import inspection
from dalle_jax.data.pictures.stores import FolderStore
from dalle_jax.data.sources import skip_list
from dalle_jax.data.sources.entries import Found
from dalle_jax.jobs.study import data_check
from dalle_jax.jobs.study.data_check import CheckSettings

NUM = 12
SETTINGS = CheckSettings(text_length=6, vocab_size=300, tiny=16, enormous=4000, num_processes=1)


def noise(seed, height=32, width=32, channels=3):
  """A picture of large blocks of random colours, which no other one looks like."""
  blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, channels), np.uint8)
  return np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))


def encoded(pixels, kind='PNG', **options):
  buffer = io.BytesIO()
  (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, kind, **options)
  return buffer.getvalue()


def rotation():
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


FILES = {
  'animated.gif': encoded(noise(100), 'GIF', save_all=True, append_images=[Image.fromarray(noise(101))]),
  'animated.webp': encoded(noise(102), 'WEBP', save_all=True, append_images=[Image.fromarray(noise(103))]),
  'pages.tif': encoded(noise(104), 'TIFF', save_all=True, append_images=[Image.fromarray(noise(105))]),
  'cmyk.jpg': encoded(Image.fromarray(noise(106)).convert('CMYK'), 'JPEG'),
  'deep.png': encoded(Image.fromarray(noise(107)[..., 0].astype(np.uint16) * 257)),
  'deep_colours.png': png(noise(108).astype(int) * 257, 16, 2),
  'alpha.png': encoded(noise(109, channels=4)),
  'opaque.png': encoded(Image.fromarray(noise(110)).convert('RGBA')),
  'rotated.jpg': encoded(noise(111, 32, 48), 'JPEG', exif=rotation()),
  'tiny.png': encoded(noise(112, 8, 40)),
  'enormous.png': encoded(noise(113, 64, 100)),
  'text.png': b'no picture',
  'cut.png': encoded(noise(114))[:-40],
  'cut.jpg': encoded(noise(115), 'JPEG')[:-200],
  'cut.webp': encoded(noise(116), 'WEBP')[:-60],
  'cut.bmp': encoded(noise(117), 'BMP')[:-60],
  'cut.tif': encoded(noise(118), 'TIFF')[:-900],
  'cut.avif': encoded(noise(119), 'AVIF')[:-60],
}


def save(root, files, captions=()):
  """Write pictures with captions; the caption is the name of the picture unless `captions` has another, or None."""
  captions = dict(captions)
  for name, data in files.items():
    (root / name).write_bytes(data)
    caption = captions.get(name, f'a {name.replace(".", " ")}')
    if caption is not None:
      (root / name).with_suffix('.txt').write_text(caption)
  return root


def checked(root, out, settings=SETTINGS, **values):
  return data_check.check(DataConfig(path=str(root), **{'validation_fraction': 0.2, **values}), out, settings)


def test_every_kind_of_picture_is_counted(tmp_path):
  root = save_numbered(tmp_path / 'a', NUM)
  # Captions are of the folder's stems, so names with one stem lie in folders of their own.
  for name, data in FILES.items():
    folder = root / name.replace('.', '_')
    folder.mkdir()
    save(folder, {name: data})
  groups = checked(root, tmp_path / 'out').groups
  names = {kind: {path.split('/')[-1] for path in paths} for kind, paths in groups.items()}
  cut = {'cut.png', 'cut.jpg', 'cut.webp', 'cut.bmp', 'cut.tif', 'cut.avif'}
  assert {kind: names[kind] for kind in data_check._PICTURE_KINDS} == {
    'unreadable': {'text.png', *cut},
    'truncated': cut,
    'animated': {'animated.gif', 'animated.webp', 'pages.tif'},
    'cmyk': {'cmyk.jpg'},
    '16_bit': {'deep.png', 'deep_colours.png'},
    'alpha': {'alpha.png'},
    'rotated': {'rotated.jpg'},
    'tiny': {'tiny.png'},
    'enormous': {'enormous.png'},
    'noted': set(),
  }
  figures = json.loads((tmp_path / 'out' / data_check.FIGURES).read_text())
  assert figures['found'] == NUM + len(FILES) and figures['used'] == NUM + len(FILES) - 7
  assert figures['pictures'] == {kind: len(groups[kind]) for kind in data_check._PICTURE_KINDS}
  assert sum(figures['aspect_ratios'].values()) == sum(figures['shorter_sides'].values()) == figures['used']
  assert figures['aspect_ratios']['0.667 to 0.8'] == 1  # 32 x 48 pixels after the turn
  assert figures['aspect_ratios']['3 or more'] == 1 and figures['formats']['JPEG'] == 2
  listed = skip_list.read(tmp_path / 'out' / data_check.SKIP_LIST)
  assert {path.split('/')[-1] for path in listed} == names['unreadable']


def test_pictures_beyond_the_limit_are_enormous_and_unreadable(tmp_path):
  root = save_numbered(tmp_path / 'a', 2)
  save(root, {'large.png': FILES['enormous.png']})
  groups = checked(root, tmp_path / 'out', max_image_pixels=5000).groups
  assert groups['enormous'] == groups['unreadable'] == ['large.png'] and not groups['truncated']


def test_captions_are_counted(tmp_path):
  root = save_numbered(tmp_path / 'a', NUM)
  (root / '03.txt').write_text('number 3\nthe third of them\n')
  captions = {'m.png': None, 'e.png': ' \u200b', 's1.png': 'Same', 's2.png': 'same.', 'l.png': 'very long ' * 20}
  save(root, {name: encoded(noise(i)) for i, name in enumerate(captions)}, captions)
  (root / 'latin.png').write_bytes(encoded(noise(50)))
  (root / 'latin.txt').write_bytes('käse'.encode('latin-1'))
  result = checked(root, tmp_path / 'out', CheckSettings(text_length=40, vocab_size=300, num_processes=1))
  figures, groups = result.figures['captions'], result.groups
  assert (
    groups['missing'] == ['latin.png', 'm.png'] and groups['empty'] == ['e.png'] and groups['several'] == ['03.png']
  )
  assert figures['repeated'] == 1 and figures['repeated_pictures'] == 2
  assert figures['most_repeated'] == [{'caption': 'same', 'pictures': 2}]
  assert groups['over_long'] == ['l.png'] and figures['over_long'] == 1 and figures['captions'] == NUM + 4
  assert figures['over_long_share'] == pytest.approx(1 / (NUM + 4))
  assert sum(figures['token_lengths'].values()) == NUM + 4 and figures['tokens_max'] > 39
  assert any('not UTF-8' in reason for reason in figures['reasons_of_missing'])
  assert result.account.used == NUM + 3 and result.account.num_left_out == 3


def test_a_caption_that_just_fits_is_not_cut(tmp_path):
  root = save_numbered(tmp_path / 'a', NUM)
  most = checked(root, tmp_path / 'a1', CheckSettings(vocab_size=300, num_processes=1)).figures['captions'][
    'tokens_max'
  ]
  for text_length, count in ((most + 1, 0), (most, 1)):
    settings = CheckSettings(text_length=text_length, vocab_size=300, num_processes=1)
    assert (checked(root, tmp_path / str(text_length), settings).figures['captions']['over_long'] > 0) == bool(count)


def test_a_tokenizer_that_cannot_be_trained_is_reported(tmp_path):
  root = save_numbered(tmp_path / 'a', NUM)
  for number, path in enumerate(sorted(root.glob('*.txt'))):
    path.write_text(''.join(chr(0x4E00 + 40 * number + i) for i in range(40)))
  figures = checked(root, tmp_path / 'out', CheckSettings(vocab_size=270, num_processes=1)).figures
  assert 'config.tokenizer.vocab_size' in figures['captions']['problem'] and figures['used'] == NUM
  assert 'The tokenizer cannot be trained' in (tmp_path / 'out' / data_check.PAGE).read_text()


def test_an_empty_folder_has_nothing_to_train_on(tmp_path):
  (tmp_path / 'a').mkdir()
  result = checked(tmp_path / 'a', tmp_path / 'out')
  assert result.account.used == result.figures['found'] == 0 and Page((tmp_path / 'out' / data_check.PAGE).read_text())


def test_without_captions_everything_serves_the_first_stage(tmp_path):
  root = save_numbered(tmp_path / 'a', NUM)
  for path in root.glob('*.txt'):
    path.unlink()
  result = checked(root, tmp_path / 'out')
  assert result.account.used == NUM and len(result.groups['missing']) == NUM
  assert result.figures['captions']['captions'] == 0


def test_repeats_and_leaks(tmp_path):
  root = save_numbered(tmp_path / 'a', NUM)
  before = registry.prepare(config_of(root), tmp_path)
  train, held_out = ([entry.path for entry in before.open(split).entries] for split in ('train', 'validation'))
  words = {path: (root / path).with_suffix('.txt').read_text() for path in (*train, *held_out)}
  original = noise(1, 64, 64)
  near = {
    'n1.png': original,
    'n2.png': np.clip(original.astype(int) + 3, 0, 255).astype(np.uint8),
    'n3.png': noise(1, 96, 96),
    'grey.png': np.array(Image.fromarray(original).convert('L').convert('RGB')),
    'rolled.png': np.roll(original, 24, 1),
  }
  save(root, {name: encoded(pixels) for name, pixels in near.items()}, dict.fromkeys(near, words[train[2]]))
  copied = (root / train[0]).read_bytes()
  captions = {'copy.png': words[train[0]], 'words.png': words[train[2]], 'z_leak.png': words[held_out[0]]}
  save(root, dict.fromkeys(captions, copied), captions)
  leak = {'z_near.png': encoded(original // 2 * 2)}
  save(root, leak, {'z_near.png': words[held_out[0]]})
  (root / train[1]).with_suffix('.txt').write_text(f'{words[train[1]]}\n{words[held_out[0]]}')
  result = checked(root, tmp_path / 'out')
  groups = result.groups
  assert groups['duplicates'] == ['copy.png', 'words.png', 'z_leak.png']
  assert groups['near_duplicates'] == ['n2.png', 'n3.png', 'z_near.png']
  assert groups['leaked'] == ['z_leak.png'] and groups['leaked_near'] == ['z_near.png']
  assert groups['leaked_captions'] == [held_out[0], 'z_leak.png', 'z_near.png']
  assert result.figures['repeats'] == {
    'duplicates': 3, 'near_duplicates': 3, 'leaked': 1, 'leaked_near': 1, 'leaked_captions': 3,
    'duplicates_with_other_captions': 2,
  }  # fmt: skip
  skipped = skip_list.read(tmp_path / 'out' / data_check.SKIP_LIST)
  assert skipped == {'copy.png', 'z_leak.png', 'z_near.png'}
  settings = CheckSettings(vocab_size=300, num_processes=1, skip=('near',))
  assert checked(root, tmp_path / 'again', settings).num_skipped == 3


def config_of(root, **values):
  return DataConfig(path=str(root), **{'validation_fraction': 0.2, **values})


def test_training_leaves_out_the_skip_list_and_counts_it(tmp_path):
  root = save_numbered(tmp_path / 'a', NUM)
  (root / 'text.png').write_bytes(b'no picture')
  (root / 'text.txt').write_text('text')
  (root / 'copy.png').write_bytes((root / '05.png').read_bytes())
  (root / 'copy.txt').write_text('number 5')
  checked(root, tmp_path / 'out')
  file = tmp_path / 'out' / data_check.SKIP_LIST
  before = registry.prepare(config_of(root), tmp_path)
  dataset = registry.prepare(config_of(root, skip_list=str(file)), tmp_path)
  assert dataset.account.used == before.account.used - 1 and dataset.account.found == before.account.found
  assert dataset.account.left_out[skip_list.REASON].count == 2
  assert dataset.fingerprint != before.fingerprint
  again = checked(root, tmp_path / 'again', skip_list=str(file))
  assert not again.groups['unreadable'] and not again.groups['duplicates'] and again.account.used == NUM


def test_skip_lists_hold_any_path_and_name_their_mistakes(tmp_path):
  paths = ['a b.png', '#1.png', '"q".png', ' x.png', 'line\nbreak.png', 'bad\udcff.png', 'käse.png']
  file = tmp_path / 'skip.txt'
  skip_list.write(file, {'some': paths, 'others': paths[:2]})
  assert skip_list.read(file) == set(paths)
  account = Account('pictures')
  found = [Found(path, path, None) for path in ['a b.png', 'kept.png']]
  assert [picture.path for picture in skip_list.without(found, str(file), account)] == ['kept.png']
  assert account.num_left_out == 1
  assert sum(tally.count for tally in account.notes.values()) == len(paths) - 1
  for content, message in ((b'"a', 'line 1 is neither a path'), (b'\xff', 'is not UTF-8')):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
      skip_list.read(file)
  with pytest.raises(ValueError, match=r'config\.data\.skip_list: there is no file'):
    skip_list.read(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=r"config\.data\.source='tfds' does not read it"):
    DataConfig(source='tfds', path='a', skip_list='b')


def test_the_page_shows_examples_and_escapes_names(tmp_path):
  root = save_numbered(tmp_path / 'a', NUM)
  save(root, {'alpha.png': FILES['alpha.png'], 'copy.png': (root / '05.png').read_bytes(), 'bad.png': b'no picture'},
       {'alpha.png': NASTY, 'copy.png': NASTY})  # fmt: skip
  checked(root, tmp_path / 'out')
  page = Page((tmp_path / 'out' / data_check.PAGE).read_text())
  assert not page.of('script') and all(address.startswith(('data:', '#')) for address in page.addresses())
  assert {'Counts', 'Histograms', 'Unreadable', 'Transparent', 'Exact duplicates'} <= set(page.text('h2'))
  transparent = next(image for image in page.of('img') if image.attrs['alt'] == 'alpha.png')
  assert transparent.pixels().shape == (32, 32, 3)
  assert any(text.startswith('bad.png: ') for text in page.text('figcaption'))


def test_processes_find_the_same(tmp_path):
  root = save_numbered(tmp_path / 'a', 70)
  (root / 'bad.png').write_bytes(FILES['cut.png'])
  store = FolderStore(root)
  paths = sorted(path.name for path in root.glob('*.png'))
  steps = []
  results = inspection.inspect_all(store, paths, num_processes=2, progress=lambda *step: steps.append(step))
  assert results == inspection.inspect_all(store, paths, num_processes=1)
  assert steps == [(64, 71), (71, 71)] and sum(result.is_cut for result in results) == 1


class DeadlyStore(FolderStore):
  """A store whose pictures take more memory than there is."""

  def read(self, path, most_bytes=None):
    del path, most_bytes
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'One of the 2 processes .* was killed'):
    inspection.inspect_all(DeadlyStore(tmp_path), ['a.png'] * 100, num_processes=2)


def test_mixtures_are_checked_part_by_part(tmp_path):
  root = save_numbered(tmp_path / 'a', 2)
  with pytest.raises(ValueError, match=r'is read as mixture.*Check each part'):
    checked(f'{root}:1,{root}:1', tmp_path / 'out')
