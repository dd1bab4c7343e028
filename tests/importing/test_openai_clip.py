"""Tests of importing CLIP against a reference in numpy (figure 3 of the paper), and one in torch if it is installed."""

import dataclasses
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from scipy.special import expit, softmax

from dalle_jax import bundle
from dalle_jax.config import MeshConfig
from dalle_jax.data.text.clip_tokenizer import ClipTokenizer
from dalle_jax.factory import make_reranker
from dalle_jax.importing import openai_clip, torch_file
from dalle_jax.jobs.train import run
from dalle_jax.sharding import make_mesh

TOOL = Path(__file__).parents[2] / 'tools' / 'import_openai_clip.py'
TOKENIZER = ClipTokenizer(['r e', 're d</w>', 'd o', 'do g</w>'])
VOCAB, LENGTH, DIM, PATCH, GRID = TOKENIZER.vocab_size, 12, 24, 8, 2
WIDTHS = {'visual.': (128, 3), '': (64, 2)}  # prefix: (width, blocks); 2 heads and 1 head


def _shapes():
  """Shapes of the tensors by published name."""
  shapes = {
    'positional_embedding': (LENGTH, 64), 'text_projection': (64, DIM), 'logit_scale': (),
    'token_embedding.weight': (VOCAB, 64), 'visual.class_embedding': (128,), 'visual.proj': (128, DIM),
    'visual.positional_embedding': (GRID**2 + 1, 128), 'visual.conv1.weight': (128, 3, PATCH, PATCH),
  }  # fmt: skip
  norms = [('visual.ln_pre', 128), ('visual.ln_post', 128), ('ln_final', 64)]
  for prefix, (width, depth) in WIDTHS.items():
    for i in range(depth):
      block = f'{prefix}transformer.resblocks.{i}'
      norms += [(f'{block}.ln_1', width), (f'{block}.ln_2', width)]
      for name, out, into in (
        ('attn.in_proj_', 3, 1),
        ('attn.out_proj.', 1, 1),
        ('mlp.c_fc.', 4, 1),
        ('mlp.c_proj.', 1, 4),
      ):
        shapes[f'{block}.{name}weight'] = (out * width, into * width)
        shapes[f'{block}.{name}bias'] = (out * width,)
  return shapes | {f'{name}.{kind}': (width,) for name, width in norms for kind in ('weight', 'bias')}


@pytest.fixture
def weights():
  """Random weights by published name, in half precision as published, and the files' buffers."""
  rng = np.random.default_rng(0)
  tensors = {}
  for name, shape in _shapes().items():
    scale = 1 if len(shape) < 2 else 1.5 * np.prod(shape[1:]) ** -0.5
    tensors[name] = (rng.normal(size=shape) * scale).astype(np.float16 if 'resblocks' in name else np.float32)
  return tensors | {name: np.array(3) for name in ('input_resolution', 'context_length', 'vocab_size')}


@pytest.fixture
def path(tmp_path, weights):
  """A safetensors file with the weights."""
  return _write(tmp_path / 'clip.safetensors', weights)


def _write(path, weights):
  safetensors.numpy.save_file({name: np.asarray(w, order='C') for name, w in weights.items()}, path)
  return path


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (3, PATCH * GRID, PATCH * GRID, 3), np.uint8)
  prompts = ['a red dog', 'Dogs &amp; cats, many more than fit', '!? x']
  return images, np.stack([TOKENIZER.encode_padded(prompt, LENGTH, truncate=True) for prompt in prompts])


def _norm(x, weights, name):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return x * weights[f'{name}.weight'] + weights[f'{name}.bias']


def _linear(x, weights, name):
  return x @ weights[f'{name}weight'].T + weights[f'{name}bias']


