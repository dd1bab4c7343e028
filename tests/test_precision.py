"""32-bit types, whatever JAX's settings say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PICTURES, caption_tokenizer, save_random

import dalle_jax
from dalle_jax import flags, precision
from dalle_jax.config import Config


@pytest.fixture
def x64():
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)


def test_programs_and_loaded_models_work_with_32_bits(x64, tmp_path, caplog, capsys):
  assert jnp.arange(3).dtype == jnp.int64
  flags.start_jax(distributed=False)
  assert jnp.arange(3).dtype == jnp.int32
  path = save_random(tmp_path / 'model', Config.from_dict(PICTURES), caption_tokenizer())
  expected = dalle_jax.load(path).generate('a red circle', num_images=1)
  assert caplog.text.count('JAX_ENABLE_X64') == 1
  jax.config.update('jax_enable_x64', True)
  model = dalle_jax.load(path)
  assert caplog.text.count('JAX_ENABLE_X64') == 2
  np.testing.assert_array_equal(model.generate('a red circle', num_images=1), expected)
  assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype('float32')}


def test_the_context_of_64_bits_is_refused():
  with jax.enable_x64(True), pytest.raises(ValueError, match=r'outside of the context jax\.enable_x64'):
    precision.use_32_bits()
