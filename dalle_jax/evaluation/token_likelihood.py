"""How well a sequence model predicts image tokens, and captions before them."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dalle_jax.evaluation.sequence_likelihood import context_lengths, mean_and_stderr, nats, perplexity

BATCH_SIZE = 8  # sequences read at a time: each has logits over both vocabularies, 126 MB in the paper's model


def summarize(nats: np.ndarray, counted: np.ndarray, text_length: int) -> dict[str, float]:
  """Figures of streams, text and image apart; standard errors are over images.

  Args:
    nats: -ln p of each token given those before it, [N, T].
    counted: bool [N, T], as `models.stream.TokenStream.counted` says.
    text_length: tokens before the image; of those not counted nothing is said.

  Returns:
    'bits_per_image_token', its '..._stderr', 'nats_per_image' and its '..._stderr', 'image_perplexity', 'num_images';
    with text 'bits_per_text_token' and 'nats_per_caption', of a caption and the pad that ends it, and '..._stderr'.
  """
  image = nats[:, text_length:]
  per_image, per_image_stderr = mean_and_stderr(image.sum(axis=1))
  scale = image.shape[1] * math.log(2)
  figures = {
    'bits_per_image_token': per_image / scale,
    'bits_per_image_token_stderr': per_image_stderr / scale,
    'nats_per_image': per_image,
    'nats_per_image_stderr': per_image_stderr,
    'image_perplexity': perplexity(per_image / image.shape[1]),
    'num_images': float(len(image)),
  }
  if not text_length:
    return figures
  caption = np.where(counted, nats, 0.0)[:, :text_length].sum(axis=1)
  lengths = counted[:, :text_length].sum(axis=1)
  per_token = caption.sum() / lengths.sum()
  _, stderr = mean_and_stderr((caption - per_token * lengths) / lengths.mean())  # of a ratio of two means
  per_caption, per_caption_stderr = mean_and_stderr(caption)
  return figures | {
    'bits_per_text_token': float(per_token / math.log(2)),
    'bits_per_text_token_stderr': stderr / math.log(2),
    'nats_per_caption': per_caption,
    'nats_per_caption_stderr': per_caption_stderr,
  }


def by_position(nats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Bits per token by the number of tokens before it, of sequences with a beginning.

  A text can be cut anywhere, and what is given a model is then the start of a sequence (`text.by_context`). Of an image
  only the first tokens can be: so here other tokens are predicted from longer contexts, the same ones for every model.

  Args:
    nats: -ln p of each token given those before it, [N, T].

  Returns:
    Lengths [L], rising from 0, and for each the mean over the tokens that have so many before them, or more but fewer
    than the next length.
  """
  lengths = np.asarray(context_lengths(nats.shape[1]))
  ends = [*lengths[1:], nats.shape[1]]
  bits = [nats[:, begin:end].mean() / math.log(2) for begin, end in zip(lengths, ends, strict=True)]
  return lengths, np.asarray(bits)


def token_nats(
  model: Any, params: Any, text: np.ndarray, codes: np.ndarray, mesh: Mesh, batch_size: int = BATCH_SIZE
) -> np.ndarray:
  """-ln p of every token of streams given those before it, float64 [N, model.length].

  Args:
    model: of streams.
    params: its parameters, on the mesh.
    text: ids [N, text_length - 1]; [N, 0] for a model of images alone.
    codes: [N, h, w].
    mesh: of the devices.
    batch_size: streams at a time.
  """
  rows = np.asarray(model.stream(jnp.asarray(text), jnp.asarray(codes).reshape(len(codes), -1)))
  return nats(model, params, rows, mesh, batch_size)
