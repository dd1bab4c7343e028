"""Continuing texts with a trained model of text."""

from collections.abc import Sequence
from pathlib import Path

from dalle_jax import bundle, sharding
from dalle_jax.config import MeshConfig
from dalle_jax.pipeline.settings import check_sampling, sampling_settings
from dalle_jax.sampling.text import continue_text


def holds_text(model: str) -> bool:
  """Whether a model directory holds a model of text.

  Raises:
    ValueError: the directory is missing, half-written or damaged.
  """
  return bundle.check(Path(model), needs=()).get('parts') == ['model']


def write(
  model: str,
  prompts: Sequence[str],
  *,
  num_texts: int,
  seed: int,
  batch_size: int | None = None,
  temperature: float | None = None,
  top_k: int | None = None,
) -> list[list[str]]:
  """`num_texts` continuations of each prompt, each a whole sequence that begins with it.

  Args:
    model: a model directory of `config.task='sequence'`.
    prompts: beginnings; '' for none. Of one longer than a sequence the end is kept.
    num_texts: of each prompt.
    seed: of the noise, 0 or more.
    batch_size: texts at a time; None takes the model's own, as for the two below.
    temperature: of sampling.
    top_k: tokens to choose among.

  Raises:
    ValueError: the model or a setting cannot be used.
  """
  check_sampling(num_texts, seed, batch_size, temperature, top_k)
  path = Path(model)
  bundle.check(path, needs=('model',))
  mesh = sharding.make_mesh(MeshConfig())
  loaded = bundle.load(path, mesh, needs=('model',))
  settings = sampling_settings(loaded.config.sampling, num_texts, batch_size, temperature, top_k)
  if settings.top_k > loaded.model.vocab_size:
    raise ValueError(f'--top_k is {settings.top_k}; the model has {loaded.model.vocab_size} tokens.')
  ids = [loaded.tokenizer.encode(prompt.encode()) for prompt in prompts]
  drawn = continue_text(
    loaded.model, loaded.params['model'], ids, num_texts, mesh, seed=seed, temperature=settings.temperature,
    top_k=settings.top_k, batch_size=settings.batch_size,
  )  # fmt: skip
  return [[_text(loaded.tokenizer.decode(sample)) for sample in samples] for samples in drawn]


def _text(content: bytes) -> str:
  return content.decode('utf-8', 'replace')


def show(prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
  """Prints every text under a line that says which it is."""
  for number, (prompt, samples) in enumerate(zip(prompts, texts, strict=True)):
    for index, sample in enumerate(samples):
      print(f'---- prompt {number} ({prompt!r}), text {index}')
      print(sample)
