import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.config import MeshConfig
from dalle_jax.evaluation.row_batches import in_batches
from dalle_jax.sharding import make_mesh


def _run(params, rows):
  return {'sum': rows.sum(axis=(1, 2)) + params, 'rows': jnp.float32(2) * rows}


@pytest.mark.parametrize('batch_size', [1, 3, 7, 100])
def test_results_do_not_depend_on_the_batch_size(batch_size):
  rows, done = np.arange(7 * 6, dtype=np.int32).reshape(7, 2, 3), []
  results = in_batches(_run, 5, rows, make_mesh(MeshConfig()), batch_size, lambda *counts: done.append(counts))
  np.testing.assert_array_equal(results['sum'], rows.sum(axis=(1, 2)) + 5)
  np.testing.assert_array_equal(results['rows'], 2.0 * rows)
  step = min(batch_size, 7)
  assert done == [(min(end, 7), 7) for end in range(step, 7 + step, step)]
