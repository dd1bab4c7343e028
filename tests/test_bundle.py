import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import linen as nn
from random_models import PICTURES

import dalle_jax
from dalle_jax import bundle
from dalle_jax.config import Config, MeshConfig
from dalle_jax.data.tokenizer import train_tokenizer
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
  files = info.pop('files')
  assert files and all((saved / 'params' / name).stat().st_size == size for name, size in files.items())
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


@pytest.mark.parametrize(
  ('name', 'contents', 'message'),
  [
    ('bundle.json', '{"format_ver', r'bundle\.json is damaged'),
    ('bundle.json', '[]', r'bundle\.json is damaged'),
    (
      'bundle.json',
      '{"format_version": 99}',
      r'bundle format 99, .* reads format 1\..*newer dalle_jax',
    ),
    ('config.json', '{"prior": {"num_layers"', r'is damaged'),
    ('config.json', '{"pryor": {}}', r'is damaged: Unknown key config\.pryor'),
    ('tokenizer.model', 'nonsense', r'is damaged: .*tokenizer\.model'),
  ],
)
def test_damaged_files_are_rejected_and_named(copy, name, contents, message, mesh):
  (copy / name).write_text(contents)
  with pytest.raises(ValueError, match=message):
    bundle.load(copy, mesh)


def test_parameters_with_other_shapes_are_rejected(copy, mesh):
  values = json.loads((copy / 'config.json').read_text())
  values['prior']['num_layers'] = 3
  (copy / 'config.json').write_text(json.dumps(values))
  message = (
    r"params do not fit .*config\.json: .*'scale'\]: given float32\[2, 8\], expected float32\[3, 8\]; .*and \d+ more"
  )
  with pytest.raises(ValueError, match=message):
    bundle.load(copy, mesh)


def test_missing_parameter_files_are_rejected(copy, mesh):
  for file in (copy / 'params').iterdir():
    shutil.rmtree(file) if file.is_dir() else file.unlink()
  with pytest.raises(ValueError, match=r'The parameters in .*params are damaged: .*\(0 of \d+ bytes\), \.\.\.'):
    bundle.load(copy, mesh)


def test_a_truncated_parameter_file_is_rejected(copy, mesh):
  largest = max((file for file in (copy / 'params').rglob('*') if file.is_file()), key=lambda file: file.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  with pytest.raises(ValueError, match=r'The parameters in .*params are damaged: .*\(\d+ of \d+ bytes\)'):
    bundle.load(copy, mesh)


def test_unreadable_parameters_are_rejected(copy, mesh):
  (copy / 'params' / '_METADATA').write_bytes(b'?' * (copy / 'params' / '_METADATA').stat().st_size)
  with pytest.raises(ValueError, match=r'The parameters in .*params cannot be read'):
    bundle.load(copy, mesh)


def test_bundles_of_earlier_format_versions_can_be_loaded(mesh):
  """tests/golden/bundles has one bundle for each format version, written by `random_models.save_random(PICTURES)`."""
  golden = pathlib.Path(__file__).parent / 'golden' / 'bundles'
  versions = sorted(int(path.name) for path in golden.iterdir())
  assert versions == list(range(1, bundle.FORMAT_VERSION + 1))
  for version in versions:
    loaded = bundle.load(golden / str(version), mesh)
    assert bundle.fingerprint(loaded.params) == loaded.info['params'] == '02329cf29b725e11'
    assert loaded.config == Config.from_dict(PICTURES)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode('a red circle')) == 'a red circle'
