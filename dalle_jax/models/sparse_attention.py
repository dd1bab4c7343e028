"""Attention whose time and memory follow the keys that are seen, not the square of the sequence.

Image slots fall into the classes that the pattern's stride makes (columns become contiguous, as in figure 11c of the
paper). Within a class, queries are cut into blocks, and for each run of offsets a block needs one short window of
keys. Scores exist for these windows and for the text only. One softmax runs over all of them together (the paper's
footnote 7): the parts share a maximum, and their sums are added before the division.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models import attention
from dalle_jax.models.attention import Pattern

BLOCK = 32  # queries that share a window of keys, as in the paper's kernels
SHORT = 256  # slots up to which the dense computation is faster, whatever the pattern


def attend(pattern: Pattern, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Attention by the pattern, in whichever way is faster; arguments and result as for `attend_in_blocks`."""
  length = query.shape[1]
  image_length = length - pattern.text_length
  plan = _plan(pattern, image_length) if image_length > 0 else None
  if length <= SHORT or plan is None or (plan.num_blocks, plan.stride) == (1, 1):
    return attention.attend(query, key, value, pattern.mask()[:length, :length])
  return attend_in_blocks(pattern, query, key, value)


def attend_in_blocks(pattern: Pattern, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Causal attention over a sequence, or any prefix of it, by the pattern.

  Args:
    pattern: what each slot sees.
    query: [B, P, N, H], P <= pattern.length; slot t is at position t.
    key: [B, P, N, H].
    value: [B, P, N, H].

  Returns:
    [B, P, N, H] in the dtype of `value`; what `attention.attend` gives with `pattern.mask()`, within rounding.
  """
  length, text_length = query.shape[1], min(query.shape[1], pattern.text_length)
  text = attention.attend(*(x[:, :text_length] for x in (query, key, value)), np.tri(text_length, dtype=bool))
  if length == text_length:
    return text
  plan = _plan(pattern, length - text_length)
  by_class = [plan.split(x[:, text_length:]) for x in (query, key, value)]
  text_keys = [x[:, :text_length].swapaxes(1, 2) for x in (key, value)]
  mixed = plan.join(_attend_image(plan, *by_class, *text_keys))
  return jnp.concatenate([text, mixed], axis=1)


@dataclasses.dataclass(frozen=True)
class _Plan:
  """How the image slots of a prefix are cut."""

  length: int  # image slots
  stride: int  # classes, of which slot i is in number i % stride
  steps: tuple[int, ...]  # the offsets in units of the stride
  runs: tuple[tuple[int, int], ...]  # intervals of steps, each with a window of its own
  block: int  # queries in a block
  num_blocks: int  # in a class

  def split(self, x: jax.Array) -> jax.Array:
    """Slots [B, length, N, H] by class, filled up to whole blocks: [B, N, stride, num_blocks * block, H]."""
    size = self.num_blocks * self.block
    x = jnp.pad(x, ((0, 0), (0, size * self.stride - self.length), (0, 0), (0, 0)))
    return x.reshape(x.shape[0], size, self.stride, *x.shape[2:]).transpose(0, 3, 2, 1, 4)

  def join(self, x: jax.Array) -> jax.Array:
    """The inverse of `split`."""
    x = x.transpose(0, 3, 2, 1, 4)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : self.length]

  def blocks(self, x: jax.Array) -> jax.Array:
    """[..., num_blocks * block, H] to [..., num_blocks, block, H]."""
    return x.reshape(*x.shape[:-2], self.num_blocks, self.block, x.shape[-1])

  def windows(self, x: jax.Array, first: int, last: int) -> jax.Array:
    """The keys or values [..., num_blocks * block, H] that a run needs: [..., num_blocks, width, H]."""
    if self.num_blocks == 1:  # one block needs no key before the first
      return x[..., None, : self.block - first, :]
    reach, block = last - first, self.block
    extra = -(-reach // block)  # blocks beyond its own that a window reaches into
    # In front `last` slots that are not there, so that the window of block c starts at c * block.
    room = (self.num_blocks + extra) * block
    x = x[..., : room - last, :]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(last, room - last - x.shape[-2]), (0, 0)])
    x = x.reshape(*x.shape[:-2], self.num_blocks + extra, block, x.shape[-1])
    parts = [x[..., i : i + self.num_blocks, :, :] for i in range(extra + 1)]
    return jnp.concatenate(parts, axis=-2)[..., : block + reach, :]

  def seen(self, first: int, last: int) -> jax.Array:
    """Bool [num_blocks, block, width]: which keys of a run's windows each query sees."""
    before = 0 if self.num_blocks == 1 else last  # how far the window starts before its block
    query, key = np.arange(self.block)[:, None], np.arange(before + self.block - first) - before
    in_run = np.isin(query - key, [step for step in self.steps if first <= step <= last])
    exists = np.arange(self.num_blocks)[:, None] * self.block + key >= 0
    return jnp.asarray(in_run)[None] & jnp.asarray(exists)[:, None]


@functools.cache
def _plan(pattern: Pattern, length: int) -> _Plan:
  in_class = -(-length // pattern.stride)
  steps = tuple(offset // pattern.stride for offset in pattern.offsets if offset < in_class * pattern.stride)
  runs = tuple(run for run in pattern.runs if run[0] <= steps[-1])
  if sum(last - first + BLOCK for first, last in runs) < in_class:
    return _Plan(length, pattern.stride, steps, runs, BLOCK, -(-in_class // BLOCK))
  # Windows would hold more keys than the class has: all of it is one block with one window.
  return _Plan(length, pattern.stride, steps, ((0, steps[-1]),), in_class, 1)


def _attend_image(
  plan: _Plan, query: jax.Array, key: jax.Array, value: jax.Array, text_key: jax.Array, text_value: jax.Array
) -> jax.Array:
  """Image slots over the text and their windows.

  Args:
    plan: how the slots are cut.
    query: [B, N, stride, num_blocks * block, H], and so key and value.
    key: see above.
    value: see above.
    text_key: [B, N, T, H], and so text_value.
    text_value: see above.

  Returns:
    [B, N, stride, num_blocks * block, H].
  """
  scale = query.shape[-1] ** -0.5
  flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
  text_scores = jnp.einsum('BNQH,BNTH->BNQT', flat, text_key, preferred_element_type=jnp.float32) * scale
  blocks, scores = plan.blocks(query), []
  for run in plan.runs:
    windows = plan.windows(key, *run)
    score = jnp.einsum('BNSCQH,BNSCKH->BNSCQK', blocks, windows, preferred_element_type=jnp.float32) * scale
    scores.append(jnp.where(plan.seen(*run), score, -jnp.inf))
  tops = [score.max(-1).reshape(text_scores.shape[:-1]) for score in scores]
  top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops, text_scores.max(-1, initial=-jnp.inf)))[..., None]
  weights = jnp.exp(text_scores - top)
  total = weights.sum(-1)
  mixed = jnp.einsum('BNQT,BNTH->BNQH', weights.astype(value.dtype), text_value, preferred_element_type=jnp.float32)
  for run, score in zip(plan.runs, scores, strict=True):
    weights = jnp.exp(score - top.reshape(*score.shape[:-1], 1))
    total += weights.sum(-1).reshape(total.shape)
    part = jnp.einsum(
      'BNSCQK,BNSCKH->BNSCQH', weights.astype(value.dtype), plan.windows(value, *run),
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    mixed += part.reshape(mixed.shape)
  return (mixed / total[..., None]).astype(value.dtype).reshape(query.shape)
