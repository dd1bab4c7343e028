"""Random keys derived from a stream name and a step, without global keys or chains of splits."""

import zlib

import jax
import jax.numpy as jnp


def named_key(key: int | jax.Array, name: str) -> jax.Array:
  """Typed key of the stream `name`, independent of other streams and equal in every process and version.

  Args:
    key: a seed, or a typed key to derive from.
    name: any text, hashed with CRC-32 because Python's `hash` changes from run to run.
  """
  if isinstance(key, int):
    key = jax.random.key(key)
  return jax.random.fold_in(key, jnp.uint32(zlib.crc32(name.encode())))


def step_key(key: int | jax.Array, name: str, step: int | jax.Array) -> jax.Array:
  """Key of the stream `name` at `step`, which may be traced. A resumed run gets the keys of an uninterrupted one."""
  return jax.random.fold_in(named_key(key, name), step)


def stream_seed(seed: int, name: str) -> int:
  """Integer seed of the stream `name`, 0 <= result < 2^31, for code that does not take JAX keys."""
  return zlib.crc32(f'{seed} {name}'.encode()) & 0x7FFFFFFF
