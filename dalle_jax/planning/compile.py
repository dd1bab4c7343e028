"""Ahead-of-time compilation for devices that this machine may lack, and the memory that the compiler reports."""

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

MOST_LOGGED = 20_000  # bytes of the compiler's log that we print after an error
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class OutOfMemoryError(Exception):
  """The compiler refused a program because it does not fit into the memory of a device.

  Attributes:
    needed: bytes that the program needs; None if the compiler does not say.
    limit: bytes that the device has; None if the compiler does not say.
  """

  def __init__(self, message: str, needed: int | None, limit: int | None) -> None:
    super().__init__(message)
    self.needed, self.limit = needed, limit


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled program and its memory.

  Attributes:
    program: the program that was compiled.
    executable: the `jax.stages.Compiled`.
    seconds: compile time.
    bytes_per_device: memory by kind. Counts all temporaries, even if they are never alive at the same time.
    peak_bytes: peak memory according to the compiler.
    full_rematerialisations: the partitioner's warnings that it copies a whole array to every device.
    warnings: the compiler's warnings about its options.
  """

  program: Program
  executable: Any
  seconds: float
  bytes_per_device: dict[str, int]
  peak_bytes: int
  full_rematerialisations: tuple[str, ...]
  warnings: tuple[str, ...]

  @functools.cached_property
  def text(self) -> str:
    return self.executable.as_text()

  def read(self) -> HloProgram:
    return HloProgram(self.text, self.program.passes)


def compile_program(program: Program, mesh: Mesh) -> Compiled:
  """Compile a program for the devices of a mesh.

  Args:
    program: the program to compile.
    mesh: its devices may be compile-only devices.

  Raises:
    OutOfMemoryError: the program does not fit into their memory.
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
  """Parse the compiler's message of an out-of-memory error, which has several forms."""
  used = re.search(r'Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm', message)
  if used:
    needed, limit = (_bytes(*used.group(i, i + 1)) for i in (1, 3))
    return OutOfMemoryError(used.group(0), needed, limit)
  if fused := re.search(r'Used \S+ of \S+ vmem', message):
    advice = 'the on-chip memory is too small for the fused operations; lower fusion_mib of the training settings'
    return OutOfMemoryError(f'{fused.group(0)}: {advice}', None, None)
  sizes = re.findall(r'\(([\d.]+)([KMGT]?)i?B?\)', message)
  available = re.search(r'exceeds available HBM \(([\d.]+)([KMGT]?)', message)
  summary = next((line for line in message.splitlines() if 'RESOURCE_EXHAUSTED' in line), message)
  return OutOfMemoryError(
    summary[:300], _bytes(*sizes[0]) if sizes else None, _bytes(*available.groups()) if available else None
  )


def _bytes(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])


def _memory(program: Program, usage: Any) -> dict[str, int]:
  """Bytes per device by kind.

  The kinds of `program.kinds` are counted by their shapes. The device's layouts may add padding to the arguments, which
  counts separately.
  """
  sizes = {name: sum(map(shard_bytes, jax.tree.leaves(tree))) for name, tree in program.kinds.items()}
  counted = sum(map(shard_bytes, jax.tree.leaves(program.arguments)))
  # Some kinds stay on the device but are not arguments of this program. The compiler does not tell us their padding.
  sizes['padding of arguments'] = max(0, usage.argument_size_in_bytes - counted)
  sizes['new results'] = max(0, usage.output_size_in_bytes - usage.alias_size_in_bytes)
  sizes['activations and temporaries'] = usage.temp_size_in_bytes
  sizes['program'] = usage.generated_code_size_in_bytes
  return {name: size for name, size in sizes.items() if size}


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
  """Capture what is written to file descriptor 2 inside the context.

  Yields:
    A function that returns the captured text after the context has ended.

  If the context raises, the end of the captured text is written to the real stderr. We leave this out after an
  OutOfMemoryError, which has a message of its own; the compiler's log of it has megabytes.
  """
  with tempfile.TemporaryFile() as file:
    real_stderr = os.dup(2)
    os.dup2(file.fileno(), 2)
    text = ''
    try:
      yield lambda: text
    except OutOfMemoryError:
      raise
    except BaseException:
      file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_LOGGED))
      os.write(real_stderr, file.read())
      raise
    finally:
      os.dup2(real_stderr, 2)
      os.close(real_stderr)
      file.seek(0)
      text = file.read().decode(errors='replace')
