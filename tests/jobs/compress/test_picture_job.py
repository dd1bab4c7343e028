"""Compression and decompression of pictures, as the command runs them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from random_models import PICTURES, caption_tokenizer, random_params

from dalle_jax import bundle
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.config import Config
from dalle_jax.data.pictures import image, picture_files
from dalle_jax.jobs.compress import commands, picture_job
from dalle_jax.jobs.compress.limits import DecodingLimits


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Model directories: a prior, and a unigram model of image tokens that are all equally likely."""
  root = tmp_path_factory.mktemp('models')
  tokenizer, config = caption_tokenizer(), Config.from_dict(PICTURES)
  params = random_params(config, tokenizer.vocab_size, 0.3)
  bundle.save(root / 'pictures', config, tokenizer, params, 'data')
  values = config.to_dict() | {'task': 'sequence'}
  values['dvae'] |= {'pretrained': 'unused'}
  values['model'] |= {'tokens': 'image', 'kind': 'ngram', 'order': 1}
  config = Config.from_dict(values)
  unigrams = nn.unbox(bundle.init_params(config, None, [9])['model'])
  even = {'token': jnp.arange(9, dtype=jnp.int32), 'log_prob': jnp.log(jnp.full(9, 1 / 8)).at[8].set(-jnp.inf)}
  codes = {'dvae': params['dvae'], 'model': [{**unigrams[0], **even}]}
  bundle.save(root / 'codes', config, None, codes, 'data')
  return {name: str(root / name) for name in ('pictures', 'codes')}


@pytest.fixture(scope='module', autouse=True)
def shared_coders():
  """Compiles each coder once. tests/jobs/compress/test_commands.py decodes in a process that compiles its own."""
  made, make = {}, picture_job.PictureJob._coder

  def once(job, *arguments):
    key = (job._loaded.info['params'], *arguments)
    return made.get(key) or made.setdefault(key, make(job, *arguments))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(picture_job.PictureJob, '_coder', once)
    yield


def _pictures(root, *shapes):
  rng = np.random.default_rng(0)
  root.mkdir()
  images = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
  for i, pixels in enumerate(images):
    (root / f'{i}.png').write_bytes(image.encode_png(pixels))
  return images


@pytest.mark.parametrize('coder', ['range', 'huffman'])
def test_pictures_of_any_size_are_decoded_exactly(models, coder, tmp_path):
  images = _pictures(tmp_path / 'in', (8, 8), (5, 19), (1, 1))
  (tmp_path / 'in' / 'metadata.jsonl').write_text('{"file_name": "1.png", "text": "A red circle"}\n')
  figures = commands.encode(
    models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings(coder=coder, batch_size=2)
  )
  commands.decode(models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  for i, pixels in enumerate(images):
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / f'{i}.png')), pixels)
  assert json.loads((tmp_path / 'out' / 'metadata.jsonl').read_text()) == {'file_name': '1.png', 'text': 'a red circle'}
  assert figures['num_tiles'] == 5 and figures['num_pixels'] == 64 + 95 + 1
  excess = 8 * figures['payload_bytes'] - figures['model_bits']
  assert -1 < excess < (9 * 3 if coder == 'range' else figures['num_pixels'] * 3 + figures['num_tokens'])


def test_files_that_are_too_large_for_a_picture_are_not_read(tmp_path):
  with (tmp_path / 'large.png').open('wb') as file:
    file.truncate(picture_files.most_bytes(100) + 1)
  settings = CompressionSettings(max_image_pixels=100)
  with pytest.raises(ValueError, match=r'large\.png: it has more than 268,437,056 bytes, .*--max_image_pixels'):
    picture_job.PictureJob.inputs(tmp_path / 'large.png', settings, Config.from_dict(PICTURES))


def test_captions_that_show_nothing_are_refused_before_pictures_are_read(tmp_path):
  settings = CompressionSettings(caption='\u200b')
  with pytest.raises(ValueError, match=r'shows nothing; --caption needs at least one word'):
    picture_job.PictureJob.inputs(tmp_path / 'missing.png', settings, Config.from_dict(PICTURES))


