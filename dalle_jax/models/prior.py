"""The prior: a transformer over text tokens followed by image tokens (sections 2.2 and 2.3, appendix B.1).

Targets: a stream of text and image tokens (see `models.stream`).

Inputs: the targets shifted right, one per slot.

    slot 0                         start-of-text
    slot j, 0 < j < text_length    text id j - 1
    slot text_length               start-of-image
    later slots                    the previous image id

Each slot is embedded as the sum of a token embedding and position embeddings:

- A text slot adds the embedding of its position. If it holds a pad, the learned pad embedding of the slot replaces the
  whole sum.
- An image slot adds the embeddings of its row and column: the position of the image token that the slot predicts.
- With rotary positions, the blocks encode the positions. There are no position embeddings, but pads still have one
  embedding per slot.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models import transformer
from dalle_jax.models.layout import Layout
from dalle_jax.models.sequence import Tokens, chosen, token_nll
from dalle_jax.models.stream import PAD, TokenStream, counted_text


class Embeddings(nn.Module):
  """Token, position and pad embeddings, and the two output matrices."""

  text_vocab_size: int
  image_vocab_size: int
  text_length: int
  grid_size: int
  embed_dim: int
  init_scale: float
  learned_positions: bool
  dtype: jnp.dtype

  def setup(self) -> None:
    def table(name: str, axis: str, size: int, terms: int = 1) -> jax.Array:
      # The sum of several position embeddings has the same deviation as a single one (Child et al. 2019, section 6).
      scale = self.init_scale * (terms * self.embed_dim) ** -0.5
      init = nn.with_logical_partitioning(nn.initializers.normal(scale), (axis, 'embed'))
      return self.param(name, init, (size, self.embed_dim), jnp.float32)

    def head(name: str, size: int) -> jax.Array:
      init = nn.with_logical_partitioning(nn.initializers.zeros, ('embed', 'vocab'))
      return self.param(name, init, (self.embed_dim, size), jnp.float32)

    self.text_embedding = table('text_embedding', 'vocab', self.text_vocab_size)
    self.pad_embedding = table('pad_embedding', 'position', self.text_length)
    self.start_embedding = table('start_embedding', 'position', 2)  # start-of-text, start-of-image
    self.image_embedding = table('image_embedding', 'vocab', self.image_vocab_size)
    if self.learned_positions:
      self.text_position = table('text_position', 'position', self.text_length)
      self.row_embedding = table('row_embedding', 'position', self.grid_size, terms=2)
      self.column_embedding = table('column_embedding', 'position', self.grid_size, terms=2)
    self.text_kernel = head('text_kernel', self.text_vocab_size)
    self.image_kernel = head('image_kernel', self.image_vocab_size)

  def _look_up(self, table: jax.Array, ids: jax.Array) -> jax.Array:
    # Replicate the table. A gather from a table split over the vocabulary makes XLA rematerialise the table in full.
    return jnp.take(nn.with_logical_constraint(table, (None, None)), ids, axis=0)

  def _text_position(self, slot: jax.Array | int) -> jax.Array:
    """Position embeddings [..., D] of text slots [...]; zeros [D] with rotary positions."""
    return self.text_position[slot] if self.learned_positions else jnp.zeros(self.embed_dim)

  def _image_position(self, slot: jax.Array | int) -> jax.Array:
    """Position embeddings [..., D] of image slots [...], counted from 0; zeros [D] with rotary positions."""
    if not self.learned_positions:
      return jnp.zeros(self.embed_dim)
    return self.row_embedding[slot // self.grid_size] + self.column_embedding[slot % self.grid_size]

  def _text(self, text: jax.Array, slot: jax.Array) -> jax.Array:
    """Embed text ids [B, T] at text slots `slot` [T], which are all above 0. Returns [B, T, D]."""
    tokens = self._look_up(self.text_embedding, text)
    tokens += jnp.broadcast_to(self._text_position(slot), tokens.shape)
    return jnp.where((text == PAD)[..., None], self.pad_embedding[slot][None], tokens)

  def _image(self, token: jax.Array, slot: jax.Array) -> jax.Array:
    """Embed image ids [B, T], or probabilities [B, T, Vi], at image slots `slot` [T], all above 0: [B, T, D]."""
    is_id = jnp.issubdtype(token.dtype, jnp.integer)
    x = self._look_up(self.image_embedding, token) if is_id else token @ self.image_embedding
    return x + jnp.broadcast_to(self._image_position(slot), x.shape)

  def _start_of_image(self, batch: int) -> jax.Array:
    return jnp.broadcast_to(self.start_embedding[1] + self._image_position(0), (batch, 1, self.embed_dim))

  def text_slots(self, text: jax.Array) -> jax.Array:
    """Embed start-of-text and the text ids [B, P] in text slots 0 to P: [B, 1 + P, D]."""
    start = self.start_embedding[0] + self._text_position(0)
    start = jnp.broadcast_to(start, (text.shape[0], 1, self.embed_dim))
    return jnp.concatenate([start, self._text(text, 1 + jnp.arange(text.shape[1]))], axis=1)

  def image_slots(self, image: jax.Array) -> jax.Array:
    """Embed start-of-image and image ids [B, P], or points [B, P, Vi], in image slots 0 to P: [B, 1 + P, D]."""
    x = self._image(image, 1 + jnp.arange(image.shape[1]))
    return jnp.concatenate([self._start_of_image(image.shape[0]), x], axis=1)

  def slot(self, token: jax.Array, index: jax.Array) -> jax.Array:
    """Embed one stream token [B] in the slot `index` > 0, a text or an image slot: [B, 1, D]."""
    text = jnp.clip(token, 0, self.text_vocab_size - 1)[:, None]
    as_text = self._text(text, jnp.minimum(index, self.text_length - 1)[None])
    image = jnp.clip(token - self.text_vocab_size, 0, self.image_vocab_size - 1)[:, None]
    as_image = self._image(image, jnp.maximum(index - self.text_length, 0)[None])
    as_image = jnp.where(index == self.text_length, self._start_of_image(token.shape[0]), as_image)
    return jnp.where(index < self.text_length, as_text, as_image)

  def text_logits(self, x: jax.Array) -> jax.Array:
    """The stack's outputs [..., D] to logits over text ids, float32 [..., text_vocab_size]."""
    return jnp.matmul(x, self.text_kernel.astype(self.dtype), preferred_element_type=jnp.float32)

  def image_logits(self, x: jax.Array) -> jax.Array:
    """The stack's outputs [..., D] to logits over image ids, float32 [..., image_vocab_size]."""
    return jnp.matmul(x, self.image_kernel.astype(self.dtype), preferred_element_type=jnp.float32)

  def stream_logits(self, x: jax.Array) -> jax.Array:
    """The stack's outputs [..., D] to logits [..., V] over all ids of the stream, including impossible ones."""
    return jnp.concatenate([self.text_logits(x), self.image_logits(x)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Prior(TokenStream):
  """The prior as a sequence model (see `models.sequence` for the interface), plus its training logits."""

  text_vocab_size: int
  image_vocab_size: int
  transformer: transformer.Transformer
  # Initial standard deviation of embeddings, in units of embed_dim^-1/2 (Child et al. 2019, section 6).
  embedding_init_scale: float = 0.125

  @property
  def layout(self) -> Layout:
    """The pattern of the first layer. All layers have the same slots."""
    return self.transformer.patterns[0]

  @property
  def text_length(self) -> int:
    return self.layout.text_length

  @property
  def grid_size(self) -> int:
    return self.layout.grid_size

  @property
  def embeddings(self) -> Embeddings:
    shape = self.transformer.shape
    return Embeddings(
      self.text_vocab_size, self.image_vocab_size, self.text_length, self.grid_size, shape.embed_dim,
      self.embedding_init_scale, not shape.rotary, shape.dtype,
    )  # fmt: skip

  def _embed(self, params: Any, *args: Any, method: str) -> jax.Array:
    return self.embeddings.apply({'params': params['embeddings']}, *args, method=method)

  def init(self, key: jax.Array) -> Any:
    """Parameters {'embeddings', 'transformer'}, boxed with their logical axis names."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    embed_key, stack_key = jax.random.split(key)
    embeddings = self.embeddings.init(embed_key, tokens, method='text_slots')['params']
    stack = self.transformer.init(stack_key, jnp.zeros((1, self.length, self.transformer.shape.embed_dim)))['params']
    return {'embeddings': embeddings, 'transformer': stack}

  def _slots(self, params: Any, text: jax.Array, image: jax.Array) -> jax.Array:
    """Text ids [B, text_length - 1] and image ids [B, image_length] to the stack's inputs [B, length, D]."""
    slots = [
      self._embed(params, text, method='text_slots'),
      self._embed(params, image[:, :-1], method='image_slots'),
    ]
    return nn.with_logical_constraint(jnp.concatenate(slots, axis=1), ('batch', 'length', 'activation'))

  def split_logits(self, params: Any, text: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Training logits. Text slots score text ids only, and image slots score image ids only.

    Args:
      params: parameters as returned by `init`, unboxed.
      text: text ids [B, text_length - 1].
      image: image ids [B, image_length], or points on the simplex over image ids, float [B, image_length, Vi].

    Returns:
      Text logits [B, text_length, Vt] and image logits [B, image_length, Vi].
    """
    x = self.transformer.apply({'params': params['transformer']}, self._slots(params, text, image))
    text_logits = self._embed(params, x[:, : self.text_length], method='text_logits')
    image_logits = self._embed(params, x[:, self.text_length :], method='image_logits')
    axes = ('batch', 'length', 'vocab')
    return nn.with_logical_constraint(text_logits, axes), nn.with_logical_constraint(image_logits, axes)

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Whole streams [B, length] to logits [B, length, V]."""
    x = self.transformer.apply({'params': params['transformer']}, self.embed(params, tokens))
    return self.read_out(params, x, tokens)

  def embed(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Whole streams [B, length] to the inputs [B, length, D] of the transformer stack."""
    return self._slots(params, tokens[:, : self.text_length - 1], self.codes(tokens))

  def read_out(self, params: Any, x: jax.Array, tokens: jax.Array) -> jax.Array:
    """Convert the stack's outputs [B, length, D] for whole streams [B, length] to logits [B, length, V]."""
    # Inputs are shifted right: slot t holds token t - 1, and slot 0 holds start-of-text.
    ended = jnp.pad(tokens[:, :-1] == PAD, ((0, 0), (1, 0)))
    return self._stream_logits(params, x, jnp.arange(self.length), ended)

  def _stream_logits(self, params: Any, x: jax.Array, index: jax.Array, ended: jax.Array) -> jax.Array:
    """The stack's outputs to logits [B, T, V], with -inf for impossible tokens.

    Args:
      params: parameters.
      x: the stack's outputs [B, T, D].
      index: slots of the outputs, [T].
      ended: bool [B, T]: whether the slot holds a pad, so that the caption has ended.
    """
    return self.possible(self._embed(params, x, method='stream_logits'), index, ended)

  def decode_params(self, params: Any) -> Any:
    """Parameters with the layers as a list (see `transformer.unstack`)."""
    return {
      'embeddings': params['embeddings'],
      'transformer': transformer.unstack(self.transformer, params['transformer']),
    }

  def prefill(self, params: Any, tokens: Tokens) -> tuple[Any, jax.Array]:
    """Read a prefix [B, P] of a stream, P < length; `params` as returned by `decode_params`.

    Returns:
      The cache, and the logits [B, V] of token P.
    """
    num_text = min(tokens.shape[1], self.text_length - 1)
    slots = [self._embed(params, tokens[:, :num_text], method='text_slots')]
    if tokens.shape[1] >= self.text_length:
      slots.append(self._embed(params, self.codes(tokens), method='image_slots'))
    x = jnp.concatenate(slots, axis=1)
    layers, x = transformer.prefill(self.transformer, params['transformer'], x)
    index = jnp.asarray([tokens.shape[1]], jnp.int32)
    ended = tokens[:, -1:] == PAD if tokens.shape[1] else jnp.zeros((tokens.shape[0], 1), bool)
    logits = self._stream_logits(params, x[:, -1:], index, ended)[:, 0]
    return {'layers': layers, 'index': index[0]}, logits

  def step(self, params: Any, cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
    """Append one stream token [B]; `params` as returned by `decode_params`.

    Returns:
      The cache, and the logits [B, V] of the next token.
    """
    index = cache['index'] + 1  # the token's slot
    x = self._embed(params, token, index, method='slot')
    layers, x = transformer.step(self.transformer, params['transformer'], x, cache['layers'], index)
    logits = self._stream_logits(params, x, index[None], (token == PAD)[:, None])[:, 0]
    return {'layers': layers, 'index': index}, logits


def losses(
  text_logits: jax.Array,
  image_logits: jax.Array,
  text: jax.Array,
  image: jax.Array,
  captioned: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Cross-entropies in nats per token (section 2.2), and the terms of the z-loss (Chameleon, section 2.3).

  The counted text targets are the caption's tokens and the first pad, which ends the caption. Later pads are certain
  and not counted. Examples without a caption have no counted text targets.

  Args:
    text_logits: [B, text_length, Vt].
    image_logits: [B, image_length, Vi].
    text: text ids [B, text_length - 1].
    image: image ids [B, image_length].
    captioned: bool [B], whether the example has a caption; None means that all have.

  Returns:
    A dict of float32 scalars. 'text' and 'image' are cross-entropies in nats per token: means over the counted text
    targets and over the image targets of the batch. 'text_z' and 'image_z' are the means of (ln sum exp logits)^2 over
    the same targets.
  """
  targets, counted = _text_targets(text)
  if captioned is not None:
    counted &= captioned[:, None]

  def text_mean(x: jax.Array) -> jax.Array:
    return jnp.sum(x * counted) / jnp.maximum(jnp.sum(counted), 1)

  text_z, image_z = jax.nn.logsumexp(text_logits, axis=-1), jax.nn.logsumexp(image_logits, axis=-1)
  return {
    'text': text_mean(text_z - chosen(text_logits, targets)),
    'image': jnp.mean(image_z - chosen(image_logits, image)),
    'text_z': text_mean(text_z**2),
    'image_z': jnp.mean(image_z**2),
  }


def count_text(text: jax.Array, captioned: jax.Array | None = None) -> jax.Array:
  """The number of text targets that `losses` counts, a float32 scalar.

  Args:
    text: text ids [B, text_length - 1].
    captioned: bool [B], whether the example has a caption; None means that all have.
  """
  _, counted = _text_targets(text)
  if captioned is not None:
    counted &= captioned[:, None]
  return counted.sum().astype(jnp.float32)


def text_nats(text_logits: jax.Array, text: jax.Array) -> jax.Array:
  """-ln p(caption) in nats, [B]: the sum over the caption's tokens and the pad that ends it.

  Args:
    text_logits: [B, text_length, Vt].
    text: text ids [B, text_length - 1].
  """
  targets, counted = _text_targets(text)
  return jnp.sum(token_nll(text_logits, targets) * counted, axis=-1)


def _text_targets(text: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The targets of the text slots, ids [B, text_length], and the mask of counted targets, bool [B, text_length]."""
  targets = jnp.pad(text, ((0, 0), (0, 1)), constant_values=PAD)
  return targets, counted_text(targets)


def drop_captions(key: jax.Array, text: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
  """Replace some captions with pads, so that the model also learns to generate images without a caption.

  Classifier-free guidance uses logits with and without the caption (Ho and Salimans 2021). Make-A-Scene, section 3.3,
  applies it to autoregressive models.

  Args:
    key: chooses the captions to drop.
    text: text ids [B, text_length - 1].
    share: probability of dropping each caption.

  Returns:
    The text ids [B, text_length - 1], and bool [B]: whether each caption was kept.
  """
  kept = jax.random.uniform(key, text.shape[:1]) >= share
  return jnp.where(jnp.broadcast_to(kept[:, None], text.shape), text, PAD), kept
