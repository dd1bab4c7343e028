"""From configuration groups to models: the one place that knows which keys make which module."""

import jax.numpy as jnp

from dalle_jax.config import Config, DvaeConfig
from dalle_jax.models.attention import Pattern
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.transformer import BlockShape, Transformer

INIT_SCALES = {'sparse_transformer': (0.125, 0.125), 'unit': (1.0, 1.0)}  # of kernels and of embeddings


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
    bottleneck=config.bottleneck,
    straight_through=config.straight_through,
    fsq_levels=config.fsq_levels,
    dtype=jnp.dtype(config.dtype),
  )


def make_prior(config: Config, text_vocab_size: int) -> Prior:
  """The prior of a configuration; the tokenizer says how many text ids there are."""
  prior, text_length = config.prior, config.tokenizer.text_length

  def pattern(kind: str) -> Pattern:
    return Pattern(kind, text_length, config.grid_size, prior.conv_kernel_size)

  init_scale, embedding_init_scale = INIT_SCALES[prior.init]
  shape = BlockShape(
    num_layers=prior.num_layers,
    embed_dim=prior.embed_dim,
    num_heads=prior.num_heads,
    mlp_ratio=prior.mlp_ratio,
    norm=prior.norm,
    mlp=prior.mlp,
    qk_norm=prior.qk_norm,
    sandwich_norm=prior.sandwich_norm,
    rotary=prior.position == 'rotary',
    init_scale=init_scale,
    dtype=jnp.dtype(prior.dtype),
  )
  stack = Transformer(
    shape=shape,
    patterns=tuple(pattern(kind) for kind in prior.attention_pattern),
    last_pattern=pattern(prior.last_attention_pattern) if prior.last_attention_pattern else None,
    remat=prior.remat,
  )
  return Prior(
    text_vocab_size=text_vocab_size,
    image_vocab_size=config.dvae.image_vocab_size,
    transformer=stack,
    embedding_init_scale=embedding_init_scale,
  )
