import jax.numpy as jnp
import pytest

from dalle_jax.training.loop import train
from dalle_jax.training.profile import Profiler


def traces(directory):
  return list(directory.rglob('*.xplane.pb'))


@pytest.mark.parametrize(('steps', 'count'), [((4, 6), 1), ((), 0), ((11, 40), 1), ((40, 50), 0)])
def test_a_run_traces_the_chosen_steps(tmp_path, linear_task, stream, mesh, quiet, make_config, capsys, steps, count):
  train(
    linear_task(), make_config(), mesh=mesh, seed=0, workdir=tmp_path, batches=stream(), logging=quiet, profile=steps
  )
  assert len(traces(tmp_path / 'profile')) == count
  assert ('saved a profiler trace ending at step 6 ' in capsys.readouterr().err) == (steps == (4, 6))


def test_a_run_resumed_within_the_chosen_steps_traces_the_rest(tmp_path):
  with Profiler(tmp_path, (3, 5)) as profiler:
    for step in (4, 5, 6):
      profiler.before(step)
      assert profiler.after(step, jnp.zeros(1)) == (step == 5)
  assert len(traces(tmp_path)) == 1


def test_an_error_ends_the_trace(tmp_path):
  with pytest.raises(OSError, match='power cut'), Profiler(tmp_path, (1, 9)) as profiler:
    profiler.before(1)
    assert not profiler.after(1, jnp.zeros(1))
    raise OSError('power cut')
  assert len(traces(tmp_path)) == 1
