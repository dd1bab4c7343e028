import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.training import vector_quantizer

K, C = 3, 2


def _state(started=1.0):
  share = np.array([0.5, 0.3, 0.2], np.float32)
  codebook = np.arange(6, dtype=np.float32).reshape(K, C)
  return {'codebook': codebook, 'share': share, 'total': codebook * share[:, None], 'started': np.float32(started)}


def _batch(seed, codes):
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(1, 2, len(codes) // 2, C)).astype(np.float32)
  return z, np.array(codes).reshape(z.shape[:-1])


def _statistics(z, codes, seed=0):
  return vector_quantizer.statistics(jnp.asarray(z), jnp.asarray(codes), K, jax.random.key(seed))


def _update(state, statistics, threshold=0.0, seed=0):
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *statistics)
  new = vector_quantizer.update(state, stacked, jax.random.key(seed), decay=0.9, restart_threshold=threshold)
  return jax.tree.map(np.asarray, new)


def test_statistics_in_closed_form():
  z, codes = _batch(0, [0, 2, 2, 2])
  statistics = _statistics(z, codes)
  np.testing.assert_allclose(statistics['share'], [0.25, 0, 0.75])
  flat = z.reshape(-1, C)
  np.testing.assert_allclose(statistics['total'], [flat[0] / 4, [0, 0], flat[1:].sum(0) / 4], rtol=1e-5)
  rows = {tuple(row) for row in flat}
  assert {tuple(row) for row in np.asarray(statistics['candidates'])} <= rows


def test_codes_are_moving_averages_of_their_outputs_over_several_steps():
  state, share, total = _state(), _state()['share'].astype(np.float64), _state()['total'].astype(np.float64)
  for step, codes in enumerate([[0, 1, 2, 2], [0, 0, 1, 1], [2, 1, 0, 0]]):
    z, codes = _batch(step, codes)
    state = _update(state, [_statistics(z, codes)])
    flat, ids = z.reshape(-1, C), codes.ravel()
    share = 0.9 * share + 0.1 * np.bincount(ids, minlength=K) / 4
    total = 0.9 * total + 0.1 * np.stack([flat[ids == k].sum(0) for k in range(K)]) / 4
    np.testing.assert_allclose(state['share'], share, rtol=1e-5)
    np.testing.assert_allclose(state['codebook'], total / share[:, None], rtol=1e-3)
  assert state['share'].sum() == pytest.approx(1, rel=1e-5)


def test_micro_batches_give_the_update_of_the_whole_batch():
  (z, codes), (other_z, other_codes) = _batch(0, [0, 1, 2, 2]), _batch(1, [1, 1, 0, 2])
  in_micro_batches = _update(_state(), [_statistics(z, codes), _statistics(other_z, other_codes)])
  statistics = _statistics(np.concatenate([z, other_z]), np.concatenate([codes, other_codes]))
  at_once = _update(_state(), [statistics])
  for name in ('codebook', 'share', 'total'):
    np.testing.assert_allclose(in_micro_batches[name], at_once[name], rtol=1e-5)


def test_the_first_step_fills_the_codebook_from_the_batch():
  z, codes = _batch(0, [0, 0, 0, 0])
  state = _update(_state(started=0.0), [_statistics(z, codes)])
  np.testing.assert_allclose(state['share'], 1 / 3)
  flat = z.reshape(-1, C)
  nearest = np.abs(state['codebook'][:, None] - flat[None]).max(-1).min(-1)
  assert nearest.max() < 0.1 * np.std(flat)
  assert state['started'] == 1


def test_unused_codes_restart_and_the_others_continue():
  state = _state()
  state['share'] = np.array([0.6, 0.38, 0.02], np.float32)
  z, codes = _batch(0, [0, 0, 1, 1])
  without_restarts = _update(state, [_statistics(z, codes)])
  restarted = _update(state, [_statistics(z, codes)], threshold=0.1)
  np.testing.assert_allclose(restarted['codebook'][:2], without_restarts['codebook'][:2], rtol=1e-4)
  assert without_restarts['share'][2] == pytest.approx(0.018, rel=1e-5)
  assert restarted['share'][2] == pytest.approx(1 / 3)
  flat = z.reshape(-1, C)
  assert np.abs(restarted['codebook'][2] - flat).max(-1).min() < 0.1 * np.std(flat)


def test_codes_that_start_together_are_not_equal():
  z, codes = _batch(0, [0, 0, 0, 0])
  state = _update(_state(started=0.0), [_statistics(np.broadcast_to(z[:, :1, :1], z.shape), codes)])
  equal = _update(_state(started=0.0), [_statistics(z[:, :1, :1].repeat(4, axis=2), codes[:, :1, :1].repeat(4, 2))])
  assert len(np.unique(np.round(equal['share'], 6))) == 1
  assert state['codebook'].shape == (K, C)
  assert len({tuple(row) for row in _update(_state(started=0.0), [_statistics(z, codes)])['codebook']}) == K


def test_merged_returns_one_tree_with_and_without_a_codebook():
  assert vector_quantizer.merged({'dvae': {'encoder': 1, 'code': 2}}) == {'encoder': 1, 'code': 2}
  assert vector_quantizer.merged({'dvae': {'encoder': 1}, 'codebook': 2}) == {'encoder': 1, 'code': 2}
