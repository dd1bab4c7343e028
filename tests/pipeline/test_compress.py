"""Compressing files and getting them back, as the command does."""

import json
import os
import pathlib
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.data import image
from dalle_jax.data.text_tokenizer import ByteTokenizer, train_pieces
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.pipeline import compress
from dalle_jax.pipeline.compress import Settings
from dalle_jax.training import ngram_counts

ROOT = pathlib.Path(__file__).parents[2]
TEXT = b'the cat sat on the mat and the dog lay on the log, and the mat was flat. ' * 30
TEXT_CONFIG = {'task': 'sequence', 'data': {'source': 'text'}}
PICTURE_CONFIG = Config.from_dict({
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'tokenizer': {'vocab_size': 300, 'text_length': 6},
  'dvae': {'image_vocab_size': 8, 'hidden_size': 4, 'decoder_input_size': 4, 'num_groups': 2, 'blocks_per_group': 1},
  'prior': {'num_layers': 1, 'num_heads': 2, 'embed_dim': 8, 'mlp_ratio': 1},
})  # fmt: skip


def _random(config, vocab_size):
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: bundle.init_params(config, vocab_size)))
  return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Model directories: n-grams of pieces, a transformer of bytes, and pictures."""
  root = tmp_path_factory.mktemp('models')
  tokenizer = train_pieces([TEXT], 280)
  model = {'kind': 'ngram', 'length': 32, 'order': 3}
  config = Config.from_dict({**TEXT_CONFIG, 'tokenizer': {'kind': 'pieces'}, 'model': model})
  levels = ngram_counts.count([tokenizer.encode(TEXT)], tokenizer.vocab_size, 3, starts=False)
  table = ngram_counts.estimate(levels, smoothing='kneser_ney', discount=0.0, add_k=0.01)
  bundle.save(root / 'ngram', config, tokenizer, {'model': jax.tree.map(jnp.asarray, table)}, 'data')
  model = {'length': 16, 'num_layers': 1, 'embed_dim': 8, 'num_heads': 2}
  config = Config.from_dict({**TEXT_CONFIG, 'tokenizer': {'kind': 'bytes'}, 'model': model})
  bundle.save(root / 'transformer', config, ByteTokenizer(), _random(config, 256), 'data')
  captions = train_tokenizer(['a red circle', 'a blue square', 'a green triangle'] * 4, 300)
  params = _random(PICTURE_CONFIG, captions.vocab_size)
  bundle.save(root / 'pictures', PICTURE_CONFIG, captions, params, 'data')
  values = PICTURE_CONFIG.to_dict() | {'task': 'sequence'}
  values['dvae'] |= {'pretrained': 'unused'}
  values['model'] |= {'tokens': 'image', 'kind': 'ngram', 'order': 1}
  config = Config.from_dict(values)
  unigrams = nn.unbox(bundle.init_params(config, None, [9])['model'])
  even = {'token': jnp.arange(9, dtype=jnp.int32), 'log_prob': jnp.log(jnp.full(9, 1 / 8)).at[8].set(-jnp.inf)}
  codes = {'dvae': params['dvae'], 'model': [{**unigrams[0], **even}]}
  bundle.save(root / 'codes', config, None, codes, 'data')
  return {name: str(root / name) for name in ('ngram', 'transformer', 'pictures', 'codes')}


def _round_trip(model, data, tmp_path, **options):
  (tmp_path / 'in').write_bytes(data)
  figures = compress.encode(model, str(tmp_path / 'in'), str(tmp_path / 'coded'), Settings(**options))
  compress.decode(model, str(tmp_path / 'coded'), str(tmp_path / 'out'))
  assert (tmp_path / 'out').read_bytes() == data
  return figures


HARD = {
  'empty': b'',
  'one byte': b'\xff',
  'invalid UTF-8': b'caf\xe9 \xc3\x28 the cat \xf0\x28\x8c\x28',
  'binary': bytes(range(256)) * 2,
  'never seen': '\u2581\u2581 \u6f22\u5b57 \U0001f600\0the\r\n\t'.encode(),
  'text': TEXT[:700],
}


@pytest.mark.parametrize('name', HARD)
@pytest.mark.parametrize('kind', ['ngram', 'transformer'])
def test_any_bytes_come_back(models, kind, name, tmp_path):
  figures = _round_trip(models[kind], HARD[name], tmp_path, batch_size=4)
  assert figures['original_bytes'] == len(HARD[name])
  assert figures['file_bytes'] == (tmp_path / 'coded').stat().st_size


@pytest.mark.parametrize('coder', ['range', 'huffman'])
def test_the_cost_is_the_entropy_and_the_coders_own(models, coder, tmp_path):
  figures = _round_trip(models['ngram'], TEXT, tmp_path, coder=coder)
  excess = 8 * figures['payload_bytes'] - figures['model_bits']
  assert figures['overhead_bits_per_token'] == pytest.approx(excess / figures['num_tokens'])
  if coder == 'range':
    assert -1 < excess < 1e-3 * figures['model_bits'] + 9
  else:  # repeated text has less than a bit a token, and a Huffman code at least one
    assert figures['bits_per_token'] >= 1 and 0 < figures['overhead_bits_per_token'] < 1


def test_the_report_is_what_is_printed_and_other_programs_are_measured(models, tmp_path, capsys):
  (tmp_path / 'in').write_bytes(TEXT)
  args = (models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), Settings())
  figures = compress.encode(*args, compare=True, report=str(tmp_path / 'report.json'))
  assert json.loads((tmp_path / 'report.json').read_text()) == figures
  assert set(figures['baselines']) == {'gzip -9', 'bzip2 -9', 'xz -9e', 'zstd --ultra -22'}
  printed = capsys.readouterr().out
  assert f'{figures["file_bytes"]:,}' in printed and 'xz -9e' in printed
  facts = compress.info(str(tmp_path / 'coded'))
  assert facts['tokens'] == figures['num_tokens'] and facts['content_bytes'] == len(TEXT)


def test_memory_does_not_grow_with_the_file(models, tmp_path):
  peaks = []
  for times in (1, 4):
    (tmp_path / 'in').write_bytes(TEXT * times)
    tracemalloc.start()
    settings = Settings(batch_size=2)  # 64 tokens a chunk
    compress.encode(models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), settings, overwrite=True)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < 1.3 * peaks[0]


@pytest.fixture(scope='module')
def coded(models, tmp_path_factory):
  """A file of several chunks."""
  root = tmp_path_factory.mktemp('coded')
  (root / 'in').write_bytes(TEXT)
  compress.encode(models['ngram'], str(root / 'in'), str(root / 'coded'), Settings(batch_size=2))
  return (root / 'coded').read_bytes()


def test_a_damaged_file_is_named_and_nothing_written(models, coded, tmp_path):
  for name, data in {'cut': coded[:-70], 'changed': coded[:-70] + b'?' + coded[-69:]}.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f'{name}: (it is cut inside chunk|chunk [0-9]+ is damaged)'):
      compress.decode(models['ngram'], str(tmp_path / name), str(tmp_path / 'out'))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['changed', 'cut']


def test_whole_chunks_before_a_damage_are_recovered(models, coded, tmp_path):
  (tmp_path / 'cut').write_bytes(coded[: len(coded) // 2])
  with pytest.raises(ValueError, match=r'whole chunk.* before it'):
    compress.decode(models['ngram'], str(tmp_path / 'cut'), str(tmp_path / 'out'), recover=True)
  found = (tmp_path / 'out').read_bytes()
  assert 100 < len(found) < len(TEXT) and TEXT.startswith(found)


def test_another_model_is_refused(models, coded, tmp_path):
  (tmp_path / 'coded').write_bytes(coded)
  for other in ('transformer', 'pictures'):
    with pytest.raises(ValueError, match='was coded with the model'):
      compress.decode(models[other], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_other_probabilities_are_named(models, coded, tmp_path, monkeypatch):
  # As if this machine computed the model's logits a little differently.
  from dalle_jax.compression import frequencies

  of_logits = frequencies.of_logits
  monkeypatch.setattr(frequencies, 'of_logits', lambda logits: of_logits(logits * (1 + 1e-5)))
  (tmp_path / 'coded').write_bytes(coded)
  with pytest.raises(ValueError, match='other probabilities than where the file was coded'):
    compress.decode(models['ngram'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_a_device_that_does_not_repeat_itself_is_found_before_anything_is_written(models, tmp_path, monkeypatch):
  from dalle_jax.compression import text

  decode = text.decode
  monkeypatch.setattr(text, 'decode', lambda *args: decode(*args) * 0)
  (tmp_path / 'in').write_bytes(TEXT)
  with pytest.raises(ValueError, match='does not give the same probabilities twice'):
    compress.encode(models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), Settings())
  assert [path.name for path in tmp_path.iterdir()] == ['in']
  compress.encode(models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), Settings(verify=False))


def _command(*args, devices):
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags}
  command = [sys.executable, '-m', 'dalle_jax.compress', *map(str, args)]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_file_of_one_device_decodes_on_eight_in_another_process(models, tmp_path):
  (tmp_path / 'in').write_bytes(TEXT[:300])
  model = f'--model={models["transformer"]}'
  done = _command('encode', model, tmp_path / 'in', tmp_path / 'coded', devices=1)
  assert done.returncode == 0, done.stderr
  done = _command('decode', model, tmp_path / 'coded', tmp_path / 'out', devices=8)
  assert done.returncode == 0 and '8 cpu device(s)' in done.stdout, done.stderr
  assert (tmp_path / 'out').read_bytes() == TEXT[:300]
  wrong = _command('decode', tmp_path / 'coded', devices=1)
  assert wrong.returncode == 2 and 'encode --model=DIR IN OUT' in wrong.stderr


def _pictures(root, *shapes):
  rng = np.random.default_rng(0)
  root.mkdir()
  images = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
  for i, pixels in enumerate(images):
    (root / f'{i}.png').write_bytes(image.encode_png(pixels))
  return images


@pytest.mark.parametrize('coder', ['range', 'huffman'])
def test_pictures_of_any_size_come_back_without_loss(models, coder, tmp_path):
  images = _pictures(tmp_path / 'in', (8, 8), (5, 19), (1, 1))
  (tmp_path / 'in' / 'metadata.jsonl').write_text('{"file_name": "1.png", "text": "A red circle"}\n')
  figures = compress.encode(
    models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'), Settings(coder=coder, batch_size=2)
  )
  compress.decode(models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  for i, pixels in enumerate(images):
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / f'{i}.png')), pixels)
  assert json.loads((tmp_path / 'out' / 'metadata.jsonl').read_text()) == {'file_name': '1.png', 'text': 'a red circle'}
  assert figures['num_tiles'] == 5 and figures['num_pixels'] == 64 + 95 + 1
  excess = 8 * figures['payload_bytes'] - figures['model_bits']
  assert -1 < excess < (9 * 3 if coder == 'range' else figures['num_pixels'] * 3 + figures['num_tokens'])


def test_lossy_pictures_are_what_the_dvae_makes_of_them(models, tmp_path):
  (pixels,) = _pictures(tmp_path / 'in', (8, 8))
  source = tmp_path / 'in' / '0.png'
  figures = compress.encode(models['pictures'], str(source), str(tmp_path / 'coded'), Settings(lossy=True))
  compress.decode(models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out.png'))
  found = np.asarray(Image.open(tmp_path / 'out.png'))
  loaded = bundle.load(pathlib.Path(models['pictures']), compress.sharding.one_device_mesh())
  variables = {'params': loaded.params['dvae']}
  codes = loaded.dvae.apply(variables, pixels[None], method='encode')
  expected = np.asarray(loaded.dvae.apply(variables, codes, method='decode'))[0]
  assert np.abs(found - expected).max() <= 0.51
  error = np.mean((found.astype(float) - pixels) ** 2)
  assert figures['psnr_of_reconstructions'] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
  assert figures['pixel_bits'] == 0 and figures['bits_per_pixel'] == 8 * figures['file_bytes'] / 64


def test_models_of_image_tokens_compress_pictures_without_captions(models, tmp_path):
  (pixels,) = _pictures(tmp_path / 'in', (8, 8))
  args = (models['codes'], str(tmp_path / 'in'), str(tmp_path / 'coded'))
  with pytest.raises(ValueError, match=r'--caption: .* without captions'):
    compress.encode(*args, Settings(caption='a circle'))
  figures = compress.encode(*args, Settings())
  assert figures['code_bits'] == pytest.approx(16 * 3, rel=1e-5)  # 4 x 4 codes, 8 of them equally likely
  compress.decode(models['codes'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / '0.png')), pixels)


def test_transparent_pictures_need_to_be_resized_or_lossy(models, tmp_path):
  Image.new('RGBA', (20, 10), (255, 0, 0, 90)).save(tmp_path / 'in.png')
  args = (models['pictures'], str(tmp_path / 'in.png'), str(tmp_path / 'coded'))
  with pytest.raises(ValueError, match=r'in.png: it has transparency.*--resize or --lossy'):
    compress.encode(*args, Settings())
  assert not (tmp_path / 'coded').exists()
  figures = compress.encode(*args, Settings(resize=True, caption='a red circle'))
  assert figures['num_pixels'] == 64
  compress.decode(models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  assert np.asarray(Image.open(tmp_path / 'out')).shape == (8, 8, 3)


def test_pictures_before_a_damage_are_recovered(models, tmp_path):
  images = _pictures(tmp_path / 'in', *[(8, 8)] * 4)
  compress.encode(models['pictures'], str(tmp_path / 'in'), str(tmp_path / 'coded'), Settings(batch_size=2))
  data = (tmp_path / 'coded').read_bytes()
  (tmp_path / 'coded').write_bytes(data[:-80])
  with pytest.raises(ValueError, match='1 whole chunk'):
    compress.decode(models['pictures'], str(tmp_path / 'coded'), str(tmp_path / 'out'), recover=True)
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['0.png', '1.png']
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / '1.png')), images[1])


BAD = {
  'no model': ({'model': 'nowhere'}, {}, 'no model directory'),
  'no file': ({'source': 'nowhere'}, {}, 'is no file'),
  'exists': ({'out': 'in'}, {}, 'exists.*--overwrite'),
  'no directory': ({'out': 'none/coded'}, {}, 'cannot be written'),
  'coder': ({}, {'coder': 'lzw'}, '--coder.*range, huffman'),
  'batch size': ({}, {'batch_size': 0}, '--batch_size is 0'),
  'lossy text': ({}, {'lossy': True}, '--lossy: for pictures'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named_before_anything_is_done(models, name, tmp_path, monkeypatch):
  changes, options, message = BAD[name]
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'in').write_bytes(TEXT)
  args = {'model': models['ngram'], 'source': 'in', 'out': 'coded', **changes}
  monkeypatch.setattr(bundle, 'load', lambda *a, **k: pytest.fail('the model was read'))
  with pytest.raises(ValueError, match=message):
    compress.encode(**args, settings=Settings(**options))
  assert [path.name for path in tmp_path.iterdir()] == ['in']
