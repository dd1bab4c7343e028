"""dalle_jax: autoregressive text-to-image models in JAX and Flax."""

__version__ = '0.1.0'
