"""Stages whose mesh costs are printed at the start. `test_mesh_costs.py` tests the costs themselves."""

import pytest
from jax.sharding import AbstractMesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.training import mesh_costs
from dalle_jax.training.mesh_costs import say_costs

SHAPES = {
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'dvae': {'num_groups': 2, 'blocks_per_group': 1, 'hidden_size': 12, 'image_vocab_size': 64},
  'tokenizer': {'vocab_size': 300, 'text_length': 4},
  'prior': {'num_layers': 1, 'num_heads': 6, 'embed_dim': 24},
}
TRAINED = {**SHAPES, 'dvae': {**SHAPES['dvae'], 'pretrained': 'DIR'}}
BLOCKS = {'num_layers': 1, 'num_heads': 6, 'embed_dim': 24}
MODEL = {**BLOCKS, 'length': 8}
TEXT = {'task': 'sequence', 'data': {'source': 'text'}, 'tokenizer': {'kind': 'bytes'}}
RERANKER = {'image_width': 24, 'image_num_heads': 6, 'text_width': 24, 'text_num_heads': 6, 'patch_size': 4}


@pytest.fixture(autouse=True)
def report_all_costs(monkeypatch):
  monkeypatch.setattr(mesh_costs, 'SMALLEST_BYTES', 1)


def _output(capsys, values, *sizes):
  say_costs(Config.from_dict(values), AbstractMesh(sizes, sharding.AXES))
  return capsys.readouterr().out


@pytest.mark.parametrize(
  ('values', 'key'),
  [
    (SHAPES, 'prior.num_heads'),
    ({**SHAPES, 'task': 'joint'}, 'prior.num_heads'),
    ({**SHAPES, 'task': 'reranker', 'reranker': RERANKER}, 'reranker.image_num_heads'),
    ({**TEXT, 'model': MODEL}, 'model.num_heads'),
    ({**TRAINED, 'task': 'sequence', 'model': {**BLOCKS, 'tokens': 'text_image'}}, 'model.num_heads'),
  ],
)
def test_stages_with_undivided_heads_print_their_cost(capsys, values, key):
  assert f'config.mesh.tensor 4 does not divide 6 heads (config.{key})' in _output(capsys, values, 1, 1, 2, 4)


def test_every_stage_prints_its_cost(capsys):
  output = _output(capsys, SHAPES, 1, 1, 5, 1).splitlines()
  assert len(output) == 2  # one line for the dVAE and one for the prior
  assert all(line.startswith('mesh: config.mesh.fsdp 5 does not divide') for line in output)
  assert len(_output(capsys, {**SHAPES, 'task': 'dvae'}, 1, 1, 5, 1).splitlines()) == 1


def test_stages_that_are_not_trained_print_nothing(capsys):
  assert _output(capsys, {**TEXT, 'model': {**MODEL, 'kind': 'ngram'}}, 1, 1, 5, 3) == ''
  assert len(_output(capsys, TRAINED, 1, 1, 5, 1).splitlines()) == 1


def test_meshes_that_only_split_the_batch_print_nothing(capsys):
  assert _output(capsys, SHAPES, 2, 4, 1, 1) == ''
