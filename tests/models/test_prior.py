import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.factory import make_prior
from dalle_jax.models import prior as module
from dalle_jax.models.attention import Pattern
from dalle_jax.models.prior import PAD, Prior
from dalle_jax.models.transformer import BlockShape, Transformer

TEXT, IMAGE, TEXT_LENGTH, GRID = 7, 5, 4, 3


def _tiny(*kinds, last=None, **options):
  patterns = [Pattern(kind, TEXT_LENGTH, GRID, 3) for kind in (*kinds, last or 'full')]
  shape = BlockShape(2, 8, 2, 2, **options)
  stack = Transformer(shape, tuple(patterns[:-1]), patterns[-1] if last else None)
  return Prior(TEXT, IMAGE, stack)


TINY = _tiny('full')


def _finite(logits):
  """Clip the logits at -100, because -inf cannot be subtracted."""
  return np.maximum(np.asarray(logits), -100)


def _random_params(prior, seed=0):
  """Parameters with random entries. Initial output matrices are zero, which would make all logits equal."""
  rng = np.random.default_rng(seed)
  shapes = nn.unbox(jax.eval_shape(lambda: prior.init(jax.random.key(0))))
  return jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def params():
  return _random_params(TINY)


@pytest.fixture(scope='module')
def tokens():
  """Streams [2, 13]: one with two pads, and one whose caption leaves only the last pad."""
  rng = np.random.default_rng(1)
  text = np.array([[3, 6, PAD, PAD], [2, 1, 5, PAD]])
  return np.concatenate([text, TEXT + rng.integers(0, IMAGE, (2, GRID**2))], axis=1).astype(np.int32)


@pytest.fixture(scope='module')
def logits():
  return jax.jit(TINY.logits)


@pytest.fixture(scope='module')
def split_logits():
  return jax.jit(TINY.split_logits)


@pytest.fixture(scope='module')
def step():
  return jax.jit(TINY.step)


def test_stream_is_text_a_pad_and_shifted_image_ids(tokens):
  text, image = tokens[:, : TEXT_LENGTH - 1], tokens[:, TEXT_LENGTH:] - TEXT
  np.testing.assert_array_equal(TINY.stream(jnp.asarray(text), jnp.asarray(image)), tokens)
  assert (TINY.length, TINY.image_length, TINY.vocab_size) == (13, 9, 12)


def test_slots_are_embedded_as_documented_in_the_module(params, tokens):
  e = params['embeddings']
  expected = np.zeros((2, TINY.length, 8), np.float32)
  for b, slot in np.ndindex(expected.shape[:2]):
    token = tokens[b, slot - 1]
    row, column = divmod(slot - TEXT_LENGTH, GRID)
    if slot == 0:
      x = e['start_embedding'][0] + e['text_position'][0]
    elif slot < TEXT_LENGTH:
      x = e['pad_embedding'][slot] if token == PAD else e['text_embedding'][token] + e['text_position'][slot]
    else:
      first = e['start_embedding'][1] if slot == TEXT_LENGTH else e['image_embedding'][token - TEXT]
      x = first + e['row_embedding'][row] + e['column_embedding'][column]
    expected[b, slot] = x

  def embed(*args, method):
    return TINY.embeddings.apply({'params': jax.tree.map(jnp.asarray, e)}, *args, method=method)

  text = embed(tokens[:, : TEXT_LENGTH - 1], method='text_slots')
  image = embed(tokens[:, TEXT_LENGTH:-1] - TEXT, method='image_slots')
  np.testing.assert_allclose(np.concatenate([text, image], axis=1), expected, atol=1e-6)
  embed_slot = jax.jit(lambda token, index: embed(token, index, method='slot'))
  for slot in range(1, TINY.length):
    np.testing.assert_allclose(embed_slot(tokens[:, slot - 1], slot), expected[:, slot : slot + 1], atol=1e-6)


