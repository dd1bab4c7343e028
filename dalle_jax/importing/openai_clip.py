"""Import of OpenAI's CLIP (Radford et al. 2021) as parameters of `models.reranker`.

Files may be the published TorchScript archives, state dicts or safetensors. Tensors may have the published names or the
names of `CLIPModel` in the library transformers. Models with a vision transformer are supported, ResNets are not.
"""

import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dalle_jax.config import Config
from dalle_jax.files import shown
from dalle_jax.importing import weights

HEAD_DIM = 64  # channels per head in all published models; the tensors' shapes do not determine it
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

# Buffers that a file may hold besides the parameters: sizes, masks and positions.
_BUFFERS = re.compile(r'input_resolution|context_length|vocab_size|.*\.attn_mask|.*\.position_ids')
# The tensors whose shapes determine the model's sizes, with their number of axes.
_SIZE_TENSORS = {
  'visual.conv1.weight': 4, 'visual.positional_embedding': 2, 'positional_embedding': 2, 'text_projection': 2,
  'token_embedding.weight': 2,
}  # fmt: skip
_NORM, _LINEAR = {'weight': 'scale', 'bias': 'bias'}, ('weight', 'bias')

# From the names of transformers' CLIPModel to the published names.
_RENAMED = {
  'text_model.embeddings.token_embedding.weight': 'token_embedding.weight',
  'text_model.embeddings.position_embedding.weight': 'positional_embedding',
  'text_projection.weight': 'text_projection',
  'vision_model.embeddings.class_embedding': 'visual.class_embedding',
  'vision_model.embeddings.patch_embedding.weight': 'visual.conv1.weight',
  'vision_model.embeddings.position_embedding.weight': 'visual.positional_embedding',
  'visual_projection.weight': 'visual.proj',
}
_RENAMED_PARTS = [
  (r'^text_model\.final_layer_norm', 'ln_final'), (r'^vision_model\.pre_layrnorm', 'visual.ln_pre'),
  (r'^vision_model\.post_layernorm', 'visual.ln_post'), (r'^text_model\.encoder\.layers', 'transformer.resblocks'),
  (r'^vision_model\.encoder\.layers', 'visual.transformer.resblocks'), (r'\.self_attn\.', '.attn.'),
  (r'\.layer_norm([12])\.', r'.ln_\1.'), (r'\.mlp\.fc1\.', '.mlp.c_fc.'), (r'\.mlp\.fc2\.', '.mlp.c_proj.'),
]  # fmt: skip


def load(path: Path, vocab_size: int) -> tuple[Config, dict[str, Any]]:
  """Read a CLIP from a file without executing anything in it.

  Args:
    path: the file of weights.
    vocab_size: number of ids of the tokenizer, which must equal the model's.

  Returns:
    A configuration with the model's sizes, and its parameters (numpy, float32).

  Raises:
    ValueError: the file does not hold such a model. The message names missing, unknown and wrong tensors.
  """
  path = Path(path)
  tensors = _published_names(path, weights.read(path, ('__torch__',)))
  tensors = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.fullmatch(name)}
  if any(name.startswith('visual.layer') or name.startswith('visual.attnpool') for name in tensors):
    raise ValueError(
      f'{path} is a CLIP with a ResNet (such as RN50), which is not supported; use one with a vision transformer, '
      'such as ViT-B/32.'
    )
  config = _config(path, tensors)
  tensors = {name: _widened(tensor) for name, tensor in tensors.items()}
  tensors = weights.checked(tensors, _expected(config), f'{path} does not hold a complete CLIP')
  if config.tokenizer.vocab_size != vocab_size:
    raise ValueError(
      f'{path} has embeddings of {config.tokenizer.vocab_size} tokens, but the vocabulary (--vocab) has {vocab_size}; '
      'they must be equal.'
    )
  return config, _parameters(config, tensors)


def _widened(tensor: np.ndarray) -> np.ndarray:
  return tensor.astype(np.float32) if tensor.dtype in (np.float16, np.float64) else tensor


