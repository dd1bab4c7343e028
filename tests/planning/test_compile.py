import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dalle_jax import sharding
from dalle_jax.planning import compile as compiling
from dalle_jax.planning.programs import Program

E1000 = (
  'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory in memory space '
  'hbm. Used 20.31G of 15.75G hbm. Exceeded hbm capacity by 4.56G.'
)
TEMPORARIES = 'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: HLO temporaries (142.27G) exceeds available HBM (15.75G)'


@pytest.mark.parametrize(('message', 'needed'), [(E1000, 20.31), (TEMPORARIES, 142.27)])
def test_needed_and_available_bytes_are_parsed_from_compiler_errors(message, needed):
  error = compiling.out_of_memory(message)
  assert error.needed == int(needed * 2**30)
  assert error.limit == int(15.75 * 2**30)


def test_an_unknown_compiler_error_keeps_its_message():
  error = compiling.out_of_memory('RESOURCE_EXHAUSTED: too much')
  assert (error.needed, error.limit) == (None, None)
  assert 'too much' in str(error)


def test_on_chip_memory_is_not_mistaken_for_device_memory():
  error = compiling.out_of_memory(
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space vmem. Used 78.25M of '
    '63.94M vmem. Exceeded vmem capacity by 14.31M. (3.00G)'
  )
  assert (error.needed, error.limit) == (None, None)
  assert 'Used 78.25M of 63.94M vmem' in str(error) and 'fusion_mib' in str(error)


@pytest.mark.parametrize(
  ('error', 'is_printed'), [(RuntimeError('bad'), True), (compiling.OutOfMemoryError('', 0, 0), False)]
)
def test_the_end_of_the_compiler_log_is_printed_after_all_errors_but_out_of_memory(capfd, error, is_printed):
  with pytest.raises(type(error)), compiling._captured_stderr():
    os.write(2, b'start' + b'x' * compiling.MOST_LOGGED + b'end')
    raise error
  printed = capfd.readouterr().err
  assert (printed[-3:] == 'end') == is_printed and 'start' not in printed


def test_memory_is_reported_by_kind():
  mesh = sharding.one_device_mesh()
  replicated = NamedSharding(mesh, PartitionSpec())
  shape = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=replicated)
  program = Program('product', jax.jit(lambda a, b: (a @ b) @ b), (shape, shape), {'left': shape, 'right': shape})
  compiled = compiling.compile_program(program, mesh)
  assert compiled.bytes_per_device['left'] == 256 * 256 * 4
  assert compiled.bytes_per_device['new results'] == 256 * 256 * 4
  assert compiled.full_rematerialisations == compiled.warnings == ()
  assert re.search(
    'dot|fusion|call', ' '.join(line.opcode for line in compiled.read().computations[compiled.read().entry])
  )
