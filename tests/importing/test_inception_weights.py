"""Tests of importing the Inception weights; parity with pytorch-fid if the extra `parity` is installed."""

import hashlib

import jax
import numpy as np
import pytest
from inception_weights import inputs, pictures, state_dict

from dalle_jax.importing import inception_weights, torch_file
from dalle_jax.models.inception import Inception, prepare


@pytest.fixture(scope='module')
def published():
  return state_dict()


@pytest.fixture
def file(monkeypatch, tmp_path, published):
  """A file's path and the tensors that reading it gives, which a test may change."""
  tensors = dict(published)
  monkeypatch.setattr(torch_file, 'read', lambda _: tensors)
  path = tmp_path / 'weights.pth'
  path.write_bytes(b'weights')
  return path, tensors


def test_features_match_recorded_features_of_pytorch_fid(file):
  path, _ = file
  read = inception_weights.load(path)
  assert read.fingerprint == hashlib.sha256(b'weights').hexdigest()[:16]
  features = np.asarray(jax.jit(Inception().apply)({'params': read.params}, inputs()), np.float64)[0]
  # Recorded from pytorch-fid 0.3.0 with torch 2.13; the parity test below compares with the installed version.
  assert features[[0, 320, 1088, 1856, 2047]] == pytest.approx([5.044972, 0.1709104, 0, 0, 0], rel=1e-4)
  assert features.mean() == pytest.approx(1.1713796, rel=1e-5)
  assert (features == 0).mean() == 0.2314453125


def test_batch_normalisation_is_folded_into_the_convolution(file):
  path, tensors = file
  name = 'Mixed_7b.branch3x3_2a'  # a kernel of 1 x 3
  kernel = tensors[f'{name}.conv.weight'][:, :, 0, 1]  # the middle tap
  gain, offset, mean, variance = (
    tensors[f'{name}.bn.{kind}'] for kind in ('weight', 'bias', 'running_mean', 'running_var')
  )
  layer = inception_weights.load(path).params['Mixed_7b']['branch3x3_2a']
  x = np.random.default_rng(3).normal(size=kernel.shape[1]).astype(np.float32)
  expected = (kernel @ x - mean) / np.sqrt(variance + 1e-3) * gain + offset
  np.testing.assert_allclose(x @ layer['kernel'][0, 1] + layer['bias'], expected, rtol=1e-4, atol=1e-4)


def test_the_class_weights_are_transposed(file, published):
  path, _ = file
  np.testing.assert_array_equal(inception_weights.load(path).classes, published['fc.weight'].T.astype(np.float64))


def _corrupt(tensors, name, fault):
  """Remove a tensor ('missing'), shorten it ('shape'), or set its second entry to the number `fault`."""
  if fault == 'missing':
    del tensors[name]
  elif fault == 'shape':
    tensors[name] = tensors[name][:-1]
  else:
    tensors[name] = np.where(np.arange(len(tensors[name])) == 1, fault, tensors[name])


@pytest.mark.parametrize(
  ('name', 'fault', 'message'),
  [
    ('Mixed_6a.branch3x3.conv.weight', 'missing', r'lacks Mixed_6a\.branch3x3\.conv\.weight'),
    ('fc.weight', 'shape', r'fc\.weight has the shape \[1007, 2048\], not \[1008, 2048\]'),
    ('Mixed_7c.branch1x1.bn.bias', np.nan, r'Mixed_7c\.branch1x1\.bn\.bias holds values that are infinite'),
    ('Mixed_7c.branch1x1.bn.running_var', -1.0, r'running_var has negative values'),
  ],
)
def test_missing_and_wrong_tensors_are_refused(file, name, fault, message):
  path, tensors = file
  _corrupt(tensors, name, fault)
  with pytest.raises(ValueError, match=f'--inception.*pt_inception-2015-12-05.*{message}'):
    inception_weights.load(path)


def test_unknown_tensors_are_refused(file):
  path, tensors = file
  tensors['AuxLogits.fc.weight'] = np.zeros((3, 3), np.float32)
  with pytest.raises(ValueError, match=r'AuxLogits\.fc\.weight is unknown'):
    inception_weights.load(path)


def test_a_hash_in_the_file_name_is_checked(file, tmp_path):
  digest = hashlib.sha256(b'weights').hexdigest()
  good, bad = tmp_path / f'a-{digest[:8]}.pth', tmp_path / 'a-00000000.pth'
  for path in (good, bad):
    path.write_bytes(b'weights')
  inception_weights.load(good)
  with pytest.raises(ValueError, match='damaged: its SHA-256 begins with'):
    inception_weights.load(bad)


def test_a_missing_file_and_a_file_of_another_format_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'--inception .*nothing\.pth cannot be read'):
    inception_weights.load(tmp_path / 'nothing.pth')
  (tmp_path / 'text.pth').write_bytes(b'text')
  with pytest.raises(ValueError, match='not a file that torch'):
    inception_weights.load(tmp_path / 'text.pth')


@pytest.mark.parametrize('archive', [True, False])
def test_parity_with_pytorch_fid(tmp_path, monkeypatch, published, archive):
  torch = pytest.importorskip('torch', reason="parity needs the extra: pip install -e '.[parity]'")
  theirs = pytest.importorskip('pytorch_fid.inception', reason="parity needs the extra: pip install -e '.[parity]'")
  tensors = {name: torch.tensor(tensor) for name, tensor in published.items()}
  monkeypatch.setattr(theirs, 'load_state_dict_from_url', lambda *_, **__: tensors)
  model = theirs.InceptionV3([3], resize_input=False, normalize_input=False).eval()
  torch.save(tensors, tmp_path / 'weights.pth', _use_new_zipfile_serialization=archive)
  read = inception_weights.load(tmp_path / 'weights.pth')
  for x in (inputs(), np.asarray(prepare(pictures()))):
    with torch.no_grad():
      expected = model(torch.tensor(x).permute(0, 3, 1, 2))[0][:, :, 0, 0].numpy()
    features = np.asarray(jax.jit(Inception().apply)({'params': read.params}, x))
    assert np.abs(features - expected).max() < 1e-5 * np.abs(expected).max()
