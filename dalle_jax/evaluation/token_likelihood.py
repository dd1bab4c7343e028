"""Likelihood of image tokens, and of the captions before them, under a sequence model."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dalle_jax.evaluation.sequence_likelihood import context_lengths, mean_and_stderr, nats, perplexity

BATCH_SIZE = 8  # streams per batch; the logits of one stream over both vocabularies take 126 MB in the paper's model


def summarize(nats: np.ndarray, counted: np.ndarray, text_length: int) -> dict[str, float]:
  """Summarize the likelihood of streams as flat metrics, separately for text and images.

  Args:
    nats: -ln p of each token given the earlier tokens, [N, T].
    counted: bool [N, T], which text tokens to count, from `models.stream.TokenStream.counted`.
    text_length: text tokens before the image.

  Returns:
    'bits_per_image_token', 'nats_per_image', 'image_perplexity' and 'num_images'. With text also 'bits_per_text_token'
    and 'nats_per_caption', where a caption includes the pad that ends it. Bits and nats have standard errors over
    images as '..._stderr' if N > 1.
  """
  image = nats[:, text_length:]
  per_image, per_image_stderr = mean_and_stderr(image.sum(axis=1))
  scale = image.shape[1] * math.log(2)
  figures = {
    'bits_per_image_token': per_image / scale,
    'nats_per_image': per_image,
    'image_perplexity': perplexity(per_image / image.shape[1]),
    'num_images': float(len(image)),
  }
  if per_image_stderr is not None:
    figures['bits_per_image_token_stderr'] = per_image_stderr / scale
    figures['nats_per_image_stderr'] = per_image_stderr
  if not text_length:
    return figures
  caption = np.where(counted, nats, 0.0)[:, :text_length].sum(axis=1)
  lengths = counted[:, :text_length].sum(axis=1)
  per_token = caption.sum() / lengths.sum()
  _, stderr = mean_and_stderr(
    (caption - per_token * lengths) / lengths.mean()
  )  # the standard error of a ratio of means
  per_caption, per_caption_stderr = mean_and_stderr(caption)
  figures['bits_per_text_token'] = float(per_token / math.log(2))
  figures['nats_per_caption'] = per_caption
  if stderr is not None and per_caption_stderr is not None:
    figures['bits_per_text_token_stderr'] = stderr / math.log(2)
    figures['nats_per_caption_stderr'] = per_caption_stderr
  return figures


def by_position(nats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Bits per token by the number of tokens before it.

  A text can be cut anywhere, so `sequence_likelihood.by_context` predicts the same targets from every context length.
  A stream of image tokens must be read from its start, so here the targets differ between lengths. They are the same
  for every model.

  Args:
    nats: -ln p of each token given the earlier tokens, [N, T].

  Returns:
    Context lengths [L], ascending from 0, and mean bits per token [L]. Entry i averages over the tokens with at least
    lengths[i] but fewer than lengths[i + 1] tokens before them.
  """
  lengths = np.asarray(context_lengths(nats.shape[1]))
  ends = [*lengths[1:], nats.shape[1]]
  bits = [nats[:, begin:end].mean() / math.log(2) for begin, end in zip(lengths, ends, strict=True)]
  return lengths, np.asarray(bits)


def token_nats(
  model: Any, params: Any, text: np.ndarray, codes: np.ndarray, mesh: Mesh, batch_size: int = BATCH_SIZE
) -> np.ndarray:
  """Compute -ln p of every token of streams given the earlier tokens, float64 [N, model.length].

  Args:
    model: a prior or another model of streams.
    params: the model's parameters, on the mesh.
    text: caption token ids [N, text_length - 1]; [N, 0] if the model reads no captions.
    codes: the codes of the images [N, h, w].
    mesh: the device mesh that splits the streams.
    batch_size: streams per batch.
  """
  rows = np.asarray(model.stream(jnp.asarray(text), jnp.asarray(codes).reshape(len(codes), -1)))
  return nats(model, params, rows, mesh, batch_size)
