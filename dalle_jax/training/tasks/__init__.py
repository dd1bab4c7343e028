"""Tasks: what the training loop trains.

A task is one file here. `dalle_jax/stages.py` names the file in one entry, and reads four things from it:

- `make_task(config, text_vocab_size) -> Task`;
- `batch_fields(config) -> Fields`: the arrays of one example of a batch;
- `tokens_per_example(config) -> int`: the positions of one example on which the model spends compute;
- `CURVES`: the curves of the metrics, for the report.
"""

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from dalle_jax.config import Config

Params = dict[str, Any]
Fields = dict[str, tuple[tuple[int, ...], Any]]  # name -> shape of one example, dtype


class Curve(NamedTuple):
  """One plot of a stage's metrics.

  Attributes:
    title: The plot's title, without the stage's.
    y_label: The label of the y axis.
    series: Label in the legend -> name of the metric in metrics.jsonl; held-out metrics begin with 'eval/'.
    log: Whether the y axis is logarithmic.
  """

  title: str
  y_label: str
  series: dict[str, str]
  log: bool = False


class Task(Hashable, Protocol):
  """Functions of a batch, and the names of the collections that training changes.

  A task whose means do not all count every example alike, such as a mean over caption tokens, also has

      weight(batch, key) -> dict[str, jax.Array]

  It returns float32 scalars: what each such mean counts in the batch, by the name of the mean in the results of
  `evaluate` and `loss`. `key` is that of the loss, or None for `evaluate`. The loss of such a task takes an argument
  `scales=None`, a dict with the same names. It multiplies the means, in its value and in its metrics, by these factors.
  Gradient accumulation and evaluation over several batches are then exact (`training.step`).
  """

  @property
  def name(self) -> str:
    """The stage's name."""

  @property
  def trainable(self) -> tuple[str, ...]:
    """Top-level collections of the parameters that follow the gradient."""

  @property
  def updated(self) -> tuple[str, ...]:
    """Collections that `update` changes after each step. All other collections stay frozen."""

  def init(self, key: jax.Array) -> Params:
    """Parameters by collection, boxed with their logical axis names."""

  def loss(self, params: Params, batch: dict, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """A float32 scalar to minimise, and scalar metrics; with updated collections also a tree 'statistics'."""

  def update(self, collections: Params, statistics: Any, key: jax.Array) -> Params:
    """New values of the updated collections, from the statistics of all micro-batches, stacked along a first axis."""

  def evaluate(self, params: Params, batch: dict, key: jax.Array, step: jax.Array) -> dict:
    """Held-out metrics averaged over the batch. Vectors, such as a histogram of codes, are allowed."""

  def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
    """Scalars from the averages of `evaluate` over batches, with `loss` among them."""


@functools.lru_cache(maxsize=4)
def boxed_params(task: Task) -> Params:
  """Shapes of all collections, boxed with their logical axis names. Traced once for each task; do not modify it."""
  # Create the key inside eval_shape: the active mesh may describe absent devices, which cannot compute anything.
  return jax.eval_shape(lambda: task.init(jax.random.key(0)))


def image_field(config: Config) -> Fields:
  """The field 'image' of a batch: uint8 [image_size, image_size, 3]."""
  size = config.data.image_size
  return {'image': ((size, size, 3), np.uint8)}


def text_field(config: Config, name: str = 'text') -> Fields:
  """A field of caption ids: int32 [text_length - 1]."""
  return {name: ((config.tokenizer.text_length - 1,), np.int32)}


TEXT_CURVE = Curve(
  'text', 'nats per token', {'training': 'text_nats_per_token', 'evaluation': 'eval/text_nats_per_token'}
)
IMAGE_CURVE = Curve(
  'image', 'nats per token', {'training': 'image_nats_per_token', 'evaluation': 'eval/image_nats_per_token'}
)
