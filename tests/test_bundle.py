import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from flax import linen as nn
from random_models import PICTURES

import dalle_jax
from dalle_jax import bundle, integrity
from dalle_jax.config import Config, MeshConfig
from dalle_jax.data.text.tokenizer import train_tokenizer
from dalle_jax.sharding import make_mesh

CONFIG = Config.from_dict({
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'tokenizer': {'vocab_size': 300, 'text_length': 5},
  'dvae': {'image_vocab_size': 6, 'hidden_size': 4, 'decoder_input_size': 4, 'num_groups': 2, 'blocks_per_group': 1},
  'prior': {'num_layers': 2, 'num_heads': 2, 'embed_dim': 8, 'mlp_ratio': 1},
})  # fmt: skip


@pytest.fixture(scope='module')
def mesh():
  return make_mesh(MeshConfig())


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(['a red circle', 'a blue square', 'a green triangle'], 300)


@pytest.fixture(scope='module')
def params(tokenizer):
  rng = np.random.default_rng(0)
  boxed = jax.eval_shape(lambda: bundle.init_params(CONFIG, tokenizer.vocab_size))
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), nn.unbox(boxed))


@pytest.fixture(scope='module')
def saved(tmp_path_factory, tokenizer, params):
  path = tmp_path_factory.mktemp('run') / 'model'
  bundle.save(path, CONFIG, tokenizer, jax.tree.map(jax.numpy.asarray, params), 'data fingerprint')
  return path


@pytest.fixture
def copy(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'model')


def test_load_returns_what_save_wrote_bit_for_bit(saved, params, tokenizer, mesh):
  loaded = bundle.load(saved, mesh)
  assert loaded.config == CONFIG
  assert loaded.tokenizer.encode('a red square') == tokenizer.encode('a red square')
  assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(loaded.params))
  assert loaded.prior.text_vocab_size == tokenizer.vocab_size
  assert loaded.dvae.image_vocab_size == 6


def test_bundle_json_identifies_the_model_and_lists_its_files(saved, params, tokenizer):
  info = bundle.check(saved)
  files, checksum = info.pop('files'), info.pop('checksum')
  contents = {name: (saved / name).read_bytes() for name in files}
  assert files == {
    name: {'size': len(data), 'sha256': hashlib.sha256(data).hexdigest()} for name, data in contents.items()
  }
  assert {'bundle.json', *files} == {f.relative_to(saved).as_posix() for f in saved.rglob('*') if f.is_file()}
  text = (saved / 'bundle.json').read_text().replace(checksum, '0' * 64)
  assert hashlib.sha256(text.encode()).hexdigest() == checksum
  assert info == {
    'format_version': bundle.FORMAT_VERSION,
    'parts': ['dvae', 'prior'],
    'dalle_jax_version': dalle_jax.__version__,
    'text_vocab_size': tokenizer.vocab_size,
    'tokenizer': tokenizer.pieces_hash,
    'data': 'data fingerprint',
    'params': bundle.fingerprint(params),
  }
  assert not saved.with_name('model.partial').exists()


def test_saving_again_replaces_the_older_bundle(copy, tokenizer, params, mesh):
  (copy / 'stray').write_text('of the older bundle')
  other = dataclasses.replace(CONFIG, seed=7)
  bundle.save(copy, other, tokenizer, jax.tree.map(jax.numpy.asarray, params), 'new')
  assert not (copy / 'stray').exists()
  assert bundle.load(copy, mesh).config.seed == 7


def test_a_failed_save_keeps_the_older_bundle(copy, tokenizer, params, mesh, monkeypatch):
  def fail(params):
    raise OSError('disk full')

  monkeypatch.setattr(bundle, 'fingerprint', fail)
  with pytest.raises(OSError, match='disk full'):
    bundle.save(copy, CONFIG, tokenizer, jax.tree.map(jax.numpy.asarray, params), 'new')
  assert bundle.load(copy, mesh).info['data'] == 'data fingerprint'


