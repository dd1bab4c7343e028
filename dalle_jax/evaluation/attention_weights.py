"""What a transformer attends to in one sequence, and how sure it is of every token.

Slot t predicts token t. It holds the token before it, and attends to itself and to slots before it: so a weight [t, s]
is what the slot that predicts token t took from the slot that holds token s - 1.
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
  """Weights of attention, each float32 [T, T]; layers and heads are counted from 0."""

  mean: np.ndarray  # over all layers and heads
  layers: dict[int, np.ndarray]  # means over all heads, of the layers asked for
  heads: dict[tuple[int, int], np.ndarray]  # by layer and head, as asked for


class Certainty(NamedTuple):
  """Of every token of a sequence, each [T]."""

  probability: np.ndarray  # of the token that is there
  entropy: np.ndarray  # of the distribution that it is one of, in bits
  rank: np.ndarray  # 1 where no token was likelier


def has_attention(model: SequenceModel) -> bool:
  """Whether a sequence model is a transformer; n-grams and recurrent models have nothing to observe."""
  return hasattr(model, 'transformer')


def capture(
  model: Any, params: Any, tokens: np.ndarray, layers: Sequence[int], heads: Sequence[int]
) -> tuple[np.ndarray, Attention]:
  """Reads one sequence as in training, all slots at once, and keeps what was attended to.

  One layer after another is computed, densely whatever its pattern, and of its weights only what is asked for leaves
  the device: at any time there is one layer's [N, T, T].

  Args:
    model: a transformer, `Prior` or `TransformerLanguageModel`.
    params: its parameters.
    tokens: ids [T]; a whole stream of the prior, for text at most a sequence.
    layers: whose weights are kept.
    heads: of these layers, whose weights are kept by themselves.

  Returns:
    Logits float32 [T, V], those of `model.logits`, and the weights.
  """
  stack, tokens = model.transformer, jnp.asarray(tokens)[None]
  params = model.decode_params(params)
  x = jax.jit(model.embed)(params, tokens).astype(jnp.float32)
  total, means, found = 0.0, {}, {}
  for number, (layer, pattern) in enumerate(zip(params['transformer']['layers'], stack.layer_patterns, strict=True)):
    kept = tuple(heads) if number in layers else ()
    x, mean, weights = _layer(stack.shape, pattern, kept, layer, x)
    mean = np.asarray(mean)
    total = total + mean
    if number in layers:
      means[number] = mean
      found |= {(number, head): values for head, values in zip(kept, np.asarray(weights), strict=True)}
  x = transformer.final_norm(stack, params['transformer'], x)
  logits = jax.jit(model.read_out)(params, x, tokens)
  return np.asarray(logits[0]), Attention(total / stack.shape.num_layers, means, found)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _layer(
  shape: transformer.BlockShape, pattern: Pattern, heads: tuple[int, ...], params: Any, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One layer's output [1, T, D], the mean of its weights over all heads [T, T], and those of some heads [K, T, T]."""
  x, weights = transformer.Block(shape, pattern).apply({'params': params}, x, method='observe')
  return x, weights[0].mean(axis=0), weights[0, np.asarray(heads, int)]


def certainty(logits: np.ndarray, tokens: np.ndarray) -> Certainty:
  """How likely tokens [T] were by logits [T, V], how sure the model was, and how many tokens were likelier."""
  places = np.arange(len(tokens)), tokens
  probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))
  entropy = np.asarray(jax.scipy.special.entr(probabilities)).sum(axis=-1) / np.log(2)
  return Certainty(probabilities[places], entropy, 1 + (logits > logits[places][:, None]).sum(axis=-1))


def image_maps(weights: np.ndarray, slots: Sequence[Sequence[int]], text_length: int, grid_size: int) -> np.ndarray:
  """What the slots of an image took from groups of slots, such as those that hold the tokens of a word.

  Args:
    weights: [T, T] of a stream of text and image.
    slots: K groups of slots.
    text_length: of the stream.
    grid_size: of the stream.

  Returns:
    [K, grid_size, grid_size]: at the place of image token i, the sum of the weights of the slot that predicts it.
  """
  maps = [weights[text_length:][:, list(group)].sum(axis=-1) for group in slots]
  return np.reshape(maps, (len(slots), grid_size, grid_size))


def image_map(row: np.ndarray, text_length: int, grid_size: int) -> np.ndarray:
  """What one slot took from the image: its weights [T] at the places of the tokens held, [grid_size, grid_size].

  The last image token is held by no slot; nothing is left to be predicted after it.
  """
  return np.append(row[text_length + 1 :], 0.0).reshape(grid_size, grid_size)


def by_offset(weights: np.ndarray, text_length: int, grid_size: int) -> np.ndarray:
  """Where on the grid image slots look, relative to themselves.

  Args:
    weights: [T, T] of a stream of text and image.
    text_length: of the stream.
    grid_size: of the stream.

  Returns:
    [grid_size, 2 * grid_size - 1]: the mean weight given to the slot so many rows above (the last row: none) and so
    many columns to the side (the middle column: none), over the slots for which there is such a place on the grid.
  """
  g = grid_size
  row, column = np.divmod(np.arange(g * g), g)
  up, aside = row[:, None] - row, column - column[:, None]
  place = ((g - 1 - up) * (2 * g - 1) + aside + g - 1)[up >= 0]
  size = g * (2 * g - 1)
  sums = np.bincount(place, weights[text_length:, text_length:][up >= 0], size)
  return (sums / np.maximum(np.bincount(place, minlength=size), 1)).reshape(g, 2 * g - 1)
