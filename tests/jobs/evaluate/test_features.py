import numpy as np
import pytest

from dalle_jax.jobs.evaluate import features
from dalle_jax.jobs.evaluate.features import Cache, Extractor

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)
FACTS = {'data set': 'abc', 'number of pictures': 4}


@pytest.fixture
def cache(tmp_path):
  return Cache(tmp_path / 'features')


def _make(times):
  def make():
    times.append(1)
    return FEATURES

  return make


def test_cached_features_are_not_computed_again(cache):
  times = []
  for _ in range(2):
    np.testing.assert_array_equal(cache.get('real', FACTS, _make(times)), FEATURES)
  assert len(times) == 1


def test_changed_facts_recompute_features_with_a_message(cache, capsys):
  times = []
  cache.get('real', FACTS, _make(times))
  cache.get('real', {**FACTS, 'data set': 'def'}, _make(times))
  assert len(times) == 2
  assert 'real.npz is recomputed: it was computed with another data set.' in capsys.readouterr().out


def _flip(content, at):
  return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
  'damage', [lambda c: b'', lambda c: c[: len(c) // 2], lambda c: b'text', lambda c: _flip(c, c.index(FEATURES.data))]
)
def test_damaged_files_are_recomputed_with_a_message(cache, tmp_path, capsys, damage):
  times = []
  cache.get('real', FACTS, _make(times))
  file = tmp_path / 'features' / 'real.npz'
  file.write_bytes(damage(file.read_bytes()))
  np.testing.assert_array_equal(cache.get('real', FACTS, _make(times)), FEATURES)
  assert len(times) == 2 and 'it is damaged' in capsys.readouterr().out
  cache.get('real', FACTS, _make(times))
  assert len(times) == 2


def test_a_flipped_bit_never_ends_a_program_and_never_changes_features(cache, tmp_path):
  facts = {'format': features.FORMAT, **FACTS}
  cache.get('real', FACTS, lambda: FEATURES)
  file = tmp_path / 'features' / 'real.npz'
  content = file.read_bytes()
  for at in range(len(content)):
    file.write_bytes(_flip(content, at))
    read, _ = features._read(file, facts)
    assert read is None or np.array_equal(read, FEATURES)


def test_features_that_do_not_match_their_digest_are_recomputed(cache, tmp_path, capsys):
  times = []
  cache.get('real', FACTS, _make(times))
  file = tmp_path / 'features' / 'real.npz'
  with np.load(file) as archive:
    values = dict(archive)
  np.savez(file, **(values | {'features': FEATURES + 1}))
  cache.get('real', FACTS, _make(times))
  assert len(times) == 2 and 'its contents have changed' in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_gives_a_message_and_the_features(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  features = Cache(tmp_path / 'file' / 'features').get('real', FACTS, lambda: FEATURES)
  np.testing.assert_array_equal(features, FEATURES)
  assert 'cannot be written' in capsys.readouterr().out


def test_features_that_are_not_finite_are_reported():
  broken = FEATURES.copy()
  broken[[1, 3], [0, 2]] = np.nan, np.inf
  extractor = Extractor('reranker', 'abc', lambda images: broken)
  with pytest.raises(ValueError, match=r'reranker features of 2 of 4 generated images .* \(image numbers 1, 3\)'):
    extractor(np.zeros((4, 2, 2, 3), np.uint8), 'generated images')
