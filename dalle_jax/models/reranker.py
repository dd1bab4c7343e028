"""The reranker: a contrastive model that scores how well an image matches a caption (section 2.6).

The architecture is CLIP's (Radford et al. 2021, section 2.4), with configurable sizes. A vision transformer encodes the
image, and a causal text transformer encodes the caption. A linear projection maps both to a shared embedding space. The
score is the cosine similarity of the two embeddings.

The activation 'quick_gelu', the stem 'patch' and the end of text 'largest_id' reproduce the published CLIP models.
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
FIRST_LOGIT_SCALE, MAX_LOGIT_SCALE = 1 / 0.07, 100.0  # initial and maximum factor of cosines (CLIP, section 2.5)
_TINY = 1e-12  # avoids a division by zero in `_normalise`


class ImageEncoder(nn.Module):
  """CLIP's vision transformer (Dosovitskiy et al. 2021).

  The stem turns patches of `patch_size` x `patch_size` pixels into tokens:

  - 'patch' applies one linear map to each patch.
  - 'conv' halves the resolution repeatedly until each patch is one position. Each halving folds 2 x 2 positions into
    channels, followed by a 3 x 3 convolution and a GELU (after Xiao et al. 2021, "Early convolutions help transformers
    see better"). `patch_size` must be a power of 2.
  """

  image_size: int
  patch_size: int
  stem: str
  shape: BlockShape
  out_dim: int
  mean: tuple[float, ...]  # per channel, of pixels in [0, 1]; the stem reads (pixel - mean) / std
  std: tuple[float, ...]  # per channel, of pixels in [0, 1]

  @property
  def length(self) -> int:
    """Number of slots: one for the class embedding and one for each patch."""
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
    """Images uint8 [B, H, W, 3] to features, float32 [B, F]: the normalised output in the class embedding's slot."""
    mean, std = (jnp.asarray(values)[None, None, None] for values in (self.mean, self.std))
    x = ((image.astype(jnp.float32) / 255 - mean) / std).astype(self.shape.dtype)
    for conv in self.convs:
      x = nn.gelu(conv(fold(x, 2)), approximate=False)
    side = self.patch_kernel.shape[0]
    # The kernel is gathered before use, like the kernels of `Conv`.
    kernel = nn.with_logical_constraint(self.patch_kernel, (None, None, None, None)).astype(x.dtype)
    x = fold(x, side) @ kernel.reshape(-1, kernel.shape[-1])
    x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    class_slot = jnp.broadcast_to(self.class_embedding, (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([class_slot, x], axis=1) + self.position[None]
    x = nn.with_logical_constraint(x, ('batch', 'length', 'activation'))
    return self.transformer(self.norm_pre(x))[:, 0].astype(jnp.float32)

  def __call__(self, image: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] to embeddings of unit length, float32 [B, D]."""
    return _normalise(self.features(image) @ self.projection_kernel)


class TextEncoder(nn.Module):
  """A causal text transformer. The text's embedding comes from the output at the end-of-text slot.

  `end_of_text` says which slot this is:

  - 'first_pad': the first pad (id 0). The encoder appends one pad to the `length` - 1 input ids, so that there is
    always a pad.
  - 'largest_id': the slot with the largest id, as in CLIP. Inputs have `length` ids.

  Ids after the end of text do not change the embedding, because the mask is causal.
  """

  vocab_size: int
  length: int
  shape: BlockShape
  out_dim: int
  end_of_text: str

  @property
  def input_length(self) -> int:
    """Number of ids in an input text."""
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
    """Text ids int32 [B, input_length] to embeddings of unit length, float32 [B, D]."""
    if self.end_of_text == 'first_pad':
      text = jnp.pad(text, ((0, 0), (0, 1)), constant_values=PAD)
      end = jnp.argmax(text == PAD, axis=1)
    else:
      end = jnp.argmax(text, axis=1)
    # Replicate the table. A gather from a table split over the vocabulary makes XLA rematerialise the table in full.
    x = jnp.take(nn.with_logical_constraint(self.embedding, (None, None)), text, axis=0) + self.position[None]
    x = self.transformer(nn.with_logical_constraint(x, ('batch', 'length', 'activation')))
    pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return _normalise(pooled.astype(jnp.float32) @ self.projection_kernel)


def _projection(module: nn.Module, in_dim: int, out_dim: int) -> jax.Array:
  init = nn.with_logical_partitioning(nn.initializers.normal(in_dim**-0.5), ('embed', 'shared'))
  return module.param('projection_kernel', init, (in_dim, out_dim), jnp.float32)


def _normalise(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + _TINY)


class Reranker(nn.Module):
  """The two encoders and the learned scale of cosines; its parameters are 'image', 'text' and 'logit_scale'."""

  image: ImageEncoder
  text: TextEncoder

  def setup(self) -> None:
    init = nn.with_logical_partitioning(nn.initializers.constant(math.log(FIRST_LOGIT_SCALE)), ())
    self.logit_scale = self.param('logit_scale', init, (), jnp.float32)

  def image_features(self, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] to pooled features before the projection, float32 [B, F]."""
    return self.image.features(images)

  def image_embeddings(self, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] to embeddings of unit length, float32 [B, D]."""
    return self.image(images)

  def text_embeddings(self, text: jax.Array) -> jax.Array:
    """Text ids int32 [B, text.input_length] to embeddings of unit length, float32 [B, D]."""
    return self.text(text)

  def __call__(self, images: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeddings of B images, [B, D], and of C texts, [C, D], and the scale of their cosines, at most 100."""
    scale = jnp.exp(jnp.minimum(self.logit_scale, math.log(MAX_LOGIT_SCALE)))
    return self.image(images), self.text(text), scale


def init(model: Reranker, key: jax.Array) -> Any:
  """Initial parameters, boxed with their logical axis names."""
  size = model.image.image_size
  images = jnp.zeros((1, size, size, 3), jnp.uint8)
  return model.init(key, images, jnp.zeros((1, model.text.input_length), jnp.int32))['params']


def same_text(text: jax.Array, others: jax.Array) -> jax.Array:
  """Compare each text [B, T] with each of the others [C, T]: bool [B, C], True for equal texts."""
  return jnp.all(text[:, None] == others[None], axis=-1)


def logits(images: jax.Array, texts: jax.Array, scale: jax.Array) -> jax.Array:
  """Scaled cosines, float32 [B, C], of image embeddings [B, D] (rows) and text embeddings [C, D] (columns)."""
  products = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
  return nn.with_logical_constraint(scale * products, ('batch', None))


def contrastive_losses(scores: jax.Array, positives: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The two cross-entropies of CLIP (section 2.3, figure 3), in nats: image to text, and text to image.

  There are two differences from CLIP:

  - There may be more texts than images. The texts after the first B belong to no image. They are negatives, unless they
    equal an image's caption.
  - Captions may repeat within a batch, as short captions often do. All texts equal to an image's caption are positives,
    and the target distribution is uniform over them. The minimum of the loss is the mean of ln(number of positives),
    which is 0 if no caption repeats. CLIP counts only the diagonal as positive.

  The negatives come from the whole batch, on all devices.

  Args:
    scores: logits [B, C], C >= B; row i is image i, and column i is its caption.
    positives: bool [B, C], True on the diagonal and for texts equal to the image's caption (see `same_text`).

  Returns:
    The image-to-text loss and the text-to-image loss, float32 scalars. CLIP's loss is their mean.
  """

  def loss(logits: jax.Array, positives: jax.Array) -> jax.Array:
    targets = positives / positives.sum(axis=1, keepdims=True)
    return -jnp.sum(targets * jax.nn.log_softmax(logits, axis=1), axis=1).mean()

  num_images = len(scores)
  return loss(scores, positives), loss(scores[:, :num_images].T, positives[:, :num_images].T)


def accuracies(scores: jax.Array, positives: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The top-1 retrieval accuracies for the arguments of `contrastive_losses`, float32 scalars in [0, 1].

  Returns:
    The fraction of images whose best text is a positive, and the fraction of captions whose best image is a positive.
  """

  def accuracy(logits: jax.Array, positives: jax.Array) -> jax.Array:
    best = jnp.argmax(logits, axis=1)
    return jnp.mean(jnp.take_along_axis(positives, best[:, None], axis=1), dtype=jnp.float32)

  num_images = len(scores)
  return accuracy(scores, positives), accuracy(scores[:, :num_images].T, positives[:, :num_images].T)
