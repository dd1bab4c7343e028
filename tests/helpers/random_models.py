"""Small models with random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dalle_jax import bundle
from dalle_jax.data.text.tokenizer import train_tokenizer

# Configuration values shared by the models of 8 x 8 images.
PICTURES = {
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'tokenizer': {'vocab_size': 300, 'text_length': 6},
  'dvae': {'image_vocab_size': 8, 'hidden_size': 4, 'decoder_input_size': 4, 'num_groups': 2, 'blocks_per_group': 1},
  'prior': {'num_layers': 1, 'num_heads': 2, 'embed_dim': 8, 'mlp_ratio': 1},
}


def caption_tokenizer():
  """A small tokenizer of captions."""
  return train_tokenizer(['a red circle', 'a blue square', 'a green triangle'] * 4, 300)


def random_params(config, vocab_size, scale=0.5):
  """Normally distributed parameters of all models that a bundle with this configuration holds."""
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: bundle.init_params(config, vocab_size)))
  return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def save_random(path, config, tokenizer, scale=0.5):
  """Writes a model directory with random parameters and returns its path as a string."""
  bundle.save(path, config, tokenizer, random_params(config, tokenizer.vocab_size, scale), 'data')
  return str(path)
