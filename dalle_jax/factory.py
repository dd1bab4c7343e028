"""From configuration groups to models: the one place that knows which keys make which module."""

import jax.numpy as jnp

from dalle_jax.config import Config, DvaeConfig
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.transformer import Transformer


def make_dvae(config: DvaeConfig) -> Dvae:
  return Dvae(
    image_vocab_size=config.image_vocab_size,
    hidden_size=config.hidden_size,
    decoder_input_size=config.decoder_input_size,
    num_groups=config.num_groups,
    blocks_per_group=config.blocks_per_group,
    patch_size=config.patch_size,
    residual_gain=config.residual_gain,
    logits_init_scale=config.logits_init_scale,
    codebook_init_scale=config.codebook_init_scale,
    dtype=jnp.dtype(config.dtype),
  )


def make_prior(config: Config, text_vocab_size: int) -> Prior:
  """The prior of a configuration; the tokenizer says how many text ids there are."""
  stack = Transformer(
    num_layers=config.prior.num_layers,
    num_heads=config.prior.num_heads,
    head_dim=config.prior.head_dim,
    mlp_ratio=config.prior.mlp_ratio,
    dtype=jnp.dtype(config.prior.dtype),
    remat=config.prior.remat,
  )
  return Prior(
    text_vocab_size=text_vocab_size,
    image_vocab_size=config.dvae.image_vocab_size,
    text_length=config.tokenizer.text_length,
    grid_size=config.grid_size,
    transformer=stack,
  )
