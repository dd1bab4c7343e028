"""Inception-v3 as Fréchet distances are measured with it (Szegedy et al. 2015; Heusel et al. 2017).

It is the network of 2015 whose weights TensorFlow published, and differs from the later one in two kinds of pooling:

- Means over 3 x 3 places do not count what lies outside the picture, so at the border they are means of fewer.
- The pooling of the last block takes the largest value, not the mean. It looks like a slip, but the weights were
  trained with it, and every published distance was measured with it.

Batch normalisation is folded into the kernels and biases (`importing.inception_weights`): `conv` followed by `relu`
is a layer. Modules have the names that the weights have.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

SIZE = 299  # pixels along a side
NUM_FEATURES, NUM_CLASSES = 2048, 1008

Step = tuple[str, int, tuple[int, int]]  # name, channels and kernel of a layer


def prepare(images: jax.Array) -> jax.Array:
  """uint8 [B, H, W, 3] of any size to float32 [B, 299, 299, 3] in [-1, 1).

  Resized as 'clean-fid' does (Parmar et al. 2022): bicubic, widened when a picture is made smaller so that nothing
  aliases, not rounded. Pixels are shifted and scaled as by the original, (x - 128) / 128.
  """
  shape = (images.shape[0], SIZE, SIZE, 3)
  resized = jax.image.resize(images.astype(jnp.float32), shape, 'cubic', antialias=True)
  return (jnp.clip(resized, 0, 255) - 128) / 128


class _Block(nn.Module):
  """What blocks are made of."""

  def conv(self, x: jax.Array, step: Step, stride: int = 1, inside: bool = False) -> jax.Array:
    """A layer; `inside` the kernel does not reach over the rim."""
    name, channels, kernel = step
    padding = 'VALID' if inside else 'SAME'
    made = nn.Conv(channels, kernel, (stride, stride), padding, precision=jax.lax.Precision.HIGHEST, name=name)
    return nn.relu(made(x))

  def chain(self, x: jax.Array, *steps: Step) -> jax.Array:
    """Layers one after the other."""
    for step in steps:
      x = self.conv(x, step)
    return x

  def fork(self, x: jax.Array, *steps: Step) -> jax.Array:
    """Several layers of the same input."""
    return jnp.concatenate([self.conv(x, step) for step in steps], axis=-1)


def mean_pool(x: jax.Array) -> jax.Array:
  """Means over 3 x 3 places of [B, H, W, C], of those that lie inside."""
  return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)


def _max_pool(x: jax.Array, stride: int, padding: str) -> jax.Array:
  return nn.max_pool(x, (3, 3), (stride, stride), padding)


class BlockA(_Block):
  """35 x 35."""

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
  """35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    double = self.chain(x, ('branch3x3dbl_1', 64, (1, 1)), ('branch3x3dbl_2', 96, (3, 3)))
    branches = [
      self.conv(x, ('branch3x3', 384, (3, 3)), stride=2, inside=True),
      self.conv(double, ('branch3x3dbl_3', 96, (3, 3)), stride=2, inside=True),
      _max_pool(x, 2, 'VALID'),
    ]
    return jnp.concatenate(branches, axis=-1)


class BlockC(_Block):
  """17 x 17."""

  channels: int  # between the first layer and the last of a branch

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
  """17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    three = self.chain(x, ('branch3x3_1', 192, (1, 1)))
    seven = self.chain(
      x, ('branch7x7x3_1', 192, (1, 1)), ('branch7x7x3_2', 192, (1, 7)), ('branch7x7x3_3', 192, (7, 1))
    )
    branches = [
      self.conv(three, ('branch3x3_2', 320, (3, 3)), stride=2, inside=True),
      self.conv(seven, ('branch7x7x3_4', 192, (3, 3)), stride=2, inside=True),
      _max_pool(x, 2, 'VALID'),
    ]
    return jnp.concatenate(branches, axis=-1)


class BlockE(_Block):
  """8 x 8; with `largest` the pooling takes maxima."""

  largest: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    three = self.conv(x, ('branch3x3_1', 384, (1, 1)))
    double = self.chain(x, ('branch3x3dbl_1', 448, (1, 1)), ('branch3x3dbl_2', 384, (3, 3)))
    pooled = _max_pool(x, 1, 'SAME') if self.largest else mean_pool(x)
    branches = [
      self.chain(x, ('branch1x1', 320, (1, 1))),
      self.fork(three, ('branch3x3_2a', 384, (1, 3)), ('branch3x3_2b', 384, (3, 1))),
      self.fork(double, ('branch3x3dbl_3a', 384, (1, 3)), ('branch3x3dbl_3b', 384, (3, 1))),
      self.chain(pooled, ('branch_pool', 192, (1, 1))),
    ]
    return jnp.concatenate(branches, axis=-1)


class Inception(_Block):
  """Features of pictures: what the class weights see."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, 299, 299, 3], as `prepare` gives, to float32 [B, 2048]."""
    x = self.conv(x, ('Conv2d_1a_3x3', 32, (3, 3)), stride=2, inside=True)
    x = self.conv(x, ('Conv2d_2a_3x3', 32, (3, 3)), inside=True)
    x = self.conv(x, ('Conv2d_2b_3x3', 64, (3, 3)))
    x = _max_pool(x, 2, 'VALID')
    x = self.conv(x, ('Conv2d_3b_1x1', 80, (1, 1)))
    x = self.conv(x, ('Conv2d_4a_3x3', 192, (3, 3)), inside=True)
    x = _max_pool(x, 2, 'VALID')
    for name, pool_channels in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64)):
      x = BlockA(pool_channels, name=name)(x)
    x = BlockB(name='Mixed_6a')(x)
    for name, channels in (('Mixed_6b', 128), ('Mixed_6c', 160), ('Mixed_6d', 160), ('Mixed_6e', 192)):
      x = BlockC(channels, name=name)(x)
    x = BlockD(name='Mixed_7a')(x)
    x = BlockE(largest=False, name='Mixed_7b')(x)
    x = BlockE(largest=True, name='Mixed_7c')(x)
    return jnp.mean(x, axis=(1, 2))
