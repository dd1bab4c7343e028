"""Compiles a program ahead of time, for devices that need not be there, and reads off what it takes."""

import contextlib
import dataclasses
import functools
import os
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.planning import hlo
from dalle_jax.planning.hlo import HloProgram
from dalle_jax.planning.programs import Program, shard_bytes
from dalle_jax.training import compiler

MOST_LOGGED = 20_000  # bytes of the compiler's log that are passed on
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class OutOfMemoryError(Exception):
  """The program does not fit the memory of a device, as its compiler says.

  Attributes:
    needed: bytes.
    limit: bytes that there are; None where the message does not say.
  """

  def __init__(self, message: str, needed: int | None, limit: int | None) -> None:
    super().__init__(message)
    self.needed, self.limit = needed, limit


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What is known of a compiled program.

  Attributes:
    program: what was compiled.
    executable: of `jax.stages`.
    seconds: that compiling took.
    bytes_per_device: by kind. Temporaries that are never there together count all the same.
    peak_bytes: at most at one time, by the compiler's account of its heap.
    complaints: of the partitioner, that it copies whole arrays to every device.
    warnings: of the compiler, about the options it was given.
  """

  program: Program
  executable: Any
  seconds: float
  bytes_per_device: dict[str, int]
  peak_bytes: int
  complaints: tuple[str, ...]
  warnings: tuple[str, ...]

  @functools.cached_property
  def text(self) -> str:
    return self.executable.as_text()

  def read(self) -> HloProgram:
    return HloProgram(self.text, self.program.passes)


def compile_program(program: Program, mesh: Mesh) -> Compiled:
  """Compiles for the devices of the mesh.

  Args:
    program: what to compile.
    mesh: of devices that need not be there.

  Raises:
    OutOfMemoryError: it does not fit their memory.
  """
  started = time.monotonic()
  with sharding.use_mesh(mesh), _captured_stderr() as log:
    try:
      executable = compiler.lower(program.jitted, mesh, *program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise out_of_memory(str(error)) from error
  seconds = time.monotonic() - started
  usage = executable.memory_analysis()
  return Compiled(
    program,
    executable,
    seconds,
    _memory(program, usage),
    usage.peak_memory_in_bytes,
    tuple(hlo.full_rematerialisations(log())),
    tuple(hlo.warnings_of_options(log())),
  )


def out_of_memory(message: str) -> OutOfMemoryError:
  """The figures in the compiler's words, of which it has several."""
  used = re.search(r'Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm', message)
  if used:
    needed, limit = (_bytes(*used.group(i, i + 1)) for i in (1, 3))
    return OutOfMemoryError(used.group(0), needed, limit)
  if fused := re.search(r'Used \S+ of \S+ vmem', message):
    why = 'operations were fused that the on-chip memory does not hold; lower fusion_mib of the training settings'
    return OutOfMemoryError(f'{fused.group(0)}: {why}', None, None)
  parts = re.findall(r'\(([\d.]+)([KMGT]?)i?B?\)', message)
  limit = re.search(r'exceeds available HBM \(([\d.]+)([KMGT]?)', message)
  needed = _bytes(*parts[0]) if parts else None
  first = next((line for line in message.splitlines() if 'RESOURCE_EXHAUSTED' in line), message)
  return OutOfMemoryError(first[:300], needed, _bytes(*limit.groups()) if limit else None)


def _bytes(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])


def _memory(program: Program, usage: Any) -> dict[str, int]:
  """Bytes on a device by kind.

  Kinds of arguments are counted by their shapes; what the layouts of the device add to them is 'padding'.
  """
  found = {name: sum(map(shard_bytes, jax.tree.leaves(part))) for name, part in program.kinds.items()}
  counted = sum(map(shard_bytes, jax.tree.leaves(program.arguments)))
  # What is no argument, but stays on the device meanwhile, has no layout here to know the padding of.
  found['padding of arguments'] = max(0, usage.argument_size_in_bytes - counted)
  found['new results'] = max(0, usage.output_size_in_bytes - usage.alias_size_in_bytes)
  found['activations and temporaries'] = usage.temp_size_in_bytes
  found['program'] = usage.generated_code_size_in_bytes
  return {name: size for name, size in found.items() if size}


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
  """What is written to the file descriptor 2 meanwhile, as a function of no arguments.

  Its end is passed on with an error that says nothing of memory: a refusal is told otherwise, and the compiler's log of
  it has megabytes.
  """
  with tempfile.TemporaryFile() as file:
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    text = ''
    try:
      yield lambda: text
    except OutOfMemoryError:
      raise
    except BaseException:
      file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_LOGGED))
      os.write(kept, file.read())
      raise
    finally:
      os.dup2(kept, 2)
      os.close(kept)
      file.seek(0)
      text = file.read().decode(errors='replace')
