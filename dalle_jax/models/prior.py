"""The prior: one stream of text tokens followed by image tokens (sections 2.2 and 2.3, appendix B.1).

Targets. A sequence is a stream as `models.stream` lays it out.

Slots. Inputs are the targets shifted right: slot 0 holds start-of-text, slot j < text_length the text id j - 1, slot
text_length start-of-image, and every later one the image id before it. Text slots add a position embedding, except
that a pad is replaced as a whole by the learned pad embedding of its slot. Image slots add the row and column
embeddings of the slot, that is, of the image token which the slot predicts. With rotary positions the blocks know
where slots are, and only the pads have embeddings of their own.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models import transformer
from dalle_jax.models.attention import Pattern
from dalle_jax.models.sequence import chosen, token_nll
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
    def table(name: str, axis: str, size: int, parts: int = 1) -> jax.Array:
      # Positions which are the sum of several parts have the deviation of one (Child et al. 2019, section 6).
      scale = self.init_scale * (parts * self.embed_dim) ** -0.5
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
      self.row_embedding = table('row_embedding', 'position', self.grid_size, parts=2)
      self.column_embedding = table('column_embedding', 'position', self.grid_size, parts=2)
    self.text_kernel = head('text_kernel', self.text_vocab_size)
    self.image_kernel = head('image_kernel', self.image_vocab_size)

  def _look_up(self, table: jax.Array, ids: jax.Array) -> jax.Array:
    # A gather from a table split over the vocabulary would make XLA rematerialise it in full.
    return jnp.take(nn.with_logical_constraint(table, (None, None)), ids, axis=0)

  def _text_position(self, slot: jax.Array | int) -> jax.Array:
    """Position embeddings [..., D] of text slots [...]; zeros [D] where the blocks rotate."""
    return self.text_position[slot] if self.learned_positions else jnp.zeros(self.embed_dim)

  def _image_position(self, slot: jax.Array | int) -> jax.Array:
    """The same of image slots."""
    if not self.learned_positions:
      return jnp.zeros(self.embed_dim)
    return self.row_embedding[slot // self.grid_size] + self.column_embedding[slot % self.grid_size]

  def _text(self, text: jax.Array, slot: jax.Array) -> jax.Array:
    """Text ids [B, T] in text slots [T] > 0: [B, T, D]."""
    tokens = self._look_up(self.text_embedding, text)
    tokens += jnp.broadcast_to(self._text_position(slot), tokens.shape)
    return jnp.where((text == PAD)[..., None], self.pad_embedding[slot][None], tokens)

  def _image(self, token: jax.Array, slot: jax.Array) -> jax.Array:
    """Image ids [B, T], or points on the simplex [B, T, Vi], in image slots [T] > 0: [B, T, D]."""
    is_id = jnp.issubdtype(token.dtype, jnp.integer)
    x = self._look_up(self.image_embedding, token) if is_id else token @ self.image_embedding
    return x + jnp.broadcast_to(self._image_position(slot), x.shape)

  def _start_of_image(self, batch: int) -> jax.Array:
    return jnp.broadcast_to(self.start_embedding[1] + self._image_position(0), (batch, 1, self.embed_dim))

  def text_slots(self, text: jax.Array) -> jax.Array:
    """Text ids [B, P] in slots 1..P, after start-of-text: [B, 1 + P, D]."""
    start = self.start_embedding[0] + self._text_position(0)
    start = jnp.broadcast_to(start, (text.shape[0], 1, self.embed_dim))
    return jnp.concatenate([start, self._text(text, 1 + jnp.arange(text.shape[1]))], axis=1)

  def image_slots(self, image: jax.Array) -> jax.Array:
    """Image ids [B, P], or points [B, P, Vi], in slots 1..P, after start-of-image: [B, 1 + P, D]."""
    x = self._image(image, 1 + jnp.arange(image.shape[1]))
    return jnp.concatenate([self._start_of_image(image.shape[0]), x], axis=1)

  def slot(self, token: jax.Array, index: jax.Array) -> jax.Array:
    """Embeds one stream token [B] in slot `index` > 0, text or image: [B, 1, D]."""
    text = jnp.clip(token, 0, self.text_vocab_size - 1)[:, None]
    as_text = self._text(text, jnp.minimum(index, self.text_length - 1)[None])
    image = jnp.clip(token - self.text_vocab_size, 0, self.image_vocab_size - 1)[:, None]
    as_image = self._image(image, jnp.maximum(index - self.text_length, 0)[None])
    as_image = jnp.where(index == self.text_length, self._start_of_image(token.shape[0]), as_image)
    return jnp.where(index < self.text_length, as_text, as_image)

  def text_logits(self, x: jax.Array) -> jax.Array:
    """[..., D] to float32 logits [..., text_vocab_size]."""
    return jnp.matmul(x, self.text_kernel.astype(self.dtype), preferred_element_type=jnp.float32)

  def image_logits(self, x: jax.Array) -> jax.Array:
    """[..., D] to float32 logits [..., image_vocab_size]."""
    return jnp.matmul(x, self.image_kernel.astype(self.dtype), preferred_element_type=jnp.float32)

  def stream_logits(self, x: jax.Array) -> jax.Array:
    """[..., D] to logits [..., V] over the stream's ids, also those that cannot come."""
    return jnp.concatenate([self.text_logits(x), self.image_logits(x)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Prior(TokenStream):
  """The prior as a sequence model (see `models.sequence`), plus its training logits."""

  text_vocab_size: int
  image_vocab_size: int
  transformer: transformer.Transformer
  embedding_init_scale: float = 0.125  # of all embeddings, times embed_dim^-1/2 (Child et al. 2019, section 6)

  @property
  def layout(self) -> Pattern:
    """Any of the layers' patterns: they differ in what a slot sees, not in the slots."""
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
    """The stack's inputs [B, length, D] for text [B, text_length - 1] and image ids [B, image_length]."""
    slots = [
      self._embed(params, text, method='text_slots'),
      self._embed(params, image[:, :-1], method='image_slots'),
    ]
    return nn.with_logical_constraint(jnp.concatenate(slots, axis=1), ('batch', 'length', 'activation'))

  def split_logits(self, params: Any, text: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Training logits: text [B, text_length, Vt] and image [B, image_length, Vi], each by its own matrix.

    Args:
      params: as `init` returns them, unboxed.
      text: ids [B, text_length - 1].
      image: ids [B, image_length]; or points on the simplex over them, float [B, image_length, Vi].
    """
    x = self.transformer.apply({'params': params['transformer']}, self._slots(params, text, image))
    text_logits = self._embed(params, x[:, : self.text_length], method='text_logits')
    image_logits = self._embed(params, x[:, self.text_length :], method='image_logits')
    axes = ('batch', 'length', 'vocab')
    return nn.with_logical_constraint(text_logits, axes), nn.with_logical_constraint(image_logits, axes)

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Logits [B, length, V] for whole streams [B, length]."""
    x = self.transformer.apply({'params': params['transformer']}, self.embed(params, tokens))
    return self.read_out(params, x, tokens)

  def embed(self, params: Any, tokens: jax.Array) -> jax.Array:
    """The stack's inputs [B, length, D] for whole streams [B, length]."""
    return self._slots(params, tokens[:, : self.text_length - 1], self.codes(tokens))

  def read_out(self, params: Any, x: jax.Array, tokens: jax.Array) -> jax.Array:
    """Logits [B, length, V] from the stack's outputs [B, length, D] for whole streams [B, length]."""
    # The first slot holds start-of-text, so a slot's token is the target before it.
    ended = jnp.pad(tokens[:, :-1] == PAD, ((0, 0), (1, 0)))
    return self._stream_logits(params, x, jnp.arange(self.length), ended)

  def _stream_logits(self, params: Any, x: jax.Array, index: jax.Array, ended: jax.Array) -> jax.Array:
    """Of outputs [B, T, D] of the slots `index` [T], whose tokens have ended captions or not [B, T]: [B, T, V]."""
    return self.possible(self._embed(params, x, method='stream_logits'), index, ended)

  def decode_params(self, params: Any) -> Any:
    """The layers taken apart; see `transformer.unstack`."""
    return {
      'embeddings': params['embeddings'],
      'transformer': transformer.unstack(self.transformer, params['transformer']),
    }

  def prefill(self, params: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
    """Reads a prefix [B, P] of a stream, P < length; `params` as `decode_params` returns them."""
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
    """Appends a stream token [B]; `params` as `decode_params` returns them."""
    index = cache['index'] + 1  # the token fills the slot after the one last read
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
  """Cross-entropies in nats per token (section 2.2), and the squares of the log-partition functions.

  Text targets are the caption's tokens and the first pad, which ends it; later pads follow with certainty and are not
  counted, nor is the text of an example without caption. Each mean is over the tokens of its own kind in the batch.

  Args:
    text_logits: [B, text_length, Vt].
    image_logits: [B, image_length, Vi].
    text: ids [B, text_length - 1].
    image: ids [B, image_length].
    captioned: bool [B]; None: all are.

  Returns:
    Float32 scalars 'text' and 'image', in nats per token, and 'text_z' and 'image_z', the means of
    (ln sum exp logits)^2 over the same tokens (Chameleon, section 2.3).
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


def text_nats(text_logits: jax.Array, text: jax.Array) -> jax.Array:
  """-ln p(caption) in nats, [B]: of its tokens and the pad that ends it.

  Args:
    text_logits: [B, text_length, Vt].
    text: ids [B, text_length - 1].
  """
  targets, counted = _text_targets(text)
  return jnp.sum(token_nll(text_logits, targets) * counted, axis=-1)


def _text_targets(text: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Targets of the text slots, ids [B, text_length], and which of them are counted: up to the first pad."""
  targets = jnp.pad(text, ((0, 0), (0, 1)), constant_values=PAD)
  return targets, counted_text(targets)


def drop_captions(key: jax.Array, text: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
  """Replaces a share of captions with nothing but pads, so that the model also learns images without a caption.

  Guidance without a classifier compares the two (Ho and Salimans 2021; for these models Make-A-Scene, section 3.3).

  Returns:
    Text ids [B, text_length - 1], and bool [B]: whether the caption was kept.
  """
  kept = jax.random.uniform(key, text.shape[:1]) >= share
  return jnp.where(jnp.broadcast_to(kept[:, None], text.shape), text, PAD), kept
