"""The discrete VAE: a convolutional encoder from images to a grid of codes, and a decoder (section 2.1, appendix A).

The architecture follows the released models:

- The encoder and the decoder consist of groups of bottleneck residual blocks, without normalisation.
- The encoder downsamples by max-pooling, the decoder upsamples by nearest neighbours.
- The encoder's last convolution and the decoder's first one are 1x1 and compute in float32.
- Residual branches are scaled by 1 / (number of blocks)^2.

`patch_size` > 1 is an addition for small machines. It folds patches of pixels into channels before the encoder and
unfolds them after the decoder, which avoids the costly layers at full resolution. The released models use 1.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models import likelihood
from dalle_jax.models.bottleneck import GumbelCodebook, ScalarCodebook, VectorCodebook

FULL = jax.lax.Precision.HIGHEST  # full float32; accelerators use a lower precision by default


class Conv(nn.Module):
  """A stride-1 convolution with zero padding, [B, H, W, C] -> [B, H, W, features]."""

  features: int
  kernel_size: int
  dtype: jnp.dtype = jnp.float32
  init_scale: float = 1.0
  precision: jax.lax.Precision | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    k, fan_in = self.kernel_size, x.shape[-1] * self.kernel_size**2
    init = nn.with_logical_partitioning(
      nn.initializers.normal(self.init_scale * fan_in**-0.5), ('kernel_height', 'kernel_width', 'conv_in', 'conv_out')
    )
    kernel = self.param('kernel', init, (k, k, x.shape[-1], self.features), jnp.float32).astype(self.dtype)
    # We gather the kernel over `fsdp` before use. Without this constraint, the partitioner of jax 0.10 computes wrong
    # gradients of convolutions on meshes with more than one device along each of the three axes.
    kernel = nn.with_logical_constraint(kernel, (None, None, None, 'conv_out'))
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',))
    bias = self.param('bias', bias_init, (self.features,), jnp.float32).astype(self.dtype)[None, None, None]
    x = x.astype(self.dtype)
    if k == 1:
      # On CPUs, a matrix product is 1.5 to 3 times faster than the equivalent 1x1 convolution.
      return jnp.matmul(x, kernel[0, 0], precision=self.precision) + bias
    layout = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', None, None, layout, precision=self.precision) + bias


def fold(x: jax.Array, patch_size: int) -> jax.Array:
  """Fold patches of p x p pixels into channels: [B, H, W, C] to [B, H/p, W/p, p * p * C]."""
  b, h, w, c = x.shape
  p = patch_size
  return x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // p, w // p, p * p * c)


def unfold(x: jax.Array, patch_size: int) -> jax.Array:
  """The inverse of `fold`: [B, h, w, p * p * C] to [B, h * p, w * p, C]."""
  b, h, w, c = x.shape
  p = patch_size
  return x.reshape(b, h, w, p, p, c // p**2).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * p, w * p, c // p**2)


def max_pool(x: jax.Array) -> jax.Array:
  """2x2 max-pooling, [B, H, W, C] to [B, H/2, W/2, C].

  On CPUs, the gradient is cheaper than the gradient of `jax.lax.reduce_window`.
  """
  x = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


class Block(nn.Module):
  """A residual block of four convolutions; all but the last have a quarter of the block's width.

  Attributes:
    features: output channels, the block's width.
    kernels: kernel size of each convolution, in order.
    post_gain: factor of the residual branch.
    dtype: dtype of the computation.
  """

  features: int
  kernels: tuple[int, ...]
  post_gain: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y, last = x, len(self.kernels) - 1
    for i, kernel_size in enumerate(self.kernels):
      width = self.features if i == last else self.features // 4
      y = Conv(width, kernel_size, self.dtype, name=f'conv_{i + 1}')(nn.relu(y))
    if x.shape[-1] != self.features:
      x = Conv(self.features, 1, self.dtype, name='id_path')(x)
    return x + self.post_gain * y


class Encoder(nn.Module):
  """Mapped pixels [B, H, W, 3] to encoder outputs, float32 [B, H/f, W/f, out_size].

  The outputs are the bottleneck's inputs: logits for 'gumbel'. f is patch_size * 2^(num_groups - 1).
  """

  out_size: int
  hidden_size: int
  num_groups: int
  blocks_per_group: int
  patch_size: int
  post_gain: float
  logits_init_scale: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = Conv(self.hidden_size, 7, self.dtype, name='input')(fold(x, self.patch_size))
    for group in range(self.num_groups):
      for block in range(self.blocks_per_group):
        features = self.hidden_size * 2**group
        x = Block(features, (3, 3, 3, 1), self.post_gain, self.dtype, name=f'group_{group + 1}_block_{block + 1}')(x)
      if group < self.num_groups - 1:
        x = max_pool(x)
    output = Conv(self.out_size, 1, init_scale=self.logits_init_scale, precision=FULL, name='output')
    return output(nn.relu(x))


class Decoder(nn.Module):
  """Decoder inputs [B, h, w, C] to pixel statistics, float32 [B, h*f, w*f, 6]; f as in `Encoder`.

  Statistics are three channels of mu, then three channels of ln b (see `likelihood.logit_laplace_nll`).
  """

  hidden_size: int
  num_groups: int
  blocks_per_group: int
  patch_size: int
  post_gain: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(self.dtype)
    for group in range(self.num_groups):
      for block in range(self.blocks_per_group):
        features = self.hidden_size * 2 ** (self.num_groups - 1 - group)
        x = Block(features, (1, 3, 3, 3), self.post_gain, self.dtype, name=f'group_{group + 1}_block_{block + 1}')(x)
      if group < self.num_groups - 1:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    x = Conv(6 * self.patch_size**2, 1, self.dtype, name='output')(nn.relu(x))
    return unfold(x.astype(jnp.float32), self.patch_size)


class Dvae(nn.Module):
  """Encoder, bottleneck and decoder. Images are uint8 or float [B, H, W, 3] in [0, 255].

  `bottleneck` is 'gumbel', 'vq' or 'fsq' (see `models.bottleneck`). The decoder's input convolution is part of the
  bottleneck, not of `Decoder`.
  """

  image_vocab_size: int
  hidden_size: int
  decoder_input_size: int
  num_groups: int
  blocks_per_group: int
  patch_size: int = 1
  residual_gain: float = 0.0  # factor of the residual branches; 0 means 1 / (number of blocks)^2
  logits_init_scale: float = 1.0
  codebook_init_scale: float = 1.0
  bottleneck: str = 'gumbel'
  straight_through: bool = False
  fsq_levels: tuple[int, ...] = ()
  dtype: jnp.dtype = jnp.float32

  def setup(self) -> None:
    self.code = self._make_bottleneck()
    shape = {
      'hidden_size': self.hidden_size,
      'num_groups': self.num_groups,
      'blocks_per_group': self.blocks_per_group,
      'patch_size': self.patch_size,
      'post_gain': self.residual_gain or (self.num_groups * self.blocks_per_group) ** -2,
      'dtype': self.dtype,
    }
    self.encoder = Encoder(out_size=self.code.channels, logits_init_scale=self.logits_init_scale, **shape)
    self.decoder = Decoder(**shape)

  def _make_bottleneck(self) -> nn.Module:
    size, scale = self.decoder_input_size, self.codebook_init_scale
    if self.bottleneck == 'vq':
      return VectorCodebook(self.image_vocab_size, size)
    if self.bottleneck == 'fsq':
      return ScalarCodebook(self.fsq_levels, size, scale)
    return GumbelCodebook(self.image_vocab_size, size, scale, self.straight_through)

  def __call__(self, image: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] to statistics [B, H, W, 6] of their reconstructions; `init` calls it to create parameters."""
    return self.decode_stats(self.encode(image))

  def encode_latents(self, image: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] to encoder outputs, float32 [B, h, w, channels]; for 'gumbel', logits [B, h, w, K]."""
    return self.encoder(likelihood.map_pixels(image))

  def codes(self, z: jax.Array) -> jax.Array:
    """Encoder outputs [B, h, w, channels] to codes, int32 [B, h, w]: the most likely or the nearest code."""
    return self.code.codes(z)

  def encode(self, image: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] to codes, int32 [B, h, w]."""
    return self.codes(self.encode_latents(image))

  def relaxed_stats(self, z: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Encoder outputs [B, h, w, channels] to statistics [B, H, W, 6], differentiable in z."""
    return self.decoder(self.code.relax(z, key, temperature))

  def mixed_stats(self, points: jax.Array) -> jax.Array:
    """Points on the simplex [B, h, w, K] to statistics [B, H, W, 6]; only for 'gumbel'."""
    return self.decoder(self.code.mix(points))

  def code_vectors(self, codes: jax.Array) -> jax.Array:
    """Integer codes [B, h, w] to decoder inputs [B, h, w, C]."""
    return self.code.vectors(codes)

  def decode_stats(self, codes: jax.Array) -> jax.Array:
    """Integer codes [B, h, w] to statistics [B, H, W, 6]."""
    return self.decoder(self.code.vectors(codes))

  def decode(self, codes: jax.Array) -> jax.Array:
    """Integer codes [B, h, w] to images [B, H, W, 3], float32 in [0, 255]."""
    return likelihood.reconstruction(self.decode_stats(codes))

  def decode_part(self, codes: jax.Array, known: jax.Array) -> jax.Array:
    """Decode an incomplete grid of codes to images [B, H, W, 3], float32 in [0, 255].

    Unknown codes become zero vectors, like the zero padding that convolutions see beyond the edge of an image.

    Args:
      codes: integer [B, h, w]; unknown codes may have any valid value.
      known: bool [B, h, w], True for known codes.
    """
    return likelihood.reconstruction(self.decoder(self.code.vectors(codes) * known[..., None]))