# Prefixes that are empty, end within the text, before and after its last slot, and within and at the end of the image.
@pytest.mark.parametrize('prefix', [0, 2, TEXT_LENGTH - 1, TEXT_LENGTH, TEXT_LENGTH + 1, 9, 12])
def test_prefill_and_steps_equal_the_logits_of_the_whole_sequence(params, tokens, logits, step, prefix):
  expected = np.asarray(logits(params, tokens))
  decode_params = jax.jit(TINY.decode_params)(params)
  cache, next_logits = jax.jit(TINY.prefill)(decode_params, tokens[:, :prefix])
  np.testing.assert_allclose(next_logits, expected[:, prefix], atol=2e-5)
  for t in range(prefix, TINY.length - 1):
    cache, next_logits = step(decode_params, cache, tokens[:, t])
    np.testing.assert_allclose(next_logits, expected[:, t + 1], atol=2e-5)


SCHEMES = {
  'learned': {},
  'rotary': {'rotary': True},
  'everything': {'rotary': True, 'norm': 'rmsnorm', 'mlp': 'swiglu', 'qk_norm': True, 'sandwich_norm': True},
}


# Every pattern with all options, and every scheme with both forms of a cache: for all slots, and for recent ones.
COMBINATIONS = [
  *(('everything', kinds) for kinds in [('row',), ('column',), ('conv',), ('row', 'column'), ('full', 'conv')]),
  ('learned', ('row', 'column')), ('learned', ('conv',)), ('rotary', ('full', 'conv')), ('rotary', ('column',)),
]  # fmt: skip


@pytest.mark.parametrize(('scheme', 'kinds'), COMBINATIONS)
def test_prefill_and_steps_equal_the_whole_sequence_for_all_patterns_and_options(tokens, scheme, kinds):
  prior = _tiny(*kinds, **SCHEMES[scheme])
  params, prefix = _random_params(prior), TEXT_LENGTH + 1
  expected = np.asarray(jax.jit(prior.logits)(params, tokens))
  decode_params = jax.jit(prior.decode_params)(params)
  prefill, step = jax.jit(prior.prefill), jax.jit(prior.step)
  for rows in (slice(0, 2), slice(1, 2)) if scheme == 'learned' else (slice(0, 2),):
    cache, next_logits = prefill(decode_params, tokens[rows, :prefix])
    for t in range(prefix, prior.length):
      np.testing.assert_allclose(next_logits, expected[rows, t], atol=5e-5)
      if t < prior.length - 1:
        cache, next_logits = step(decode_params, cache, tokens[rows, t])


def test_rotary_priors_have_pad_embeddings_but_no_position_embeddings():
  names = set(_random_params(_tiny('full', rotary=True))['embeddings'])
  assert {'text_position', 'row_embedding', 'column_embedding'} & names == set()
  assert 'pad_embedding' in names


def test_logits_depend_on_all_earlier_tokens_and_on_no_others(params, tokens, logits):
  base = tokens[1]
  changed = np.repeat(base[None], TINY.length, axis=0)
  for t in range(TINY.length):
    # The last text token is always a pad.
    changed[t, t] = TEXT + (base[t] - TEXT + 1) % IMAGE if t >= TEXT_LENGTH else base[t] % (TEXT - 1) + 1
  before = _finite(logits(params, base[None]))[0]
  after = _finite(logits(params, changed))
  for t in range(TINY.length):
    np.testing.assert_allclose(after[t, : t + 1], before[: t + 1], atol=1e-6)
    if t not in (TEXT_LENGTH - 1, TINY.length - 1):
      assert np.abs(after[t, t + 1 :] - before[t + 1 :]).max() > 1e-3, f'no later logits depend on token {t}'


def test_a_pad_is_embedded_only_by_the_pad_embedding_of_its_slot(params, tokens, logits):
  def with_noise(name, index):
    table = params['embeddings'][name].copy()
    table[index, ::2] += 1.0  # only in every other channel: layer normalisation removes a constant
    return _finite(logits({**params, 'embeddings': {**params['embeddings'], name: table}}, tokens))

  before = _finite(logits(params, tokens))
  np.testing.assert_array_equal(with_noise('text_embedding', PAD), before)
  pad = with_noise('pad_embedding', 3)  # slot 3 holds a pad in the first stream only
  np.testing.assert_array_equal(pad[1], before[1])
  np.testing.assert_array_equal(pad[0, :3], before[0, :3])
  assert np.abs((pad - before)[0, 4]).max() > 1e-3
  position = with_noise('text_position', 3)
  np.testing.assert_array_equal(position[0], before[0])
  assert np.abs((position - before)[1, 4]).max() > 1e-3