def test_the_fingerprint_depends_on_every_value_name_and_shape(params):
  leaves, structure = jax.tree.flatten(params)
  original = bundle.fingerprint(params)
  assert original == bundle.fingerprint(jax.tree.map(np.copy, params))
  largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
  for i in (0, largest, len(leaves) - 1):
    changed = [leaf.copy() for leaf in leaves]
    changed[i].flat[-1] = np.nextafter(changed[i].flat[-1], np.float32(9))
    assert bundle.fingerprint(jax.tree.unflatten(structure, changed)) != original
  assert bundle.fingerprint({'a': np.zeros(4)}) != bundle.fingerprint({'b': np.zeros(4)})
  assert bundle.fingerprint({'a': np.zeros((2, 2))}) != bundle.fingerprint({'a': np.zeros(4)})


def test_a_missing_directory_is_rejected_and_named(tmp_path):
  with pytest.raises(ValueError, match=r'no model directory at .*nowhere \(--model\)'):
    bundle.check(tmp_path / 'nowhere')


def test_a_half_written_bundle_is_recognised(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'model.partial')
  with pytest.raises(ValueError, match=r'model\.partial is incomplete, because .*: run the training command again'):
    bundle.check(tmp_path / 'model')


@pytest.mark.parametrize('name', ['bundle.json', 'config.json', 'tokenizer.model', 'params'])
def test_missing_files_are_named(copy, name, mesh):
  shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
  with pytest.raises(ValueError, match=rf'it lacks {name}\.'):
    bundle.load(copy, mesh)


@pytest.mark.parametrize('name', ['bundle.json', 'config.json', 'tokenizer.model', '_METADATA', 'manifest.ocdbt', 'd'])
def test_one_flipped_bit_in_any_file_is_refused_by_the_name_of_the_file(copy, name, mesh):
  inside = copy / 'params' / name
  file = next(inside.iterdir()) if name == 'd' else inside if inside.exists() else copy / name
  data = file.read_bytes()
  for position in np.linspace(0, len(data) - 1, 5, dtype=int):
    file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    with pytest.raises(ValueError, match=rf'{re.escape(file.name)}.*Copy the directory again'):
      bundle.load(copy, mesh)
  file.write_bytes(data)
  bundle.check(copy)


@pytest.fixture
def unverified():
  bundle.verify_by_default(False)
  yield
  bundle.verify_by_default(True)


@pytest.mark.usefixtures('unverified')
def test_verify_model_false_loads_changed_files(copy, mesh):
  values = json.loads((copy / 'config.json').read_text())
  (copy / 'config.json').write_text(json.dumps(values | {'seed': 3}))
  (copy / 'bundle.json').write_text((copy / 'bundle.json').read_text().replace('data fingerprint', 'other'))
  with ThreadPoolExecutor(1) as pool:  # the flag holds in all threads
    loaded = pool.submit(bundle.load, copy, mesh).result()
  assert loaded.config.seed == 3 and loaded.info['data'] == 'other'
  with pytest.raises(ValueError, match=r'bundle\.json is damaged \(its contents do not match its checksum\)'):
    bundle.load(copy, mesh, verify=True)


