"""Every shipped configuration, and each of its variants, describes models that can be built."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest

from dalle_jax import sharding
from dalle_jax.config import Config, MeshConfig, base_config
from dalle_jax.training.tasks.dvae import DvaeTask
from dalle_jax.training.tasks.prior import PriorTask

FILES = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('[!_]*.py'))
VARIANTS = ('', 'tiny')


def _load(file, variant):
  values = runpy.run_path(str(file))['get_config'](variant)
  return values, Config.from_dict(values)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_both_stages_can_be_built(file, variant):
  values, config = _load(file, variant)
  assert values.is_locked
  dvae = DvaeTask(config.dvae, config.data.image_size)
  prior = PriorTask(config, config.tokenizer.vocab_size)
  image = jax.ShapeDtypeStruct((2, config.data.image_size, config.data.image_size, 3), jnp.uint8)
  text = jax.ShapeDtypeStruct((2, config.tokenizer.text_length - 1), jnp.int32)
  for task, batch in ((dvae, {'image': image}), (prior, {'image': image, 'text': text})):
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.value, boxed, is_leaf=lambda leaf: hasattr(leaf, 'names'))
    arguments = (params, batch, jax.random.key(0), jnp.asarray(0))
    loss, _ = jax.eval_shape(task.loss, *arguments)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert 'histogram' in jax.eval_shape(task.evaluate, *arguments) or task is prior
  sharding.check(config, sharding.make_mesh(MeshConfig()))


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_the_tiny_variant_is_tiny(file):
  _, config = _load(file, 'tiny')
  assert max(config.dvae_training.num_steps, config.prior_training.num_steps) < 50
  assert config.data.num_train <= 500


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_unknown_variants_are_refused(file):
  with pytest.raises(ValueError, match="given 'huge'"):
    _load(file, 'huge')


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_the_file_tells_its_command_and_changes_something(file):
  assert f'python -m dalle_jax.train --config=configs/{file.name}' in file.read_text().split('"""')[1]
  values, _ = _load(file, '')
  assert values.to_dict() != base_config().to_dict()
