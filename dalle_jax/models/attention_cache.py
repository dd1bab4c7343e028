"""The keys and values that decoding keeps, as many as the layer's pattern can still see.

A cache holds the text slots, and for each class of image slots (see `attention.Pattern.stride`) a ring as long as the
pattern reaches back. So a row layer keeps the text and the last `grid_size` + 1 slots; a conv layer the text and as
many slots as its window reaches back; a column layer keeps all columns, but a step reads only its own; a full layer
keeps and reads everything.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models.attention import Pattern

Cache = dict[str, jax.Array]  # 'key' and 'value', [B, size, N, H]: text slots, then the ring of each class


def ring_length(pattern: Pattern) -> int:
  """Slots that a class keeps: itself and as far back as the pattern sees; at most all it has."""
  return pattern.offsets[-1] // pattern.stride + 1 if pattern.offsets else 0


def size(pattern: Pattern) -> int:
  """Slots of the cache."""
  return pattern.text_length + pattern.stride * ring_length(pattern)


def from_prefix(pattern: Pattern, key: jax.Array, value: jax.Array) -> Cache:
  """The cache after a prefix.

  Args:
    pattern: the layer's.
    key: [B, P, N, H], of the slots 0..P-1.
    value: [B, P, N, H].
  """
  one_empty = ((0, 0), (0, 1), (0, 0), (0, 0))
  held = _held(pattern, key.shape[1])
  return {name: jnp.pad(x, one_empty)[:, held] for name, x in (('key', key), ('value', value))}


@functools.cache
def _held(pattern: Pattern, length: int) -> np.ndarray:
  """Which slot of a prefix each place of the cache holds, int [size]; -1, the last, for none."""
  held = np.full(size(pattern), -1)
  text = min(length, pattern.text_length)
  held[:text] = np.arange(text)
  for slot in range(pattern.text_length, length):  # later slots overwrite those that are out of sight
    held[_place(pattern, slot)] = slot
  return held


def _place(pattern: Pattern, index):
  """Where the cache holds the slot `index`, a number or an array."""
  where = jnp.where if isinstance(index, jax.Array) else np.where
  image = where(index < pattern.text_length, 0, index - pattern.text_length)
  in_class, ring = image // pattern.stride, max(ring_length(pattern), 1)
  place = pattern.text_length + image % pattern.stride * ring + in_class % ring
  return where(index < pattern.text_length, index, place)


def attend(
  pattern: Pattern, query: jax.Array, key: jax.Array, value: jax.Array, cache: Cache, index: jax.Array
) -> tuple[jax.Array, Cache]:
  """One query over what it sees of the slots so far.

  Args:
    pattern: the layer's.
    query: [B, 1, N, H], like key and value: those of the slot `index`.
    key: see above.
    value: see above.
    cache: filled up to `index`.
    index: int32 scalar.

  Returns:
    The attention output [B, 1, N, H] and the cache with this slot in it.
  """
  place = _place(pattern, jnp.asarray(index))
  new = {'key': key, 'value': value}
  cache = {name: jax.lax.dynamic_update_slice_in_dim(cache[name], x, place, axis=1) for name, x in new.items()}
  parts, scores = _read(pattern, cache, index), []
  for part in parts:
    score = jnp.einsum('BTNH,BSNH->BNTS', query, part['key'], preferred_element_type=jnp.float32)
    scores.append(jnp.where(part['seen'], score * query.shape[-1] ** -0.5, -jnp.inf))
  weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(value.dtype)
  begin, mixed = 0, 0
  for part in parts:
    end = begin + part['seen'].size
    mixed += jnp.einsum('BNTS,BSNH->BTNH', weights[..., begin:end], part['value'])
    begin = end
  return mixed, cache


def _read(pattern: Pattern, cache: Cache, index: jax.Array) -> list[dict[str, jax.Array]]:
  """What the slot `index` reads, in one part or two: keys, values, and which of them it sees, bool [S]."""
  text, ring = pattern.text_length, ring_length(pattern)
  seen_text = jnp.arange(text) <= index
  image = jnp.maximum(index - text, 0)
  in_class = image // pattern.stride
  age = (in_class - jnp.arange(ring)) % max(ring, 1)  # of each place in the ring, in steps
  steps = np.isin(np.arange(ring) * pattern.stride, pattern.offsets)
  seen_ring = (index >= text) & (age <= in_class) & jnp.asarray(steps)[age]
  if pattern.stride == 1:
    return [{**cache, 'seen': jnp.concatenate([seen_text, seen_ring])}]
  begin = text + image % pattern.stride * ring
  of_class = {name: jax.lax.dynamic_slice_in_dim(x, begin, ring, axis=1) for name, x in cache.items()}
  return [
    {**{name: x[:, :text] for name, x in cache.items()}, 'seen': seen_text},
    {**of_class, 'seen': seen_ring},
  ]
