"""Import of OpenAI's dVAE, published as torch modules in two files, as parameters of `models.dvae`."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.config import Config
from dalle_jax.factory import make_dvae
from dalle_jax.files import shown
from dalle_jax.importing import torch_file, weights

MODULE_PACKAGES = ('dall_e', 'torch.nn.modules')
_IN_BLOCK = re.compile(r'blocks\.group_(\d+)\.block_(\d+)\.(id_path|res_path\.(conv_\d))\.([wb])')
_AT_THE_ENDS = re.compile(r'blocks\.(input|output)(?:\.conv)?\.([wb])')
_LEAVES = {'w': 'kernel', 'b': 'bias'}


def load(encoder: Path, decoder: Path) -> tuple[Config, dict[str, Any]]:
  """Read a dVAE from two files without executing anything in them.

  Args:
    encoder: file with the encoder's module or state dict, written by torch.save (published as `encoder.pkl`).
    decoder: file with the decoder's module or state dict (published as `decoder.pkl`).

  Returns:
    A configuration with the dVAE's sizes, and its parameters (numpy, float32).

  Raises:
    ValueError: a file does not hold such a module. The message names missing, unknown and wrong tensors.
  """
  trees = {'encoder': (encoder, _tree(encoder)), 'decoder': (decoder, _tree(decoder))}
  config = _config(trees)
  params = {'encoder': trees['encoder'][1], 'decoder': dict(trees['decoder'][1])}
  code = params['decoder'].pop('input')
  params['code'] = {
    'kernel': code['kernel'][0, 0] if code['kernel'].ndim == 4 else code['kernel'],
    'bias': code['bias'],
  }
  expected = nn.unbox(jax.eval_shape(lambda: make_dvae(config.dvae).init(jax.random.key(0), _image())['params']))
  problem = f'{encoder} and {decoder} do not hold a matching encoder and decoder'
  return config, weights.checked(params, expected, problem)


def _image() -> jax.Array:
  return jnp.zeros((1, 256, 256, 3), jnp.uint8)


def _tree(path: Path) -> dict[str, Any]:
  """Read one file and return its tensors as a tree with the names and the layout of `models.dvae`.

  Kernels are [H, W, in, out].

  Raises:
    ValueError: the file has unknown tensors, or lacks an input or output layer.
  """
  tensors = torch_file.read(path, MODULE_PACKAGES)
  tree: dict[str, Any] = {}
  unknown = []
  for name, tensor in tensors.items():
    keys = _keys(name)
    if keys is None or tensor.ndim not in (1, 4):
      unknown.append(f'{shown(name, 80)} {shown(list(tensor.shape), 60)}')
      continue
    branch = tree
    for key in keys[:-1]:
      branch = branch.setdefault(key, {})
    branch[keys[-1]] = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
  missing = [
    f'{end}.{leaf}' for end in ('input', 'output') for leaf in _LEAVES.values() if leaf not in tree.get(end, {})
  ]
  if unknown or missing:
    more = f' and {len(unknown) - 3} more' if len(unknown) > 3 else ''
    problems = [f'it has {", ".join(unknown[:3])}{more}'] if unknown else []
    problems += [f'it lacks {", ".join(missing)}'] if missing else []
    raise ValueError(f"{path} is neither the published dVAE's encoder nor its decoder: {'; '.join(problems)}.")
  return tree


def _keys(name: str) -> tuple[str, ...] | None:
  """Convert a tensor's name in torch to its keys in the tree; None if the name is unknown."""
  if match := _IN_BLOCK.fullmatch(name):
    group, block, _, conv, leaf = match.groups()
    return f'group_{group}_block_{block}', conv or 'id_path', _LEAVES[leaf]
  if match := _AT_THE_ENDS.fullmatch(name):
    return match.group(1), _LEAVES[match.group(2)]
  return None


def _config(trees: dict[str, tuple[Path, dict[str, Any]]]) -> Config:
  """Infer the configuration from the input and output layers and from the number of groups and blocks.

  Args:
    trees: path and tree of the encoder and of the decoder.

  Raises:
    ValueError: the input layer of the encoder or the output layer of the decoder has a wrong shape.
  """
  (encoder_path, encoder), (decoder_path, decoder) = trees['encoder'], trees['decoder']
  blocks = {name for name in encoder if name.startswith('group_')}
  # We count the names and ignore their numbers, so that a file with a huge number cannot make us build as many blocks.
  # The later comparison of shapes reports blocks that are missing or have wrong numbers.
  depth = sum(name.startswith('group_1_') for name in blocks)
  if encoder['input']['kernel'].shape[:3] != (7, 7, 3):
    raise ValueError(
      f'{encoder_path} is not an encoder: its input kernel has the shape {encoder["input"]["kernel"].shape}, not '
      '(7, 7, 3, ...). Did you swap --encoder and --decoder?'
    )
  if decoder['output']['kernel'].shape[-1] != 6:
    raise ValueError(
      f'{decoder_path} is not a decoder: its output kernel has the shape {decoder["output"]["kernel"].shape}, not '
      '(1, 1, ..., 6). Did you swap --encoder and --decoder?'
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
