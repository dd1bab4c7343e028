"""Costs of mesh axes that do not divide a model, compared with costs in closed form."""

import dataclasses
import re

import pytest
from jax.sharding import AbstractMesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.training import mesh_costs
from dalle_jax.training.tasks.prior import PriorTask

LAYERS, HEADS, WIDTH = 2, 6, 96
CONFIG = Config.from_dict({
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'dvae': {'num_groups': 2, 'blocks_per_group': 1, 'patch_size': 2, 'hidden_size': 64, 'image_vocab_size': 64},
  'tokenizer': {'text_length': 4},
  'prior': {'num_layers': LAYERS, 'num_heads': HEADS, 'embed_dim': WIDTH, 'attention_pattern': ('row',)},
})  # fmt: skip


def lines(*sizes, **training):
  task = PriorTask(CONFIG, 64)
  settings = dataclasses.replace(CONFIG.prior_training, **training)
  return mesh_costs.lines(task, settings, CONFIG, AbstractMesh(sizes, sharding.AXES))


@pytest.fixture(autouse=True)
def report_all_costs(monkeypatch):
  monkeypatch.setattr(mesh_costs, 'SMALLEST_BYTES', 1)


@pytest.mark.parametrize('sizes', [(1, 8, 1, 1), (1, 1, 8, 1), (2, 2, 4, 2), (1, 1, 32, 3), (1, 1, 16, 6)])
def test_axes_that_divide_the_model_are_not_reported(sizes):
  text = ' '.join(lines(*sizes))
  assert 'heads' not in text
  assert f'{WIDTH} (' not in text


def _head_parameters():
  # Of every layer: kernels and biases of queries, keys and values, and the kernel of the output.
  return LAYERS * (3 * WIDTH * WIDTH + 3 * WIDTH + WIDTH * WIDTH)


@pytest.mark.parametrize(('ema', 'copies'), [(0.0, 3), (0.99, 4)])
def test_heads_that_the_tensor_axis_does_not_divide_are_reported(ema, copies):
  (text,) = lines(1, 1, 2, 4, ema_decay=ema)
  assert 'config.mesh.tensor 4 does not divide 6 heads (config.prior.num_heads)' in text
  assert f'This leaves {_head_parameters():,} parameters unsplit' in text
  biases = LAYERS * 3 * WIDTH  # fsdp does not split these either
  on_device = 4 * copies * ((_head_parameters() - biases) // 2 + biases)
  sizes = [float(size) for size in re.findall(r'([\d.]+) MiB', text)]
  assert sizes == pytest.approx([on_device * 3 / 4 / 2**20, on_device / 2**20, on_device / 4 / 2**20], abs=6e-3)
  assert 'XLA computes 8 heads instead of 6 (33.3% more)' in text
  assert text.endswith('Sizes that divide 6: 1, 2, 3, 6.')


def test_a_width_that_the_fsdp_axis_does_not_divide_is_reported():
  text = lines(1, 2, 64, 1)[0]
  assert 'config.mesh.fsdp 64 does not divide 96 (config.prior.embed_dim)' in text
  assert 'Sizes that divide both 96 and the 128 devices: 1, 2, 4, 8, 16, 32. ' in text
  assert text.endswith('Use the remaining devices for config.mesh.data.')


def test_vocabularies_that_the_tensor_axis_does_not_divide_are_reported():
  (text,) = lines(1, 1, 1, 3)
  assert 'config.mesh.tensor 3 does not divide 64' in text
  assert text.endswith('Sizes that divide 64: 1, 2.')  # only sizes up to the 3 devices


def test_small_costs_are_not_reported(monkeypatch):
  monkeypatch.setattr(mesh_costs, 'SMALLEST_BYTES', 2**24)
  assert lines(1, 1, 2, 4) == []
