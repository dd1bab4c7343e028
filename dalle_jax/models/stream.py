"""Streams of text tokens followed by image tokens, and any sequence model as a model of them.

A stream holds `text_length` text ids and `grid_size`^2 image ids in raster order. A caption of n <= text_length - 1
ids is followed by pads (id 0), so the last text id is always a pad. Image ids are offset by `text_vocab_size`. With a
`text_length` and a `text_vocab_size` of 0 a stream is an image alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.models.layout import Layout
from dalle_jax.models.sequence import SequenceModel

PAD = 0


class TokenStream(Layout):
  """The layout of a stream: what models of it share, whatever computes their logits."""

  text_vocab_size: int
  image_vocab_size: int

  @property
  def vocab_size(self) -> int:
    return self.text_vocab_size + self.image_vocab_size

  def prefix(self, text: jax.Array) -> jax.Array:
    """Text ids [B, text_length - 1] with the last pad: [B, text_length]. Without text slots, [B, 0] as it is."""
    end = jnp.full((text.shape[0], min(self.text_length, 1)), PAD, text.dtype)
    return jnp.concatenate([text, end], axis=1)

  def stream(self, text: jax.Array, image: jax.Array) -> jax.Array:
    """Text ids [B, text_length - 1] and image ids [B, image_length] as one stream [B, length]."""
    return jnp.concatenate([self.prefix(text), image + self.text_vocab_size], axis=1)

  def codes(self, tokens: jax.Array) -> jax.Array:
    """The image ids [B, T - text_length] of streams [B, T], T >= text_length."""
    return tokens[:, self.text_length :] - self.text_vocab_size

  def counted(self, tokens: jax.Array) -> jax.Array:
    """Which of the tokens of streams [B, length] a loss counts: all but the pads after the first. Bool."""
    image = jnp.ones((tokens.shape[0], self.image_length), bool)
    return jnp.concatenate([counted_text(tokens[:, : self.text_length]), image], axis=1)

  def possible(self, logits: jax.Array, index: jax.Array, ended: jax.Array) -> jax.Array:
    """Logits [B, T, V] with -inf for what cannot come.

    Text positions take text ids, of which only the pad may follow a pad or come last, and image positions image ids.

    Args:
      logits: over the stream's ids.
      index: [T], the places in the stream of the tokens that they predict.
      ended: bool [B, T]: the token before is a pad, so that its caption has ended.
    """
    ids = jnp.arange(self.vocab_size)
    in_text = index < self.text_length
    of_kind = (ids < self.text_vocab_size)[None] == in_text[:, None]
    only_pad = (ended | (index == self.text_length - 1)[None]) & in_text[None]
    allowed = of_kind[None] & ((ids == PAD)[None, None] | ~only_pad[..., None])
    return jnp.where(allowed, logits, -jnp.inf)


def counted_text(text: jax.Array) -> jax.Array:
  """Which of the text ids [B, text_length] are counted: up to the first pad, which ends the caption. Bool."""
  return jnp.pad(text != PAD, ((0, 0), (1, 0)), constant_values=True)[:, : text.shape[1]]


@dataclasses.dataclass(frozen=True)
class StreamModel(TokenStream):
  """A model of one flat vocabulary as a model of streams (see `models.sequence`).

  Its distribution is the inner model's, restricted to the ids that can come. Where the inner model holds all of them
  for impossible, they are equally likely.
  """

  inner: SequenceModel
  text_vocab_size: int
  image_vocab_size: int
  text_length: int
  grid_size: int

  def __post_init__(self) -> None:
    assert (self.inner.length, self.inner.vocab_size) == (self.length, self.vocab_size)

  def init(self, key: jax.Array) -> Any:
    return self.inner.init(key)

  def decode_params(self, params: Any) -> Any:
    return self.inner.decode_params(params)

  def possible(self, logits: jax.Array, index: jax.Array, ended: jax.Array) -> jax.Array:
    found = super().possible(logits, index, ended)
    none = jnp.max(found, axis=-1, keepdims=True) == -jnp.inf
    return jnp.where(none, super().possible(jnp.zeros_like(logits), index, ended), found)

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    ended = jnp.pad(tokens[:, :-1] == PAD, ((0, 0), (1, 0)))
    return self.possible(self.inner.logits(params, tokens), jnp.arange(tokens.shape[1]), ended)

  def prefill(self, params: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
    inner, logits = self.inner.prefill(params, tokens)
    index = jnp.int32(tokens.shape[1])
    last = tokens[:, -1] if tokens.shape[1] else jnp.full(tokens.shape[0], PAD + 1)
    return {'inner': inner, 'index': index}, self._one(logits, index, last)

  def step(self, params: Any, cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
    inner, logits = self.inner.step(params, cache['inner'], token)
    index = cache['index'] + 1
    return {'inner': inner, 'index': index}, self._one(logits, index, token)

  def _one(self, logits: jax.Array, index: jax.Array, last: jax.Array) -> jax.Array:
    """Logits [B, V] of the token at `index`, after the token `last` [B]."""
    return self.possible(logits[:, None], index[None], (last == PAD)[:, None])[:, 0]
