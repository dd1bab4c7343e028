"""Builds the models of every shipped configuration and its variants, as shapes only."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dalle_jax import bundle, sharding
from dalle_jax.bundle import bundle_sizes
from dalle_jax.config import Config, MeshConfig, base_config
from dalle_jax.config.models import DVAE_SHAPE
from dalle_jax.factory import make_dvae, make_prior
from dalle_jax.stages import part_initializer
from dalle_jax.training.tasks.dvae import DvaeTask
from dalle_jax.training.tasks.prior import PriorTask
from dalle_jax.training.tasks.reranker import RerankerTask
from dalle_jax.training.tasks.sequence import make_task as make_sequence_task

FILES = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('[!_]*.py'))
SIZES = ('12b', '12b_padded', '5b', '2b', '1b', '300m', 'small')
SEQUENCES = ('language', 'image_tokens')
ALONE = ('reranker',)  # has a separate test below
VARIANTS = {
  'dvae': ('openai', 'small', 'openai,tiny', 'small,tiny'),
  'image_tokens': ('lstm', 'ngram,text', 'rnn,tiny', 'neural_ngram,text,tiny'),
  'dalle': (*SIZES, 'tiny', *(f'{size},modern' for size in ('12b', 'small')), '1b,modern,tiny'),
}
ALL = [(file, variant) for file in FILES for variant in ('', *VARIANTS.get(file.stem, ('tiny',)))]
TINY = [(file, variant) for file, variant in ALL if 'tiny' in variant]
# These differ from other sizes in numbers only, so that only their parameters and shardings are tested.
NUMBERS = ('12b', '5b', '2b', '1b', '300m')
TRACED = [(file, variant) for file, variant in ALL if file.stem not in (*SEQUENCES, *ALONE) and variant not in NUMBERS]


def _name(value):
  return value.stem if isinstance(value, pathlib.Path) else value


@functools.cache
def _dvae_shapes(dvae, image_size):
  """The shapes of a dVAE's parameters. Tests share them, because tracing a model takes seconds."""
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
  return nn.unbox(jax.eval_shape(make_dvae(dvae).init, jax.random.key(0), image)['params'])


@functools.cache
def _prior_shapes(model):
  """The shapes of a prior's parameters."""
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))


def _shapes(task):
  """The shapes of a task's parameters."""
  if not isinstance(task, PriorTask):
    return nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
  dvae = _dvae_shapes(task.config.dvae, task.config.data.image_size)
  return {'dvae': dvae, 'prior': _prior_shapes(task.model)}


@functools.cache
def _trace(task, image_size, text_length):
  """The shapes of a task's loss and of its evaluation."""
  batch = {'image': jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.uint8)}
  if task.name == 'prior':
    batch['text'] = jax.ShapeDtypeStruct((2, text_length - 1), jnp.int32)
  arguments = (_shapes(task), batch, jax.random.key(0), jnp.asarray(0))
  return jax.eval_shape(task.loss, *arguments)[0], jax.eval_shape(task.evaluate, *arguments)


def _load(file, variant):
  values = runpy.run_path(str(file))['get_config'](variant)
  return values, Config.from_dict(values)


@pytest.mark.parametrize(('file', 'variant'), TRACED, ids=_name)
def test_dvae_and_prior_can_be_built(file, variant):
  values, config = _load(file, variant)
  assert values.is_locked
  dvae = DvaeTask(config.dvae, config.data.image_size)
  prior = PriorTask(config, config.tokenizer.vocab_size)
  for task in (dvae, prior):
    loss, evaluated = _trace(task, config.data.image_size, config.tokenizer.text_length)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert 'histogram' in evaluated or task is prior
  sharding.check(config, sharding.make_mesh(MeshConfig()))


@pytest.mark.parametrize(('file', 'variant'), [(f, v) for f, v in ALL if f.stem in SEQUENCES], ids=_name)
def test_sequence_models_can_be_built(file, variant):
  values, config = _load(file, variant)
  assert values.is_locked
  task = make_sequence_task(config, config.tokenizer.vocab_size)
  size, width = config.data.image_size, config.tokenizer.text_length - 1
  batch = {
    'tokens': jax.ShapeDtypeStruct((2, config.sequence_length), jnp.int32),
    'image': jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8),
    'text': jax.ShapeDtypeStruct((2, width), jnp.int32),
  }
  loss, _ = jax.eval_shape(task.loss, _shapes(task), batch, jax.random.key(0), jnp.asarray(0))
  assert (loss.shape, loss.dtype) == ((), jnp.float32)
  sharding.check(config, sharding.make_mesh(MeshConfig()))


