"""Attention weights and prediction certainty of a transformer on one sequence.

Slot t predicts token t. Its input is token t - 1, and it attends to itself and to earlier slots. Weight [t, s] is
therefore the weight that the prediction of token t gives to the slot whose input is token s - 1.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models import transformer
from dalle_jax.models.attention import Pattern
from dalle_jax.models.sequence import SequenceModel


class Attention(NamedTuple):
  """Attention weights, each float32 [T, T]; layers and heads are counted from 0."""

  mean: np.ndarray  # mean over all layers and heads
  layers: dict[int, np.ndarray]  # mean over all heads of each requested layer
  heads: dict[tuple[int, int], np.ndarray]  # weights of each requested (layer, head)


class Certainty(NamedTuple):
  """How certain the model was of every token of a sequence, each [T]."""

  probability: np.ndarray  # probability of the actual token
  entropy: np.ndarray  # entropy of the predicted distribution in bits
  rank: np.ndarray  # 1 + the number of likelier tokens


def has_attention(model: SequenceModel) -> bool:
  """Whether a sequence model is a transformer; n-grams and recurrent models have no attention weights."""
  return hasattr(model, 'transformer')


def capture(
  model: Any, params: Any, tokens: np.ndarray, layers: Sequence[int], heads: Sequence[int]
) -> tuple[np.ndarray, Attention]:
  """Run a transformer on one sequence, all slots in parallel as in training, and record attention weights.

  Layers run one at a time, with dense attention whatever their pattern. Only the requested weights leave the device.
  So the device holds the weights [N, T, T] of only one layer at a time.

  Args:
    model: a transformer: `Prior` or `TransformerLanguageModel`.
    params: the model's parameters.
    tokens: token ids [T]: a full stream for a prior, at most a full sequence for text.
    layers: the layers whose mean weights to return.
    heads: the heads of these layers whose weights to return separately.

  Returns:
    Logits float32 [T, V], equal to those of `model.logits`, and the weights.
  """
  stack, batch = model.transformer, jnp.asarray(tokens)[None]
  params = model.decode_params(params)
  x = jax.jit(model.embed)(params, batch).astype(jnp.float32)
  total: np.ndarray | float = 0.0
  layer_means: dict[int, np.ndarray] = {}
  head_weights: dict[tuple[int, int], np.ndarray] = {}
  for number, (layer, pattern) in enumerate(zip(params['transformer']['layers'], stack.layer_patterns, strict=True)):
    layer_heads = tuple(heads) if number in layers else ()
    x, mean, weights = _layer(stack.shape, pattern, layer_heads, layer, x)
    mean = np.asarray(mean)
    total = total + mean
    if number in layers:
      layer_means[number] = mean
      head_weights |= {(number, head): values for head, values in zip(layer_heads, np.asarray(weights), strict=True)}
  assert isinstance(total, np.ndarray)  # there is at least one layer
  x = transformer.final_norm(stack, params['transformer'], x)
  logits = jax.jit(model.read_out)(params, x, batch)
  return np.asarray(logits[0]), Attention(total / stack.shape.num_layers, layer_means, head_weights)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _layer(
  shape: transformer.BlockShape, pattern: Pattern, heads: tuple[int, ...], params: Any, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Run one layer: its output [1, T, D], its mean weights [T, T], and the weights of the K given heads [K, T, T]."""
  x, weights = transformer.Block(shape, pattern).apply({'params': params}, x, method='observe')
  return x, weights[0].mean(axis=0), weights[0, np.asarray(heads, int)]


def certainty(logits: np.ndarray, tokens: np.ndarray) -> Certainty:
  """Compute the probability and rank of tokens [T] under logits [T, V], and the entropy of each prediction."""
  actual = np.arange(len(tokens)), tokens
  probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))
  entropy = np.asarray(jax.scipy.special.entr(probabilities)).sum(axis=-1) / np.log(2)
  return Certainty(probabilities[actual], entropy, 1 + (logits > logits[actual][:, None]).sum(axis=-1))


def image_maps(weights: np.ndarray, slots: Sequence[Sequence[int]], text_length: int, grid_size: int) -> np.ndarray:
  """Sum the weights that each image slot gives to groups of slots, such as the slots that hold the tokens of a word.

  Args:
    weights: attention weights [T, T] of a stream of text and image.
    slots: K groups of slots.
    text_length: text tokens of the stream.
    grid_size: rows (and columns) of the image's token grid.

  Returns:
    [K, grid_size, grid_size]: at the position of image token i, the summed weights of the slot that predicts token i.
  """
  maps = [weights[text_length:][:, list(group)].sum(axis=-1) for group in slots]
  return np.reshape(maps, (len(slots), grid_size, grid_size))


def image_map(row: np.ndarray, text_length: int, grid_size: int) -> np.ndarray:
  """Arrange the weights [T] that one slot gives to image tokens on the grid, [grid_size, grid_size].

  The entry of the last image token is 0: it is no slot's input, because no token follows it.
  """
  return np.append(row[text_length + 1 :], 0.0).reshape(grid_size, grid_size)


def by_offset(weights: np.ndarray, text_length: int, grid_size: int) -> np.ndarray:
  """Average the weights between image slots by their relative position on the grid.

  Args:
    weights: attention weights [T, T] of a stream of text and image.
    text_length: text tokens of the stream.
    grid_size: rows (and columns) of the image's token grid.

  Returns:
    [grid_size, 2 * grid_size - 1]. With g = grid_size, entry [g - 1 - up, g - 1 + aside] is the mean weight that a slot
    gives to the slot `up` rows above it and `aside` columns to its right. The mean is over the slots for which that
    position lies on the grid.
  """
  g = grid_size
  row, column = np.divmod(np.arange(g * g), g)
  up, aside = row[:, None] - row, column - column[:, None]
  offset = ((g - 1 - up) * (2 * g - 1) + aside + g - 1)[up >= 0]
  size = g * (2 * g - 1)
  sums = np.bincount(offset, weights[text_length:, text_length:][up >= 0], size)
  return (sums / np.maximum(np.bincount(offset, minlength=size), 1)).reshape(g, 2 * g - 1)
