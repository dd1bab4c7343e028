"""Tasks: what the training loop trains. A new task is one file here, and one line where its stage is run."""

from typing import Any, Protocol

import jax
import numpy as np

Params = dict[str, Any]


class Task(Protocol):
  """Functions of a batch, and the names of the collections that change."""

  name: str
  trainable: tuple[str, ...]  # top-level collections of the parameters that follow the gradient
  updated: tuple[str, ...]  # those that `update` changes after each step; the others stay frozen

  def init(self, key: jax.Array) -> Params:
    """Parameters by collection, boxed with their logical axis names."""

  def loss(self, params: Params, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """A float32 scalar to minimise, and scalar metrics; with updated collections also a tree 'statistics'."""

  def update(self, collections: Params, statistics: Any, key: jax.Array) -> Params:
    """New values of the updated collections, from the statistics of all micro-batches, stacked along a first axis."""

  def evaluate(self, params: Params, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    """Held-out figures, averaged over the batch; vectors (a code histogram) are allowed."""

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """Scalars from the averages of `evaluate` over batches, with `loss` among them."""
