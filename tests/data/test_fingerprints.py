import hashlib
import json

from dalle_jax.data import fingerprints

FACTS = {'train': '12', 'validation': '34'}
DIGESTS = [hashlib.sha256(bytes([i])).hexdigest() for i in range(3)]


def test_a_fingerprint_depends_on_kind_facts_and_contents():
  variants = [
    fingerprints.fingerprint_of(kind, facts, digests)
    for kind in ('folder', 'tfds')
    for facts in (FACTS, {**FACTS, 'train': '13'})
    for digests in (None, [], DIGESTS, DIGESTS[::-1])
  ]
  assert len(set(variants)) == len(variants)
  assert all(variant.isalnum() for variant in variants)


def test_fingerprints_of_earlier_versions_fit_the_same_listing():
  earlier = hashlib.sha256(json.dumps({'kind': 'folder', **FACTS}, sort_keys=True).encode()).hexdigest()
  current = fingerprints.fingerprint_of('folder', FACTS, DIGESTS)
  other = fingerprints.fingerprint_of('folder', FACTS, DIGESTS[:2])
  assert fingerprints.fingerprint_of('folder', FACTS) == earlier
  assert fingerprints.same(earlier, current) and fingerprints.same(current, current)
  assert not fingerprints.same(other, current) and not fingerprints.same(current, earlier)
  assert not fingerprints.same('', current) and not fingerprints.same(earlier[1:], current)
  assert not fingerprints.same(fingerprints.fingerprint_of('folder', {}), current)
