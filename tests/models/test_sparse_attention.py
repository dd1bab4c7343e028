import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.models import attention, sparse_attention
from dalle_jax.models.attention import KINDS, Pattern

# Grids below, at and above a block, not a multiple of it, and the paper's; with little text and much.
SIZES = [(1, 1, 1), (4, 5, 3), (9, 2, 9), (20, 3, 5), (32, 256, 11)]


def _qkv(pattern, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(pattern.length), 3)
  return [jax.random.normal(key, (1, pattern.length, 2, 4), dtype) for key in keys]


def _losses(pattern, block=sparse_attention.BLOCK):
  """Value and gradients of some function of the output, dense and sparse."""
  mask = pattern.mask()

  def dense(*qkv):
    return attention.attend(*qkv, mask)

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


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_it_equals_the_dense_reference_forward_and_backward(size, kind):
  grid, text, kernel = size
  _check_against_dense(Pattern(kind, text, grid, kernel))


@pytest.mark.parametrize('kind', ['row', 'column', 'conv'])
@pytest.mark.parametrize('block', [4, 128])
def test_blocks_of_any_size_equal_the_dense_reference(kind, block):
  _check_against_dense(Pattern(kind, 5, 20, 7), block)


def test_runs_that_are_near_share_a_window_of_fewer_keys():
  # Six rows of a window of 11, each 32 slots from the next: 22 lie between two of them.
  pattern = Pattern('conv', 256, 32, 11)
  plans = {block: sparse_attention._plan(pattern, pattern.image_length, block) for block in (16, 32, 128)}
  assert len(plans[16].runs) == 6
  assert plans[32].runs == plans[128].runs == ((0, 165),)
  for block, plan in plans.items():
    apart = sum(last - first + block for first, last in pattern.runs)
    assert sum(last - first + block for first, last in plan.runs) <= apart


@pytest.mark.parametrize('kind', ['row', 'column', 'conv'])
@pytest.mark.parametrize('part', [40, 100, 150])
def test_one_part_after_another_equals_the_dense_reference(monkeypatch, kind, part):
  monkeypatch.setattr(sparse_attention, 'PART', part)
  pattern = Pattern(kind, 5, 20, 7)
  assert 'scan' in str(jax.make_jaxpr(_losses(pattern)[1])(*_qkv(pattern)))
  _check_against_dense(pattern)


@pytest.mark.parametrize('kind', KINDS)
def test_prefixes_of_any_length_equal_the_dense_reference(kind):
  pattern = Pattern(kind, 3, 9, 5)
  qkv, mask = _qkv(pattern), pattern.mask()
  for length in (1, 2, 3, 4, 12, 40, 80):
    prefix = [x[:, :length] for x in qkv]
    expected = attention.attend(*prefix, mask[:length, :length])
    np.testing.assert_allclose(
      sparse_attention.attend_in_blocks(pattern, *prefix), expected, atol=1e-5, err_msg=str(length)
    )


def test_large_scores_do_not_overflow():
  pattern = Pattern('row', 3, 8)
  query, key, value = _qkv(pattern)
  out = sparse_attention.attend_in_blocks(pattern, 200 * query, 50 * key, value)
  np.testing.assert_allclose(out, attention.attend(200 * query, 50 * key, value, pattern.mask()), atol=1e-4)


def test_half_precision_is_close_and_stays_half():
  pattern = Pattern('row', 3, 8)
  qkv = _qkv(pattern, jnp.bfloat16)
  out = sparse_attention.attend_in_blocks(pattern, *qkv)
  assert out.dtype == jnp.bfloat16
  full = attention.attend(*(x.astype(jnp.float32) for x in qkv), pattern.mask())
  np.testing.assert_allclose(out.astype(jnp.float32), full, atol=0.03)


def _sizes(jaxpr):
  """Elements of every array that a program computes, also in its inner programs."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield int(np.prod(variable.aval.shape))
    for value in equation.params.values():
      if hasattr(value, 'jaxpr'):
        yield from _sizes(value.jaxpr)


def _of_grid(kind, grid):
  """Value and gradients of one head of the paper's text and a grid, and the shape of what they take."""
  pattern = Pattern(kind, 256, grid)
  return _losses(pattern)[1], [jax.ShapeDtypeStruct((1, pattern.length, 1, 64), jnp.float32)] * 3


@pytest.mark.parametrize('kind', ['row', 'column', 'conv'])
def test_nothing_in_it_grows_with_the_square_of_the_sequence(kind):
  largest = {}
  for grid in (32, 64):
    sparse, shapes = _of_grid(kind, grid)
    largest[grid] = max(_sizes(jax.make_jaxpr(sparse)(*shapes).jaxpr))
    assert largest[grid] < shapes[0].shape[1] ** 2 / 2
  assert largest[64] < 5 * largest[32]  # four times the image slots


@pytest.mark.parametrize(
  'kind', [pytest.param('row', marks=pytest.mark.slow), pytest.param('column', marks=pytest.mark.slow), 'conv']
)
def test_its_memory_grows_linearly(kind):
  needed = {}
  for grid in (64, 128):
    sparse, shapes = _of_grid(kind, grid)
    needed[grid] = sparse.lower(*shapes).compile().memory_analysis().temp_size_in_bytes / shapes[0].shape[1]
  assert needed[128] <= 1.05 * needed[64]


@pytest.mark.parametrize(('kind', 'grid', 'in_blocks'), [('row', 32, True), ('column', 32, True), ('conv', 32, True),
                                                        ('full', 32, False), ('row', 8, False)])  # fmt: skip
def test_blocks_are_used_where_they_save_work(monkeypatch, kind, grid, in_blocks):
  pattern = Pattern(kind, 20, grid)
  used = []
  monkeypatch.setattr(sparse_attention, 'attend_in_blocks', lambda *args: used.append(args) or args[1])
  shape = jax.ShapeDtypeStruct((1, pattern.length, 1, 4), jnp.float32)
  jax.eval_shape(lambda q, k, v: sparse_attention.attend(pattern, q, k, v), shape, shape, shape)
  assert bool(used) == in_blocks


def test_the_choice_does_not_change_the_result():
  for kind in KINDS:
    pattern = Pattern(kind, 3, 17, 5)
    qkv = _qkv(pattern)
    expected = sparse_attention.attend_in_blocks(pattern, *qkv)
    np.testing.assert_allclose(sparse_attention.attend(pattern, *qkv), expected, atol=1e-5)
