"""Builds models from configuration groups; no other file maps keys to module arguments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.config import BlocksConfig, Config, DvaeConfig, SequenceConfig
from dalle_jax.models import reranker
from dalle_jax.models.attention import Pattern
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.language import TransformerLanguageModel
from dalle_jax.models.neural_ngram import NeuralNgram
from dalle_jax.models.ngram import Ngram
from dalle_jax.models.prior import Prior
from dalle_jax.models.recurrent import Recurrent
from dalle_jax.models.reranker import ImageEncoder, Reranker, TextEncoder
from dalle_jax.models.sequence import SequenceModel
from dalle_jax.models.stream import StreamModel
from dalle_jax.models.transformer import BlockShape, Transformer

INIT_SCALES = {'sparse_transformer': (0.125, 0.125), 'unit': (1.0, 1.0)}  # initial scales of kernels and embeddings


def make_dvae(config: DvaeConfig) -> Dvae:
  """Builds the discrete VAE of config.dvae."""
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
  """Builds the prior of config.prior.

  Args:
    config: the experiment's configuration.
    text_vocab_size: number of token ids of the caption tokenizer.
  """
  prior, text_length = config.prior, config.tokenizer.text_length

  def pattern(kind: str) -> Pattern:
    return Pattern(kind, text_length, config.grid_size, prior.conv_kernel_size)

  shape, embedding_init_scale = _block_shape(prior)
  shape = dataclasses.replace(shape, attention_block=prior.attention_block)
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


def _block_shape(config: BlocksConfig) -> tuple[BlockShape, float]:
  """The settings that all blocks of a transformer share, and the initial scale of its embeddings."""
  init_scale, embedding_init_scale = INIT_SCALES[config.init]
  shape = BlockShape(
    num_layers=config.num_layers,
    embed_dim=config.embed_dim,
    num_heads=config.num_heads,
    mlp_ratio=config.mlp_ratio,
    norm=config.norm,
    mlp=config.mlp,
    qk_norm=config.qk_norm,
    sandwich_norm=config.sandwich_norm,
    rotary=config.position == 'rotary',
    init_scale=init_scale,
    dtype=jnp.dtype(config.dtype),
  )
  return shape, embedding_init_scale


def make_stream_model(config: Config, text_vocab_size: int) -> tuple[Any, str]:
  """Builds the model that generates images: the prior, or the sequence model if the task is 'sequence'.

  Args:
    config: the experiment's configuration.
    text_vocab_size: number of token ids of the tokenizer; unused by a model of image tokens only.

  Returns:
    The model, and the name of its collection in the parameters: 'prior' or 'model'.
  """
  if config.task == 'sequence':
    return make_sequence_model(config, text_vocab_size), 'model'
  return make_prior(config, text_vocab_size), 'prior'


def make_sequence_model(config: Config, text_vocab_size: int) -> SequenceModel:
  """Builds the sequence model of config.model.

  Args:
    config: the experiment's configuration.
    text_vocab_size: number of token ids of the tokenizer; unused by a model of image tokens only.
  """
  tokens, length = config.model.tokens, config.sequence_length
  if tokens == 'text':
    return _flat_model(config.model, text_vocab_size, length)
  image_vocab_size, text_length = config.dvae.image_vocab_size, length - config.image_length
  text_vocab_size = text_vocab_size if tokens == 'text_image' else 0
  inner = _flat_model(config.model, text_vocab_size + image_vocab_size, length)
  return StreamModel(inner, text_vocab_size, image_vocab_size, text_length, config.grid_size)


def _flat_model(model: SequenceConfig, vocab_size: int, length: int) -> SequenceModel:
  """Builds a model of sequences of `length` tokens over a single vocabulary of `vocab_size` ids."""
  dtype = jnp.dtype(model.dtype)
  if model.kind == 'ngram':
    return Ngram(vocab_size, length, model.order)
  if model.kind == 'neural_ngram':
    return NeuralNgram(vocab_size, length, model.order, model.embed_dim, model.hidden_size, dtype)
  if model.kind in ('rnn', 'lstm'):
    return Recurrent(model.kind, vocab_size, length, model.num_layers, model.embed_dim, model.hidden_size, dtype)
  shape, embedding_init_scale = _block_shape(model)
  stack = Transformer(shape, (Pattern('full', length, 0),), remat=model.remat)
  return TransformerLanguageModel(vocab_size, stack, embedding_init_scale)


def make_reranker(config: Config, text_vocab_size: int) -> Reranker:
  """Builds the contrastive model of config.reranker.

  Args:
    config: the experiment's configuration.
    text_vocab_size: number of token ids of the caption tokenizer.
  """
  reranker = config.reranker

  def shape(num_layers: int, width: int, num_heads: int) -> BlockShape:
    init_scale, _ = INIT_SCALES['unit']
    dtype = jnp.dtype(reranker.dtype)
    return BlockShape(num_layers, width, num_heads, mlp=reranker.activation, init_scale=init_scale, dtype=dtype)

  image = ImageEncoder(
    image_size=config.data.image_size,
    patch_size=reranker.patch_size,
    stem=reranker.stem,
    shape=shape(reranker.image_num_layers, reranker.image_width, reranker.image_num_heads),
    out_dim=reranker.embed_dim,
    mean=reranker.pixel_mean,
    std=reranker.pixel_std,
  )
  text = TextEncoder(
    vocab_size=text_vocab_size,
    length=config.tokenizer.text_length,
    shape=shape(reranker.text_num_layers, reranker.text_width, reranker.text_num_heads),
    out_dim=reranker.embed_dim,
    end_of_text='largest_id' if config.tokenizer.kind == 'clip' else 'first_pad',
  )
  return Reranker(image, text)


# The initializers of the parts of a model directory, which `stages.STAGES` names. All return boxed parameters.


def init_dvae(config: Config, text_vocab_size: int, ngrams: list[int], key: jax.Array) -> Any:
  """The dVAE's parameters."""
  del text_vocab_size, ngrams
  image = jnp.zeros((1, config.data.image_size, config.data.image_size, 3), jnp.uint8)
  return make_dvae(config.dvae).init(key, image)['params']


def init_prior(config: Config, text_vocab_size: int, ngrams: list[int], key: jax.Array) -> Any:
  """The prior's parameters."""
  del ngrams
  return make_prior(config, text_vocab_size).init(key)


def init_sequence_model(config: Config, text_vocab_size: int, ngrams: list[int], key: jax.Array) -> Any:
  """The sequence model's parameters; for n-grams an empty table with `ngrams` entries of each order."""
  model = make_sequence_model(config, text_vocab_size)
  flat_model = model.inner if isinstance(model, StreamModel) else model
  return flat_model.empty(ngrams) if isinstance(flat_model, Ngram) else flat_model.init(key)


def init_reranker(config: Config, text_vocab_size: int, ngrams: list[int], key: jax.Array) -> Any:
  """The reranker's parameters."""
  del ngrams
  return reranker.init(make_reranker(config, text_vocab_size), key)
