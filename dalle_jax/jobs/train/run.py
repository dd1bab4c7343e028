"""The main job: data, tokenizer, dVAE and prior (or both at once), model directory, scores and report.

With `config.task='sequence'` a model of image tokens takes the prior's place; of text, see `jobs.train.text_run`. With
'reranker' a model that scores pictures by captions takes the place of both.

Every stage continues where an earlier start of the same command left it.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from dalle_jax import bundle, hosts, sharding
from dalle_jax.config import Config, TrainingConfig
from dalle_jax.data import registry
from dalle_jax.data.batches import Batches, Preprocess
from dalle_jax.data.registry import Dataset
from dalle_jax.data.tokenizer import Tokenizer, train_tokenizer
from dalle_jax.data.wrong_captions import WrongCaptions
from dalle_jax.hosts import say
from dalle_jax.jobs.train import finish, image_token_run, pretrained, sheet_hooks, text_run
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.training import vector_quantizer
from dalle_jax.training.description import describe
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.loop import Hook, train
from dalle_jax.training.mesh_costs import say_costs
from dalle_jax.training.nonfinite import NonFiniteError
from dalle_jax.training.progress import Progress
from dalle_jax.training.signals import EXIT_INTERRUPTED, Interrupted, terminations_as_interrupts
from dalle_jax.training.stage_tasks import make_task
from dalle_jax.training.state import TrainState, all_params
from dalle_jax.training.tasks import Task

EXIT_DIVERGED = 1  # the last good checkpoint is kept


def main(config: Config, workdir: str, stop_after: str = 'report') -> int:
  """Runs the stages up to `stop_after` and returns the program's exit status.

  Raises:
    ValueError: the configuration, the data or the work directory cannot be used.
  """
  try:
    with terminations_as_interrupts(several_hosts=jax.process_count() > 1):
      run(config, workdir, stop_after)
    hosts.barrier('end')  # one that left earlier would give up those that still write
  except Interrupted as stop:
    say(str(stop))
    return EXIT_INTERRUPTED
  except KeyboardInterrupt:
    say('Stopped on request; what was finished is kept, and the same command continues from there.')
    return EXIT_INTERRUPTED
  except NonFiniteError as error:
    say(f'error: {error}')
    return EXIT_DIVERGED
  return 0


def run(config: Config, workdir: str, stop_after: str = 'report') -> dict[str, float]:
  """Runs the stages and returns the scores (none if stopped before the report).

  Raises:
    ValueError: the configuration, the data or the work directory cannot be used.
    Interrupted: on Ctrl-C or SIGTERM, after saving.
    NonFiniteError: training diverged.
  """
  hosts.agree(hosts.facts(config.to_dict(), workdir=workdir, stop_after=stop_after))
  if config.models_text:
    return text_run.run(config, workdir, stop_after)
  mesh = sharding.make_mesh(config.mesh, model=config)
  sharding.check(config, mesh)
  if config.tokenizer.kind == 'clip':
    raise ValueError("config.tokenizer.kind is 'clip', which tools/import_openai_clip.py gives; train with 'captions'.")
  with hosts.together('the models that config names'):
    pretrained.check(config)
  space = Workspace(workdir, config)
  say_costs(config, mesh)
  dvae = pretrained.load_dvae(config, space, mesh)
  with space.timed('data'):
    dataset = _prepare_data(config, space)
  if stop_after == 'data':
    return {}
  tokenizer = None
  if config.reads_captions:
    with space.timed('tokenizer'):
      tokenizer = _tokenizer(config, space, dataset)
  if stop_after == 'tokenizer':
    return {}
  params = _train_models(config, space, dataset, tokenizer, mesh, dvae, stop_after)
  if params is None:
    return {}
  bundle.save(space.model, config, tokenizer, params, dataset.fingerprint)
  if stop_after != 'report':
    return {}
  with space.timed('report'):
    results = finish.measure(config, dataset, tokenizer, params, mesh)
  return finish.write(config, space, results)


def _train_models(
  config: Config,
  space: Workspace,
  dataset: Dataset,
  tokenizer: Tokenizer | None,
  mesh: Mesh,
  dvae: Any,
  stop_after: str,
) -> dict[str, Any] | None:
  """The parts of the model, averaged; None if stopped before there is a whole one.

  Args:
    dvae: a trained dVAE's parameters, or None.
  """
  if config.task == 'reranker':
    with space.timed('reranker'):
      task = make_task(config, 'reranker', tokenizer.vocab_size)
      return _train(config, space, dataset, mesh, task, config.reranker_training, None, tokenizer)
  if config.task == 'joint':
    with space.timed('joint'):
      return _train_joint(config, space, dataset, tokenizer, mesh, dvae)
  if dvae is None:
    with space.timed('dvae'):
      dvae = _train_dvae(config, space, dataset, mesh)
  if config.task == 'dvae':
    return {'dvae': dvae}
  if stop_after == 'dvae':
    return None
  if config.task == 'sequence':
    with space.timed('sequence'):
      return _fit_sequence_model(config, space, dataset, tokenizer, mesh, dvae)
  with space.timed('prior'):
    return _train_prior(config, space, dataset, tokenizer, mesh, dvae)


def _prepare_data(config: Config, space: Workspace) -> Dataset:
  """Process 0 makes the data set; the others wait and then find it made (all hosts see one file system)."""
  with Progress('data', 1, 'example', enabled=jax.process_index() == 0) as progress:
    make = functools.partial(registry.prepare, config.data, space.data(config))
    with hosts.together('making the data'):
      if jax.process_index() == 0:
        dataset = make(progress.update_of)
    with hosts.together('opening the data'):
      dataset = dataset if jax.process_index() == 0 else make(None)
  counts = ', '.join(f'{len(dataset.open(split))} {split}' for split in dataset.splits)
  say(f'data: {config.data.source} with {counts}')
  return dataset


def _tokenizer(config: Config, space: Workspace, dataset: Dataset) -> Tokenizer:
  """Loads the run's tokenizer, after process 0 has learnt it from the training captions where there was none."""
  with hosts.together('learning the tokenizer'):
    if jax.process_index() == 0 and not space.tokenizer.exists():
      source = dataset.open('train')
      captions = (source[i]['caption'] for i in range(len(source)))
      space.keep_tokenizer(train_tokenizer(captions, config.tokenizer.vocab_size))
  tokenizer = Tokenizer.load(space.tokenizer)
  say(f'tokenizer: {tokenizer.vocab_size} pieces')
  return tokenizer


