"""Features of images, for distances between sets of images, and a cache for the features of real images.

A cached file is used only if it is intact and everything that its features depend on is the same.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dalle_jax.evaluation.inception_features import InceptionFeatures
from dalle_jax.files import reason, shown, write_whole
from dalle_jax.hosts import say
from dalle_jax.importing import inception_weights as weights
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.ranker import Ranker

FORMAT = 1  # version of the cache files' format


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A function from images to features, with a fingerprint of everything else that the features depend on."""

  name: str  # 'reranker' or 'inception'
  fingerprint: str  # fingerprint of the parameters
  run: Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, 3] to float32 [N, F]
  logits: Callable[[np.ndarray], np.ndarray] | None = None  # features to class logits [N, C]; None without classes

  def __call__(self, images: np.ndarray, what: str) -> np.ndarray:
    """Computes the features of images, float32 [N, F].

    Args:
      images: uint8 [N, H, W, 3].
      what: what the images are, for messages, such as 'real images'.

    Raises:
      ValueError: a feature is NaN or infinite.
    """
    features = self.run(images)
    not_finite = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(not_finite):
      first = ', '.join(map(str, not_finite[:5]))
      raise ValueError(
        f'The {self.name} features of {len(not_finite)} of {len(images)} {what} are NaN or infinite (image '
        f'numbers {first}{", ..." if len(not_finite) > 5 else ""}). Its parameters are damaged, or its training '
        'diverged.'
      )
    return features


def load_extractor(settings: EvaluationSettings, mesh: Mesh, ranker: Ranker | None) -> Extractor | None:
  """Loads the extractor that --features names; None without --features.

  Args:
    settings: the settings of the evaluation.
    mesh: the device mesh.
    ranker: the loaded reranker, needed for --features=reranker.

  Raises:
    ValueError: the weights cannot be read.
  """
  if settings.features == 'reranker':
    assert ranker is not None
    return Extractor('reranker', ranker.info.get('params', ''), ranker.image_features)
  if settings.features == 'inception':
    assert settings.inception is not None, 'EvaluationSettings refuses --features=inception without --inception'
    inception = weights.load(Path(settings.inception))
    run = InceptionFeatures(inception.params, mesh, settings.rows)
    return Extractor('inception', inception.fingerprint, run, lambda features: features @ inception.classes)
  return None


class Cache:
  """A directory of cached features of real images."""

  def __init__(self, directory: Path):
    self._directory = directory

  def get(self, name: str, facts: dict[str, Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """The cached features, float32 [N, F]; computes and caches them if the file is missing, damaged or out of date.

    Args:
      name: the file's name without its extension.
      facts: everything that the features depend on, as JSON values.
      make: computes the features.
    """
    path, facts = self._directory / f'{name}.npz', {'format': FORMAT, **facts}
    if path.exists():
      cached, problem = _read(path, facts)
      if cached is not None:
        return cached
      say(f'{path} is recomputed: {problem}.')
    features = make()
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
      write_whole(path, _packed(features, facts))
    except OSError as error:
      say(f'{path} cannot be written, so these features are not cached: {reason(error, path)}.')
    return features


def _packed(features: np.ndarray, facts: dict[str, Any]) -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, features=features, facts=np.array(json.dumps(facts)), digest=np.array(_digest(features)))
  return buffer.getvalue()


def _digest(features: np.ndarray) -> str:
  return hashlib.sha256(f'{features.shape} {features.dtype}'.encode() + features.tobytes()).hexdigest()


def _read(path: Path, facts: dict[str, Any]) -> tuple[np.ndarray | None, str]:
  """The features and an empty string, or None and the reason why the file cannot be used."""
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      features, cached_facts, digest = file['features'], json.loads(str(file['facts'])), str(file['digest'])
    changed = [name for name in {**cached_facts, **facts} if cached_facts.get(name) != facts.get(name)]
  except Exception as error:  # zipfile and numpy raise many types for damaged files
    return None, f'it is damaged ({shown(error)})'
  if changed:
    return None, f'it was computed with another {" and ".join(changed)}'
  if digest != _digest(features):
    return None, 'it is damaged (its contents have changed)'
  return features, ''
