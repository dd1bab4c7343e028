"""Fingerprints of data sets.

The fingerprint of a folder is a hash of the contents of its pictures, followed by a hash of their names, captions and
splits. The fingerprint of a TFDS data set is a hash of its record files, followed by a hash of its name and splits.
Earlier versions had only the second part.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

_LISTING_DIGITS, _CONTENTS_DIGITS = 64, 32


def fingerprint_of(kind: str, facts: dict[str, Any], digests: Iterable[str] | None = None) -> str:
  """Identify a data set by its kind, by facts about it, and by the SHA-256 digests of its files, if they are known."""
  listing = hash_of({'kind': kind, **facts})
  if digests is None:
    return listing
  contents = hashlib.sha256()
  for digest in digests:
    contents.update(bytes.fromhex(digest))
  return contents.hexdigest()[:_CONTENTS_DIGITS] + listing


def hash_of(value: Any) -> str:
  """SHA-256 of a value as JSON."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def same(stored: str, current: str) -> bool:
  """Whether a stored fingerprint can belong to the current data. That of an earlier version has no contents."""
  return stored == current or (len(stored) == _LISTING_DIGITS and current[_CONTENTS_DIGITS:] == stored)
