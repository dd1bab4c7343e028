import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.models import attention, sparse_attention
from dalle_jax.models.attention import KINDS, Pattern

# (grid size, text length, kernel size). Grids are smaller or larger than a block, no multiple of it, or the paper's.
SIZES = [(1, 1, 1), (4, 5, 3), (9, 2, 9), (20, 3, 5), (32, 256, 11)]


def _qkv(pattern, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(pattern.length), 3)
  return [jax.random.normal(key, (1, pattern.length, 2, 4), dtype) for key in keys]


def _sparse(pattern):
  return jax.jit(functools.partial(sparse_attention.attend_in_blocks, pattern))


def _losses(pattern, block=sparse_attention.BLOCK):
  """Two functions, of dense and of sparse attention, that return a nonlinear loss, the output and the gradients."""

  def dense(*qkv):
    return attention.attend(*qkv, pattern.mask())  # only if traced: the mask of a long sequence is large

  def sparse(*qkv):
    return sparse_attention.attend_in_blocks(pattern, *qkv, block)

  def loss(attend):
    def value(*qkv):
      out = attend(*qkv)
      return jnp.sum(jnp.sin(3 * out)), out

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))

  return loss(dense), loss(sparse)


def _check_against_dense(pattern, block=sparse_attention.BLOCK):
  qkv, (dense, sparse) = _qkv(pattern), _losses(pattern, block)
  (_, expected), expected_gradients = dense(*qkv)
  (_, out), gradients = sparse(*qkv)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  for name, a, b in zip(('query', 'key', 'value'), gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
  assert max(np.abs(g).max() for g in gradients) > 0.1


@pytest.mark.parametrize(
  ('size', 'kind'),
  [(size, kind) for size in SIZES for kind in KINDS if kind != 'full' or size in SIZES[1:3]],
  ids=str,
)
def test_output_and_gradients_equal_dense_attention(size, kind):
  grid, text, kernel = size
  _check_against_dense(Pattern(kind, text, grid, kernel))


@pytest.mark.parametrize('kind', ['row', 'column', 'conv'])
@pytest.mark.parametrize('block', [4, 128])
def test_output_and_gradients_equal_dense_attention_for_any_block_size(kind, block):
  _check_against_dense(Pattern(kind, 5, 20, 7), block)


def test_neighbouring_runs_share_a_window_if_it_holds_fewer_keys():
  # Six runs of up to 11 offsets, one for each row of the kernel. Rows are 32 slots apart, which leaves gaps of 22.
  pattern = Pattern('conv', 256, 32, 11)
  plans = {block: sparse_attention._plan(pattern, pattern.image_length, block) for block in (16, 32, 128)}
  assert len(plans[16].runs) == 6
  assert plans[32].runs == plans[128].runs == ((0, 165),)
  for block, plan in plans.items():
    separate = sum(last - first + block for first, last in pattern.runs)
    assert sum(last - first + block for first, last in plan.runs) <= separate


@pytest.mark.parametrize(
  ('kind', 'chunk'), [('conv', 40), ('conv', 100), ('conv', 150), ('row', 40), ('row', 150), ('column', 100)]
)
def test_output_and_gradients_equal_dense_attention_in_chunks(monkeypatch, kind, chunk):
  monkeypatch.setattr(sparse_attention, 'CHUNK', chunk)
  pattern = Pattern(kind, 5, 20, 7)
  assert 'scan' in str(jax.make_jaxpr(_losses(pattern)[1])(*_qkv(pattern)))
  _check_against_dense(pattern)


@pytest.mark.parametrize('kind', KINDS)
def test_outputs_of_prefixes_equal_dense_attention(kind):
  pattern = Pattern(kind, 3, 9, 5)
  mask, lengths = pattern.mask(), (1, 2, 3, 4, 12, 40, 80)

  @jax.jit
  def outputs(*qkv):
    prefixes = [[x[:, :length] for x in qkv] for length in lengths]
    sparse = [sparse_attention.attend_in_blocks(pattern, *prefix) for prefix in prefixes]
    dense = [
      attention.attend(*prefix, mask[:length, :length]) for length, prefix in zip(lengths, prefixes, strict=True)
    ]
    return sparse, dense

  for length, out, expected in zip(lengths, *outputs(*_qkv(pattern)), strict=True):
    np.testing.assert_allclose(out, expected, atol=1e-5, err_msg=str(length))


def test_large_scores_do_not_overflow():
  pattern = Pattern('row', 3, 8)
  query, key, value = _qkv(pattern)
  out = _sparse(pattern)(200 * query, 50 * key, value)
  np.testing.assert_allclose(out, attention.attend(200 * query, 50 * key, value, pattern.mask()), atol=1e-4)


def test_bfloat16_output_is_bfloat16_and_close():
  pattern = Pattern('row', 3, 8)
  qkv = _qkv(pattern, jnp.bfloat16)
  out = _sparse(pattern)(*qkv)
  assert out.dtype == jnp.bfloat16
  full = attention.attend(*(x.astype(jnp.float32) for x in qkv), pattern.mask())
  np.testing.assert_allclose(out.astype(jnp.float32), full, atol=0.03)


def _sizes(jaxpr):
  """The number of elements of each array that a jaxpr computes, including its inner jaxprs."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield int(np.prod(variable.aval.shape))
    for value in equation.params.values():
      if hasattr(value, 'jaxpr'):
        yield from _sizes(value.jaxpr)


def _of_grid(kind, grid):
  """The sparse loss for the paper's text length and a grid size, and the shapes of its arguments (one head)."""
  pattern = Pattern(kind, 256, grid)
  return _losses(pattern)[1], [jax.ShapeDtypeStruct((1, pattern.length, 1, 64), jnp.float32)] * 3


@pytest.mark.parametrize('kind', ['row', 'column', 'conv'])
def test_no_array_grows_with_the_square_of_the_length(kind):
  largest = {}
  for grid in (32, 64):
    sparse, shapes = _of_grid(kind, grid)
    largest[grid] = max(_sizes(jax.make_jaxpr(sparse)(*shapes).jaxpr))
    assert largest[grid] < shapes[0].shape[1] ** 2 / 2
  assert largest[64] < 5 * largest[32]  # four times the image slots


@pytest.mark.parametrize(
  'kind', [pytest.param('row', marks=pytest.mark.slow), pytest.param('column', marks=pytest.mark.slow), 'conv']
)
def test_memory_grows_linearly_with_the_length(kind):
  bytes_per_slot = {}
  for grid in (64, 128):
    sparse, shapes = _of_grid(kind, grid)
    bytes_per_slot[grid] = sparse.lower(*shapes).compile().memory_analysis().temp_size_in_bytes / shapes[0].shape[1]
  assert bytes_per_slot[128] <= 1.05 * bytes_per_slot[64]


@pytest.mark.parametrize(('kind', 'grid', 'in_blocks'), [('row', 32, True), ('column', 32, True), ('conv', 32, True),
                                                        ('full', 32, False), ('row', 8, False)])  # fmt: skip
def test_attend_uses_blocks_only_if_they_save_work(monkeypatch, kind, grid, in_blocks):
  pattern = Pattern(kind, 20, grid)
  calls = []
  monkeypatch.setattr(sparse_attention, 'attend_in_blocks', lambda *args: calls.append(args) or args[1])
  shape = jax.ShapeDtypeStruct((1, pattern.length, 1, 4), jnp.float32)
  jax.eval_shape(lambda q, k, v: sparse_attention.attend(pattern, q, k, v), shape, shape, shape)
  assert bool(calls) == in_blocks


def test_attend_equals_attend_in_blocks():
  for kind in KINDS:
    pattern = Pattern(kind, 3, 17, 5)
    qkv = _qkv(pattern)
    attend = jax.jit(functools.partial(sparse_attention.attend, pattern))
    np.testing.assert_allclose(attend(*qkv), _sparse(pattern)(*qkv), atol=1e-5)