def test_lossy_pictures_are_the_reconstructions_of_the_dvae(models, tmp_path):
  (pixels,) = _pictures(tmp_path / 'in', (8, 8))
  source = tmp_path / 'in' / '0.png'
  figures = commands.encode(models['pictures'], str(source), str(tmp_path / 'coded'), CompressionSettings(lossy=True))
  commands.decode(models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out.png'))
  decoded = np.asarray(Image.open(tmp_path / 'out.png'))
  loaded = bundle.load(pathlib.Path(models['pictures']), commands.sharding.one_device_mesh())
  variables = {'params': loaded.params['dvae']}
  apply = jax.jit(loaded.dvae.apply, static_argnames='method')
  codes = apply(variables, pixels[None], method='encode')
  expected = np.asarray(apply(variables, codes, method='decode'))[0]
  assert np.abs(decoded - expected).max() <= 0.51
  error = np.mean((decoded.astype(float) - pixels) ** 2)
  assert figures['psnr_of_reconstructions'] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
  assert figures['pixel_bits'] == 0 and figures['bits_per_pixel'] == 8 * figures['file_bytes'] / 64


def test_models_of_image_tokens_compress_pictures_without_captions(models, tmp_path):
  (pixels,) = _pictures(tmp_path / 'in', (8, 8))
  args = (models['codes'], str(tmp_path / 'in'), str(tmp_path / 'coded'))
  with pytest.raises(ValueError, match=r'--caption: .* without captions'):
    commands.encode(*args, CompressionSettings(caption='a circle'))
  figures = commands.encode(*args, CompressionSettings())
  assert figures['code_bits'] == pytest.approx(16 * 3, rel=1e-5)  # 4 x 4 codes, 8 of them equally likely
  commands.decode(models['codes'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / '0.png')), pixels)


def test_transparent_pictures_need_resize_or_lossy(models, tmp_path):
  Image.new('RGBA', (20, 10), (255, 0, 0, 90)).save(tmp_path / 'in.png')
  args = (models['pictures'], str(tmp_path / 'in.png'), str(tmp_path / 'coded'))
  with pytest.raises(ValueError, match=r'in.png: it has transparency.*--resize or --lossy'):
    commands.encode(*args, CompressionSettings())
  assert not (tmp_path / 'coded').exists()
  figures = commands.encode(*args, CompressionSettings(resize=True, caption='a red circle'))
  assert figures['num_pixels'] == 64
  commands.decode(models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  assert np.asarray(Image.open(tmp_path / 'out')).shape == (8, 8, 3)


def test_pictures_before_the_damage_are_recovered(models, tmp_path):
  images = _pictures(tmp_path / 'in', *[(8, 8)] * 4)
  commands.encode(models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings(batch_size=2))
  data = (tmp_path / 'coded').read_bytes()
  (tmp_path / 'coded').write_bytes(data[:-80])
  with pytest.raises(ValueError, match='1 whole chunk'):
    commands.decode(models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out'), recover=True)
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['0.png', '1.png']
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / '1.png')), images[1])


