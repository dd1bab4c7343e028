"""The width of numbers: 32 bits, whatever the environment asks of JAX."""

from absl import logging


def use_32_bits() -> None:
  """Turns off JAX's 64-bit types (JAX_ENABLE_X64, jax_enable_x64), with a warning if they were on.

  Models, checkpoints and compressed files hold 32-bit numbers. With 64-bit types, JAX makes arrays of 64 bits wherever
  no type is given, and such files would not fit each other.

  Raises:
    ValueError: the types are on in the current context (`jax.enable_x64`), which cannot be changed from here.
  """
  import jax

  if not jax.config.read('jax_enable_x64'):
    return
  jax.config.update('jax_enable_x64', False)
  if jax.config.read('jax_enable_x64'):
    raise ValueError('dalle_jax works with 32-bit types; call it outside of the context jax.enable_x64(True).')
  logging.warning('JAX_ENABLE_X64 (jax_enable_x64) is on. dalle_jax works with 32-bit types and has turned it off.')
