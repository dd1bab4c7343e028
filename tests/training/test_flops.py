import jax
import jax.numpy as jnp
import pytest

from dalle_jax.config import Config, base_config
from dalle_jax.training import flops
from dalle_jax.training.tasks.dvae import DvaeTask
from dalle_jax.training.tasks.prior import PriorTask
from dalle_jax.training.tasks.sequence import SequenceTask


def count(function, *shapes):
  return flops.matmul_flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)).jaxpr)


def test_matmul_flops_counts_products_convolutions_and_loops():
  assert count(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
  assert count(lambda x, w: jnp.einsum('bij,bjk->bik', x, w), (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7
  assert count(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=6)[0], (5, 5)) == 6 * 2 * 5**3
  assert count(jax.jit(lambda x, w: jnp.tanh(x @ w).sum()), (3, 5), (5, 7)) == 2 * 3 * 5 * 7

  def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  assert count(conv, (2, 8, 8, 3), (3, 3, 3, 4)) == 2 * (2 * 8 * 8 * 4) * (3 * 3 * 3)


def text_task(**changes):
  config = base_config()
  config.task, config.data.source, config.tokenizer.kind = 'sequence', 'text', 'bytes'
  config.model.length, config.model.embed_dim, config.model.num_heads, config.model.num_layers = 16, 8, 2, 3
  for name, value in changes.items():
    setattr(config.model, name, value)
  return SequenceTask(Config.from_dict(config), 256)


def tokens(batch, length):
  return {'tokens': jax.ShapeDtypeStruct((batch, length), jnp.int32)}


def test_a_transformer_step_costs_three_times_its_forward_pass():
  task, layers, d, t, vocab = text_task(), 3, 8, 16, 256
  blocks = layers * (12 * d**2 + 2 * t * d)  # weight matrices; attention scores and weighted values
  forward = 2 * 2 * t * (blocks + d * vocab)
  # Each product of the forward pass has two in the backward pass: the gradients of its input and of its weights.
  assert flops.step_flops(task, tokens(2, t)) == 3 * forward


@pytest.mark.parametrize('kind', ['transformer', 'lstm', 'rnn', 'neural_ngram'])
def test_count_params_separates_embeddings_from_the_rest(kind):
  task = text_task(kind=kind, hidden_size=8, num_layers=2)
  total, outside = flops.count_params(task)
  params = flops.abstract_params(task)['model']
  assert total == sum(leaf.size for leaf in jax.tree.leaves(params))
  tables = 257 * 8 + 8 * 256 + 256  # ids and start token; output matrix and its bias
  learned_positions = 16 * 8 if kind == 'transformer' else 0
  assert total - outside == tables + learned_positions
  assert flops.step_flops(task, tokens(3, 16)) == 3 * flops.step_flops(task, tokens(1, 16)) > 0


def pictures(config, batch=1):
  size = config.data.image_size
  return {'image': jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)}


def tiny():
  config = base_config()
  config.dvae.num_groups, config.dvae.blocks_per_group, config.dvae.hidden_size = 3, 1, 8
  config.dvae.image_vocab_size, config.dvae.decoder_input_size = 16, 8
  config.tokenizer.text_length, config.tokenizer.vocab_size = 4, 270
  config.prior.num_layers, config.prior.embed_dim, config.prior.num_heads = 2, 8, 2
  return Config.from_dict(config)


def test_the_frozen_dvae_of_a_prior_is_not_counted():
  config = tiny()
  task = PriorTask(config, 270)
  total, outside = flops.count_params(task)
  assert total > outside == 2 * (12 * 8**2 + 13 * 8) + 2 * 8  # blocks with biases and norms; the last norm
  length = config.tokenizer.text_length + config.image_length
  batch = pictures(config) | {'text': jax.ShapeDtypeStruct((1, 3), jnp.int32)}
  blocks = 2 * (12 * 8**2 + 2 * length * 8)
  heads = 4 * 8 * 270 + config.image_length * 8 * 16
  assert flops.step_flops(task, batch) == 3 * 2 * (length * blocks + heads)


def test_step_flops_of_a_dvae_count_its_convolutions():
  config = tiny()
  task = DvaeTask(config.dvae, config.data.image_size)
  total, outside = flops.count_params(task)
  assert total == outside > 0
  assert flops.step_flops(task, pictures(config, 2)) == 2 * flops.step_flops(task, pictures(config)) > total


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_rematerialised_products_are_not_counted(remat):
  task, remat_task = text_task(), text_task(remat=remat)
  assert flops.step_flops(remat_task, tokens(2, 16)) == flops.step_flops(task, tokens(2, 16))
