"""Random keys by name and step: no hidden key and no chain of splits to keep in order."""

import zlib

import jax
import jax.numpy as jnp


def named_key(key: int | jax.Array, name: str) -> jax.Array:
  """The typed key of the stream `name`: independent of other streams, the same in every process and version.

  Args:
    key: a seed, or a typed key to derive from.
    name: any text; it is hashed with CRC-32, as Python's own hash changes from run to run.
  """
  if isinstance(key, int):
    key = jax.random.key(key)
  return jax.random.fold_in(key, jnp.uint32(zlib.crc32(name.encode())))


def step_key(key: int | jax.Array, name: str, step: int | jax.Array) -> jax.Array:
  """The key of stream `name` at `step` (which may be traced): a resumed run draws what an uninterrupted one does."""
  return jax.random.fold_in(named_key(key, name), step)


def stream_seed(seed: int, name: str) -> int:
  """A seed of its own for the stream `name`, for what takes integers: 0 <= result < 2^31."""
  return zlib.crc32(f'{seed} {name}'.encode()) & 0x7FFFFFFF
