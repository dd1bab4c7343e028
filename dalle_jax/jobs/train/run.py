"""The training job: data, tokenizer, the stages of the task, the model directory, scores and a report.

`stages.STAGES` lists the stages of each task. Every stage resumes where an earlier start of the same command stopped.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from dalle_jax import bundle, hosts, sharding
from dalle_jax.config import Config
from dalle_jax.hosts import say
from dalle_jax.jobs import cached_codes, run_lock
from dalle_jax.jobs.choose import choosing
from dalle_jax.jobs.train import picture_data, picture_report, pretrained, sheet_hooks, text_data, text_report
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.trained_on import TrainingRecords
from dalle_jax.jobs.train.workspace import Workspace, check_workdir, is_bare
from dalle_jax.stages import Stage
from dalle_jax.training import vector_quantizer
from dalle_jax.training.description import describe
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.loop import Hook, train
from dalle_jax.training.mesh_costs import say_costs
from dalle_jax.training.nonfinite import NonFiniteError
from dalle_jax.training.signals import EXIT_INTERRUPTED, Interrupted, terminations_as_interrupts
from dalle_jax.training.stage_tasks import training_of
from dalle_jax.training.state import all_params

EXIT_DIVERGED = 1  # exit status after a loss that is not finite; the last good checkpoint remains

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LockHook(Hook):
  """Confirms the lock of the work directory at every step, before sheets and checkpoints are written."""

  space: Workspace

  def is_due(self, step: int, num_steps: int) -> bool:
    """Confirm the lock. Return False, because a hook that is due makes the loop wait for the devices."""
    self.space.confirm()
    return False


def _do_nothing(state: Any, step: int) -> None:
  """The function of a hook that is never due."""


def main(config: Config, workdir: str, stop_after: str = 'report', allow_other_data: bool = False) -> int:
  """Run the stages up to `stop_after` and return the program's exit status.

  Raises:
    ValueError: The configuration, the data or the work directory cannot be used.
  """
  try:
    with terminations_as_interrupts(several_hosts=jax.process_count() > 1):
      run(config, workdir, stop_after, allow_other_data)
    hosts.barrier('end')  # a host that exits earlier would abort hosts that are still writing
  except Interrupted as stop:
    say(str(stop))
    return EXIT_INTERRUPTED
  except KeyboardInterrupt:
    say('Stopped on request. Finished work is saved; the same command continues from there.')
    return EXIT_INTERRUPTED
  except NonFiniteError as error:
    say(f'error: {error}')
    return EXIT_DIVERGED
  return 0


def run(config: Config, workdir: str, stop_after: str = 'report', allow_other_data: bool = False) -> dict[str, float]:
  """Run the stages and return the scores, or {} if `stop_after` comes before the report.

  Args:
    config: The experiment's configuration.
    workdir: The work directory.
    stop_after: The last step to run: 'data', 'tokenizer', the name of a stage, or 'report'.
    allow_other_data: Whether to use stages that were trained on other data.

  Raises:
    ValueError: The configuration, the data or the work directory cannot be used.
    Interrupted: Ctrl-C or SIGTERM arrived; the loop saved a checkpoint.
    NonFiniteError: Training diverged.
  """
  config = picture_data.with_source(config)
  flags = {'workdir': workdir, 'stop_after': stop_after, 'allow_other_data': allow_other_data}
  hosts.agree(hosts.facts(config.to_dict(), **flags))
  path = check_workdir(workdir)
  if not config.choice.enabled:
    mesh = _checked_mesh(config)
  with run_lock.hold(path) as lock:
    if config.choice.enabled:
      hosts.shared_directory(path)
      config = choosing.resolve(config, path, hosts.of_first(is_bare(path)), lock)
      mesh = _checked_mesh(config)
    return _run(config, Workspace(workdir, config, lock), mesh, stop_after, allow_other_data)


def _checked_mesh(config: Config) -> Mesh:
  """The mesh of a run, after checks of what the configuration names."""
  mesh = sharding.make_mesh(config.mesh, model=config)
  sharding.check(config, mesh)
  picture_data.check(config)
  return mesh


def _run(config: Config, space: Workspace, mesh: Mesh, stop_after: str, allow_other_data: bool) -> dict[str, float]:
  """Run the stages in a locked work directory; see `run`."""
  say_costs(config, mesh)
  params, pretrained_data = pretrained.load(config, space, mesh), pretrained.data_of_parts(config)
  data = text_data if config.models_text else picture_data
  with space.timed('data'):
    dataset = data.prepare(config, space)
  if codes := getattr(dataset, 'codes', ()):
    cached_codes.check_dvae(codes, params['dvae'], f'{pretrained.FLAG}={config.dvae.pretrained}')
  records = TrainingRecords(config, space, dataset, allow_other_data)
  records.check_data()
  if stop_after == 'data':
    space.accept()
    return {}
  dataset, tokenizer = data.tokenize(config, space, dataset)
  records.check_tokenizer(tokenizer)
  space.accept()
  if stop_after == 'tokenizer':
    return {}
  experiment = Experiment(config, space, mesh, dataset, tokenizer)
  trained = _train_stages(experiment, records, params, stop_after)
  if trained is None:
    return {}
  space.confirm()
  part_data = pretrained_data | records.data_of_parts()
  bundle.save(space.model, config, tokenizer, trained, records.data_of_last_stage, part_data)
  if stop_after != 'report':
    return {}
  report = text_report if config.models_text else picture_report
  with space.timed('report'):
    results = report.measure(experiment, trained)
  space.confirm()
  return report.write(experiment, results)


def _train_stages(experiment: Experiment, records: TrainingRecords, params: Params, stop_after: str) -> Params | None:
  """Train the stages and return the averaged parameters of each part; None if stopped before the last stage.

  Args:
    experiment: The experiment.
    records: What the stages were trained on.
    params: The parameters of pretrained parts.
    stop_after: The name of the last stage to run.
  """
  config = experiment.config
  *_, last = config.task_stages
  for stage in config.task_stages:
    if stage in config.trained_stages:  # a pretrained dVAE is not trained, but the run may stop after it
      records.keep(stage)
      with experiment.space.timed(stage.name):
        params = params | _train_stage(experiment, stage, params)
    if stage.name == stop_after and stage is not last:
      return None
  return params


def _train_stage(experiment: Experiment, stage: Stage, params: Params) -> Params:
  """Train one stage in WORKDIR/NAME and return the averaged parameters of its parts.

  Args:
    experiment: The experiment.
    stage: The stage.
    params: The parameters of the parts that are already trained.
  """
  config, mesh = experiment.config, experiment.mesh
  data = text_data if config.models_text else picture_data
  if config.counts_ngrams:
    return {'model': data.count_ngrams(experiment, params)}
  task, training = experiment.task(stage.name), training_of(config, stage.name)
  batches, eval_batches = data.make_batches(experiment, stage)
  hooks = sheet_hooks.make_hooks(experiment, stage)
  state = train(
    task,
    training,
    mesh=mesh,
    seed=stream_seed(config.seed, task.name),
    workdir=experiment.space.path / task.name,
    batches=batches,
    eval_batches=eval_batches,
    hooks=[
      LockHook(every=1, fn=_do_nothing, space=experiment.space),
      *(Hook(training.sheet_every, hook) for hook in hooks),
    ],
    logging=config.logging,
    initial=params or None,
    about=describe(config, mesh, experiment.dataset.fingerprint),
    profile=config.profile,
  )
  return vector_quantizer.merge_parts(all_params(state, ema=True))
