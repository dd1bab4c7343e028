"""Inception-v3 for Fréchet inception distances (Szegedy et al. 2015; Heusel et al. 2017).

This is the 2015 network whose weights TensorFlow published. It differs from later versions in two pooling layers:

- Average pooling over 3 x 3 positions excludes padding, so that averages at the border are over fewer positions.
- The last block uses max-pooling instead of average pooling. This looks like a mistake, but the weights were trained
  with it and every published distance was measured with it.

Batch normalisation is folded into the kernels and biases (see `importing.inception_weights`), so a layer is a
convolution followed by a ReLU. Modules have the same names as in the weights.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

SIZE = 299  # input pixels along each side
NUM_FEATURES, NUM_CLASSES = 2048, 1008

Layer = tuple[str, int, tuple[int, int]]  # name, output channels and kernel size of a layer


def prepare(images: jax.Array) -> jax.Array:
  """Resize and scale images for the network: uint8 [B, H, W, 3] of any size to float32 [B, 299, 299, 3] in [-1, 1).

  The resizing follows clean-fid (Parmar et al. 2022): bicubic, antialiased when downsampling, without rounding. Pixels
  are scaled as in the original network, (x - 128) / 128.
  """
  shape = (images.shape[0], SIZE, SIZE, 3)
  resized = jax.image.resize(images.astype(jnp.float32), shape, 'cubic', antialias=True)
  return (jnp.clip(resized, 0, 255) - 128) / 128


class _Block(nn.Module):
  """Base class of the blocks: layers, alone and combined."""

  def conv(self, x: jax.Array, layer: Layer, stride: int = 1, padding: str = 'SAME') -> jax.Array:
    """Apply one layer, a convolution and a ReLU."""
    name, channels, kernel = layer
    module = nn.Conv(channels, kernel, (stride, stride), padding, precision=jax.lax.Precision.HIGHEST, name=name)
    return nn.relu(module(x))

  def chain(self, x: jax.Array, *layers: Layer) -> jax.Array:
    """Apply layers one after another."""
    for layer in layers:
      x = self.conv(x, layer)
    return x

  def fork(self, x: jax.Array, *layers: Layer) -> jax.Array:
    """Apply several layers to the same input and concatenate their output channels."""
    return jnp.concatenate([self.conv(x, layer) for layer in layers], axis=-1)


def mean_pool(x: jax.Array) -> jax.Array:
  """3 x 3 average pooling of [B, H, W, C] with stride 1, excluding padding."""
  return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)


def _max_pool(x: jax.Array, stride: int, padding: str) -> jax.Array:
  return nn.max_pool(x, (3, 3), (stride, stride), padding)


class BlockA(_Block):
  """A block at a resolution of 35 x 35."""

  pool_channels: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    branches = [
      self.chain(x, ('branch1x1', 64, (1, 1))),
      self.chain(x, ('branch5x5_1', 48, (1, 1)), ('branch5x5_2', 64, (5, 5))),
      self.chain(
        x, ('branch3x3dbl_1', 64, (1, 1)), ('branch3x3dbl_2', 96, (3, 3)), ('branch3x3dbl_3', 96, (3, 3))
      ),
      self.chain(mean_pool(x), ('branch_pool', self.pool_channels, (1, 1))),
    ]  # fmt: skip
    return jnp.concatenate(branches, axis=-1)


class BlockB(_Block):
  """Downsampling from 35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    double = self.chain(x, ('branch3x3dbl_1', 64, (1, 1)), ('branch3x3dbl_2', 96, (3, 3)))
    branches = [
      self.conv(x, ('branch3x3', 384, (3, 3)), stride=2, padding='VALID'),
      self.conv(double, ('branch3x3dbl_3', 96, (3, 3)), stride=2, padding='VALID'),
      _max_pool(x, 2, 'VALID'),
    ]
    return jnp.concatenate(branches, axis=-1)


