"""Guarantees of sampling, tested for every attention pattern and position scheme, with and without guidance."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.models.attention import Pattern
from dalle_jax.models.prior import PAD, Prior
from dalle_jax.models.transformer import BlockShape, Transformer
from dalle_jax.sampling.decode import Given, Guidance, Settings, advance, begin, finish, row_keys
from dalle_jax.sampling.logits import guide

TEXT, IMAGE, LENGTH = 7, 9, 4
TEXTS = np.array([[3, 6, PAD, PAD], [2, 1, 5, PAD], [4, PAD, PAD, PAD]], np.int32)
NOTHING = np.full_like(TEXTS, PAD)
RNG = np.random.default_rng(8)
KNOWN = np.pad(TEXT + RNG.integers(IMAGE, size=(3, 9)), ((0, 0), (LENGTH, 0))).astype(np.int32)
FORCED = np.pad(RNG.random((3, 9)) < 0.5, ((0, 0), (LENGTH, 0)))


@pytest.fixture(
  scope='module',
  params=[(kind, rotary) for kind in ('full', 'row', 'column', 'conv') for rotary in (False, True)],
  ids=lambda value: f'{value[0]}-{"rotary" if value[1] else "learned"}',
)
def case(request):
  """A random model with one pattern and position scheme, and a run that records the logits of every step."""
  kind, rotary = request.param
  shape = BlockShape(2, 8, 2, rotary=rotary)
  prior = Prior(TEXT, IMAGE, Transformer(shape, (Pattern(kind, LENGTH, 3, 3),)))
  shapes = nn.unbox(jax.eval_shape(lambda: prior.init(jax.random.key(0))))
  rng = np.random.default_rng(3)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
  start = jax.jit(functools.partial(begin, prior))
  step = jax.jit(functools.partial(advance, prior))
  end = jax.jit(finish)

  def run(rows=slice(None), scale=3.0, forced=FORCED):
    text, settings = TEXTS[rows], Settings(0.9, None, Guidance(np.float32(scale), LENGTH, np.float32(0)))
    keys, given = row_keys(5, np.arange(3)[rows]), Given(KNOWN[rows], forced[rows])
    prepared = prior.decode_params(params)
    state = start(prepared, text, NOTHING[rows])
    seen = [state.logits]
    for stop in range(LENGTH + 1, prior.length):
      state = step(prepared, state, keys, stop, settings, given=given)
      seen.append(state.logits)
    return np.asarray(end(state, keys, settings, given=given)[0]), np.stack(seen, axis=1)

  return SimpleNamespace(whole=jax.jit(functools.partial(prior.logits, params)), run=run, drawn=run())


def test_cached_logits_equal_the_logits_of_the_full_sequence_with_and_without_the_caption(case):
  tokens, seen = case.drawn
  bare = np.where(np.arange(tokens.shape[1]) < LENGTH, PAD, tokens)
  for rows, stream in ((seen[::2], tokens), (seen[1::2], bare)):
    expected = np.asarray(case.whole(stream))[:, LENGTH:]
    np.testing.assert_allclose(rows, expected, rtol=2e-5, atol=2e-5)


def test_each_row_of_a_batch_equals_the_row_sampled_alone(case):
  for row in range(3):
    np.testing.assert_array_equal(case.run(slice(row, row + 1))[0][0], case.drawn[0][row])


def test_guidance_changes_the_logits_at_every_step_unless_its_scale_is_one(case):
  conditional, unconditional = (case.drawn[1][i::2, :, TEXT:] for i in (0, 1))
  guided = np.asarray(guide(conditional, unconditional, 3.0))
  np.testing.assert_allclose(guided, 3 * conditional - 2 * unconditional, rtol=1e-4, atol=1e-4)
  changed = np.abs(guided - conditional).max(axis=-1)
  assert changed.shape == (3, 9) and np.all(changed > 1e-3)
  np.testing.assert_allclose(guide(conditional, unconditional, 1.0), conditional, rtol=1e-4, atol=1e-5)


def test_forced_tokens_stay_and_influence_the_sampled_tokens(case):
  tokens, _ = case.drawn
  np.testing.assert_array_equal(tokens[FORCED], KNOWN[FORCED])
  free, _ = case.run(forced=np.zeros_like(FORCED))
  assert np.any(free[~FORCED] != tokens[~FORCED])
  np.testing.assert_array_equal(free[:, LENGTH:] >= TEXT, True)