def _transformer(x, weights, prefix, mask):
  """Apply the blocks to one sequence [T, D], head by head."""
  width, depth = WIDTHS[prefix]
  for i in range(depth):
    block = f'{prefix}transformer.resblocks.{i}'
    qkv = _linear(_norm(x, weights, f'{block}.ln_1'), weights, f'{block}.attn.in_proj_')
    heads = []
    for head in range(width // 64):
      q, k, v = (qkv[:, j * width + head * 64 : j * width + head * 64 + 64] for j in range(3))
      heads.append(softmax(np.where(mask, q @ k.T / 8, -np.inf), axis=-1) @ v)
    x = x + _linear(np.concatenate(heads, axis=1), weights, f'{block}.attn.out_proj.')
    hidden = _linear(_norm(x, weights, f'{block}.ln_2'), weights, f'{block}.mlp.c_fc.')
    x = x + _linear(hidden * expit(1.702 * hidden), weights, f'{block}.mlp.c_proj.')
  return x


def _in_numpy(weights, images, texts):
  """Reference embeddings [B, DIM] of images and texts, in double precision."""
  weights = {name: w.astype(np.float64) for name, w in weights.items()}
  mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
  image_embeddings, text_embeddings = [], []
  for image in (images / 255 - mean) / std:
    corners = [(y, x) for y in range(0, len(image), PATCH) for x in range(0, len(image), PATCH)]
    patches = [image[y : y + PATCH, x : x + PATCH].transpose(2, 0, 1) for y, x in corners]
    tokens = [[np.sum(kernel * patch) for kernel in weights['visual.conv1.weight']] for patch in patches]
    tokens = np.array([weights['visual.class_embedding'], *tokens]) + weights['visual.positional_embedding']
    tokens = _transformer(_norm(tokens, weights, 'visual.ln_pre'), weights, 'visual.', True)
    image_embeddings.append(_norm(tokens[0], weights, 'visual.ln_post') @ weights['visual.proj'])
  for ids in texts:
    tokens = weights['token_embedding.weight'][ids] + weights['positional_embedding']
    tokens = _transformer(tokens, weights, '', np.tri(LENGTH, dtype=bool))
    tokens = _norm(tokens, weights, 'ln_final')
    text_embeddings.append(tokens[list(ids).index(TOKENIZER.end_id)] @ weights['text_projection'])
  both = image_embeddings, text_embeddings
  return tuple(np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in both)


def _ours(config, params, images, texts):
  model = make_reranker(config, VOCAB)
  with jax.default_matmul_precision('highest'):
    return jax.jit(lambda p: model.apply({'params': p}, images, texts))(params)


def _check(config, params, inputs, expected):
  images, texts, scale = _ours(config, params, *inputs)
  np.testing.assert_allclose(images, expected[0], atol=1e-5)
  np.testing.assert_allclose(texts, expected[1], atol=1e-5)
  return scale


def test_embeddings_match_the_reference(path, weights, inputs):
  config, params = openai_clip.load(path, VOCAB)
  scale = _check(config, params, inputs, _in_numpy(weights, *inputs))
  np.testing.assert_allclose(scale, min(np.exp(weights['logit_scale']), 100), rtol=1e-6)
  sizes = config.reranker
  assert (config.data.image_size, sizes.patch_size, config.tokenizer.text_length) == (PATCH * GRID, PATCH, LENGTH)
  assert (sizes.image_num_layers, sizes.image_num_heads, sizes.text_num_layers, sizes.text_num_heads) == (3, 2, 2, 1)


def _in_transformers(weights):
  """The weights under the names of transformers' CLIPModel."""
  renamed = {'vision_model.embeddings.position_ids': np.arange(GRID**2 + 1)[None]}
  full_names = {
    'visual.class_embedding': 'vision_model.embeddings.class_embedding',
    'visual.conv1.weight': 'vision_model.embeddings.patch_embedding.weight',
    'visual.positional_embedding': 'vision_model.embeddings.position_embedding.weight',
    'positional_embedding': 'text_model.embeddings.position_embedding.weight',
    'token_embedding.weight': 'text_model.embeddings.token_embedding.weight',
  }
  substrings = {
    'visual.ln_pre': 'vision_model.pre_layrnorm', 'visual.ln_post': 'vision_model.post_layernorm',
    'ln_final': 'text_model.final_layer_norm', 'visual.transformer.resblocks': 'vision_model.encoder.layers',
    'transformer.resblocks': 'text_model.encoder.layers', '.attn.': '.self_attn.', '.ln_1.': '.layer_norm1.',
    '.ln_2.': '.layer_norm2.', 'c_fc': 'fc1', 'c_proj': 'fc2',
  }  # fmt: skip
  for name, w in weights.items():
    if name in ('visual.proj', 'text_projection'):
      renamed['visual_projection.weight' if name == 'visual.proj' else 'text_projection.weight'] = w.T
      continue
    new = full_names.get(name, name)
    for old, replacement in substrings.items():
      new = new.replace(old, replacement)
    if 'in_proj_' in new:
      for letter, third in zip('qkv', np.split(w, 3), strict=True):
        renamed[new.replace('in_proj_', f'{letter}_proj.')] = third
    elif w.dtype.kind == 'f':
      renamed[new] = w
  return renamed


def test_names_of_transformers_give_the_same_parameters(path, weights, tmp_path):
  renamed = _in_transformers(weights)
  assert 'text_model.encoder.layers.1.self_attn.q_proj.bias' in renamed
  theirs = _write(tmp_path / 'model.safetensors', renamed)
  first, second = (openai_clip.load(file, VOCAB) for file in (path, theirs))
  assert first[0] == second[0]
  jax.tree.map(np.testing.assert_array_equal, first[1], second[1])


def _without(name):
  return lambda weights: weights.pop(name)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (_without('visual.conv1.weight'), 'is not a CLIP: it lacks visual.conv1.weight of 4 axes'),
    (_without('visual.ln_pre.bias'), "['visual.ln_pre.bias']: given nothing, expected float32[128]"),
    (
      _without('visual.transformer.resblocks.1.attn.in_proj_weight'),
      "['visual.transformer.resblocks.1.attn.in_proj_weight']: given nothing, expected float32[384, 128]",
    ),
    (lambda w: w.update({'lm_head.weight': np.ones(3)}), "['lm_head.weight']: given float32[3], expected nothing"),
    (
      lambda w: w.update({'visual.transformer.resblocks.99999999.ln_1.bias': np.ones(128)}),
      "['visual.transformer.resblocks.99999999.ln_1.bias']: given float32[128], expected nothing",
    ),
    (
      lambda w: w.update({'text_projection': np.ones((63, DIM))}),
      "['text_projection']: given float32[63, 24], expected float32[64, 24]",
    ),
    (lambda w: w.update(ln_final_weight=np.arange(3)), "['ln_final_weight']: given int64[3], expected nothing"),
    (lambda w: w['ln_final.bias'].fill(np.nan), "infinite or NaN, in ['ln_final.bias']"),
    (
      lambda w: w.update({'visual.conv1.weight': np.ones((96, 3, 8, 8))}),
      'has a width of 96 in visual.conv1.weight; CLIP has heads of 64',
    ),
    (lambda w: w.update({'visual.layer1.0.conv1.weight': np.ones((2, 3))}), 'is a CLIP with a ResNet'),
  ],
)
def test_missing_unknown_and_wrong_tensors_are_named(tmp_path, weights, change, message):
  change(weights)
  with pytest.raises(ValueError, match=rf'clip\.safetensors .*{re.escape(message)}'.replace(' .*', '(.|\n)*')):
    openai_clip.load(_write(tmp_path / 'clip.safetensors', weights), VOCAB)


