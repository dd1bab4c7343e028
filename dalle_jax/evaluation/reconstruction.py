"""The dVAE's reconstruction quality: reconstructions from argmax codes, PSNR, SSIM and codebook use."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax.evaluation.row_batches import in_batches
from dalle_jax.models import bottleneck, likelihood
from dalle_jax.models.dvae import Dvae

SSIM_WINDOW = 11  # pixels along a side


def reconstruct(
  dvae: Dvae, params: Any, images: np.ndarray, mesh: Mesh, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Encode images and decode their codes.

  Args:
    dvae: the dVAE module.
    params: the dVAE's parameters.
    images: uint8 [N, H, W, 3].
    mesh: the device mesh.
    batch_size: images per batch, rounded up to a multiple of the devices that split it.

  Returns:
    The codes int32 [N, h, w] and the reconstructions uint8 [N, H, W, 3].
  """
  return in_batches(_bound(_round_trip, dvae), params, images, mesh, batch_size)


def encode(dvae: Dvae, params: Any, images: np.ndarray, mesh: Mesh, batch_size: int) -> np.ndarray:
  """Encode images uint8 [N, H, W, 3] to codes int32 [N, h, w]; the other arguments are those of `reconstruct`."""
  return in_batches(_bound(_encode, dvae), params, images, mesh, batch_size)


def decode(dvae: Dvae, params: Any, codes: np.ndarray, mesh: Mesh, batch_size: int) -> np.ndarray:
  """Decode codes int32 [N, h, w] to images uint8 [N, H, W, 3]; the other arguments are those of `reconstruct`."""
  return in_batches(_bound(_decode, dvae), params, codes, mesh, batch_size)


@functools.lru_cache(maxsize=8)
def _bound(run: Callable, dvae: Dvae) -> Callable:
  """Bind `run` to a dVAE. Equal arguments give the same function object, so that jit finds its compiled program."""
  return functools.partial(run, dvae)


def _encode(dvae: Dvae, params: Any, images: jax.Array) -> jax.Array:
  return dvae.apply({'params': params}, images, method='encode')


def _round_trip(dvae: Dvae, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
  codes = _encode(dvae, params, images)
  return codes, _decode(dvae, params, codes)


def _decode(dvae: Dvae, params: Any, codes: jax.Array) -> jax.Array:
  pixels = dvae.apply({'params': params}, codes, method='decode')
  return jax.numpy.round(pixels).astype(jax.numpy.uint8)


def psnr(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio of each image in dB, [N], at most 100 dB (equal images).

  Args:
    originals: uint8 [N, H, W, C].
    reconstructions: uint8 [N, H, W, C].
  """
  error = (originals.astype(np.float64) - reconstructions.astype(np.float64)) / 255
  mse = np.mean(error**2, axis=(1, 2, 3))
  return likelihood.psnr(mse, np)


def ssim(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
  """Structural similarity of each image, [N], averaged over channels (Wang et al. 2004).

  As in the paper, the window is a Gaussian of 11 x 11 pixels with standard deviation 1.5, and K1 = 0.01, K2 = 0.03,
  L = 255. Only windows that lie entirely in the image count.

  Args:
    originals: uint8 [N, H, W, C], H and W at least 11.
    reconstructions: uint8 [N, H, W, C].
  """
  offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
  weights = np.exp(-0.5 * (offsets / 1.5) ** 2)
  weights /= weights.sum()

  def blurred(x: np.ndarray) -> np.ndarray:
    for axis in (1, 2):
      x = np.lib.stride_tricks.sliding_window_view(x, SSIM_WINDOW, axis) @ weights
    return x

  x, y = originals.astype(np.float64), reconstructions.astype(np.float64)
  mean_x, mean_y = blurred(x), blurred(y)
  var_x, var_y = blurred(x**2) - mean_x**2, blurred(y**2) - mean_y**2
  covariance = blurred(x * y) - mean_x * mean_y
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  return np.mean(luminance * (2 * covariance + c2) / (var_x + var_y + c2), axis=(1, 2, 3))


def scores(originals: np.ndarray, reconstructions: np.ndarray, codes: np.ndarray, vocab_size: int) -> dict[str, float]:
  """Compute PSNR in dB, SSIM and codebook use as flat metrics. SSIM needs images of 11 x 11 pixels or more.

  Args:
    originals: uint8 [N, H, W, C].
    reconstructions: uint8 [N, H, W, C].
    codes: int32 [N, h, w], the codes of the images.
    vocab_size: the number of codes in the codebook.
  """
  similarity = {}
  if min(originals.shape[1:3]) >= SSIM_WINDOW:
    similarity = {'reconstruction/ssim': float(ssim(originals, reconstructions).mean())}
  return {
    'reconstruction/psnr': float(psnr(originals, reconstructions).mean()),
    **similarity,
    **codebook_scores(codes, vocab_size),
  }


def codebook_scores(codes: np.ndarray, vocab_size: int) -> dict[str, float]:
  """Compute codebook use as flat metrics.

  Args:
    codes: int32 [...].
    vocab_size: the number of codes in the codebook.

  Returns:
    The perplexity of the distribution of codes, the share of the codebook that occurs, and the number of codes.
  """
  histogram = np.bincount(codes.reshape(-1), minlength=vocab_size) / codes.size
  return {
    'codebook/perplexity': float(bottleneck.perplexity(jax.numpy.asarray(histogram, jax.numpy.float32))),
    'codebook/use': float(np.mean(histogram > 0)),
    'codebook/num_tokens': float(codes.size),
  }
