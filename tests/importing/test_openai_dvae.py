"""Tests of importing OpenAI's dVAE; parity with the published code if the extra `parity` is installed."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dalle_jax import bundle
from dalle_jax.config import MeshConfig
from dalle_jax.data.pictures.crops import fit
from dalle_jax.data.pictures.image import decode
from dalle_jax.factory import make_dvae
from dalle_jax.importing import openai_dvae, torch_file
from dalle_jax.sharding import make_mesh

TOOL = Path(__file__).parents[2] / 'tools' / 'import_openai_dvae.py'


def _published_shapes(hidden=4, vocab=6, width=3, groups=2, blocks=1):
  """Names and shapes of the tensors of the published modules, at a smaller size."""
  encoder, decoder = {'blocks.input.w': (hidden, 3, 7, 7)}, {'blocks.input.w': (width, vocab, 1, 1)}
  sizes = [hidden * 2**i for i in range(groups)]
  for tensors, outs, first, kernels in (
    (encoder, sizes, hidden, (3, 3, 3, 1)),
    (decoder, sizes[::-1], width, (1, 3, 3, 3)),
  ):
    before = first
    for group, out in enumerate(outs, 1):
      for block in range(1, blocks + 1):
        name, inner = f'blocks.group_{group}.block_{block}', out // 4
        widths = [before, inner, inner, inner, out]
        for i, k in enumerate(kernels):
          tensors[f'{name}.res_path.conv_{i + 1}.w'] = (widths[i + 1], widths[i], k, k)
        if before != out:
          tensors[f'{name}.id_path.w'] = (out, before, 1, 1)
        before = out
    tensors['blocks.output.conv.w'] = (vocab if tensors is encoder else 6, before, 1, 1)
  return encoder, decoder


def _random(shapes, seed):
  rng = np.random.default_rng(seed)
  weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  return weights | {f'{name[:-1]}b': rng.normal(size=w.shape[0]).astype(np.float32) for name, w in weights.items()}


@pytest.fixture
def files(monkeypatch):
  """The tensors of both files, by file name; a test may change them."""
  encoder, decoder = _published_shapes()
  tensors = {'encoder.pkl': _random(encoder, 0), 'decoder.pkl': _random(decoder, 1)}
  monkeypatch.setattr(torch_file, 'read', lambda path, _: tensors[path.name])
  return tensors


def _load():
  return openai_dvae.load(Path('encoder.pkl'), Path('decoder.pkl'))


def test_sizes_are_inferred_and_kernels_are_transposed(files):
  config, params = _load()
  d = config.dvae
  assert (d.image_vocab_size, d.hidden_size, d.decoder_input_size, d.num_groups, d.blocks_per_group) == (6, 4, 3, 2, 1)
  kernel = files['encoder.pkl']['blocks.group_2.block_1.res_path.conv_1.w']
  np.testing.assert_array_equal(params['encoder']['group_2_block_1']['conv_1']['kernel'], kernel.transpose(2, 3, 1, 0))
  np.testing.assert_array_equal(params['code']['kernel'], files['decoder.pkl']['blocks.input.w'][:, :, 0, 0].T)
  image = np.zeros((1, 8, 8, 3), np.uint8)
  assert make_dvae(d).apply({'params': params}, image, method='encode').shape == (1, 4, 4)


def test_all_missing_and_wrong_tensors_are_named(files):
  files['encoder.pkl']['blocks.group_1.block_1.res_path.conv_2.w'] = np.zeros((1, 2, 3, 3), np.float32)
  del files['decoder.pkl']['blocks.group_1.block_1.res_path.conv_3.b']
  with pytest.raises(ValueError) as error:
    _load()
  assert "['encoder']['group_1_block_1']['conv_2']['kernel']: given float32[3, 3, 2, 1]" in str(error.value)
  assert "['decoder']['group_1_block_1']['conv_3']['bias']: given nothing" in str(error.value)


def test_other_models_are_refused(files):
  files['encoder.pkl']['lm_head.weight'] = np.zeros((3, 4), np.float32)
  with pytest.raises(
    ValueError,
    match=r"encoder\.pkl is neither the published dVAE's encoder nor its decoder: it has lm_head\.weight \[3, 4\]",
  ):
    _load()


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_infinite_and_nan_values_are_refused(files, value):
  files['decoder.pkl']['blocks.output.conv.b'][2] = value
  with pytest.raises(ValueError, match=r"infinite or NaN, in \['decoder'\]\['output'\]\['bias'\]"):
    _load()


@pytest.mark.parametrize('name', ['group_1.block_99999999999', 'group_99999999999.block_1', 'group_3.block_1'])
def test_blocks_with_unexpected_numbers_are_refused(files, name):
  files['encoder.pkl'][f'blocks.{name}.res_path.conv_1.w'] = np.zeros((1, 4, 3, 3), np.float32)
  with pytest.raises(ValueError, match=r'conv_1.*given'):
    _load()


def test_swapped_files_are_reported(files):
  files['encoder.pkl'], files['decoder.pkl'] = files['decoder.pkl'], files['encoder.pkl']
  with pytest.raises(ValueError, match=r'encoder\.pkl is not an encoder.*swap --encoder and --decoder'):
    _load()


def test_the_tool_refuses_files_without_a_model_and_existing_outputs(tmp_path):
  (tmp_path / 'a.pkl').write_bytes(b'not a pickle')
  command = [sys.executable, str(TOOL), *(f'--{name}={tmp_path / "a.pkl"}' for name in ('encoder', 'decoder'))]
  done = subprocess.run([*command, f'--out={tmp_path / "out"}'], capture_output=True, text=True, check=False)
  assert done.returncode == 2 and 'not a file that torch.save wrote' in done.stderr
  assert not (tmp_path / 'out').exists()
  done = subprocess.run([*command, f'--out={tmp_path}'], capture_output=True, text=True, check=False)
  assert done.returncode == 2 and 'is there already' in done.stderr


def _published(hidden, vocab, blocks):
  """torch, and the published encoder and decoder with random weights and biases."""
  torch = pytest.importorskip('torch', reason="parity needs the extra: pip install -e '.[parity]'")
  dall_e = pytest.importorskip('dall_e', reason="parity needs the extra: pip install -e '.[parity]'")
  torch.manual_seed(0)
  encoder = dall_e.encoder.Encoder(n_hid=hidden, vocab_size=vocab, n_blk_per_group=blocks)
  decoder = dall_e.decoder.Decoder(n_hid=hidden, vocab_size=vocab, n_blk_per_group=blocks)
  with torch.no_grad():
    for module in (encoder, decoder):
      for name, parameter in module.named_parameters():
        if name.endswith('.b'):
          parameter.normal_(std=0.1)
  return torch, encoder, decoder


def _images(shared_data, size):
  files = (
    sorted(file for file in (shared_data / 'tiles').rglob('*.png'))[:2]
    or sorted((shared_data / 'emoji').rglob('*.png'))[:2]
  )
  return np.stack([fit(decode(file.read_bytes()), size) for file in files])


@pytest.mark.parametrize(
  ('hidden', 'vocab', 'blocks', 'form'),
  [(64, 512, 1, 'module'), (64, 600, 2, 'old module'), (96, 512, 1, 'state dict')],
)
def test_parity_with_the_published_code(tmp_path, shared_data, hidden, vocab, blocks, form):
  torch, encoder, decoder = _published(hidden, vocab, blocks)
  for name, module in (('encoder', encoder), ('decoder', decoder)):
    saved = module.state_dict() if form == 'state dict' else module
    torch.save(saved, tmp_path / f'{name}.pkl', _use_new_zipfile_serialization=form != 'old module')
  flags = [f'--{name}={tmp_path / name}.pkl' for name in ('encoder', 'decoder')]
  subprocess.run([sys.executable, str(TOOL), *flags, f'--out={tmp_path / "model"}'], check=True, capture_output=True)
  loaded = bundle.load(tmp_path / 'model', make_mesh(MeshConfig()), needs=('dvae',))
  images = _images(shared_data, 64)
  check_parity(torch, encoder, decoder, loaded.dvae, loaded.params['dvae'], images)


def check_parity(torch, encoder, decoder, dvae, params, images):
  with torch.no_grad():
    mapped = 0.8 * torch.tensor(images).permute(0, 3, 1, 2).float() / 255 + 0.1
    logits = encoder(mapped)
    codes = logits.argmax(1)
    one_hot = torch.nn.functional.one_hot(codes, logits.shape[1]).permute(0, 3, 1, 2).float()
    stats = decoder(one_hot)
  ours = jax.jit(lambda p, x: dvae.apply({'params': p}, x, method='encode_latents'))(params, images)
  assert relative_error(ours, logits) < 1e-4
  ours = jax.jit(lambda p, c: dvae.apply({'params': p}, c, method='decode_stats'))(params, codes.numpy())
  assert relative_error(ours, stats) < 1e-4


def relative_error(ours, theirs):
  """The largest absolute difference, relative to the largest absolute value."""
  theirs = theirs.permute(0, 2, 3, 1).numpy()
  return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.slow
def test_parity_at_the_published_size(tmp_path, shared_data):
  torch, encoder, decoder = _published(256, 8192, 2)
  for name, module in (('encoder', encoder), ('decoder', decoder)):
    torch.save(module, tmp_path / f'{name}.pkl')
  config, params = openai_dvae.load(tmp_path / 'encoder.pkl', tmp_path / 'decoder.pkl')
  check_parity(torch, encoder, decoder, make_dvae(config.dvae), params, _images(shared_data, 256)[:1])
