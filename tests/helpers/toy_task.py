"""A task of one number, the mean brightness of pictures: the smallest file that `dalle_jax/stages.py` can name."""

import dataclasses

import jax
import jax.numpy as jnp

from dalle_jax.training.tasks import Curve, image_field


@dataclasses.dataclass(frozen=True)
class ToyTask:
  """Trains the collection 'toy' on batches with 'image' uint8 [B, H, W, 3]."""

  name: str = 'toy'
  trainable: tuple[str, ...] = ('toy',)
  updated: tuple[str, ...] = ()

  def init(self, key: jax.Array) -> dict:
    del key
    return {'toy': {'brightness': jnp.zeros(())}}

  def loss(self, params: dict, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    metrics = self.evaluate(params, batch, key, step)
    return metrics.pop('loss'), metrics

  def evaluate(self, params: dict, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    del key, step
    brightness = params['toy']['brightness']
    error = batch['image'].astype(jnp.float32).mean() / 255 - brightness
    return {'loss': error**2, 'brightness': brightness}

  def summarize(self, means: dict) -> dict[str, float]:
    return {name: float(value) for name, value in means.items()}


def make_task(config, text_vocab_size: int) -> ToyTask:
  del config, text_vocab_size
  return ToyTask()


def init_toy(config, text_vocab_size: int, ngrams: list, key: jax.Array) -> dict:
  del config, text_vocab_size, ngrams
  return ToyTask().init(key)['toy']


batch_fields = image_field


def tokens_per_example(config) -> int:
  return config.data.image_size**2


CURVES = (
  Curve('loss', 'squared error', {'training': 'loss', 'evaluation': 'eval/loss'}),
  Curve('brightness', 'share of white', {'training': 'brightness'}),
)