def test_another_vocabulary_is_refused(path):
  with pytest.raises(ValueError, match=rf'embeddings of {VOCAB} tokens, but the vocabulary \(--vocab\) has 49408'):
    openai_clip.load(path, 49408)


def _run(weights, vocab, out):
  command = [sys.executable, str(TOOL), f'--weights={weights}', f'--vocab={vocab}', f'--out={out}']
  return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tool_writes_a_model_directory(path, weights, inputs, tmp_path):
  TOKENIZER.save(tmp_path / 'merges.txt')
  done = _run(path, tmp_path / 'merges.txt', tmp_path / 'model')
  assert done.returncode == 0, done.stderr
  assert 'pictures: 16 x 16 in patches of 8; texts: 12 tokens' in done.stdout
  loaded = bundle.load(tmp_path / 'model', make_mesh(MeshConfig()), needs=('reranker',))
  np.testing.assert_array_equal(loaded.tokenizer.encode_padded('a red dog', LENGTH), inputs[1][0])
  _check(loaded.config, loaded.params['reranker'], inputs, _in_numpy(weights, *inputs))


def test_a_missing_package_is_reported_when_the_model_is_loaded(path, tmp_path, monkeypatch):
  config, params = openai_clip.load(path, VOCAB)
  bundle.save(tmp_path / 'model', config, TOKENIZER, {'reranker': jax.tree.map(jax.numpy.asarray, params)}, 'imported')
  monkeypatch.setitem(sys.modules, 'ftfy', None)
  with pytest.raises(ValueError, match=r"^CLIP's tokenizer needs the package ftfy"):
    bundle.load(tmp_path / 'model', make_mesh(MeshConfig()), needs=('reranker',))


def test_training_with_the_imported_configuration_is_refused(path, tmp_path):
  config, _ = openai_clip.load(path, VOCAB)
  with pytest.raises(
    ValueError, match=r'config\.tokenizer\.kind is .clip., which only models imported by tools/import_openai_clip\.py'
  ):
    run.run(config, str(tmp_path / 'run'))
  with pytest.raises(ValueError, match=r"config\.tokenizer\.kind is 'clip', but config\.task=all needs 'captions'"):
    dataclasses.replace(config, task='all')


