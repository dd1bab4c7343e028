"""Attention whose time and memory follow the keys that are seen, not the square of the sequence.

Image slots fall into the classes that the pattern's stride makes (columns become contiguous, as in figure 11c of the
paper). Within a class, queries are cut into blocks, and for each run of offsets a block needs one short window of
keys. Scores exist for these windows and for the text only. One softmax runs over all of them together (the paper's
footnote 7): the parts share a maximum, and their sums are added before the division.

Long sequences are computed one part after another, and a part's scores again for its gradient: the memory for scores
then does not grow with the sequence, and all memory grows linearly with it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models import attention
from dalle_jax.models.attention import Pattern, Unmasked

BLOCK = 32  # queries that share a window of keys unless it is said otherwise, as in the paper's kernels
SHORT = 256  # slots up to which the dense computation is faster, whatever the pattern
PART = 2048  # image slots, about, whose scores exist at one time


def attend(
  pattern: Pattern | Unmasked, query: jax.Array, key: jax.Array, value: jax.Array, block: int = BLOCK
) -> jax.Array:
  """Attention by the pattern, in whichever way is faster; arguments and result as for `attend_in_blocks`."""
  length = query.shape[1]
  image_length = length - pattern.text_length
  plan = _plan(pattern, image_length, block) if image_length > 0 else None
  if length <= SHORT or plan is None or (plan.num_blocks, plan.stride) == (1, 1):
    return attention.attend(query, key, value, pattern.mask()[:length, :length])
  return attend_in_blocks(pattern, query, key, value, block)


def attend_in_blocks(
  pattern: Pattern, query: jax.Array, key: jax.Array, value: jax.Array, block: int = BLOCK
) -> jax.Array:
  """Causal attention over a sequence, or any prefix of it, by the pattern.

  Args:
    pattern: what each slot sees.
    query: [B, P, N, H], P <= pattern.length; slot t is at position t.
    key: [B, P, N, H].
    value: [B, P, N, H].
    block: queries that share a window of keys.

  Returns:
    [B, P, N, H] in the dtype of `value`; what `attention.attend` gives with `pattern.mask()`, within rounding.
  """
  length, text_length = query.shape[1], min(query.shape[1], pattern.text_length)
  text = attention.attend(*(x[:, :text_length] for x in (query, key, value)), np.tri(text_length, dtype=bool))
  if length == text_length:
    return text
  plan = _plan(pattern, length - text_length, block)
  by_class = [plan.split(x[:, text_length:]) for x in (query, key, value)]
  text_keys = [x[:, :text_length].swapaxes(1, 2) for x in (key, value)]
  mixed = plan.join(_attend_in_parts(plan, *by_class, *text_keys))
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
  halo: int = 0  # slots before the first block, of the part before, that its keys begin with

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

  def parts(self) -> tuple['_Plan', int, int]:
    """What one part of a long sequence is, how many classes it has, and how many parts a class is cut into."""
    size = self.num_blocks * self.block
    if self.num_blocks == 1 or size <= PART:
      classes = next(n for n in range(self.stride, 0, -1) if self.stride % n == 0 and (n == 1 or n * size <= PART))
      return self, classes, 1
    # A part takes its earlier keys from one part before it.
    num_parts = size // max(PART, self.runs[-1][1] + self.block)
    if num_parts < 2:
      return self, self.stride, 1
    num_blocks = -(-self.num_blocks // num_parts)
    halo = num_blocks * self.block
    return dataclasses.replace(self, num_blocks=num_blocks, halo=halo), self.stride, -(-self.num_blocks // num_blocks)

  def windows(self, x: jax.Array, first: int, last: int) -> jax.Array:
    """The keys or values [..., halo + num_blocks * block, H] that a run needs: [..., num_blocks, width, H]."""
    if self.one_block:  # it needs no key before the first
      return x[..., None, : self.block - first, :]
    reach, block = last - first, self.block
    extra = -(-reach // block)  # blocks beyond its own that a window reaches into
    # In front `last` slots, of the halo or of slots that are not there: the window of block c starts at c * block.
    room, front = (self.num_blocks + extra) * block, max(0, last - self.halo)
    x = x[..., max(0, self.halo - last) :, :][..., : room - front, :]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(front, room - front - x.shape[-2]), (0, 0)])
    x = x.reshape(*x.shape[:-2], self.num_blocks + extra, block, x.shape[-1])
    parts = [x[..., i : i + self.num_blocks, :, :] for i in range(extra + 1)]
    return jnp.concatenate(parts, axis=-2)[..., : block + reach, :]

  def seen(self, first: int, last: int, halo_exists: jax.Array | bool) -> jax.Array:
    """Bool [num_blocks, block, width]: which keys of a run's windows each query sees."""
    before = 0 if self.one_block else last  # how far the window starts before its block
    query, key = np.arange(self.block)[:, None], np.arange(before + self.block - first) - before
    in_run = np.isin(query - key, [step for step in self.steps if first <= step <= last])
    exists = np.arange(self.num_blocks)[:, None] * self.block + key >= 0
    return jnp.asarray(in_run)[None] & (jnp.asarray(exists) | halo_exists)[:, None]

  @property
  def one_block(self) -> bool:
    return (self.num_blocks, self.halo) == (1, 0)


