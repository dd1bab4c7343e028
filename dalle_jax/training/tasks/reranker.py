"""Contrastive loss on images and captions, for a model that ranks generated images (CLIP, Radford et al. 2021)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.config import Config
from dalle_jax.factory import make_reranker
from dalle_jax.models import reranker
from dalle_jax.models.reranker import Reranker
from dalle_jax.training.tasks import Curve, Fields, image_field, text_field


@dataclasses.dataclass(frozen=True)
class RerankerTask:
  """Trains the collection 'reranker'; batches hold 'image' uint8 [B, H, W, 3] and 'text' int32 [B, text_length - 1].

  The negatives of an image are all different captions in the global batch. The negatives of a caption are the images
  with different captions. With gradient accumulation (`accumulation_steps`), negatives come from the same micro-batch
  only. Batches may also hold 'wrong' captions, int32 [B, text_length - 1] (`data.text.wrong_captions`). They are
  additional negatives for images.
  """

  config: Config
  text_vocab_size: int
  name: str = 'reranker'
  trainable: tuple[str, ...] = ('reranker',)
  updated: tuple[str, ...] = ()

  @property
  def model(self) -> Reranker:
    return make_reranker(self.config, self.text_vocab_size)

  def init(self, key: jax.Array) -> dict[str, Any]:
    return {'reranker': reranker.init(self.model, key)}

  def evaluate(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    """The loss, and how often the best text of an image, or the best image of a text, is correct within the batch."""
    texts = jnp.stack([batch[name] for name in ('text', 'wrong') if name in batch])
    count, size, length = texts.shape
    # Interleave the texts of each example, so that every example stays on its device.
    interleaved = texts.swapaxes(0, 1).reshape(size * count, length)
    image_embeddings, text_embeddings, scale = self.model.apply(
      {'params': params['reranker']}, batch['image'], interleaved
    )
    text_embeddings = text_embeddings.reshape(size, count, -1).swapaxes(0, 1).reshape(count * size, -1)
    scores = reranker.logits(image_embeddings, text_embeddings, scale)
    positives = reranker.same_text(batch['text'], texts.reshape(count * size, length))
    image_loss, text_loss = reranker.contrastive_losses(scores, positives)
    image_accuracy, text_accuracy = reranker.accuracies(scores, positives)
    return {
      'loss': (image_loss + text_loss) / 2,
      'image_to_text_accuracy': image_accuracy,
      'text_to_image_accuracy': text_accuracy,
      'logit_scale': scale,
    }

  def loss(self, params: Any, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """Mean of the image-to-text and text-to-image losses in nats; the metrics are the other results of `evaluate`."""
    metrics = self.evaluate(params, batch, key, step)
    return metrics.pop('loss'), metrics

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value) for name, value in means.items()}


def make_task(config: Config, text_vocab_size: int) -> RerankerTask:
  """The reranker's task for a tokenizer of `text_vocab_size` ids."""
  return RerankerTask(config, text_vocab_size)


def batch_fields(config: Config) -> Fields:
  """Pictures, their captions and, with `config.reranker.wrong_captions`, a wrong caption each."""
  wrong = text_field(config, 'wrong') if config.reranker.wrong_captions else {}
  return image_field(config) | text_field(config) | wrong


def tokens_per_example(config: Config) -> int:
  """Patches of one picture and tokens of its caption."""
  return (config.data.image_size // config.reranker.patch_size) ** 2 + config.tokenizer.text_length


CURVES = (
  Curve('loss', 'nats', {'training': 'loss', 'evaluation': 'eval/loss'}),
  Curve(
    'retrieval within the batch', 'share of examples',
    {
      'text of an image, training': 'image_to_text_accuracy',
      'text of an image, evaluation': 'eval/image_to_text_accuracy',
      'image of a text, training': 'text_to_image_accuracy',
      'image of a text, evaluation': 'eval/text_to_image_accuracy',
    },
  ),
  Curve('scale of the logits', '', {'training': 'logit_scale'}),
)  # fmt: skip
