"""The dVAE that OpenAI published, torch modules in `encoder.pkl` and `decoder.pkl`, as parameters of `models.dvae`."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.config import Config
from dalle_jax.factory import make_dvae
from dalle_jax.importing import torch_file, weights

MODULE_PACKAGES = ('dall_e', 'torch.nn.modules')
_IN_BLOCK = re.compile(r'blocks\.group_(\d+)\.block_(\d+)\.(id_path|res_path\.(conv_\d))\.([wb])')
_AT_THE_ENDS = re.compile(r'blocks\.(input|output)(?:\.conv)?\.([wb])')
_LEAVES = {'w': 'kernel', 'b': 'bias'}


def load(encoder: Path, decoder: Path) -> tuple[Config, dict[str, Any]]:
  """Reads the two files.

  Args:
    encoder: the encoder's module or state dict, as torch.save wrote it.
    decoder: the decoder's.

  Returns:
    A configuration with the dVAE's sizes, and its parameters (numpy, float32).

  Raises:
    ValueError: a file is not what it should be, with every difference; nothing in it was executed.
  """
  parts = {'encoder': (encoder, _tree(encoder)), 'decoder': (decoder, _tree(decoder))}
  config = _config(parts)
  params = {'encoder': parts['encoder'][1], 'decoder': dict(parts['decoder'][1])}
  code = params['decoder'].pop('input')
  params['code'] = {
    'kernel': code['kernel'][0, 0] if code['kernel'].ndim == 4 else code['kernel'],
    'bias': code['bias'],
  }
  expected = nn.unbox(jax.eval_shape(lambda: make_dvae(config.dvae).init(jax.random.key(0), _image())['params']))
  problem = f'{encoder} and {decoder} do not hold an encoder and a decoder that fit each other'
  return config, weights.checked(params, expected, problem)


def _image() -> jax.Array:
  return jnp.zeros((1, 256, 256, 3), jnp.uint8)


def _tree(path: Path) -> dict[str, Any]:
  """One file's tensors under the names and in the layout of `models.dvae`: kernels [H, W, in, out]."""
  tensors = torch_file.read(path, MODULE_PACKAGES)
  tree: dict[str, Any] = {}
  unknown = []
  for name, tensor in tensors.items():
    place = _place(name)
    if place is None or tensor.ndim not in (1, 4):
      unknown.append(f'{name} {list(tensor.shape)}')
      continue
    branch = tree
    for key in place[:-1]:
      branch = branch.setdefault(key, {})
    branch[place[-1]] = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
  missing = [
    f'{end}.{leaf}' for end in ('input', 'output') for leaf in _LEAVES.values() if leaf not in tree.get(end, {})
  ]
  if unknown or missing:
    what = [f'it has {", ".join(unknown)}'] if unknown else []
    what += [f'it lacks {", ".join(missing)}'] if missing else []
    raise ValueError(f'{path} is not a part of the published dVAE: {"; ".join(what)}.')
  return tree


def _place(name: str) -> tuple[str, ...] | None:
  """Where a tensor belongs, by its name in torch."""
  if match := _IN_BLOCK.fullmatch(name):
    group, block, _, conv, leaf = match.groups()
    return f'group_{group}_block_{block}', conv or 'id_path', _LEAVES[leaf]
  if match := _AT_THE_ENDS.fullmatch(name):
    return match.group(1), _LEAVES[match.group(2)]
  return None


def _config(parts: dict[str, tuple[Path, dict[str, Any]]]) -> Config:
  """The sizes, from the tensors at both ends and from the numbers of groups and blocks."""
  (encoder_path, encoder), (decoder_path, decoder) = parts['encoder'], parts['decoder']
  blocks = {name for name in encoder if name.startswith('group_')}
  # Counted, not read off the names: what is missing or numbered wildly shows when the shapes are compared.
  depth = sum(name.startswith('group_1_') for name in blocks)
  if encoder['input']['kernel'].shape[:3] != (7, 7, 3):
    raise ValueError(
      f'{encoder_path} is not an encoder: its input kernel has the shape {encoder["input"]["kernel"].shape}, not '
      '(7, 7, 3, ...). Are --encoder and --decoder the right way round?'
    )
  if decoder['output']['kernel'].shape[-1] != 6:
    raise ValueError(
      f'{decoder_path} is not a decoder: its output kernel has the shape {decoder["output"]["kernel"].shape}, not '
      '(1, 1, ..., 6). Are --encoder and --decoder the right way round?'
    )
  return Config.from_dict({
    'task': 'dvae',
    'data': {'source': 'folder', 'path': 'PICTURES', 'image_size': 256},
    'dvae': {
      'image_vocab_size': encoder['output']['kernel'].shape[-1],
      'hidden_size': encoder['input']['kernel'].shape[-1],
      'decoder_input_size': decoder['input']['kernel'].shape[-1],
      'num_groups': len(blocks) // max(depth, 1) or 1,
      'blocks_per_group': depth or 1,
    },
  })  # fmt: skip