@pytest.mark.parametrize('variant', ['', 'tiny'])
def test_a_reranker_can_be_built(variant):
  values, config = _load(next(file for file in FILES if file.stem == 'reranker'), variant)
  assert values.is_locked
  task, size = RerankerTask(config, config.tokenizer.vocab_size), config.data.image_size
  batch = {
    'image': jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8),
    'text': jax.ShapeDtypeStruct((2, config.tokenizer.text_length - 1), jnp.int32),
  }
  loss, _ = jax.eval_shape(task.loss, _shapes(task), batch, jax.random.key(0), jnp.asarray(0))
  assert (loss.shape, loss.dtype) == ((), jnp.float32)
  sharding.check(config, sharding.make_mesh(MeshConfig()))


def test_image_token_models_have_the_dvae_shape_of_the_quick_start():
  trained, config = (_load(file, '')[1] for file in FILES if file.stem in ('quickstart', 'image_tokens'))
  assert trained.image_length == config.image_length
  for name in DVAE_SHAPE:
    assert getattr(trained.dvae, name) == getattr(config.dvae, name), name


@pytest.mark.parametrize(('file', 'variant'), TINY, ids=_name)
def test_tiny_variants_train_for_few_steps_on_little_data(file, variant):
  _, config = _load(file, variant)
  if config.task == 'sequence':  # trains for about a minute and writes readable text
    assert config.sequence_training.num_steps * config.sequence_training.batch_size * config.sequence_length < 500_000
    return
  stages = (config.dvae_training, config.prior_training, config.reranker_training)
  assert max(stage.num_steps for stage in stages) < 50
  assert config.data.num_train <= 500


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_unknown_variants_are_refused(file):
  with pytest.raises(ValueError, match="given 'huge'"):
    _load(file, 'huge')


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_the_docstring_gives_the_command_and_the_configuration_changes_a_default(file):
  assert f'python -m dalle_jax.train --config=configs/{file.name}' in file.read_text().split('"""')[1]
  values, _ = _load(file, '')
  assert values.to_dict() != base_config().to_dict()


def _count(task):
  return sum(leaf.size for leaf in jax.tree.leaves(_prior_shapes(task.model)))


@pytest.mark.parametrize(
  ('size', 'blocks', 'total'),
  [('12b', 12.09e9, 12.29e9), ('12b_padded', 12.88e9, 13.09e9),
   ('5b', 5.55e9, 5.68e9), ('2b', 2.83e9, 2.93e9), ('1b', 1.21e9, 1.31e9),
   ('300m', 302e6, 354e6)],
)  # fmt: skip
def test_each_size_has_the_number_of_parameters_in_its_name(size, blocks, total):
  file = next(file for file in FILES if file.stem == 'dalle')
  _, config = _load(file, size)
  layers, width = config.prior.num_layers, config.prior.embed_dim
  assert 12 * layers * width**2 == pytest.approx(blocks, rel=5e-3)
  assert config.image_length + config.tokenizer.text_length == 1280
  assert _count(PriorTask(config, 16_384)) == pytest.approx(total, rel=5e-3)
  sharding.check(config, sharding.make_mesh(MeshConfig()))
  _, modern = _load(file, f'{size},modern')
  assert _count(PriorTask(modern, 16_384)) == pytest.approx(total, rel=5e-3)


def test_two_sizes_in_one_variant_are_refused():
  file = next(file for file in FILES if file.stem == 'dalle')
  with pytest.raises(ValueError, match=r"'12b' or '12b_padded'.*given '1b,2b'"):
    _load(file, '1b,2b')


@pytest.mark.parametrize(('file', 'variant'), ALL, ids=_name)
def test_the_sizes_of_a_model_are_not_taken_for_damage(file, variant):
  _, config = _load(file, variant)
  vocab_size = config.tokenizer.vocab_size if config.reads_captions or config.models_text else None
  ngrams = [50 + i for i in range(config.model.order)] if config.counts_ngrams else None
  shapes = {}
  for part in bundle._parts(config, vocab_size):
    if part == 'dvae':
      shapes[part] = _dvae_shapes(config.dvae, config.data.image_size)
    elif part == 'prior':
      shapes[part] = _prior_shapes(make_prior(config, vocab_size))
    else:
      init = functools.partial(part_initializer(part), config, vocab_size or 0, ngrams or [])
      shapes[part] = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  bundle_sizes.check(pathlib.Path('model'), config, sorted(shapes), ngrams or [], shapes)
