import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.models import attention, attention_cache
from dalle_jax.models.attention import KINDS, Pattern


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('grid', 'text', 'kernel'), [(1, 2, 1), (4, 3, 3), (5, 1, 5)])
def test_steps_after_any_prefix_equal_dense_attention(kind, grid, text, kernel):
  pattern = Pattern(kind, text, grid, kernel)
  keys = jax.random.split(jax.random.key(0), 3)
  query, key, value = (jax.random.normal(k, (2, pattern.length, 2, 4)) for k in keys)
  dense = attention.attend(query, key, value, pattern.mask())
  step = jax.jit(lambda cache, t, *qkv: attention_cache.attend(pattern, *qkv, cache, t))
  for prefix in sorted({0, 1, text, min(text + grid + 2, pattern.length)}):
    cache = attention_cache.from_prefix(pattern, key[:, :prefix], value[:, :prefix])
    assert cache['key'].shape == cache['value'].shape == (2, attention_cache.size(pattern), 2, 4)
    for t in range(prefix, pattern.length):
      now = slice(t, t + 1)
      out, cache = step(cache, jnp.asarray(t), query[:, now], key[:, now], value[:, now])
      np.testing.assert_allclose(out, dense[:, now], atol=1e-5, err_msg=f'prefix {prefix}, slot {t}')


def test_empty_places_of_the_cache_do_not_affect_the_output():
  pattern = Pattern('row', 2, 3)
  keys = jax.random.split(jax.random.key(0), 3)
  query, key, value = (jax.random.normal(k, (1, pattern.length, 1, 4)) for k in keys)
  empty = attention_cache.from_prefix(pattern, key[:, :0], value[:, :0])
  caches = [empty, {'key': empty['key'] + 50, 'value': empty['value'] + 1e6}]
  for t in range(pattern.length):
    now = slice(t, t + 1)
    steps = [
      attention_cache.attend(pattern, query[:, now], key[:, now], value[:, now], c, jnp.asarray(t)) for c in caches
    ]
    np.testing.assert_array_equal(steps[0][0], steps[1][0])
    caches = [cache for _, cache in steps]


def test_cache_is_no_larger_than_the_pattern_needs():
  sizes = {kind: attention_cache.size(Pattern(kind, 256, 32)) for kind in KINDS}
  # Row: the text and 33 image slots. Conv: the text, five rows, five more slots and the slot itself.
  assert sizes == {'row': 256 + 33, 'column': 256 + 1024, 'conv': 256 + 5 * 32 + 5 + 1, 'full': 1280}


def test_a_column_layer_reads_only_the_text_and_its_own_column():
  pattern = Pattern('column', 256, 32)
  cache = jax.ShapeDtypeStruct((1, attention_cache.size(pattern), 1, 64), jnp.float32)
  token = jax.ShapeDtypeStruct((1, 1, 1, 64), jnp.float32)
  program = jax.make_jaxpr(lambda q, k, v, c, t: attention_cache.attend(pattern, q, k, v, c, t))(
    token, token, token, {'key': cache, 'value': cache}, jax.ShapeDtypeStruct((), jnp.int32)
  )
  products = [e for e in program.jaxpr.eqns if e.primitive.name == 'dot_general']
  largest_axes = [max(variable.aval.shape) for equation in products for variable in equation.invars]
  assert max(largest_axes) == 256
  assert 32 in {size for e in products for variable in e.invars for size in variable.aval.shape}
