"""The contrastive model of images and text, which tells how well a picture fits a caption (section 2.6).

Its architecture is CLIP's (Radford et al. 2021, section 2.4), of any size: a vision transformer and a text transformer
with a causal mask, each with a linear map into one space, where the cosine of two embeddings is their score. With the
activation 'quick_gelu', the stem 'patch' and the end of text at the largest id it is the published model itself.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax.models.attention import Pattern, Unmasked
from dalle_jax.models.dvae import Conv, fold
from dalle_jax.models.layers import Norm
from dalle_jax.models.stream import PAD
from dalle_jax.models.transformer import BlockShape, Transformer

STEMS = ('patch', 'conv')
ENDS_OF_TEXT = ('first_pad', 'largest_id')
FIRST_LOGIT_SCALE, MAX_LOGIT_SCALE = 1 / 0.07, 100.0  # section 2.5 of CLIP
_TINY = 1e-12  # keeps an embedding of zeros finite


class ImageEncoder(nn.Module):
  """A vision transformer (Dosovitskiy et al. 2021), as CLIP has it.

  The stem 'patch' is one linear map of each patch of `patch_size` x `patch_size` pixels. 'conv' halves the picture
  until patches are single places, each time with a convolution of 3 x 3 and a GELU (after Xiao et al. 2021, "Early
  convolutions help transformers see better"); `patch_size` is then a power of 2.
  """

  image_size: int
  patch_size: int
  stem: str
  shape: BlockShape
  out_dim: int
  mean: tuple[float, ...]  # of pixels in [0, 1], by channel; taken off before the stem
  std: tuple[float, ...]

  @property
  def length(self) -> int:
    """Slots: the class embedding and the patches."""
    return 1 + (self.image_size // self.patch_size) ** 2

  def setup(self) -> None:
    d, dtype = self.shape.embed_dim, self.shape.dtype
    halvings = round(math.log2(self.patch_size)) if self.stem == 'conv' else 0
    widths = [max(d >> (halvings - i), 1) for i in range(halvings)]
    self.convs = [Conv(width, 3, dtype, name=f'conv_{i + 1}') for i, width in enumerate(widths)]
    side, channels = (1, widths[-1]) if widths else (self.patch_size, 3)
    names = ('kernel_height', 'kernel_width', 'channels', 'embed')
    init = nn.with_logical_partitioning(nn.initializers.normal((side**2 * channels) ** -0.5), names)
    self.patch_kernel = self.param('patch_kernel', init, (side, side, channels, d), jnp.float32)
    init = nn.initializers.normal(d**-0.5)
    self.class_embedding = self.param('class_embedding', nn.with_logical_partitioning(init, ('embed',)), (d,))
    init = nn.with_logical_partitioning(init, ('position', 'embed'))
    self.position = self.param('position', init, (self.length, d), jnp.float32)
    self.norm_pre = Norm('layernorm', jnp.float32)
    self.transformer = Transformer(self.shape, (Unmasked(self.length),))
    self.projection_kernel = _projection(self, d, self.out_dim)

  def features(self, image: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] to the normalised output in the slot of the class embedding, float32 [B, F]."""
    mean, std = (jnp.asarray(values)[None, None, None] for values in (self.mean, self.std))
    x = ((image.astype(jnp.float32) / 255 - mean) / std).astype(self.shape.dtype)
    for conv in self.convs:
      x = nn.gelu(conv(fold(x, 2)), approximate=False)
    side = self.patch_kernel.shape[0]
    # Gathered before use, as the kernels of `Conv` are.
    kernel = nn.with_logical_constraint(self.patch_kernel, (None, None, None, None)).astype(x.dtype)
    x = fold(x, side) @ kernel.reshape(-1, kernel.shape[-1])
    x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    first = jnp.broadcast_to(self.class_embedding, (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + self.position[None]
    x = nn.with_logical_constraint(x, ('batch', 'length', 'activation'))
    return self.transformer(self.norm_pre(x))[:, 0].astype(jnp.float32)

  def __call__(self, image: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] to embeddings of unit length, float32 [B, D]."""
    return _unit(self.features(image) @ self.projection_kernel)


class TextEncoder(nn.Module):
  """A transformer that reads a text from left to right, and whose output at the end of text stands for all of it.

  `end_of_text` says how that place is found. 'first_pad': texts are padded with id 0, and another pad is put behind
  them, so that there always is one; a text has `length` - 1 slots. 'largest_id': the end has the largest of all ids,
  as in CLIP, and a text has `length` slots. What comes behind the end changes nothing, as it is not seen.
  """

  vocab_size: int
  length: int
  shape: BlockShape
  out_dim: int
  end_of_text: str

  @property
  def input_length(self) -> int:
    """Ids of a text, as they are given."""
    return self.length - (self.end_of_text == 'first_pad')

  def setup(self) -> None:
    d = self.shape.embed_dim
    init = nn.initializers.normal(d**-0.5)
    self.embedding = self.param(
      'embedding', nn.with_logical_partitioning(init, ('vocab', 'embed')), (self.vocab_size, d), jnp.float32
    )
    self.position = self.param(
      'position', nn.with_logical_partitioning(init, ('position', 'embed')), (self.length, d), jnp.float32
    )
    self.transformer = Transformer(self.shape, (Pattern('full', self.length, 0),))
    self.projection_kernel = _projection(self, d, self.out_dim)

  def __call__(self, text: jax.Array) -> jax.Array:
    """Ids int32 [B, input_length] to embeddings of unit length, float32 [B, D]."""
    if self.end_of_text == 'first_pad':
      text = jnp.pad(text, ((0, 0), (0, 1)), constant_values=PAD)
      end = jnp.argmax(text == PAD, axis=1)
    else:
      end = jnp.argmax(text, axis=1)
    # A gather from a table split over the vocabulary would make XLA rematerialise it in full.
    x = jnp.take(nn.with_logical_constraint(self.embedding, (None, None)), text, axis=0) + self.position[None]
    x = self.transformer(nn.with_logical_constraint(x, ('batch', 'length', 'activation')))
    pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return _unit(pooled.astype(jnp.float32) @ self.projection_kernel)


def _projection(module: nn.Module, in_dim: int, out_dim: int) -> jax.Array:
  init = nn.with_logical_partitioning(nn.initializers.normal(in_dim**-0.5), ('embed', 'shared'))
  return module.param('projection_kernel', init, (in_dim, out_dim), jnp.float32)


def _unit(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + _TINY)


class Reranker(nn.Module):
  """The two encoders and the learned scale of their cosines; parameters 'image', 'text' and 'logit_scale'."""

  image: ImageEncoder
  text: TextEncoder

  def setup(self) -> None:
    init = nn.with_logical_partitioning(nn.initializers.constant(math.log(FIRST_LOGIT_SCALE)), ())
    self.logit_scale = self.param('logit_scale', init, (), jnp.float32)

  def image_features(self, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] to float32 [B, F]: pooled, before the projection."""
    return self.image.features(images)

  def image_embeddings(self, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] to float32 [B, D] of unit length."""
    return self.image(images)

  def text_embeddings(self, text: jax.Array) -> jax.Array:
    """Ids int32 [B, text.input_length] to float32 [B, D] of unit length."""
    return self.text(text)

  def __call__(self, images: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeddings of B images and C texts, [B, D] and [C, D], and what cosines are multiplied with, at most 100."""
    scale = jnp.exp(jnp.minimum(self.logit_scale, math.log(MAX_LOGIT_SCALE)))
    return self.image(images), self.text(text), scale


def init(model: Reranker, key: jax.Array) -> Any:
  """Parameters, boxed with their logical axis names."""
  size = model.image.image_size
  images = jnp.zeros((1, size, size, 3), jnp.uint8)
  return model.init(key, images, jnp.zeros((1, model.text.input_length), jnp.int32))['params']


def same_text(text: jax.Array, others: jax.Array) -> jax.Array:
  """Which of the texts [B, T] equal which of the others [C, T]: bool [B, C]."""
  return jnp.all(text[:, None] == others[None], axis=-1)


def logits(images: jax.Array, texts: jax.Array, scale: jax.Array) -> jax.Array:
  """Scaled cosines of embeddings of images [B, D], rows, and of texts [C, D], columns: float32 [B, C]."""
  products = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
  return nn.with_logical_constraint(scale * products, ('batch', None))


def contrastive_losses(scores: jax.Array, positives: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The two cross-entropies of CLIP (section 2.3, figure 3), in nats: each image's text among all, and the reverse.

  Texts after the first B are of no image, but negatives of all. CLIP has none, and takes the diagonal alone for right.
  Where captions repeat within a batch, as short ones do, that would hold the same caption for wrong: here all positives
  of a row share its target equally, so that the least possible loss is the mean logarithm of their number, and 0 if no
  caption repeats. The negatives are the whole batch, over all devices.

  Args:
    scores: logits [B, C], images in rows, their own texts in the first B columns.
    positives: bool [B, C], with the diagonal; see `same_text`.

  Returns:
    The loss of images and the loss of texts, float32 scalars; CLIP's is their mean.
  """

  def loss(rows: jax.Array, right: jax.Array) -> jax.Array:
    targets = right / right.sum(axis=1, keepdims=True)
    return -jnp.sum(targets * jax.nn.log_softmax(rows, axis=1), axis=1).mean()

  count = len(scores)
  return loss(scores, positives), loss(scores[:, :count].T, positives[:, :count].T)


def accuracies(scores: jax.Array, positives: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The share of images whose best text is a right one, and of their texts whose best image is; arguments as above."""

  def share(rows: jax.Array, right: jax.Array) -> jax.Array:
    best = jnp.argmax(rows, axis=1)
    return jnp.mean(jnp.take_along_axis(right, best[:, None], axis=1), dtype=jnp.float32)

  count = len(scores)
  return share(scores, positives), share(scores[:, :count].T, positives[:, :count].T)
