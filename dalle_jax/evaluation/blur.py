"""Pictures out of focus, on which figure 9a compares models by what they draw beyond fine detail."""

import numpy as np
import scipy.ndimage


def gaussian(images: np.ndarray, radius: float) -> np.ndarray:
  """uint8 [N, H, W, 3] blurred by a Gaussian of the standard deviation `radius`, in pixels; the rim is continued."""
  if not radius:
    return images
  blurred = scipy.ndimage.gaussian_filter(images.astype(np.float32), (0, radius, radius, 0), mode='nearest')
  return np.round(blurred).astype(np.uint8)
