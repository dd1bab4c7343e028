"""Compression and decompression of files, as the command runs them."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tracemalloc
import unittest.mock

import jax
import jax.numpy as jnp
import pytest
from random_models import PICTURES, caption_tokenizer, save_random

from dalle_jax import bundle, sharding
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.config import Config
from dalle_jax.data.text.text_tokenizer import ByteTokenizer, train_pieces
from dalle_jax.jobs.compress import commands
from dalle_jax.jobs.compress.limits import DecodingLimits
from dalle_jax.sampling import memory
from dalle_jax.training import ngram_counts

ROOT = pathlib.Path(__file__).parents[3]
TEXT = b'the cat sat on the mat and the dog lay on the log, and the mat was flat. ' * 30
TEXT_CONFIG = {'task': 'sequence', 'data': {'source': 'text'}}


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
  save_random(root / 'transformer', config, ByteTokenizer(), 0.3)
  save_random(root / 'pictures', Config.from_dict(PICTURES), caption_tokenizer())
  return {name: str(root / name) for name in ('ngram', 'transformer', 'pictures')}


def _round_trip(model, data, tmp_path, **options):
  (tmp_path / 'in').write_bytes(data)
  figures = commands.encode(model, str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings(**options))
  commands.decode(model, str(tmp_path / 'coded'), str(tmp_path / 'out'))
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
def test_files_of_any_bytes_are_decoded_exactly(models, kind, name, tmp_path):
  figures = _round_trip(models[kind], HARD[name], tmp_path, batch_size=4)
  assert figures['original_bytes'] == len(HARD[name])
  assert figures['file_bytes'] == (tmp_path / 'coded').stat().st_size


@pytest.mark.parametrize('coder', ['range', 'huffman'])
def test_the_size_is_the_entropy_plus_the_overhead_of_the_coder(models, coder, tmp_path):
  figures = _round_trip(models['ngram'], TEXT, tmp_path, coder=coder)
  excess = 8 * figures['payload_bytes'] - figures['model_bits']
  assert figures['overhead_bits_per_token'] == pytest.approx(excess / figures['num_tokens'])
  if coder == 'range':
    assert -1 < excess < 1e-3 * figures['model_bits'] + 9
  else:  # the text has less than one bit of entropy per token; a Huffman code needs at least one
    assert figures['bits_per_token'] >= 1 and 0 < figures['overhead_bits_per_token'] < 1


def test_the_report_and_the_printed_figures_agree_and_include_other_programs(models, tmp_path, capsys):
  (tmp_path / 'in').write_bytes(TEXT)
  args = (models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings())
  figures = commands.encode(*args, compare=True, report=str(tmp_path / 'report.json'))
  assert json.loads((tmp_path / 'report.json').read_text()) == figures
  assert set(figures['baselines']) == {'gzip -9', 'bzip2 -9', 'xz -9e', 'zstd --ultra -22'}
  printed = capsys.readouterr().out
  assert f'{figures["file_bytes"]:,}' in printed and 'xz -9e' in printed
  facts = commands.info(str(tmp_path / 'coded'))
  assert facts['tokens'] == figures['num_tokens'] and facts['content_bytes'] == len(TEXT)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file_size(models, tmp_path):
  peaks = []
  for times in (1, 8, 32):  # the first run compiles
    (tmp_path / 'in').write_bytes(TEXT * 15 * times)
    tracemalloc.start()
    settings = CompressionSettings(batch_size=64, verify=False)
    commands.encode(models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), settings, overwrite=True)
    commands.decode(models['ngram'], str(tmp_path / 'coded'), str(tmp_path / 'out'), overwrite=True)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert (tmp_path / 'in').stat().st_size > 1_000_000
  assert peaks[2] < peaks[1] + 300_000


@pytest.fixture(scope='module')
def coded(models, tmp_path_factory):
  """A file of several chunks."""
  root = tmp_path_factory.mktemp('coded')
  (root / 'in').write_bytes(TEXT)
  commands.encode(models['ngram'], str(root / 'in'), str(root / 'coded'), CompressionSettings(batch_size=2))
  return (root / 'coded').read_bytes()


def test_a_damaged_file_is_reported_by_name_and_nothing_is_written(models, coded, tmp_path):
  for name, data in {'cut': coded[:-70], 'changed': coded[:-70] + b'?' + coded[-69:]}.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f'{name}: (it is cut inside chunk|chunk [0-9]+ is damaged)'):
      commands.decode(models['ngram'], str(tmp_path / name), str(tmp_path / 'out'))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['changed', 'cut']


def test_intact_chunks_before_the_damage_are_recovered(models, coded, tmp_path):
  (tmp_path / 'cut').write_bytes(coded[: len(coded) // 2])
  with pytest.raises(ValueError, match=r'whole chunk.* before that'):
    commands.decode(models['ngram'], str(tmp_path / 'cut'), str(tmp_path / 'out'), recover=True)
  recovered = (tmp_path / 'out').read_bytes()
  assert 100 < len(recovered) < len(TEXT) and TEXT.startswith(recovered)


def test_decoding_with_another_model_is_refused(models, coded, tmp_path):
  (tmp_path / 'coded').write_bytes(coded)
  for other in ('transformer', 'pictures'):
    with pytest.raises(ValueError, match='was coded with the model'):
      commands.decode(models[other], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_probabilities_that_differ_from_those_of_the_encoder_are_reported(models, coded, tmp_path, monkeypatch):
  # Simulate a machine that computes slightly different logits.
  from dalle_jax.compression import frequencies

  of_logits = frequencies.of_logits
  monkeypatch.setattr(frequencies, 'of_logits', lambda logits: of_logits(logits * (1 + 1e-5)))
  (tmp_path / 'coded').write_bytes(coded)
  with pytest.raises(ValueError, match='other probabilities here than where the file was coded'):
    commands.decode(models['ngram'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_a_device_with_irreproducible_results_is_reported_before_anything_is_written(models, tmp_path, monkeypatch):
  from dalle_jax.compression import text

  decode = text.decode
  monkeypatch.setattr(text, 'decode', lambda *args: decode(*args) * 0)
  (tmp_path / 'in').write_bytes(TEXT)
  with pytest.raises(ValueError, match='does not give the same probabilities twice'):
    commands.encode(models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings())
  assert [path.name for path in tmp_path.iterdir()] == ['in']
  commands.encode(models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings(verify=False))


def _command(*args, devices):
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags}
  command = [sys.executable, '-m', 'dalle_jax.compress', *map(str, args)]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_file_encoded_on_one_device_decodes_on_eight_in_another_process(models, tmp_path):
  (tmp_path / 'in').write_bytes(TEXT[:300])
  model = f'--model={models["transformer"]}'
  done = _command('encode', model, tmp_path / 'in', tmp_path / 'coded', devices=1)
  assert done.returncode == 0, done.stderr
  done = _command('decode', model, tmp_path / 'coded', tmp_path / 'out', devices=8)
  assert done.returncode == 0 and '8 cpu device(s)' in done.stdout, done.stderr
  assert (tmp_path / 'out').read_bytes() == TEXT[:300]


def test_chunks_in_another_order_are_refused(models, coded, tmp_path):
  # Swap the second and the third chunk.
  reader = commands.ContainerReader(io.BytesIO(coded))
  ends = []
  for chunk in reader.chunks():
    reader.skip(chunk)
    ends.append(reader.position)
  swapped = coded[: ends[0]] + coded[ends[1] : ends[2]] + coded[ends[0] : ends[1]] + coded[ends[2] :]
  (tmp_path / 'swapped').write_bytes(swapped)
  with pytest.raises(ValueError, match='chunk 1 is damaged, or belongs to another place or another file'):
    commands.decode(models['ngram'], str(tmp_path / 'swapped'), str(tmp_path / 'out'), recover=True)
  assert TEXT.startswith((tmp_path / 'out').read_bytes())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'length': 31}, '31 tokens a sequence'),
    ({'batch_size': 64}, '64 sequences side by side'),
    ({'coder': 'lzw'}, "the coder 'lzw'"),
    ({'kind': 'pictures'}, "the kind 'pictures'"),
    ({'model': 'another'}, "coded with the model 'another'"),
  ],
)
def test_headers_that_do_not_fit_the_model_are_refused(models, coded, tmp_path, changes, message):
  reader = commands.ContainerReader(io.BytesIO(coded))
  with (tmp_path / 'changed').open('wb') as file:
    writer = commands.ContainerWriter(file, dataclasses.replace(reader.header, **changes))
    for chunk in reader.chunks():
      writer.chunk(chunk.count, b'', chunk.payload)
      reader.skip(chunk)
    writer.end()
  with pytest.raises(ValueError, match=message):
    commands.decode(models['ngram'], str(tmp_path / 'changed'), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_a_pipe_is_not_taken_for_a_compressed_file(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(ValueError, match=r'pipe: it is a pipe, a device or a directory'):
    commands.info(str(tmp_path / 'pipe'))


def test_the_same_parameters_with_another_tokenizer_are_another_model(models, coded, tmp_path):
  other = shutil.copytree(models['ngram'], tmp_path / 'other')
  train_pieces([TEXT.upper()], 280).save(other / 'tokenizer.model')
  (tmp_path / 'coded').write_bytes(coded)
  bundle.verify_by_default(False)
  try:
    with pytest.raises(ValueError, match='was coded with the model'):
      commands.decode(str(other), str(tmp_path / 'coded'), str(tmp_path / 'out'))
  finally:
    bundle.verify_by_default(True)


@pytest.mark.parametrize(
  ('group', 'key', 'value', 'is_same'),
  [
    ('mesh', 'fsdp', 1, True),
    ('sampling', 'top_p', 0.5, True),
    ('data', 'path', '/elsewhere', True),
    ('sequence_training', 'num_steps', 7, True),
    ('model', 'length', 16, False),
    ('data', 'image_size', 8, False),
  ],
)
def test_settings_that_change_no_probability_do_not_identify_a_model(models, tmp_path, group, key, value, is_same):
  path = pathlib.Path(models['ngram'])
  loaded = bundle.load(path, sharding.one_device_mesh(), ('model',))
  values = json.loads((path / 'config.json').read_text())
  values[group][key] = value
  (tmp_path / 'config.json').write_text(json.dumps(values))
  shutil.copy(path / 'tokenizer.model', tmp_path)
  config = Config.from_dict(values)
  identities = [
    commands._identity(path, loaded),
    commands._identity(tmp_path, dataclasses.replace(loaded, config=config)),
  ]
  assert (identities[0] == identities[1]) == is_same


def test_files_with_the_identity_of_earlier_versions_decode(models, tmp_path, monkeypatch):
  path = pathlib.Path(models['ngram'])
  digest = hashlib.sha256(json.loads((path / 'bundle.json').read_text())['params'].encode())
  for name in ('config.json', 'tokenizer.model'):
    digest.update(hashlib.sha256((path / name).read_bytes()).digest())
  (tmp_path / 'in').write_bytes(TEXT)
  with monkeypatch.context() as patch:
    patch.setattr(commands, '_identity', lambda *arguments: digest.hexdigest()[:16])
    commands.encode(models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings())
  assert commands.info(str(tmp_path / 'coded'))['model'] == digest.hexdigest()[:16]
  commands.decode(models['ngram'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  assert (tmp_path / 'out').read_bytes() == TEXT


def test_ctrl_c_and_a_full_disk_leave_no_output_file(models, tmp_path, monkeypatch):
  from dalle_jax.compression import text

  (tmp_path / 'in').write_bytes(TEXT)
  for error, kind in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, 'No space left on device'), OSError)):
    monkeypatch.setattr(text, 'encode', unittest.mock.Mock(side_effect=error))
    with pytest.raises(kind, match=rf'{tmp_path}/coded' if kind is OSError else None):
      commands.encode(models['ngram'], str(tmp_path / 'in'), str(tmp_path / 'coded'), CompressionSettings())
    assert [path.name for path in tmp_path.iterdir()] == ['in']


def test_wrong_flags_and_arguments_give_one_line_on_stderr(models, tmp_path):
  (tmp_path / 'in').write_bytes(TEXT[:100])
  for args, message in [
    (['decode', tmp_path / 'in'], 'decode takes IN OUT; given'),
    ([], 'one of encode, decode, info'),
    (['encode', tmp_path / 'in', tmp_path / 'coded'], 'encode needs --model=DIR'),
    (['decode', '--lossy', '--coder=range', tmp_path / 'in', tmp_path / 'out'], '--coder, --lossy: not for decode'),
    (['info', tmp_path / 'in'], 'was not written by `compress encode`'),
  ]:
    done = _command(*args, devices=1)
    assert (done.returncode, message in done.stderr, done.stderr.count('\n')) == (2, True, 1), done.stderr


BAD = {
  'no model': ({'model': 'nowhere'}, {}, 'no model directory'),
  'no file': ({'source': 'nowhere'}, {}, 'is not a file'),
  'exists': ({'out': 'there'}, {}, 'exists.*--overwrite'),
  'a directory': ({'out': 'folder', 'overwrite': True}, {}, 'folder is not a regular file'),
  'itself': ({'out': './in', 'overwrite': True}, {}, 'is in, which the command needs'),
  'report over the input': ({'report': 'in', 'overwrite': True}, {}, '--report: in is in'),
  'report over the output': ({'report': 'coded'}, {}, '--report: coded is coded'),
  'report in no directory': ({'report': 'none/report'}, {}, '--report: none/report cannot be written'),
  'report exists': ({'report': 'there'}, {}, '--report: there exists'),
  'no directory': ({'out': 'none/coded'}, {}, 'cannot be written'),
  'coder': ({}, {'coder': 'lzw'}, '--coder.*range, huffman'),
  'batch size': ({}, {'batch_size': 0}, '--batch_size is 0'),
  'lossy text': ({}, {'lossy': True}, '--lossy: for pictures'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_reported_before_the_model_is_loaded(models, name, tmp_path, monkeypatch):
  changes, options, message = BAD[name]
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'in').write_bytes(TEXT)
  (tmp_path / 'there').write_bytes(b'mine')
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'folder' / 'file').touch()
  args = {'model': models['ngram'], 'source': 'in', 'out': 'coded', **changes}
  monkeypatch.setattr(bundle, 'load', lambda *a, **k: pytest.fail('the model was read'))
  with pytest.raises(ValueError, match=message):
    commands.encode(**args, settings=CompressionSettings(**options))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['folder', 'in', 'there']
  assert (tmp_path / 'in').read_bytes() == TEXT and (tmp_path / 'there').read_bytes() == b'mine'


def test_files_that_ask_for_too_many_sequences_are_refused(models, coded, tmp_path, monkeypatch):
  (tmp_path / 'coded').write_bytes(coded)
  arguments = (models['ngram'], str(tmp_path / 'coded'), str(tmp_path / 'out'))
  with pytest.raises(ValueError, match=r'says 2 sequences side by side, more than the limit of 1; .*--max_batch_size'):
    commands.decode(*arguments, limits=DecodingLimits(max_batch_size=1))
  monkeypatch.setattr(memory, 'free_bytes', lambda mesh: 100)
  with pytest.raises(ValueError, match=r'2 sequences side by side need about .* GB, but 1e-07 GB are free'):
    commands.decode(*arguments)
  assert not (tmp_path / 'out').exists()