@functools.cache
def _plan(pattern: Pattern, length: int, block: int) -> _Plan:
  in_class = -(-length // pattern.stride)
  steps = tuple(offset // pattern.stride for offset in pattern.offsets if offset < in_class * pattern.stride)
  runs = _joined([run for run in pattern.runs if run[0] <= steps[-1]], block)
  if sum(last - first + block for first, last in runs) < in_class:
    return _Plan(length, pattern.stride, steps, runs, block, -(-in_class // block))
  # Windows would hold more keys than the class has: all of it is one block with one window.
  return _Plan(length, pattern.stride, steps, ((0, steps[-1]),), in_class, 1)


def _joined(runs: list[tuple[int, int]], block: int) -> tuple[tuple[int, int], ...]:
  """Runs that are near each other as one: its window holds no more keys than theirs together."""
  joined = runs[:1]
  for first, last in runs[1:]:
    if first - joined[-1][1] <= block:
      joined[-1] = (joined[-1][0], last)
    else:
      joined.append((first, last))
  return tuple(joined)


def _attend_in_parts(
  plan: _Plan, query: jax.Array, key: jax.Array, value: jax.Array, text_key: jax.Array, text_value: jax.Array
) -> jax.Array:
  """`_attend_image`, of long sequences one part after another."""
  part, classes, num_parts = plan.parts()
  groups = plan.stride // classes
  if groups * num_parts == 1:
    return _attend_image(plan, query, key, value, text_key, text_value)
  size = part.num_blocks * part.block

  def cut(x: jax.Array) -> jax.Array:
    """[B, N, stride, num_blocks * block, H] to [groups, num_parts, B, N, classes, size, H]."""
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, num_parts * size - x.shape[3]), (0, 0)))
    return x.reshape(*x.shape[:2], groups, classes, num_parts, size, x.shape[-1]).transpose(2, 4, 0, 1, 3, 5, 6)

  def with_halo(x: jax.Array) -> jax.Array:
    if not part.halo:
      return x
    before = jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    return jnp.concatenate([before, x], axis=-2)

  @jax.checkpoint
  def attend_part(index: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return _attend_image(part, query, key, value, text_key, text_value, index > 0)

  parts = (cut(query), with_halo(cut(key)), with_halo(cut(value)))
  flat = [x.reshape(groups * num_parts, *x.shape[2:]) for x in parts]
  index = jnp.tile(jnp.arange(num_parts), groups)
  out = jax.lax.map(lambda xs: attend_part(*xs), (index, *flat))
  out = out.reshape(groups, num_parts, *out.shape[1:]).transpose(2, 3, 0, 4, 1, 5, 6)
  return out.reshape(*query.shape[:3], num_parts * size, query.shape[-1])[..., : query.shape[3], :]


def _attend_image(
  plan: _Plan,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  text_key: jax.Array,
  text_value: jax.Array,
  halo_exists: jax.Array | bool = False,
) -> jax.Array:
  """Image slots over the text and their windows.

  Args:
    plan: how the slots are cut.
    query: [B, N, S, num_blocks * block, H] of S classes.
    key: [B, N, S, halo + num_blocks * block, H], and so value.
    value: see above.
    text_key: [B, N, T, H], and so text_value.
    text_value: see above.
    halo_exists: whether the halo holds slots, or nothing, before the first.

  Returns:
    [B, N, S, num_blocks * block, H].
  """
  scale = query.shape[-1] ** -0.5
  flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
  text_scores = jnp.einsum('BNQH,BNTH->BNQT', flat, text_key, preferred_element_type=jnp.float32) * scale
  blocks, scores = plan.blocks(query), []
  for run in plan.runs:
    windows = plan.windows(key, *run)
    score = jnp.einsum('BNSCQH,BNSCKH->BNSCQK', blocks, windows, preferred_element_type=jnp.float32) * scale
    scores.append(jnp.where(plan.seen(*run, halo_exists), score, -jnp.inf))
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
