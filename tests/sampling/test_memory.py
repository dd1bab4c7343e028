import jax
import pytest
from random_models import PICTURES, random_params

from dalle_jax.config import Config, MeshConfig
from dalle_jax.factory import make_dvae, make_prior
from dalle_jax.sampling import memory
from dalle_jax.sharding import make_mesh

MESH = make_mesh(MeshConfig())


@pytest.mark.parametrize(
  ('asked', 'one', 'free', 'size'), [(64, 10, None, 64), (64, 10, 1_000, 64), (64, 10, 400, 32), (64, 1_000, 10, 1)]
)
def test_the_batch_size_is_cut_to_the_free_memory_but_not_below_one(asked, one, free, size):
  assert memory.fitting_batch(asked, one, free, MESH) == size


def test_a_row_needs_at_least_its_cache_and_a_second_cache_with_guidance():
  config = Config.from_dict({**PICTURES, 'prior': {**PICTURES['prior'], 'embed_dim': 64, 'num_layers': 3}})
  prior, dvae = make_prior(config, 20), make_dvae(config.dvae)
  params = jax.eval_shape(lambda: random_params(config, 20))
  one, two = (memory.row_bytes(prior, dvae, params, 'prior', guided) for guided in (False, True))
  caches = 3 * 2 * prior.length * 64 * 4  # keys and values of every layer, float32
  assert caches < one < 2 * caches and one + caches < two < 2 * one + 1


def test_known_codes_count_with_their_attention_scores():
  config = Config.from_dict({**PICTURES, 'prior': {**PICTURES['prior'], 'num_heads': 4}})
  prior, dvae = make_prior(config, 20), make_dvae(config.dvae)
  params = jax.eval_shape(lambda: random_params(config, 20))
  none, half = (memory.row_bytes(prior, dvae, params, 'prior', False, known) for known in (0, 8))
  assert half - none > 4 * 4 * ((6 + 8) ** 2 - 6**2)


def test_a_wide_decoder_counts_with_its_activations():
  config = Config.from_dict({**PICTURES, 'dvae': {**PICTURES['dvae'], 'hidden_size': 512}})
  params = jax.eval_shape(lambda: random_params(config, 20))
  row_bytes = memory.row_bytes(make_prior(config, 20), make_dvae(config.dvae), params, 'prior', False)
  assert row_bytes >= 2 * 8 * 8 * 512 * 4  # the input and the output of a layer in the last group


def test_free_memory_is_limited_by_the_machine_and_by_the_cgroup(tmp_path, monkeypatch):
  free = memory.free_bytes(MESH)
  assert free is None or 0 < free < 1 << 50
  (tmp_path / 'memory.max').write_text('5000\n')
  (tmp_path / 'memory.current').write_text('2000\n')
  monkeypatch.setattr(memory, 'CGROUP', tmp_path)
  assert memory.free_bytes(MESH) == 3000
  (tmp_path / 'memory.max').write_text('max\n')
  assert memory.free_bytes(MESH) != 3000
