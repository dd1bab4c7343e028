"""Continue texts with a trained text model."""

from collections.abc import Sequence
from pathlib import Path

from dalle_jax import bundle, sharding
from dalle_jax.data.text.caption_text import check_prompt
from dalle_jax.sampling import memory
from dalle_jax.sampling.continuation import continue_text
from dalle_jax.sampling.draw_settings import DrawSettings


def write(model: str, prompts: Sequence[str], settings: DrawSettings) -> list[list[str]]:
  """Samples `settings.num_images` texts for each prompt. Each text is a full sequence that begins with the prompt.

  Args:
    model: a model directory of `config.task='sequence'`.
    prompts: the beginnings of the texts; '' for an empty one. If a prompt fills a sequence, only its last
      `config.model.length // 2` tokens are used.
    settings: the sampling settings; guidance and candidates have no effect on texts.

  Returns:
    For each prompt, its texts.

  Raises:
    ValueError: the model or a setting cannot be used.
  """
  path = Path(model)
  bundle.check(path, needs=('model',))
  for prompt in prompts:
    check_prompt(prompt)
  memory.check_images(len(prompts) * settings.num_images, bundle.read_config(path))
  mesh = sharding.make_mesh()
  loaded = bundle.load(path, mesh, needs=('model',))
  sampling = settings.sampling(loaded.config.sampling, settings.num_images)
  if sampling.top_k > loaded.model.vocab_size:
    raise ValueError(f'--top_k is {sampling.top_k}; the model has {loaded.model.vocab_size} tokens.')
  ids = [loaded.text_tokenizer.encode(prompt.encode()) for prompt in prompts]
  drawn = continue_text(
    loaded.model, loaded.params['model'], ids, settings.num_images, mesh, seed=settings.seed,
    temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, batch_size=sampling.batch_size,
  )  # fmt: skip
  return [[_text(loaded.text_tokenizer.decode(sample)) for sample in samples] for samples in drawn]


def _text(content: bytes) -> str:
  return content.decode('utf-8', 'replace')


def show(prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
  """Prints every text under a line with its prompt and its number."""
  for number, (prompt, samples) in enumerate(zip(prompts, texts, strict=True)):
    for index, sample in enumerate(samples):
      print(f'---- prompt {number} ({prompt!r}), text {index}')
      print(sample)