def _published_names(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Rename tensors from the names in transformers to the published names. Other tensors stay unchanged."""
  if not any(name.startswith('vision_model.') for name in tensors):
    return tensors
  renamed: dict[str, Any] = {}
  for name, tensor in tensors.items():
    new = _RENAMED.get(name, name)
    for pattern, replacement in _RENAMED_PARTS if new == name else []:
      new = re.sub(pattern, replacement, new)
    # The published files have these two as bare matrices [in, out]; transformers has Linear modules [out, in].
    renamed[new] = tensor.T if new in ('text_projection', 'visual.proj') else tensor
  for name in [name for name in renamed if name.endswith('.attn.q_proj.weight')]:
    block = name.removesuffix('q_proj.weight')
    for kind in _LINEAR:
      qkv = [f'{block}{letter}_proj.{kind}' for letter in 'qkv']
      if not all(name in renamed for name in qkv) or len({renamed[name].shape[1:] for name in qkv}) > 1:
        continue  # the later check reports the tensors that are still here as unknown
      renamed[f'{block}in_proj_{kind}'] = np.concatenate([renamed.pop(name) for name in qkv])
  return renamed


def _config(path: Path, tensors: dict[str, np.ndarray]) -> Config:
  """Infer the configuration from the tensors' shapes and the number of blocks.

  Raises:
    ValueError: a tensor that determines a size is missing or has a wrong shape.
  """
  wrong = [
    f'{name} of {axes} axes'
    for name, axes in _SIZE_TENSORS.items()
    if name not in tensors or tensors[name].ndim != axes
  ]
  if wrong:
    first_names = ', '.join(shown(name, 60) for name in sorted(tensors)[:3])
    raise ValueError(
      f'{path} is not a CLIP: it lacks {", ".join(wrong)}; it has {first_names}, ... ({len(tensors)} tensors).'
    )
  shapes = {name: tensors[name].shape for name in _SIZE_TENSORS}
  image_width, _, _, patch_size = shapes['visual.conv1.weight']
  vocab_size, text_width = shapes['token_embedding.weight']
  for name, width in (('visual.conv1.weight', image_width), ('token_embedding.weight', text_width)):
    if width % HEAD_DIM or width == 0:
      raise ValueError(
        f'{path} has a width of {width} in {name}; CLIP has heads of {HEAD_DIM} channels, so the width must be a '
        'multiple of that.'
      )
  return Config.from_dict({
    'task': 'reranker',
    'data': {
      'source': 'folder',
      'path': 'PICTURES',
      'image_size': patch_size * math.isqrt(max(shapes['visual.positional_embedding'][0] - 1, 1)),
    },
    'tokenizer': {'kind': 'clip', 'vocab_size': vocab_size, 'text_length': shapes['positional_embedding'][0]},
    'reranker': {
      'embed_dim': shapes['text_projection'][1],
      'patch_size': patch_size,
      'stem': 'patch',
      'image_num_layers': _num_blocks(tensors, 'visual.transformer'),
      'image_width': image_width,
      'image_num_heads': image_width // HEAD_DIM,
      'text_num_layers': _num_blocks(tensors, 'transformer'),
      'text_width': text_width,
      'text_num_heads': text_width // HEAD_DIM,
      'activation': 'quick_gelu',
      'pixel_mean': PIXEL_MEAN,
      'pixel_std': PIXEL_STD,
    },
  })  # fmt: skip


def _num_blocks(tensors: dict[str, np.ndarray], prefix: str) -> int:
  """Count the blocks of a transformer, at least 1.

  We count the names and ignore the block numbers in them. Otherwise a file with one huge number would make us expect
  that many blocks.
  The later comparison of names reports blocks that are missing or have wrong numbers.
  """
  start = f'{prefix}.resblocks.'
  return len({name.removeprefix(start).partition('.')[0] for name in tensors if name.startswith(start)}) or 1


def _expected(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of all tensors of a model with the configuration's sizes, by published name."""
  sizes, length = config.reranker, config.tokenizer.text_length
  image, text, patch = sizes.image_width, sizes.text_width, sizes.patch_size
  shapes: dict[str, tuple[int, ...]] = {
    'logit_scale': (),
    'token_embedding.weight': (config.tokenizer.vocab_size, text),
    'positional_embedding': (length, text),
    'text_projection': (text, sizes.embed_dim),
    'visual.class_embedding': (image,),
    'visual.conv1.weight': (image, 3, patch, patch),
    'visual.positional_embedding': (1 + (config.data.image_size // patch) ** 2, image),
    'visual.proj': (image, sizes.embed_dim),
  }
  for name, width in (('visual.ln_pre', image), ('visual.ln_post', image), ('ln_final', text)):
    shapes |= {f'{name}.weight': (width,), f'{name}.bias': (width,)}
  for prefix, width, count in (
    ('visual.transformer', image, sizes.image_num_layers),
    ('transformer', text, sizes.text_num_layers),
  ):
    for i in range(count):
      shapes |= {f'{prefix}.resblocks.{i}.{name}': shape for name, shape in _block_shapes(width).items()}
  return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def _block_shapes(width: int) -> dict[str, tuple[int, ...]]:
  """Shapes of the tensors of one transformer block, by name within the block."""
  linear = {
    'attn.in_proj_': (3 * width, width), 'attn.out_proj.': (width, width), 'mlp.c_fc.': (4 * width, width),
    'mlp.c_proj.': (width, 4 * width),
  }  # fmt: skip
  shapes = {f'{name}{kind}': (width,) for name in ('ln_1.', 'ln_2.') for kind in _LINEAR}
  return shapes | {
    f'{name}{kind}': shape[:1] if kind == 'bias' else shape for name, shape in linear.items() for kind in _LINEAR
  }


def _parameters(config: Config, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
  """Arrange the tensors as the tree of `models.reranker`, with kernels [in, out] and stacked layers [L, ...]."""
  sizes = config.reranker

  def norm(name: str) -> dict[str, np.ndarray]:
    return {ours: tensors[f'{name}.{theirs}'] for theirs, ours in _NORM.items()}

  def transformer(prefix: str, count: int, num_heads: int, last_norm: str) -> dict[str, Any]:
    names = _block_shapes(1)
    stacked = {name: np.stack([tensors[f'{prefix}.resblocks.{i}.{name}'] for i in range(count)]) for name in names}
    return {'layers': {'block_0': _blocks(stacked, num_heads)}, 'norm': norm(last_norm)}

  return {
    'image': {
      'patch_kernel': tensors['visual.conv1.weight'].transpose(2, 3, 1, 0),
      'class_embedding': tensors['visual.class_embedding'],
      'position': tensors['visual.positional_embedding'],
      'norm_pre': norm('visual.ln_pre'),
      'transformer': transformer('visual.transformer', sizes.image_num_layers, sizes.image_num_heads, 'visual.ln_post'),
      'projection_kernel': tensors['visual.proj'],
    },
    'text': {
      'embedding': tensors['token_embedding.weight'],
      'position': tensors['positional_embedding'],
      'transformer': transformer('transformer', sizes.text_num_layers, sizes.text_num_heads, 'ln_final'),
      'projection_kernel': tensors['text_projection'],
    },
    'logit_scale': tensors['logit_scale'],
  }


def _blocks(stacked: dict[str, np.ndarray], num_heads: int) -> dict[str, Any]:
  """Convert stacked blocks [L, ...]: heads become an axis, and q, k and v share one kernel [L, D, 3, N, H].

  Args:
    stacked: tensors [L, ...] by name within a block.
    num_heads: N; the model's width is D = N * H.
  """
  count, width = stacked['ln_1.weight'].shape
  heads = (num_heads, width // num_heads)

  def norm(name: str) -> dict[str, np.ndarray]:
    return {ours: stacked[f'{name}.{theirs}'] for theirs, ours in _NORM.items()}

  def linear(name: str) -> dict[str, np.ndarray]:
    return {'kernel': stacked[f'{name}.weight'].swapaxes(1, 2), 'bias': stacked[f'{name}.bias']}

  out = linear('attn.out_proj')
  return {
    'attention_norm': norm('ln_1'),
    'qkv': {
      'kernel': stacked['attn.in_proj_weight'].swapaxes(1, 2).reshape(count, width, 3, *heads),
      'bias': stacked['attn.in_proj_bias'].reshape(count, 3, *heads),
    },
    'out': {**out, 'kernel': out['kernel'].reshape(count, *heads, width)},
    'mlp_norm': norm('ln_2'),
    'mlp': {'mlp_in': linear('mlp.c_fc'), 'mlp_out': linear('mlp.c_proj')},
  }
