import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.models import attention
from dalle_jax.models.attention import Pattern

BATCH, LENGTH, HEADS, WIDTH = 2, 5, 3, 4
CAUSAL = np.tri(LENGTH, dtype=bool)


@pytest.fixture
def qkv():
  keys = jax.random.split(jax.random.key(0), 3)
  return [jax.random.normal(key, (BATCH, LENGTH, HEADS, WIDTH)) for key in keys]


# Masks of the image slots of a 3 x 3 grid, written by hand from figure 11: queries in rows, keys in columns.
TABLES = {
  'row': """
    x . . . . . . . .
    x x . . . . . . .
    x x x . . . . . .
    x x x x . . . . .
    . x x x x . . . .
    . . x x x x . . .
    . . . x x x x . .
    . . . . x x x x .
    . . . . . x x x x""",
  'column': """
    x . . . . . . . .
    . x . . . . . . .
    . . x . . . . . .
    x . . x . . . . .
    . x . . x . . . .
    . . x . . x . . .
    x . . x . . x . .
    . x . . x . . x .
    . . x . . x . . x""",
  # A window of 3 x 3 slots around the query: the previous slot and three slots of the row above. Windows wrap around at
  # the ends of rows. For example, slot 3, the first of its row, attends to slot 2, the last of the row above.
  'conv': """
    x . . . . . . . .
    x x . . . . . . .
    x x x . . . . . .
    x x x x . . . . .
    x x x x x . . . .
    . x x x x x . . .
    . . x x x x x . .
    . . . x x x x x .
    . . . . x x x x x""",
  'full': '\n'.join(' '.join('x' if s <= t else '.' for s in range(9)) for t in range(9)),
}


@pytest.mark.parametrize('kind', TABLES)
def test_masks_match_the_tables_written_by_hand(kind):
  table = np.array([[mark == 'x' for mark in line.split()] for line in TABLES[kind].strip().splitlines()])
  mask = Pattern(kind, 2, 3, 3).mask()
  np.testing.assert_array_equal(mask[2:, 2:], table)
  np.testing.assert_array_equal(mask[:2], [[1] + 10 * [0], [1, 1] + 9 * [0]])
  assert mask[2:, :2].all()


def test_masks_match_the_papers_examples_on_a_4_by_4_grid():
  row, conv = Pattern('row', 6, 4).mask()[6:, 6:], Pattern('conv', 6, 4, 3).mask()[6:, 6:]
  assert row[9].sum() == 5  # in the paper's figure, back to the slot above
  assert row[9].argmax() == 5
  np.testing.assert_array_equal(np.flatnonzero(conv[10]) - 10, [-5, -4, -3, -1, 0])


@pytest.mark.parametrize(
  ('kind', 'most', 'mean'), [('row', 33, 32.484375), ('column', 32, 16.5), ('conv', 61, 55.829), ('full', 1024, 512.5)]
)
def test_number_of_keys_per_query_at_the_papers_size(kind, most, mean):
  pattern = Pattern(kind, 256, 32)
  assert pattern.length == 1280
  num_keys = pattern.mask()[256:, 256:].sum(1)
  assert num_keys.max() == len(pattern.offsets) == most
  assert num_keys.mean() == pytest.approx(mean, abs=1e-3)


def test_only_the_column_pattern_splits_slots_into_several_classes():
  assert {kind: Pattern(kind, 1, 8, 3).stride for kind in TABLES} == {'row': 1, 'column': 8, 'conv': 1, 'full': 1}
  assert Pattern('column', 1, 8).runs == ((0, 7),)
  assert Pattern('conv', 1, 8, 5).runs == ((0, 2), (6, 10), (14, 18))


@pytest.mark.parametrize(
  ('kind', 'grid', 'kernel'), [('diagonal', 4, 3), ('conv', 4, 5), ('conv', 8, 4), ('conv', 8, -1)]
)
def test_unknown_kinds_and_windows_that_do_not_fit_the_grid_are_rejected(kind, grid, kernel):
  with pytest.raises(ValueError, match='unknown' if kind == 'diagonal' else f'{kernel} x {kernel}.*{grid} x {grid}'):
    Pattern(kind, 2, grid, kernel)


def test_mask_of_text_without_image_is_causal():
  pattern = Pattern('full', 4, 0)
  np.testing.assert_array_equal(pattern.mask(), np.tri(4, dtype=bool))
  assert (pattern.length, pattern.offsets, pattern.stride) == (4, (), 1)


def _reference(query, key, value):
  """Causal attention in float64, one query at a time."""
  out = np.zeros(query.shape)
  for b, t, n in np.ndindex(query.shape[:3]):
    scores = np.array([query[b, t, n] @ key[b, s, n] for s in range(t + 1)]) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights @ value[b, : t + 1, n] / weights.sum()
  return out


def test_attend_with_a_causal_mask_matches_a_float64_reference(qkv):
  out = attention.attend(*qkv, CAUSAL)
  np.testing.assert_allclose(out, _reference(*(np.asarray(x, np.float64) for x in qkv)), atol=1e-5)


def test_attend_accepts_one_mask_per_example(qkv):
  mask = np.broadcast_to(CAUSAL, (BATCH, 1, LENGTH, LENGTH)).copy()
  mask[1] = np.eye(LENGTH, dtype=bool)  # each slot attends only to itself
  out = attention.attend(*qkv, mask)
  np.testing.assert_allclose(out[1], qkv[2][1], atol=1e-6)
  np.testing.assert_allclose(out[0], attention.attend(*qkv, CAUSAL)[0], atol=1e-6)


def test_attend_returns_the_dtype_of_the_values(qkv):
  half = [x.astype(jnp.bfloat16) for x in qkv]
  out = attention.attend(*half, CAUSAL)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), attention.attend(*qkv, CAUSAL), atol=0.05)


def test_weights_sum_to_one_vanish_outside_the_mask_and_give_the_output(qkv):
  query, key, value = qkv
  weights = np.asarray(attention.weigh(query, key, CAUSAL))
  assert weights.shape == (BATCH, HEADS, LENGTH, LENGTH)
  np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
  assert not weights[:, :, ~CAUSAL].any()
  expected = np.einsum('bnts,bsnh->btnh', weights, value)
  np.testing.assert_allclose(attention.attend(query, key, value, CAUSAL), expected, atol=1e-6)
