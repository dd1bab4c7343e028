import jax.numpy as jnp

from dalle_jax.config import Config
from dalle_jax.factory import make_dvae, make_prior


def test_every_shape_key_reaches_the_modules():
  values = {
    'data': {'image_size': 48},
    'tokenizer': {'text_length': 9},
    'dvae': {
      'image_vocab_size': 11, 'hidden_size': 12, 'decoder_input_size': 13, 'num_groups': 2, 'blocks_per_group': 3,
      'patch_size': 4, 'dtype': 'bfloat16', 'logits_init_scale': 2.0, 'codebook_init_scale': 3.0,
    },
    'prior': {
      'num_layers': 5, 'embed_dim': 48, 'num_heads': 6, 'mlp_ratio': 8, 'dtype': 'bfloat16', 'norm': 'rmsnorm',
      'mlp': 'swiglu', 'qk_norm': True, 'sandwich_norm': True,
    },
  }  # fmt: skip
  config = Config.from_dict(values)
  dvae = make_dvae(config.dvae)
  for name, value in values['dvae'].items():
    assert getattr(dvae, name) == (jnp.dtype('bfloat16') if name == 'dtype' else value)
  prior = make_prior(config, 333)
  for name, value in values['prior'].items():
    assert getattr(prior.transformer.shape, name) == (jnp.dtype('bfloat16') if name == 'dtype' else value)
  assert (prior.text_vocab_size, prior.image_vocab_size, prior.text_length) == (333, 11, 9)
  assert (prior.grid_size, prior.length) == (6, 9 + 36)


def test_the_default_is_the_model_of_the_paper():
  config = Config.from_dict({'data': {'image_size': 256}})
  assert make_prior(config, 16_384).length == 1280
  assert make_dvae(config.dvae).image_vocab_size == 8192