def test_split_logits_equal_the_text_and_image_logits_of_the_stream(params, tokens, logits, split_logits):
  text, image = tokens[:, : TEXT_LENGTH - 1], tokens[:, TEXT_LENGTH:] - TEXT
  text_logits, image_logits = split_logits(params, text, image)
  stream_logits = logits(params, tokens)
  assert text_logits.shape == (2, TEXT_LENGTH, TEXT)
  # The stream logits rule out all ids but the pad at some positions; the training logits do not.
  expected = stream_logits[:, :TEXT_LENGTH, :TEXT]
  np.testing.assert_allclose(np.where(np.isfinite(expected), text_logits, -np.inf), expected, atol=1e-5)
  np.testing.assert_allclose(image_logits, stream_logits[:, TEXT_LENGTH:, TEXT:], atol=1e-5)


def test_exactly_the_impossible_tokens_have_a_logit_of_minus_infinity(params, tokens, logits):
  possible = np.zeros((2, TINY.length, TINY.vocab_size), bool)
  possible[:, :TEXT_LENGTH, PAD] = True
  possible[0, :3, :TEXT] = True  # the third target is the first pad of this caption
  possible[1, :3, :TEXT] = True  # this caption leaves only the last pad
  possible[:, TEXT_LENGTH:, TEXT:] = True
  stream_logits = np.asarray(logits(params, tokens))
  np.testing.assert_array_equal(np.isfinite(stream_logits), possible)
  ended = tokens[:1].copy()
  ended[0, 1] = PAD
  possible[0, 2, 1:TEXT] = False  # only a pad may follow a pad
  np.testing.assert_array_equal(np.isfinite(logits(params, ended)[0]), possible[0])
  assert np.all(stream_logits[~np.isfinite(stream_logits)] == -np.inf)


def test_probabilities_of_all_streams_sum_to_one():
  small = Prior(3, 2, Transformer(BlockShape(1, 4, 1, 1), (Pattern('full', 3, 2),)))
  texts = [(a, b, PAD) for a, b in itertools.product(range(3), repeat=2) if a != PAD or b == PAD]
  streams = np.array([text + codes for text in texts for codes in itertools.product((3, 4), repeat=4)])
  logits = jax.jit(small.logits)(_random_params(small, 3), streams)
  probabilities = np.exp(-np.asarray(module.token_nll(logits, jnp.asarray(streams)), np.float64).sum(-1))
  assert probabilities.sum() == pytest.approx(1, abs=1e-5)
  assert np.ptp(probabilities) > 1e-3


def test_losses_match_a_numpy_reference():
  rng = np.random.default_rng(0)
  text = np.array([[3, 6, PAD, PAD], [2, 1, 5, 4], [1, PAD, PAD, PAD]], np.int32)
  image = rng.integers(0, IMAGE, (3, 6)).astype(np.int32)
  text_logits = rng.normal(size=(3, 5, TEXT)).astype(np.float32)
  image_logits = rng.normal(size=(3, 6, IMAGE)).astype(np.float32)

  def nll(scores, token):
    return np.log(np.exp(np.float64(scores)).sum()) - scores[token]

  targets = [[3, 6, PAD], [2, 1, 5, 4, PAD], [1, PAD]]
  text_nll = [nll(text_logits[b, t], token) for b, row in enumerate(targets) for t, token in enumerate(row)]
  image_nll = [nll(image_logits[b, t], image[b, t]) for b, t in np.ndindex(image.shape)]
  losses = module.losses(text_logits, image_logits, jnp.asarray(text), jnp.asarray(image))
  np.testing.assert_allclose([losses['text'], losses['image']], [np.mean(text_nll), np.mean(image_nll)], rtol=1e-5)
  captioned = np.array([False, True, False])
  losses_of_one = module.losses(*map(jnp.asarray, (text_logits, image_logits, text, image, captioned)))
  assert losses_of_one['text'] == pytest.approx(np.mean(text_nll[3:8]), rel=1e-5)
  assert losses_of_one['image'] == losses['image']


