"""Partition specs of all parameters of the published sizes, compared with the readable files in tests/golden.

    REWRITE_PARTITION_SPECS=1 python -m pytest tests/test_partition_specs.py -n 0

rewrites the files. Read the difference before you commit it.
"""

import dataclasses
import functools
import math
import os
import pathlib
import runpy

import jax
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.sharding import AbstractMesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.config.models import SEQUENCE_KINDS
from dalle_jax.training.tasks.dvae import DvaeTask
from dalle_jax.training.tasks.joint import JointTask
from dalle_jax.training.tasks.prior import PriorTask
from dalle_jax.training.tasks.reranker import RerankerTask
from dalle_jax.training.tasks.sequence import make_task as make_sequence_task

ROOT = pathlib.Path(__file__).parents[1]
FILES = pathlib.Path(__file__).parent / 'golden' / 'partition_specs'
# Sizes of dcn_data, data, fsdp and tensor.
PLAIN, MIXED, TWO_SLICES = (1, 4, 128, 1), (1, 2, 64, 2), (2, 1, 64, 4)
MESHES = {
  '12b': (PLAIN, MIXED),
  '12b_padded': (PLAIN, TWO_SLICES),
  '5b': (PLAIN, MIXED),
  '2b': (PLAIN, MIXED),
  '1b': ((1, 1, 8, 1), (1, 2, 2, 2)),
  '300m': ((1, 1, 8, 1), (1, 2, 2, 2)),
  'dvae_openai': ((1, 1, 8, 1), (1, 1, 64, 1), (1, 2, 2, 2)),
}
LARGE = 2**20  # bytes per layer above which a parameter must be split


@functools.cache
def boxes(name):
  """All parameters by path, as `LogicallyPartitioned` shapes."""
  if name == 'dvae_openai':
    config = Config.from_dict(runpy.run_path(str(ROOT / 'configs' / 'dvae.py'))['get_config']('openai'))
    task = DvaeTask(config.dvae, config.data.image_size)
  else:
    config = Config.from_dict(runpy.run_path(str(ROOT / 'configs' / 'dalle.py'))['get_config'](name))
    task = PriorTask(config, config.tokenizer.vocab_size)
  return traverse_util.flatten_dict(jax.eval_shape(task.init, jax.random.key(0)), sep='/')


def shardings(name, sizes):
  return sharding.param_shardings(boxes(name), AbstractMesh(sizes, sharding.AXES))


def _title(sizes):
  return ' x '.join(f'{axis} {size}' for axis, size in zip(sharding.AXES, sizes, strict=True) if size > 1)


def _partition(param_sharding):
  """The mesh axes that split each dimension; '.' for a dimension that is not split. Axes of size 1 split nothing."""

  def describe(axes):
    axes = axes if isinstance(axes, tuple) else (axes,)
    return '+'.join(axis for axis in axes if axis and param_sharding.mesh.shape[axis] > 1) or '.'

  return ' '.join(map(describe, param_sharding.spec)) or 'whole'


def written(name):
  """The file's text: one parameter per line, with its shape, its axis names and its partition on each mesh."""
  by_mesh = [shardings(name, sizes) for sizes in MESHES[name]]
  rows = [('parameter', 'shape', 'axes', *map(_title, MESHES[name]))]
  for path, box in boxes(name).items():
    shape = 'x'.join(map(str, box.value.shape))
    rows.append((path, shape, ' '.join(box.names), *(_partition(held[path]) for held in by_mesh)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
  return '\n'.join(lines) + '\n'


@pytest.mark.parametrize('name', MESHES)
def test_every_parameter_is_split_as_in_the_golden_file(name):
  file = FILES / f'{name}.txt'
  text = written(name)
  if os.environ.get('REWRITE_PARTITION_SPECS'):
    file.write_text(text, encoding='utf-8')
  expected = file.read_text(encoding='utf-8').splitlines()
  # Compare line by line: a failure then shows only the lines that differ.
  assert [line for line in text.splitlines() if line not in expected] == []
  assert len(text.splitlines()) == len(expected)


@pytest.mark.parametrize(('name', 'sizes'), [(name, sizes) for name, meshes in MESHES.items() for sizes in meshes])
def test_no_large_parameter_is_replicated_on_every_device(name, sizes):
  param_shardings, replicated_bytes, total = shardings(name, sizes), 0, 0
  for path, box in boxes(name).items():
    size = math.prod(box.value.shape) * box.value.dtype.itemsize
    total += size
    if param_shardings[path].shard_shape(box.value.shape) == box.value.shape:
      layers = box.value.shape[0] if 'layers' in box.names else 1
      assert size / layers <= LARGE, path
      replicated_bytes += size
  assert replicated_bytes < 1e-3 * total


def _tasks():
  """Yields a small task of every kind, with its name."""

  def config(file, variant):
    return Config.from_dict(runpy.run_path(str(ROOT / 'configs' / f'{file}.py'))['get_config'](variant))

  tiny = config('dvae', 'tiny')
  for bottleneck in ('gumbel', 'vq', 'fsq'):
    levels = {'image_vocab_size': 64, 'fsq_levels': (8, 8)} if bottleneck == 'fsq' else {}
    dvae = dataclasses.replace(tiny.dvae, bottleneck=bottleneck, **levels)
    yield bottleneck, DvaeTask(dvae, tiny.data.image_size)
  for recipe in ('paper', 'modern'):
    yield recipe, PriorTask(config('dalle', f'small,{recipe},tiny'), 16)
  yield 'joint', JointTask(config('dalle', 'small,tiny'), 16)
  yield 'reranker', RerankerTask(config('reranker', 'tiny'), 16)
  for kind in SEQUENCE_KINDS:
    if kind != 'ngram':  # n-grams are counted, not trained
      yield f'text, {kind}', make_sequence_task(config('language', f'{kind},tiny'), 16)
      yield f'image tokens, {kind}', make_sequence_task(config('image_tokens', f'{kind},tiny'), 16)


TASKS = dict(_tasks())


@pytest.mark.parametrize('name', TASKS)
def test_every_dimension_of_every_parameter_has_a_known_name(name):
  for path, box in traverse_util.flatten_dict(jax.eval_shape(TASKS[name].init, jax.random.key(0)), sep='/').items():
    assert isinstance(box, nn.LogicallyPartitioned), path
    assert len(box.names) == box.value.ndim, path
    assert set(box.names) <= set(sharding.RULES), path
