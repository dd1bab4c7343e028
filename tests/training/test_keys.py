import subprocess
import sys

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.training.keys import named_key, step_key


def _data(key):
  return tuple(np.asarray(jax.random.key_data(key)).tolist())


@settings(max_examples=25, deadline=None)
@given(names=st.sets(st.text(max_size=20), min_size=2, max_size=4), seed=st.integers(0, 2**31 - 1))
def test_different_stream_names_give_different_keys(names, seed):
  keys = {_data(named_key(seed, name)) for name in names}
  assert len(keys) == len(names)


def test_a_seed_equals_its_key():
  assert _data(named_key(5, 'train')) == _data(named_key(jax.random.key(5), 'train'))
  assert _data(named_key(5, 'train')) != _data(named_key(6, 'train'))


def test_different_steps_give_different_keys_and_may_be_traced():
  keys = [_data(step_key(0, 'train', step)) for step in range(50)]
  assert len(set(keys)) == 50
  traced = jax.jit(lambda step: step_key(0, 'train', step))(np.int32(7))
  assert _data(traced) == keys[7]


def test_keys_are_equal_in_another_process():
  code = (
    'import jax\nfrom dalle_jax.training.keys import named_key\n'
    "print(jax.random.key_data(named_key(1, 'data')).tolist())"
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
  assert out.strip() == str(list(_data(named_key(1, 'data'))))