def test_drop_captions_drops_whole_captions_with_the_given_probability():
  text = jnp.ones((2000, 3), jnp.int32)
  dropped, kept = module.drop_captions(jax.random.key(0), text, 0.2)
  np.testing.assert_array_equal(dropped, np.repeat(np.asarray(kept)[:, None], 3, axis=1))
  assert 0.17 < 1 - np.mean(kept) < 0.23


def test_bfloat16_prior_has_float32_parameters_and_logits(params, tokens, logits):
  half = _tiny('full', dtype=jnp.bfloat16)
  shapes = jax.eval_shape(lambda: half.init(jax.random.key(0)))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  low, full = np.asarray(jax.jit(half.logits)(params, tokens)), np.asarray(logits(params, tokens))
  assert low.dtype == np.float32
  finite = np.isfinite(full)
  np.testing.assert_array_equal(np.isfinite(low), finite)
  assert 0 < np.abs(low[finite] - full[finite]).max() < 0.1 * np.abs(full[finite]).max()


def test_initial_prior_is_uniform(params, tokens, split_logits):
  # XLA computes only the returned kernels, so this compiles fast.
  names = ('text_kernel', 'image_kernel')
  init_kernels = jax.jit(lambda key: [TINY.init(key)['embeddings'][name].value for name in names])
  text_kernel, image_kernel = init_kernels(jax.random.key(0))
  start = {**params, 'embeddings': {**params['embeddings'], 'text_kernel': text_kernel, 'image_kernel': image_kernel}}
  text, image = tokens[:, : TEXT_LENGTH - 1], tokens[:, TEXT_LENGTH:] - TEXT
  losses = module.losses(*split_logits(start, text, image), jnp.asarray(text), jnp.asarray(image))
  np.testing.assert_allclose([losses['text'], losses['image']], np.log([TEXT, IMAGE]), rtol=1e-6)


def test_every_axis_of_every_parameter_has_a_sharding_rule():
  boxes = jax.tree.leaves(
    jax.eval_shape(lambda: TINY.init(jax.random.key(0))), is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )
  for leaf in boxes:
    assert isinstance(leaf, nn.LogicallyPartitioned)
    assert len(leaf.names) == leaf.value.ndim
    assert set(leaf.names) <= set(sharding.RULES)
  assert {'layers', 'heads', 'mlp', 'vocab', 'embed'} <= {name for leaf in boxes for name in leaf.names}


def test_papers_prior_has_twelve_billion_parameters():
  paper = {'attention_pattern': ('row', 'column', 'row', 'row'), 'last_attention_pattern': 'conv'}
  config = Config.from_dict({'data': {'image_size': 256}, 'prior': paper})
  prior = make_prior(config, 16_384)
  assert prior.length == 1280
  assert (prior.transformer.shape.num_layers, prior.transformer.shape.head_dim) == (64, 64)
  d = 62 * 64
  layer = 4 * d + d * 3 * d + 3 * d + d * d + d + d * 4 * d + 4 * d + 4 * d * d + d
  tables = 2 * d * (16_384 + 8192) + 2 * 256 * d + 2 * d + 2 * 32 * d
  kinds = [pattern.kind for pattern in prior.transformer.layer_patterns]
  assert kinds == ['column' if i % 4 == 2 else 'row' for i in range(1, 64)] + ['conv']  # appendix B.1
  assert (kinds.count('row'), kinds.count('column')) == (47, 16)
  shapes = jax.eval_shape(lambda: prior.init(jax.random.key(0)))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == 64 * layer + 2 * d + tables
  assert count == pytest.approx(12e9, rel=0.03)


def test_only_a_pad_may_follow_a_pad(params, tokens, logits):
  ended = np.array(tokens[:1])
  ended[0, 1:TEXT_LENGTH] = PAD
  logits_after_pad = np.asarray(logits(params, ended))[0, 2:TEXT_LENGTH]
  assert np.isfinite(logits_after_pad[:, PAD]).all()
  assert (logits_after_pad[:, 1:] == -np.inf).all()