def test_the_decoded_tiles_of_an_unfinished_picture_are_recovered(models, tmp_path, capsys):
  (pixels,) = _pictures(tmp_path / 'in', (8, 32))
  source = str(tmp_path / 'in' / '0.png')
  commands.encode(models['pictures'], source, str(tmp_path / 'coded'), CompressionSettings(batch_size=2))
  (tmp_path / 'coded').write_bytes((tmp_path / 'coded').read_bytes()[:-80])
  (tmp_path / 'out').write_bytes(b'former')
  args = (models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  with pytest.raises(ValueError, match='cut'):
    commands.decode(*args, overwrite=True)
  assert (tmp_path / 'out').read_bytes() == b'former'
  with pytest.raises(ValueError, match='1 whole chunk'):
    commands.decode(*args, overwrite=True, recover=True)
  recovered = np.asarray(Image.open(tmp_path / 'out'))
  np.testing.assert_array_equal(recovered[:, :16], pixels[:, :16])
  assert (recovered[:, 16:] == 128).all() and 'tiles are missing' in capsys.readouterr().out


def test_pictures_are_only_written_to_a_new_or_empty_directory(models, tmp_path):
  _pictures(tmp_path / 'in', (8, 8))
  args = (models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  commands.encode(models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings(lossy=True))
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'mine').touch()
  with pytest.raises(ValueError, match='new or empty'):
    commands.decode(*args, overwrite=True)
  (tmp_path / 'out' / 'mine').unlink()
  commands.decode(*args)
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['0.png']


def test_pictures_that_cannot_be_written_back_are_refused(models, tmp_path, monkeypatch):
  monkeypatch.setattr(bundle, 'load', lambda *a, **k: pytest.fail('the model was read'))
  args = (models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'))
  (pixels,) = _pictures(tmp_path / 'in', (4, 4))
  Image.fromarray(pixels).save(tmp_path / 'in' / '0.jpg')
  (tmp_path / 'in' / '0.png').rename(tmp_path / 'in' / '0.jpg.png')
  with pytest.raises(ValueError, match=r"two pictures that would both be written to '0.jpg.png'"):
    commands.encode(*args, CompressionSettings())
  (tmp_path / 'in' / '0.jpg').rename(tmp_path / 'in' / 'a\\b.jpg')
  with pytest.raises(ValueError, match='a picture named'):
    commands.encode(*args, CompressionSettings())


def test_a_picture_that_changes_during_encoding_is_reported(models, tmp_path, monkeypatch):
  from dalle_jax.jobs.compress.picture_job import PictureJob

  _pictures(tmp_path / 'in', (8, 8))
  inputs = PictureJob.inputs

  def change(source, settings, config):
    listed = inputs(source, settings, config)
    Image.new('RGB', (20, 8)).save(source / '0.png')
    return listed

  monkeypatch.setattr(PictureJob, 'inputs', staticmethod(change))
  with pytest.raises(ValueError, match='has been changed since'):
    commands.encode(models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings())
  assert not (tmp_path / 'coded').exists()


def test_captions_that_cannot_be_used_or_will_change_are_reported(models, tmp_path, capsys):
  _pictures(tmp_path / 'in', (8, 8))
  (tmp_path / 'in' / 'README.txt').write_text('my pictures')
  args = (models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'))
  commands.encode(*args, CompressionSettings(lossy=True))
  assert 'no captions are used' in capsys.readouterr().out
  (tmp_path / 'in' / '0.txt').write_text('A Red Circle')
  commands.encode(*args, CompressionSettings(lossy=True, verify=False), overwrite=True)
  assert '1 caption(s) will come back' in capsys.readouterr().out


def test_other_formats_are_measured_with_their_best_settings(models, tmp_path):
  grey = np.random.default_rng(0).integers(0, 256, (16, 16, 1)).repeat(3, axis=2).astype(np.uint8)
  few = np.random.default_rng(0).choice([0, 255], (16, 16, 3)).astype(np.uint8)
  for name, pixels in (('few', few), ('grey', grey)):
    (tmp_path / name).mkdir()
    Image.fromarray(pixels).save(tmp_path / name / '0.png')
    args = (models['pictures'], str(tmp_path / name), str(tmp_path / f'{name}.djxc'))
    sizes = commands.encode(*args, CompressionSettings(lossy=True, verify=False), compare=True)['baselines']
    assert set(sizes) == {'PNG, one by one', 'WebP lossless, one by one'}
    assert sizes['PNG, one by one'] < (400 if name == 'grey' else 250)  # RGB needs 8 bits per value


def test_the_limit_of_pixels_holds_for_encoding_and_decoding(models, tmp_path):
  _pictures(tmp_path / 'in', (8, 8))
  args = (models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'))
  with pytest.raises(ValueError, match=r'0\.png: .* 8 x 8 pixels, more than the limit of 63; .*--max_image_pixels'):
    commands.encode(*args, CompressionSettings(max_image_pixels=63))
  commands.encode(*args, CompressionSettings(lossy=True, verify=False, max_image_pixels=64))
  with pytest.raises(ValueError, match=r'8 x 8 pixels, more than the limit of 63; .*--max_image_pixels'):
    commands.decode(models['pictures'], args[2], str(tmp_path / 'out'), limits=DecodingLimits(max_image_pixels=63))
  assert not (tmp_path / 'out').exists()


def test_files_of_a_directory_that_are_not_stored_are_counted(tmp_path, capsys):
  for name in ('a.png', 'b.JPG', 'c.heic', 'c.txt', '.d.png'):
    (tmp_path / name).write_bytes(b'x')
  (tmp_path / 'e.png').symlink_to(pathlib.Path(__file__))
  assert [name for _, name, _ in picture_job._list_pictures(tmp_path, 'x')] == ['a.png', 'b.JPG.png']
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].strip() == '6 files found, 2 used, 4 left out'
  assert '  left out 2: not a picture by its name; only pictures are stored (c.heic, c.txt)' in lines
  assert '  left out 1: hidden, and therefore not read (.d.png)' in lines
  assert any('a link that leads out of the folder' in line and 'e.png' in line for line in lines)
