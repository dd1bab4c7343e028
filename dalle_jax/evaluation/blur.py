"""Blur images, as in figure 9a, which compares models with fine detail removed."""

import numpy as np
import scipy.ndimage


def gaussian(images: np.ndarray, radius: float) -> np.ndarray:
  """Blur images uint8 [N, H, W, 3] with a Gaussian of standard deviation `radius` in pixels; edge pixels repeat."""
  if not radius:
    return images
  blurred = scipy.ndimage.gaussian_filter(images.astype(np.float32), (0, radius, radius, 0), mode='nearest')
  return np.round(blurred).astype(np.uint8)
