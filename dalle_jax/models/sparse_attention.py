"""Block-sparse attention: time and memory scale with the keys in the pattern, not with the square of the length.

How it works:

- Image slots are split into the classes of the pattern's stride (see `attention.Pattern.stride`). This makes columns
  contiguous, as in figure 11c of the paper.
- Within a class, the queries are split into blocks. For each run of consecutive offsets (see `attention.Pattern.runs`),
  a block needs one short window of keys.
- Scores are computed only for these windows and for the text.
- One softmax normalises all scores of a query together (the paper's footnote 7): all windows and the text use the same
  maximum, and their sums are added before the division.

Long sequences are processed in chunks, one after another. The backward pass recomputes the scores of each chunk. So the
memory for scores does not grow with the sequence, and the total memory grows linearly.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models import attention
from dalle_jax.models.attention import Pattern, Unmasked

BLOCK = 32  # default number of queries that share a window of keys, as in the paper's kernels
SHORT = 256  # number of slots up to which dense attention is faster for every pattern
CHUNK = 2048  # approximate number of image slots whose scores are in memory at the same time


def attend(
  pattern: Pattern | Unmasked, query: jax.Array, key: jax.Array, value: jax.Array, block: int = BLOCK
) -> jax.Array:
  """Attention with a pattern, dense or block-sparse, whichever is faster.

  Takes the arguments of `attend_in_blocks` and returns the same result. The pattern may also be `Unmasked`.
  """
  length = query.shape[1]
  image_length = length - pattern.text_length
  plan = _plan(pattern, image_length, block) if image_length > 0 else None
  if isinstance(pattern, Unmasked) or length <= SHORT or plan is None or (plan.num_blocks, plan.stride) == (1, 1):
    return attention.attend(query, key, value, pattern.mask()[:length, :length])
  return attend_in_blocks(pattern, query, key, value, block)


def attend_in_blocks(
  pattern: Pattern, query: jax.Array, key: jax.Array, value: jax.Array, block: int = BLOCK
) -> jax.Array:
  """Block-sparse attention over a whole sequence or a prefix of it.

  Args:
    pattern: the attention pattern.
    query: queries of the slots 0 to P - 1, [B, P, N, H]; P is at most pattern.length.
    key: keys of the same slots, [B, P, N, H].
    value: values of the same slots, [B, P, N, H].
    block: number of queries that share a window of keys.

  Returns:
    [B, P, N, H] in the dtype of `value`. Up to rounding, it equals `attention.attend` with `pattern.mask()`.
  """
  length, text_length = query.shape[1], min(query.shape[1], pattern.text_length)
  text_mask = np.tri(text_length, dtype=bool)
  text = attention.attend(query[:, :text_length], key[:, :text_length], value[:, :text_length], text_mask)
  if length == text_length:
    return text
  plan = _plan(pattern, length - text_length, block)
  image_query, image_key, image_value = (plan.split(x[:, text_length:]) for x in (query, key, value))
  text_key, text_value = (x[:, :text_length].swapaxes(1, 2) for x in (key, value))
  image = plan.join(_attend_in_chunks(plan, image_query, image_key, image_value, text_key, text_value))
  return jnp.concatenate([text, image], axis=1)


@dataclasses.dataclass(frozen=True)
class _Plan:
  """How the image slots of a prefix, or of one chunk of it, are split into classes and blocks."""

  length: int  # number of image slots in the prefix
  stride: int  # number of classes; slot i is in class i % stride
  steps: tuple[int, ...]  # the pattern's offsets in units of the stride
  runs: tuple[tuple[int, int], ...]  # intervals (first, last) that cover the steps; each has its own window of keys
  block: int  # queries per block
  num_blocks: int  # blocks per class
  halo: int = 0  # keys of the previous chunk that precede the keys of the first block; 0 for whole classes

  def split(self, x: jax.Array) -> jax.Array:
    """Split slots [B, length, N, H] into classes, padded to whole blocks: [B, N, stride, num_blocks * block, H]."""
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

  def chunks(self) -> tuple['_Plan', int, int]:
    """How to split a long sequence into chunks: groups of whole classes, or parts of every class.

    Returns:
      The plan of one chunk, the number of classes in a chunk, and the number of chunks per class.
    """
    size = self.num_blocks * self.block
    if self.num_blocks == 1 or size <= CHUNK:
      classes = next(n for n in range(self.stride, 0, -1) if self.stride % n == 0 and (n == 1 or n * size <= CHUNK))
      return self, classes, 1
    # A chunk is at least as long as the pattern reaches back, so that all earlier keys are in the previous chunk.
    num_chunks = size // max(CHUNK, self.runs[-1][1] + self.block)
    if num_chunks < 2:
      return self, self.stride, 1
    num_blocks = -(-self.num_blocks // num_chunks)
    halo = num_blocks * self.block
    return dataclasses.replace(self, num_blocks=num_blocks, halo=halo), self.stride, -(-self.num_blocks // num_blocks)

  def windows(self, x: jax.Array, first: int, last: int) -> jax.Array:
    """Gather the keys or values that each block needs for the run (first, last).

    Args:
      x: keys or values [..., halo + num_blocks * block, H].
      first: smallest step of the run.
      last: largest step of the run.

    Returns:
      [..., num_blocks, width, H].
    """
    if self.one_block:  # the window starts at the first key of the class
      return x[..., None, : self.block - first, :]
    reach, block = last - first, self.block
    extra = -(-reach // block)  # a window spans up to this many blocks after its first block
    # Put `last` slots before the first block, from the halo or from padding, so that window c starts at c * block.
    length, padding = (self.num_blocks + extra) * block, max(0, last - self.halo)
    x = x[..., max(0, self.halo - last) :, :][..., : length - padding, :]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(padding, length - padding - x.shape[-2]), (0, 0)])
    x = x.reshape(*x.shape[:-2], self.num_blocks + extra, block, x.shape[-1])
    shifted = [x[..., i : i + self.num_blocks, :, :] for i in range(extra + 1)]
    return jnp.concatenate(shifted, axis=-2)[..., : block + reach, :]

  def mask(self, first: int, last: int, halo_exists: jax.Array | bool) -> jax.Array:
    """The mask of the windows of the run (first, last), bool [num_blocks, block, width].

    Entry [c, t, s] is True if query t of block c attends to key s of its window.
    """
    before = 0 if self.one_block else last  # distance from the start of the window to the start of its block
    query, key = np.arange(self.block)[:, None], np.arange(before + self.block - first) - before
    in_run = np.isin(query - key, [step for step in self.steps if first <= step <= last])
    exists = np.arange(self.num_blocks)[:, None] * self.block + key >= 0
    return jnp.asarray(in_run)[None] & (jnp.asarray(exists) | halo_exists)[:, None]

  @property
  def one_block(self) -> bool:
    """Whether each class is a single block, with all keys of the class in one window."""
    return (self.num_blocks, self.halo) == (1, 0)


@functools.cache
def _plan(pattern: Pattern, length: int, block: int) -> _Plan:
  """The plan for the first `length` image slots with blocks of `block` queries."""
  class_length = -(-length // pattern.stride)
  steps = tuple(offset // pattern.stride for offset in pattern.offsets if offset < class_length * pattern.stride)
  runs = _merge([run for run in pattern.runs if run[0] <= steps[-1]], block)
  if sum(last - first + block for first, last in runs) < class_length:
    return _Plan(length, pattern.stride, steps, runs, block, -(-class_length // block))
  # The windows would hold more keys than the class. So the whole class becomes one block with one window.
  return _Plan(length, pattern.stride, steps, ((0, steps[-1]),), class_length, 1)


def _merge(runs: list[tuple[int, int]], block: int) -> tuple[tuple[int, int], ...]:
  """Merge neighbouring runs if their common window holds no more keys than their separate windows."""
  merged = runs[:1]
  for first, last in runs[1:]:
    if first - merged[-1][1] <= block:
      merged[-1] = (merged[-1][0], last)
    else:
      merged.append((first, last))
  return tuple(merged)


def _attend_in_chunks(
  plan: _Plan, query: jax.Array, key: jax.Array, value: jax.Array, text_key: jax.Array, text_value: jax.Array
) -> jax.Array:
  """`_attend_image` for sequences of any length: long sequences are processed one chunk after another."""
  chunk, classes, num_chunks = plan.chunks()
  groups = plan.stride // classes
  if groups * num_chunks == 1:
    return _attend_image(plan, query, key, value, text_key, text_value)
  size = chunk.num_blocks * chunk.block

  def split(x: jax.Array) -> jax.Array:
    """[B, N, stride, num_blocks * block, H] to [groups, num_chunks, B, N, classes, size, H]."""
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, num_chunks * size - x.shape[3]), (0, 0)))
    return x.reshape(*x.shape[:2], groups, classes, num_chunks, size, x.shape[-1]).transpose(2, 4, 0, 1, 3, 5, 6)

  def with_halo(x: jax.Array) -> jax.Array:
    """Prepend the previous chunk to each chunk, and zeros to the first one."""
    if not chunk.halo:
      return x
    previous = jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    return jnp.concatenate([previous, x], axis=-2)

  @jax.checkpoint
  def attend_chunk(index: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return _attend_image(chunk, query, key, value, text_key, text_value, index > 0)

  qkv = (split(query), with_halo(split(key)), with_halo(split(value)))
  flat = [x.reshape(groups * num_chunks, *x.shape[2:]) for x in qkv]
  index = jnp.tile(jnp.arange(num_chunks), groups)
  out = jax.lax.map(lambda xs: attend_chunk(*xs), (index, *flat))
  out = out.reshape(groups, num_chunks, *out.shape[1:]).transpose(2, 3, 0, 4, 1, 5, 6)
  return out.reshape(*query.shape[:3], num_chunks * size, query.shape[-1])[..., : query.shape[3], :]


def _attend_image(
  plan: _Plan,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  text_key: jax.Array,
  text_value: jax.Array,
  halo_exists: jax.Array | bool = False,
) -> jax.Array:
  """Attend from the image slots of S classes to the text and to their windows.

  Args:
    plan: how the slots are split.
    query: [B, N, S, num_blocks * block, H].
    key: [B, N, S, halo + num_blocks * block, H].
    value: [B, N, S, halo + num_blocks * block, H].
    text_key: [B, N, T, H].
    text_value: [B, N, T, H].
    halo_exists: whether the halo holds the previous chunk; False for the first chunk, whose halo is padding.

  Returns:
    [B, N, S, num_blocks * block, H] in the dtype of `value`.
  """
  scale = query.shape[-1] ** -0.5
  flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
  text_scores = jnp.einsum('BNQH,BNTH->BNQT', flat, text_key, preferred_element_type=jnp.float32) * scale
  blocks, scores = plan.blocks(query), []
  for run in plan.runs:
    windows = plan.windows(key, *run)
    score = jnp.einsum('BNSCQH,BNSCKH->BNSCQK', blocks, windows, preferred_element_type=jnp.float32) * scale
    scores.append(jnp.where(plan.mask(*run, halo_exists), score, -jnp.inf))
  maxima = [score.max(-1).reshape(text_scores.shape[:-1]) for score in scores]
  maximum = functools.reduce(jnp.maximum, maxima, text_scores.max(-1, initial=-jnp.inf))
  maximum = jax.lax.stop_gradient(maximum)[..., None]
  weights = jnp.exp(text_scores - maximum)
  total = weights.sum(-1)
  mixed = jnp.einsum('BNQT,BNTH->BNQH', weights.astype(value.dtype), text_value, preferred_element_type=jnp.float32)
  for run, score in zip(plan.runs, scores, strict=True):
    weights = jnp.exp(score - maximum.reshape(*score.shape[:-1], 1))
    total += weights.sum(-1).reshape(total.shape)
    window_sum = jnp.einsum(
      'BNSCQK,BNSCKH->BNSCQH', weights.astype(value.dtype), plan.windows(value, *run),
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    mixed += window_sum.reshape(mixed.shape)
  return (mixed / total[..., None]).astype(value.dtype).reshape(query.shape)
