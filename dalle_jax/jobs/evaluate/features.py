"""Features of pictures, for distances between sets of them, and those of real pictures kept from one start to the next.

A kept file is used only if all that its features depend on is the same, and its contents are whole.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dalle_jax.evaluation.inception_features import InceptionFeatures
from dalle_jax.files import write_whole
from dalle_jax.hosts import say
from dalle_jax.importing import inception_weights as weights
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.ranker import Ranker

FORMAT = 1  # of the files


@dataclasses.dataclass(frozen=True)
class Extractor:
  """Features by name, with all that they depend on besides the pictures."""

  name: str  # 'reranker' or 'inception'
  fingerprint: str  # of its parameters
  run: Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, 3] to float32 [N, F]
  logits: Callable[[np.ndarray], np.ndarray] | None = None  # features to [N, C], where there are classes

  def __call__(self, images: np.ndarray, what: str) -> np.ndarray:
    """Features float32 [N, F] of uint8 [N, H, W, 3].

    Args:
      images: the pictures.
      what: they are, for messages.

    Raises:
      ValueError: a feature is infinite or not a number.
    """
    found = self.run(images)
    broken = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(broken):
      first = ', '.join(map(str, broken[:5]))
      raise ValueError(
        f'The {self.name} features of {len(broken)} of {len(images)} {what} are infinite or not numbers (pictures '
        f'number {first}{", ..." if len(broken) > 5 else ""}); its parameters are damaged, or training diverged.'
      )
    return found


def load_extractor(settings: EvaluationSettings, mesh: Mesh, ranker: Ranker | None) -> Extractor | None:
  """What --features names, or None.

  Raises:
    ValueError: the weights cannot be read.
  """
  if settings.features == 'reranker':
    assert ranker is not None
    return Extractor('reranker', ranker.info.get('params', ''), ranker.image_features)
  if settings.features == 'inception':
    read = weights.load(Path(settings.inception))
    run = InceptionFeatures(read.params, mesh, settings.rows)
    return Extractor('inception', read.fingerprint, run, lambda features: features @ read.classes)
  return None


class Cache:
  """Features of real pictures in a directory."""

  def __init__(self, directory: Path):
    self._directory = directory

  def get(self, name: str, facts: dict[str, Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Features kept under `name`, or made and kept.

    Args:
      name: of the file, without its ending.
      facts: all that they depend on, ready for JSON.
      make: float32 [N, F].
    """
    path, facts = self._directory / f'{name}.npz', {'format': FORMAT, **facts}
    if path.exists():
      kept, problem = _read(path, facts)
      if kept is not None:
        return kept
      say(f'{path} is made anew: {problem}.')
    made = make()
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
      write_whole(path, _packed(made, facts))
    except OSError as error:
      say(f'{path} cannot be written and is left out: {error}.')
    return made


def _packed(features: np.ndarray, facts: dict[str, Any]) -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, features=features, facts=np.array(json.dumps(facts)), digest=np.array(_digest(features)))
  return buffer.getvalue()


def _digest(features: np.ndarray) -> str:
  return hashlib.sha256(f'{features.shape} {features.dtype}'.encode() + features.tobytes()).hexdigest()


def _read(path: Path, facts: dict[str, Any]) -> tuple[np.ndarray | None, str]:
  """The features, or None and why not."""
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      features, kept, digest = file['features'], json.loads(str(file['facts'])), str(file['digest'])
    changed = [name for name in {**kept, **facts} if kept.get(name) != facts.get(name)]
  except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
    return None, f'it is damaged ({error})'
  if changed:
    return None, f'it belongs to another {" and ".join(changed)}'
  if digest != _digest(features):
    return None, 'it is damaged (its contents have changed)'
  return features, ''