def test_the_tool_refuses_files_without_a_model_and_existing_outputs(tmp_path):
  TOKENIZER.save(tmp_path / 'merges.txt')
  (tmp_path / 'a.pt').write_bytes(f'cos\nsystem\n(S"touch {tmp_path / "mark"}"\ntR.'.encode())
  done = _run(tmp_path / 'a.pt', tmp_path / 'merges.txt', tmp_path / 'model')
  assert done.returncode == 2 and 'a.pt is refused: it names os.system' in done.stderr
  assert not (tmp_path / 'mark').exists()
  assert not (tmp_path / 'model').exists()
  done = _run(tmp_path / 'a.pt', tmp_path / 'merges.txt', tmp_path)
  assert done.returncode == 2 and 'is there already' in done.stderr


def _in_torch(torch):
  """A reimplementation of the published modules, with the same names and random weights."""
  nn = torch.nn

  class Gelu(nn.Module):
    def forward(self, x):
      return x * torch.sigmoid(1.702 * x)

  class Block(nn.Module):
    def __init__(self, width, mask):
      super().__init__()
      self.attn = nn.MultiheadAttention(width, width // 64)
      self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
      layers = {'c_fc': nn.Linear(width, 4 * width), 'gelu': Gelu(), 'c_proj': nn.Linear(4 * width, width)}
      self.mlp, self.mask = nn.Sequential(), mask
      for name, layer in layers.items():
        self.mlp.add_module(name, layer)

    def forward(self, x):
      normed = self.ln_1(x)
      x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=self.mask)[0]
      return x + self.mlp(self.ln_2(x))

  class Transformer(nn.Module):
    def __init__(self, prefix, mask=None):
      super().__init__()
      width, depth = WIDTHS[prefix]
      self.resblocks = nn.Sequential(*(Block(width, mask) for _ in range(depth)))

    def forward(self, x):  # [B, T, D]
      return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)

  class Visual(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = nn.Conv2d(3, 128, PATCH, PATCH, bias=False)
      self.class_embedding = nn.Parameter(torch.randn(128))
      self.positional_embedding = nn.Parameter(torch.randn(GRID**2 + 1, 128))
      self.ln_pre, self.ln_post, self.transformer = nn.LayerNorm(128), nn.LayerNorm(128), Transformer('visual.')
      self.proj = nn.Parameter(torch.randn(128, DIM) / 11)

    def forward(self, x):
      x = self.conv1(x).flatten(2).permute(0, 2, 1)
      x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
      return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj

  class Clip(nn.Module):
    def __init__(self):
      super().__init__()
      self.visual = Visual()
      self.token_embedding = nn.Embedding(VOCAB, 64)
      self.positional_embedding = nn.Parameter(torch.randn(LENGTH, 64))
      self.transformer = Transformer('', torch.full((LENGTH, LENGTH), -math.inf).triu(1))
      self.ln_final = nn.LayerNorm(64)
      self.text_projection = nn.Parameter(torch.randn(64, DIM) / 8)
      self.logit_scale = nn.Parameter(torch.tensor(2.5))
      self.register_buffer('input_resolution', torch.tensor(PATCH * GRID))

    def forward(self, images, text):
      x = self.ln_final(self.transformer(self.token_embedding(text) + self.positional_embedding))
      x = x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ self.text_projection
      images = self.visual(images)
      return images / images.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True)

  torch.manual_seed(0)
  model = Clip().eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:  # norms and biases start as ones and zeros
        parameter += 0.3 * torch.randn(parameter.shape)
  return model


def test_parity_with_torch(tmp_path, inputs):
  torch = pytest.importorskip('torch', reason="parity needs the extra: pip install -e '.[parity]'")
  model, (images, texts) = _in_torch(torch), inputs
  mean, std = (torch.tensor(values)[:, None, None] for values in (openai_clip.PIXEL_MEAN, openai_clip.PIXEL_STD))
  pixels = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std
  with torch.no_grad():
    expected = [embeddings.numpy() for embeddings in model(pixels, torch.tensor(texts).long())]
  torch.save(model.state_dict(), tmp_path / 'state.pt')
  with warnings.catch_warnings(action='ignore'):
    torch.jit.trace(model, (pixels, torch.tensor(texts).long())).save(tmp_path / 'archive.pt')
  state, archive = (torch_file.read(tmp_path / name, ('__torch__',)) for name in ('state.pt', 'archive.pt'))
  assert set(state) == set(archive)
  for name, tensor in state.items():
    np.testing.assert_array_equal(archive[name], tensor)
  _check(*openai_clip.load(tmp_path / 'archive.pt', VOCAB), inputs, expected)
