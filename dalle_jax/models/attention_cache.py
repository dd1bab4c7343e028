"""The cache of keys and values for decoding, no larger than the layer's attention pattern needs.

A cache holds the text slots, followed by one ring buffer for each class of image slots. `attention.Pattern.stride`
defines the classes. A ring is as long as the pattern reaches back:

- A row layer keeps the text and the last `grid_size` + 1 image slots.
- A conv layer keeps the text and the image slots back to the start of its window.
- A column layer keeps the text and all columns, but a step reads only the text and its own column.
- A full layer keeps and reads everything.

Below, a *slot* is a position in the sequence and a *place* is a position in the cache.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models.attention import Pattern

Cache = dict[str, jax.Array]  # 'key' and 'value', each [B, size, N, H]: the text slots, then one ring per class


def ring_length(pattern: Pattern) -> int:
  """Number of places in the ring of one class: the current slot and all slots back to the pattern's largest offset."""
  return pattern.offsets[-1] // pattern.stride + 1 if pattern.offsets else 0


def size(pattern: Pattern) -> int:
  """Number of places in the cache."""
  return pattern.text_length + pattern.stride * ring_length(pattern)


def from_prefix(pattern: Pattern, key: jax.Array, value: jax.Array) -> Cache:
  """Build the cache from the keys and values of a prefix.

  Args:
    pattern: the layer's attention pattern.
    key: keys of the slots 0 to P - 1, [B, P, N, H].
    value: values of the same slots, [B, P, N, H].
  """
  one_empty = ((0, 0), (0, 1), (0, 0), (0, 0))  # zeros at index -1, for the places that hold no slot yet
  slots = _slots_by_place(pattern, key.shape[1])
  return {name: jnp.pad(x, one_empty)[:, slots] for name, x in (('key', key), ('value', value))}


@functools.cache
def _slots_by_place(pattern: Pattern, length: int) -> np.ndarray:
  """The slot that each place of the cache holds after `length` slots, int [size]; -1 for empty places."""
  slots = np.full(size(pattern), -1)
  text = min(length, pattern.text_length)
  slots[:text] = np.arange(text)
  for slot in range(pattern.text_length, length):  # later slots overwrite slots that the pattern no longer reaches
    slots[_place(pattern, slot)] = slot
  return slots


def _place(pattern: Pattern, slot):
  """The place in the cache that holds `slot`, an integer or an integer array."""
  where = jnp.where if isinstance(slot, jax.Array) else np.where
  image = where(slot < pattern.text_length, 0, slot - pattern.text_length)
  index_in_class, ring = image // pattern.stride, max(ring_length(pattern), 1)
  place = pattern.text_length + image % pattern.stride * ring + index_in_class % ring
  return where(slot < pattern.text_length, slot, place)


def attend(
  pattern: Pattern, query: jax.Array, key: jax.Array, value: jax.Array, cache: Cache, index: jax.Array
) -> tuple[jax.Array, Cache]:
  """Attend from one slot to itself and to the earlier slots in the cache.

  Args:
    pattern: the layer's attention pattern.
    query: query of the slot `index`, [B, 1, N, H].
    key: key of the same slot, [B, 1, N, H].
    value: value of the same slot, [B, 1, N, H].
    cache: cache of the slots before `index`.
    index: int32 scalar.

  Returns:
    The attention output [B, 1, N, H], and the cache with the slot `index` added.
  """
  place = _place(pattern, jnp.asarray(index))
  new = {'key': key, 'value': value}
  cache = {name: jax.lax.dynamic_update_slice_in_dim(cache[name], x, place, axis=1) for name, x in new.items()}
  sections, scores = _read(pattern, cache, index), []
  for section in sections:
    score = jnp.einsum('BTNH,BSNH->BNTS', query, section['key'], preferred_element_type=jnp.float32)
    scores.append(jnp.where(section['mask'], score * query.shape[-1] ** -0.5, -jnp.inf))
  weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(value.dtype)
  begin = 0
  mixed: jax.Array | int = 0
  for section in sections:
    end = begin + section['mask'].size
    mixed += jnp.einsum('BNTS,BSNH->BTNH', weights[..., begin:end], section['value'])
    begin = end
  assert isinstance(mixed, jax.Array)  # there is at least one section
  return mixed, cache


def _read(pattern: Pattern, cache: Cache, index: jax.Array) -> list[dict[str, jax.Array]]:
  """The sections of the cache that the slot `index` reads.

  Returns:
    One or two dicts with 'key' and 'value', each [B, S, N, H], and 'mask', bool [S], True for the places that the slot
    attends to. With a stride of 1 there is one section, the whole cache. Otherwise there are two sections: the text,
    and the ring of the slot's class.
  """
  text, ring = pattern.text_length, ring_length(pattern)
  text_mask = jnp.arange(text) <= index
  image = jnp.maximum(index - text, 0)
  index_in_class = image // pattern.stride
  age = (index_in_class - jnp.arange(ring)) % max(ring, 1)  # strides between the slot in each place and the current one
  in_pattern = np.isin(np.arange(ring) * pattern.stride, pattern.offsets)  # by age
  ring_mask = (index >= text) & (age <= index_in_class) & jnp.asarray(in_pattern)[age]
  if pattern.stride == 1:
    return [{**cache, 'mask': jnp.concatenate([text_mask, ring_mask])}]
  begin = text + image % pattern.stride * ring
  class_ring = {name: jax.lax.dynamic_slice_in_dim(x, begin, ring, axis=1) for name, x in cache.items()}
  return [
    {**{name: x[:, :text] for name, x in cache.items()}, 'mask': text_mask},
    {**class_ring, 'mask': ring_mask},
  ]
