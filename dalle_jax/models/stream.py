"""Streams of text tokens followed by image tokens, and a wrapper that restricts any sequence model to streams.

A stream holds `text_length` text ids, followed by `grid_size`^2 image ids in raster order. A caption has at most
text_length - 1 ids. Pads (id 0) fill the other text positions, so the last text id is always a pad. Image ids are
offset by `text_vocab_size`. If `text_length` and `text_vocab_size` are 0, a stream is an image without text.
"""

import dataclasses
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models.layout import Layout
from dalle_jax.models.sequence import SequenceModel, Tokens

PAD = 0  # the text id of pads


class TokenStream(Layout):
  """Base class of models of streams: conversion between ids and streams, and the mask of possible tokens."""

  text_vocab_size: int
  image_vocab_size: int

  @property
  def vocab_size(self) -> int:
    return self.text_vocab_size + self.image_vocab_size

  def prefix(self, text: jax.Array) -> jax.Array:
    """Append the last pad to text ids [B, text_length - 1]: [B, text_length]. If text_length is 0: [B, 0] to [B, 0]."""
    end = jnp.full((text.shape[0], min(self.text_length, 1)), PAD, text.dtype)
    return jnp.concatenate([text, end], axis=1)

  def stream(self, text: jax.Array, image: jax.Array) -> jax.Array:
    """Join text ids [B, text_length - 1] and image ids [B, image_length] to streams [B, length]."""
    return jnp.concatenate([self.prefix(text), image + self.text_vocab_size], axis=1)

  @overload
  def codes(self, tokens: jax.Array) -> jax.Array: ...

  @overload
  def codes(self, tokens: np.ndarray) -> np.ndarray: ...

  def codes(self, tokens: Tokens) -> Tokens:
    """The image ids [B, T - text_length] of streams [B, T], T >= text_length."""
    return tokens[:, self.text_length :] - self.text_vocab_size

  def counted(self, tokens: Tokens) -> jax.Array:
    """The mask of tokens that a loss counts, bool [B, length], for streams [B, length].

    It is True for all tokens but the pads after the first pad.
    """
    image = jnp.ones((tokens.shape[0], self.image_length), bool)
    return jnp.concatenate([counted_text(tokens[:, : self.text_length]), image], axis=1)

  def possible(self, logits: jax.Array, index: jax.Array, ended: jax.Array) -> jax.Array:
    """Set the logits [B, T, V] of impossible tokens to -inf.

    Text positions allow text ids, and image positions allow image ids. A text position after a pad and the last text
    position allow only the pad.

    Args:
      logits: logits over the stream's ids, [B, T, V].
      index: position in the stream of each predicted token, [T].
      ended: bool [B, T]: whether the previous token is a pad, so that the caption has ended.
    """
    ids = jnp.arange(self.vocab_size)
    in_text = index < self.text_length
    right_modality = (ids < self.text_vocab_size)[None] == in_text[:, None]
    only_pad = (ended | (index == self.text_length - 1)[None]) & in_text[None]
    allowed = right_modality[None] & ((ids == PAD)[None, None] | ~only_pad[..., None])
    return jnp.where(allowed, logits, -jnp.inf)


def counted_text(text: Tokens) -> jax.Array:
  """The mask of text ids [B, text_length] that a loss counts, bool: the caption and the first pad, which ends it."""
  return jnp.pad(text != PAD, ((0, 0), (1, 0)), constant_values=True)[:, : text.shape[1]]


@dataclasses.dataclass(frozen=True)
class StreamModel(TokenStream):
  """A sequence model over a single vocabulary, restricted to streams (see `models.sequence` for the interface).

  The distribution is the inner model's, restricted to possible ids and renormalised. If the inner model assigns the
  logit -inf to all possible ids, they are equally likely.
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
    masked = super().possible(logits, index, ended)
    all_impossible = jnp.max(masked, axis=-1, keepdims=True) == -jnp.inf
    return jnp.where(all_impossible, super().possible(jnp.zeros_like(logits), index, ended), masked)

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    ended = jnp.pad(tokens[:, :-1] == PAD, ((0, 0), (1, 0)))
    return self.possible(self.inner.logits(params, tokens), jnp.arange(tokens.shape[1]), ended)

  def prefill(self, params: Any, tokens: Tokens) -> tuple[Any, jax.Array]:
    inner, logits = self.inner.prefill(params, tokens)
    index = jnp.int32(tokens.shape[1])
    last = tokens[:, -1] if tokens.shape[1] else jnp.full(tokens.shape[0], PAD + 1)
    return {'inner': inner, 'index': index}, self._restrict(logits, index, last)

  def step(self, params: Any, cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
    inner, logits = self.inner.step(params, cache['inner'], token)
    index = cache['index'] + 1
    return {'inner': inner, 'index': index}, self._restrict(logits, index, token)

  def _restrict(self, logits: jax.Array, index: jax.Array, last: Tokens) -> jax.Array:
    """Restrict the logits [B, V] of the token at position `index` to possible ids; `last` [B] is the token before."""
    return self.possible(logits[:, None], index[None], (last == PAD)[:, None])[:, 0]
