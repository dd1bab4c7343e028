"""The discrete bottleneck: Gumbel-softmax relaxation and the KL to the uniform prior (section 2.1, appendix A.2)."""

import math

import jax
import jax.numpy as jnp


def gumbel_softmax(logits: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
  """A relaxed sample, soft forward and backward: softmax((logits + Gumbel noise) / temperature).

  Args:
    logits: [..., K].
    key: typed PRNG key of the noise.
    temperature: positive scalar; towards 0 the sample becomes one-hot.

  Returns:
    Points [..., K] on the simplex.
  """
  noise = jax.random.gumbel(key, logits.shape, jnp.float32)
  return jax.nn.softmax((logits.astype(jnp.float32) + noise) / temperature, axis=-1)


def kl_to_uniform(logits: jax.Array) -> jax.Array:
  """KL(softmax(logits) || uniform) in nats for logits [..., K]: ln K - entropy, whatever the temperature."""
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return math.log(logits.shape[-1]) + jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def code_histogram(codes: jax.Array, vocab_size: int) -> jax.Array:
  """Share of each code, [vocab_size], among integer codes of any shape."""
  return jnp.bincount(codes.reshape(-1), length=vocab_size).astype(jnp.float32) / codes.size


def perplexity(histogram: jax.Array) -> jax.Array:
  """exp(entropy) of a distribution [K]: the number of codes in even use."""
  logs = jnp.log(jnp.where(histogram > 0, histogram, 1.0))
  return jnp.exp(-jnp.sum(histogram * logs))