def test_missing_and_truncated_files_are_named(copy, mesh):
  files = sorted(
    (file for file in (copy / 'params').rglob('*') if file.is_file()), key=lambda file: file.stat().st_size
  )
  size = files[-1].stat().st_size
  files[-1].write_bytes(files[-1].read_bytes()[: size // 2])
  files[0].unlink()
  with pytest.raises(ValueError) as error:
    bundle.load(copy, mesh, verify=False)
  assert f'{files[-1].name} ({size // 2} of {size} bytes)' in str(error.value)
  assert f'{files[0].name} (missing)' in str(error.value)


def test_files_that_do_not_belong_to_the_model_are_said_once(copy, mesh, caplog):
  (copy / 'params' / 'stray').touch()
  bundle.load(copy, mesh)
  bundle.check(copy)
  assert caplog.text.count('do not belong to the model; they are not read: params/stray.') == 1


@pytest.mark.parametrize('name', ['bundle.json', 'config.json'])
@pytest.mark.parametrize(
  ('contents', 'why'),
  [
    (b'', 'it is empty'),
    (b'{"format_ver', 'Unterminated string'),
    (b'[]', 'it holds an array and not a JSON object'),
    (b'null', 'it holds null'),
    (b'17', 'it holds a number'),
    (b'[' * 100_000, 'it nests too deep'),
    (b'{"a": ' + b'[' * 101 + b']' * 101 + b'}', 'it nests deeper'),
    (b'{"seed": NaN}', 'it holds NaN'),
    (b'{"seed": ' + b'9' * 5000 + b'}', 'whole number of'),
    (b'{"seed": 1, "seed": 1}', "the key 'seed' is repeated"),
    (b'\xff\xfe{}', 'not UTF-8 text'),
  ],
)
@pytest.mark.usefixtures('unverified')
def test_damaged_json_is_refused_in_one_line(copy, name, contents, why):
  (copy / name).write_bytes(contents)
  with pytest.raises(ValueError, match=rf'{name} is damaged: .*{why}') as error:
    bundle.check(copy)
    bundle.read_config(copy)
  assert len(str(error.value)) < 500 + len(str(copy)) and str(error.value).isprintable()


@pytest.mark.usefixtures('unverified')
def test_a_huge_json_file_is_not_read(copy):
  with (copy / 'bundle.json').open('wb') as file:
    file.truncate(2**30)
  with pytest.raises(ValueError, match=r'bundle\.json is larger than 67,108,864 bytes'):
    bundle.check(copy)


@pytest.mark.parametrize(
  ('entry', 'value', 'why'),
  [
    ('format_version', 99, r'bundle format 99, .* reads format 1 to 2\..*newer dalle_jax'),
    ('format_version', True, "format_version is 'True'"),
    ('parts', ['dvae', 3], r"parts is \['dvae', 3\]"),
    ('params', None, 'params is None'),
    ('text_vocab_size', 1e300, r'text_vocab_size is 1e\+300'),
    ('ngrams', [-1], r'ngrams is \[-1\]'),
    ('files', [], r'files is \[\]'),
    ('files', {'../../secret': 3}, r'the entry \.\./\.\./secret of files is 3'),
    ('files', {}, 'files does not list config'),
  ],
)
@pytest.mark.usefixtures('unverified')
def test_wrong_entries_of_bundle_json_are_named(copy, entry, value, why):
  info = json.loads((copy / 'bundle.json').read_text())
  (copy / 'bundle.json').write_text(json.dumps(info | {entry: value}))
  with pytest.raises(ValueError, match=why):
    bundle.check(copy)


@pytest.mark.parametrize(
  ('name', 'contents', 'message'),
  [
    ('config.json', '{"pryor": {}}', r'is damaged: Unknown key config\.pryor'),
    ('tokenizer.model', 'nonsense', r'is damaged: .*tokenizer\.model'),
  ],
)
@pytest.mark.usefixtures('unverified')
def test_damaged_files_are_rejected_and_named(copy, name, contents, message, mesh):
  (copy / name).write_text(contents)
  with pytest.raises(ValueError, match=message):
    bundle.load(copy, mesh)


@pytest.mark.parametrize(
  ('group', 'key', 'value'),
  [
    ('prior', 'num_layers', 10**9),
    ('prior', 'num_layers', 3),
    ('prior', 'embed_dim', 2**20),
    ('prior', 'embed_dim', 2**62),
    ('prior', 'mlp_ratio', 10**9),
    ('dvae', 'blocks_per_group', 10**7),
    ('dvae', 'num_groups', 10**9),
    ('dvae', 'hidden_size', 2**40),
    ('dvae', 'decoder_input_size', 2**60),
    ('dvae', 'image_vocab_size', 2**60),
    ('data', 'image_size', 16384),
    ('data', 'image_size', 2**62),
    ('tokenizer', 'text_length', 10**9),
  ],
)
@pytest.mark.usefixtures('unverified')
def test_sizes_beyond_the_stored_arrays_are_refused_before_shapes_are_built(copy, group, key, value, mesh, monkeypatch):
  monkeypatch.setattr(bundle, 'init_params', None)
  values = json.loads((copy / 'config.json').read_text())
  values[group][key] = value
  (copy / 'config.json').write_text(json.dumps(values))
  with pytest.raises(ValueError, match=rf'is damaged: .*config\.{group}\.{key}.* {value}[,; ]'):
    bundle.load(copy, mesh)


@pytest.mark.usefixtures('unverified')
def test_parameters_with_other_shapes_are_rejected(copy, mesh):
  values = json.loads((copy / 'config.json').read_text())
  values['prior']['num_layers'] = 1
  (copy / 'config.json').write_text(json.dumps(values))
  message = (
    r"params do not fit .*config\.json: .*'scale'\]: given float32\[2, 8\], expected float32\[1, 8\]; .*and \d+ more"
  )
  with pytest.raises(ValueError, match=message):
    bundle.load(copy, mesh)


@pytest.mark.usefixtures('unverified')
def test_unreadable_parameters_are_rejected_with_their_cause(copy, mesh):
  for file in (copy / 'params').rglob('*'):
    if file.is_file() and file.parent.name == 'd':
      file.write_bytes(b'?' * file.stat().st_size)
  with pytest.raises(ValueError, match=r'The parameters in .*params cannot be read') as error:
    bundle.load(copy, mesh)
  assert len(str(error.value)) < 500 + len(str(copy)) and str(error.value).isprintable()


@pytest.mark.parametrize(
  'error', [AttributeError("'NoneType' object has no attribute 'tree'"), KeyError('x'), TypeError()]
)
def test_causes_speak_of_files_and_not_of_programs(error):
  assert integrity.cause(error) == 'its contents are damaged'


GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'bundles'


def test_bundles_of_earlier_format_versions_can_be_loaded(mesh, caplog):
  """tests/golden/bundles has one bundle for each format version, written by `random_models.save_random(PICTURES)`."""
  versions = sorted(int(path.name) for path in GOLDEN.iterdir())
  assert versions == list(range(1, bundle.FORMAT_VERSION + 1))
  for version in versions:
    loaded = bundle.load(GOLDEN / str(version), mesh)
    bundle.load(GOLDEN / str(version), mesh)
    assert bundle.fingerprint(loaded.params) == loaded.info['params'] == '02329cf29b725e11'
    expected = Config.from_dict(PICTURES)
    # The defaults of the versions that wrote the bundles.
    assert loaded.config == dataclasses.replace(
      expected, data=dataclasses.replace(expected.data, num_workers=0, num_threads=4)
    )
    assert loaded.tokenizer.decode(loaded.tokenizer.encode('a red circle')) == 'a red circle'
  note = 'was written by an earlier version, without checksums of its files. Only its parameters and tokenizer were'
  assert caplog.text.count(note) == 1


@pytest.mark.parametrize(
  ('entry', 'message'),
  [
    ('params', r'params are damaged: their fingerprint is not 0123\. Copy .* set --verify_model=false'),
    ('tokenizer', 'tokenizer.model is not the tokenizer that bundle.json names'),
  ],
)
def test_a_bundle_without_checksums_is_compared_with_its_fingerprints(tmp_path, entry, message, mesh):
  copy = shutil.copytree(GOLDEN / '1', tmp_path / 'model')
  info = json.loads((copy / 'bundle.json').read_text())
  (copy / 'bundle.json').write_text(json.dumps(info | {entry: '0123'}))
  with pytest.raises(ValueError, match=message):
    bundle.load(copy, mesh)
  assert bundle.load(copy, mesh, verify=False).info[entry] == '0123'
