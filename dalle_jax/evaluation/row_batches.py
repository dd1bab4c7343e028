"""Run a function over rows on the devices, in batches of one shape, so that it compiles once."""

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
  """Compute `run(params, rows)` in batches.

  Args:
    run: from parameters and rows [B, ...] to an array [B, ...] or a tree of them. Each function object compiles once.
    params: the parameters, on the mesh.
    rows: N > 0 rows: an array or, with `prepare`, any sequence.
    mesh: the device mesh that splits the rows.
    batch_size: rows per batch, rounded up to a multiple of the devices that split it. Zeros pad the last batch.
    progress: called with (rows done, N) after each batch.
    prepare: from a slice of `rows` to an array [B, ...].
    whole: use the full batch size even if there are fewer rows. The results then do not depend on N.

  Returns:
    Numpy arrays [N, ...], in the tree structure that `run` returns.
  """
  size = sharding.rounded_batch(batch_size if whole else min(batch_size, len(rows)), mesh)
  run = _jitted(run, mesh)
  results = []
  for begin in range(0, len(rows), size):
    batch = prepare(rows[begin : begin + size])
    padded = np.pad(batch, ((0, size - len(batch)), *((0, 0) for _ in batch.shape[1:])))
    with sharding.use_mesh(mesh):
      results.append(jax.device_get(run(params, sharding.from_whole(padded, mesh))))
    if progress:
      progress(min(begin + size, len(rows)), len(rows))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *results)


@functools.lru_cache(maxsize=16)
def _jitted(run: Callable[[Any, jax.Array], Any], mesh: Mesh) -> Callable[[Any, jax.Array], Any]:
  return jax.jit(run, out_shardings=sharding.replicated(mesh))
