"""Rows through a function on the devices, in batches of one shape, so that it compiles once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding

Progress = Callable[[int, int], None]


def in_batches(
  run: Callable[[Any, jax.Array], Any],
  params: Any,
  rows: np.ndarray,
  mesh: Mesh,
  batch_size: int,
  progress: Progress | None = None,
  prepare: Callable[[Any], np.ndarray] = np.asarray,
  whole: bool = False,
) -> Any:
  """`run(params, rows)`, an array or a tree of them, over rows [N, ...] as numpy arrays [N, ...].

  Args:
    run: gives arrays with the leading axis of its rows; given again, it is not compiled again.
    params: on the mesh.
    rows: N > 0 of them, an array or, with `prepare`, any sequence.
    mesh: the rows are split over it.
    batch_size: rows at a time, rounded up to what the devices divide. The last batch is filled up with zeros.
    progress: called with (rows done, N) after each batch.
    prepare: makes the array [B, ...] of a batch of rows.
    whole: fills the batch up also if there are fewer rows than that, so that results do not depend on their number.
  """
  size = sharding.rounded_batch(batch_size if whole else min(batch_size, len(rows)), mesh)
  run = _jitted(run, mesh)
  parts = []
  for begin in range(0, len(rows), size):
    part = prepare(rows[begin : begin + size])
    filled = np.pad(part, ((0, size - len(part)), *((0, 0) for _ in part.shape[1:])))
    with sharding.use_mesh(mesh):
      parts.append(jax.device_get(run(params, sharding.from_whole(filled, mesh))))
    if progress:
      progress(min(begin + size, len(rows)), len(rows))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *parts)


@functools.lru_cache(maxsize=16)
def _jitted(run: Callable[[Any, jax.Array], Any], mesh: Mesh) -> Callable[[Any, jax.Array], Any]:
  return jax.jit(run, out_shardings=sharding.replicated(mesh))