def make_batches(
  config: Config, dataset: Dataset, training: TrainingConfig, stage: str, tokenizer: Tokenizer | None, mesh: Mesh
) -> tuple[Batches, Callable[[], Iterator[dict]] | None]:
  """The endless training stream, and a maker of held-out passes (None where nothing is held out)."""
  transform = functools.partial(
    Preprocess, image_size=config.data.image_size, resampling=config.data.resampling, tokenizer=tokenizer,
    text_length=config.tokenizer.text_length,
  )  # fmt: skip
  options = {
    'batch_size': training.batch_size,
    'rows': sharding.own_rows(mesh, training.batch_size),
    'num_threads': config.data.num_threads,
    'fingerprint': dataset.fingerprint,
  }
  # Pictures with writing in them must not be mirrored for the prior, whose captions may name what is written.
  flip = config.data.flip and stage == 'dvae'
  crop = config.data.crop
  if crop == 'paper':
    crop = 'paper_dvae' if stage == 'dvae' else 'paper_prior'
  source, wrong_captions = dataset.open('train'), None
  if stage == 'reranker' and config.reranker.wrong_captions:
    wrong_captions = WrongCaptions(source[i]['caption'] for i in range(len(source)))
  augmented = transform(crop=crop, flip=flip, bpe_dropout=config.tokenizer.bpe_dropout, wrong_captions=wrong_captions)
  stream = Batches(
    source, augmented, seed=stream_seed(config.seed, stage), num_workers=config.data.num_workers, **options
  )
  if 'validation' not in dataset.splits:
    return stream, None
  held_out = dataset.open('validation')
  num_batches = min(training.eval_batches, -(-len(held_out) // training.batch_size))

  def evaluation() -> Iterator[dict]:
    batches = Batches(held_out, transform(crop='center', flip=False), seed=0, shuffle=False, **options)
    return itertools.islice(batches, num_batches)

  return stream, evaluation


def _train_dvae(config: Config, space: Workspace, dataset: Dataset, mesh: Mesh) -> Any:
  task = make_task(config, 'dvae')
  draw = sheet_hooks.ReconstructionHook(config, dataset, mesh, space.path / 'dvae' / 'sheets')
  return vector_quantizer.merged(_train(config, space, dataset, mesh, task, config.dvae_training, draw))


def _train_prior(
  config: Config, space: Workspace, dataset: Dataset, tokenizer: Tokenizer, mesh: Mesh, dvae_params: Any
) -> dict[str, Any]:
  task = make_task(config, 'prior', tokenizer.vocab_size)
  draw = sheet_hooks.SampleHook(config, dataset, tokenizer, mesh, space.path / 'prior' / 'sheets')
  initial = {'dvae': dvae_params}
  return _train(config, space, dataset, mesh, task, config.prior_training, draw, tokenizer, initial)


def _fit_sequence_model(
  config: Config, space: Workspace, dataset: Dataset, tokenizer: Tokenizer | None, mesh: Mesh, dvae: Any
) -> dict[str, Any]:
  """Trains the sequence model of the dVAE's codes, or counts it."""
  if config.model.kind == 'ngram':
    return image_token_run.count_streams(config, dataset, tokenizer, dvae, mesh)
  task = image_token_run.make_task(config, tokenizer)
  draw = sheet_hooks.SampleHook(config, dataset, tokenizer, mesh, space.path / task.name / 'sheets')
  return _train(config, space, dataset, mesh, task, config.sequence_training, draw, tokenizer, {'dvae': dvae})


def _train_joint(
  config: Config, space: Workspace, dataset: Dataset, tokenizer: Tokenizer, mesh: Mesh, dvae: Any
) -> dict[str, Any]:
  task = make_task(config, 'joint', tokenizer.vocab_size)
  directory = space.path / 'joint' / 'sheets'
  draws = (
    sheet_hooks.ReconstructionHook(config, dataset, mesh, directory / 'reconstructions'),
    sheet_hooks.SampleHook(config, dataset, tokenizer, mesh, directory / 'samples'),
  )

  def draw(state: TrainState, step: int) -> None:
    for one in draws:
      one(state, step)

  initial = None if dvae is None else {'dvae': dvae}
  return _train(config, space, dataset, mesh, task, config.joint_training, draw, tokenizer, initial)


def _train(
  config: Config,
  space: Workspace,
  dataset: Dataset,
  mesh: Mesh,
  task: Task,
  training: TrainingConfig,
  draw: Callable[[TrainState, int], None] | None,
  tokenizer: Tokenizer | None = None,
  initial: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """One stage under WORKDIR/NAME; returns all its collections, the trained ones averaged."""
  stream, evaluation = make_batches(config, dataset, training, task.name, tokenizer, mesh)
  state = train(
    task,
    training,
    mesh=mesh,
    seed=stream_seed(config.seed, task.name),
    workdir=space.path / task.name,
    batches=stream,
    eval_batches=evaluation,
    hooks=[Hook(training.sheet_every, draw)] if draw else [],
    logging=config.logging,
    initial=initial,
    about=describe(config, mesh, dataset.fingerprint),
    profile=config.profile,
  )
  return all_params(state, ema=True)
