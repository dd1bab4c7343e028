"""Random weights with the names and shapes of the Inception-v3 that pytorch-fid publishes."""

import functools

import jax
import numpy as np

from dalle_jax.models.inception import NUM_CLASSES, NUM_FEATURES, Inception


@functools.cache
def shapes():
  """Kernel shapes [H, W, in, out] of the layers, by name."""
  params = jax.eval_shape(lambda: Inception().init(jax.random.key(0), np.zeros((1, 107, 107, 3), np.float32)))['params']
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {'.'.join(e.key for e in place[:-1]): leaf.shape for place, leaf in leaves if place[-1].key == 'kernel'}


def state_dict():
  """Tensors by name, scaled so that activations neither grow nor vanish through the layers."""
  rng = np.random.default_rng(0)
  tensors = {}
  for name, (height, width, num_in, num_out) in shapes().items():
    kernel = rng.normal(size=(num_out, num_in, height, width)) * np.sqrt(2 / (num_in * height * width))
    tensors[f'{name}.conv.weight'] = kernel
    tensors[f'{name}.bn.weight'] = rng.uniform(0.8, 1.4, num_out)
    tensors[f'{name}.bn.bias'] = rng.normal(size=num_out) / 10
    tensors[f'{name}.bn.running_mean'] = rng.normal(size=num_out) / 10
    tensors[f'{name}.bn.running_var'] = rng.uniform(0.5, 2, num_out)
  tensors['fc.weight'] = rng.normal(size=(NUM_CLASSES, NUM_FEATURES)) / 50
  tensors['fc.bias'] = rng.normal(size=NUM_CLASSES)
  tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
  return tensors | {f'{name}.bn.num_batches_tracked': np.int64(0) for name in shapes()}


def pictures():
  """Two test images, uint8 [2, 40, 24, 3]: noise, and coloured squares."""
  rng = np.random.default_rng(1)
  squares = np.kron(rng.integers(0, 256, (5, 3, 3)), np.ones((8, 8, 1)))
  return np.stack([rng.integers(0, 256, (40, 24, 3)), squares]).astype(np.uint8)


def inputs():
  """Random input float32 [1, 107, 107, 3], which the layers reduce to 2 x 2."""
  return np.random.default_rng(2).uniform(-1, 1, (1, 107, 107, 3)).astype(np.float32)