class BlockC(_Block):
  """A block at a resolution of 17 x 17."""

  channels: int  # output channels of the layers before the last one of the 7 x 7 branches

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.channels
    branches = [
      self.chain(x, ('branch1x1', 192, (1, 1))),
      self.chain(x, ('branch7x7_1', c, (1, 1)), ('branch7x7_2', c, (1, 7)), ('branch7x7_3', 192, (7, 1))),
      self.chain(
        x, ('branch7x7dbl_1', c, (1, 1)), ('branch7x7dbl_2', c, (7, 1)), ('branch7x7dbl_3', c, (1, 7)),
        ('branch7x7dbl_4', c, (7, 1)), ('branch7x7dbl_5', 192, (1, 7)),
      ),
      self.chain(mean_pool(x), ('branch_pool', 192, (1, 1))),
    ]  # fmt: skip
    return jnp.concatenate(branches, axis=-1)


class BlockD(_Block):
  """Downsampling from 17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    three = self.chain(x, ('branch3x3_1', 192, (1, 1)))
    seven = self.chain(
      x, ('branch7x7x3_1', 192, (1, 1)), ('branch7x7x3_2', 192, (1, 7)), ('branch7x7x3_3', 192, (7, 1))
    )
    branches = [
      self.conv(three, ('branch3x3_2', 320, (3, 3)), stride=2, padding='VALID'),
      self.conv(seven, ('branch7x7x3_4', 192, (3, 3)), stride=2, padding='VALID'),
      _max_pool(x, 2, 'VALID'),
    ]
    return jnp.concatenate(branches, axis=-1)


class BlockE(_Block):
  """A block at a resolution of 8 x 8."""

  max_pool: bool  # use max-pooling instead of average pooling

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    single = self.conv(x, ('branch3x3_1', 384, (1, 1)))
    double = self.chain(x, ('branch3x3dbl_1', 448, (1, 1)), ('branch3x3dbl_2', 384, (3, 3)))
    pooled = _max_pool(x, 1, 'SAME') if self.max_pool else mean_pool(x)
    branches = [
      self.chain(x, ('branch1x1', 320, (1, 1))),
      self.fork(single, ('branch3x3_2a', 384, (1, 3)), ('branch3x3_2b', 384, (3, 1))),
      self.fork(double, ('branch3x3dbl_3a', 384, (1, 3)), ('branch3x3dbl_3b', 384, (3, 1))),
      self.chain(pooled, ('branch_pool', 192, (1, 1))),
    ]
    return jnp.concatenate(branches, axis=-1)


class Inception(_Block):
  """Inception-v3 without its classifier: the features that the classifier's weights are applied to."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Images [B, 299, 299, 3], as returned by `prepare`, to features, float32 [B, 2048]."""
    x = self.conv(x, ('Conv2d_1a_3x3', 32, (3, 3)), stride=2, padding='VALID')
    x = self.conv(x, ('Conv2d_2a_3x3', 32, (3, 3)), padding='VALID')
    x = self.conv(x, ('Conv2d_2b_3x3', 64, (3, 3)))
    x = _max_pool(x, 2, 'VALID')
    x = self.conv(x, ('Conv2d_3b_1x1', 80, (1, 1)))
    x = self.conv(x, ('Conv2d_4a_3x3', 192, (3, 3)), padding='VALID')
    x = _max_pool(x, 2, 'VALID')
    for name, pool_channels in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64)):
      x = BlockA(pool_channels, name=name)(x)
    x = BlockB(name='Mixed_6a')(x)
    for name, channels in (('Mixed_6b', 128), ('Mixed_6c', 160), ('Mixed_6d', 160), ('Mixed_6e', 192)):
      x = BlockC(channels, name=name)(x)
    x = BlockD(name='Mixed_7a')(x)
    x = BlockE(max_pool=False, name='Mixed_7b')(x)
    x = BlockE(max_pool=True, name='Mixed_7c')(x)
    return jnp.mean(x, axis=(1, 2))
