"""Configuration of a training stage: steps, batches, optimizer, schedule, evaluation and checkpoints."""

import dataclasses

from dalle_jax.config.checks import require, require_choice, require_positive

SCHEDULES = ('cosine', 'constant', 'plateau', 'steps')
OPTIMIZERS = ('adamw', 'muon')
# What to do when a loss, a gradient or a parameter is infinite or NaN.
NONFINITE = ('stop', 'skip', 'rewind')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
  """Settings of one training stage. Intervals (`*_every`) are in optimizer steps; 0, where allowed, means never."""

  num_steps: int = 1_000  # optimizer steps
  batch_size: int = 32  # examples per optimizer step, over all devices and hosts
  accumulation_steps: int = 1  # micro-batches that a batch is split into, processed one after the other to save memory
  # On TPU v5e and v5p: on-chip memory for one fused operation, in MiB. 64 makes steps faster but compiles much longer.
  fusion_mib: int = 24
  optimizer: str = 'adamw'  # 'adamw' as in the paper; or 'muon' for the matrices of blocks and AdamW for the rest
  learning_rate: float = 3e-4  # peak learning rate of AdamW
  muon_learning_rate: float = 0.02  # peak learning rate of Muon, which follows the same schedule
  final_learning_rate: float = 0.0  # 'cosine': AdamW's learning rate at the end of the schedule
  # After the warm-up: 'cosine', 'constant', 'plateau' (halve when the training loss stops improving), or 'steps' (halve
  # after each of halving_steps).
  schedule: str = 'cosine'
  schedule_steps: int = 0  # 'cosine': step at which the rate reaches its final value and stays there; 0: num_steps
  warmup_steps: int = 100  # steps in which the learning rate rises linearly from 0
  halving_steps: tuple[int, ...] = ()  # 'steps': the rate is halved after each of these numbers of steps
  plateau_window: int = 500  # 'plateau': steps over which the training loss is averaged before it is compared
  plateau_patience: int = 5  # 'plateau': consecutive windows without improvement until the rate is halved
  plateau_min_improvement: float = 0.005  # 'plateau': smallest drop below the best loss that counts, in nats
  max_halvings: int = 5  # 'plateau': maximum number of halvings (five in appendix B.2)
  b1: float = 0.9  # AdamW's first decay rate, and Muon's momentum
  b2: float = 0.96  # AdamW's second decay rate
  eps: float = 1e-8  # AdamW's epsilon
  second_moment_clip: float = 0.0  # upper bound of AdamW's second moments (5 for the paper's prior); 0: none
  weight_decay: float = 0.0  # of matrices (in the paper, 4.5e-2 for the prior and 1e-4 for the dVAE)
  clip_norm: float = 4.0  # maximum global norm of the gradient; 0: no clipping
  # Decay of the moving average of parameters, which evaluation uses and the model directory stores; 0: no averaging.
  ema_decay: float = 0.999
  ema_every: int = 1  # steps between updates of the average (25 with decay 0.99 for the paper's prior)
  # When an update is infinite or NaN: 'stop' the run; 'skip' the update, changing nothing; or 'rewind' to the last
  # checkpoint and leave out the batch that caused it.
  nonfinite: str = 'stop'
  max_nonfinite: int = 10  # updates that 'skip' skips, or batches that 'rewind' leaves out, until the run stops
  log_every: int = 50  # steps between log lines
  eval_every: int = 500  # steps between evaluations on held-out data; 0: never
  eval_batches: int = 8  # held-out batches per evaluation
  sheet_every: int = 0  # steps between sheets of sample images; 0: never
  checkpoint_every: int = 500  # steps between checkpoints
  # Number of newest checkpoints kept. The checkpoint with the best measured held-out loss is kept as well.
  keep_checkpoints: int = 2
  group: dataclasses.InitVar[str] = 'STAGE_training'  # not a key: the group's name in error messages

  def __post_init__(self, group: str) -> None:
    require_choice(group, self, 'schedule', SCHEDULES)
    require_choice(group, self, 'optimizer', OPTIMIZERS)
    require_choice(group, self, 'nonfinite', NONFINITE)
    require_positive(
      group, self, 'num_steps', 'batch_size', 'accumulation_steps', 'fusion_mib', 'learning_rate', 'muon_learning_rate',
      'eps', 'log_every', 'eval_batches', 'keep_checkpoints', 'ema_every', 'plateau_window', 'plateau_patience',
      'plateau_min_improvement', 'max_halvings',
    )  # fmt: skip
    for name in ('b1', 'b2', 'ema_decay'):
      value = getattr(self, name)
      require(0 <= value < 1, f'config.{group}.{name} is {value}; it must lie in [0, 1).')
    for name in (
      'final_learning_rate', 'warmup_steps', 'weight_decay', 'clip_norm', 'eval_every', 'sheet_every',
      'checkpoint_every', 'schedule_steps', 'second_moment_clip', 'max_nonfinite',
    ):  # fmt: skip
      value = getattr(self, name)
      require(value >= 0, f'config.{group}.{name} is {value}; it must be 0 or more.')
    require(
      self.batch_size % self.accumulation_steps == 0,
      f'config.{group}.batch_size {self.batch_size} is not divisible by '
      f'config.{group}.accumulation_steps {self.accumulation_steps}.',
    )
    self._check_schedule(group)

  def _check_schedule(self, group: str) -> None:
    require(
      list(self.halving_steps) == sorted(set(self.halving_steps)) and all(step > 0 for step in self.halving_steps),
      f'config.{group}.halving_steps is {self.halving_steps}; it must list steps above 0 in ascending order.',
    )
    require(
      (self.schedule == 'steps') == bool(self.halving_steps),
      f"config.{group}.schedule is {self.schedule!r} and halving_steps is {self.halving_steps}; schedule 'steps' "
      'needs at least one, and other schedules take none.',
    )
    require(
      not self.halving_steps or self.halving_steps[0] >= self.warmup_steps,
      f'config.{group}.halving_steps is {self.halving_steps}, but must not start before the end of '
      f'warmup_steps {self.warmup_steps}.',
    )
    require(
      not self.schedule_steps or self.schedule == 'cosine',
      f'config.{group}.schedule_steps is {self.schedule_steps}, but config.{group}.schedule is {self.schedule!r}; only '
      "'cosine' uses it.",
    )
    require(
      not self.schedule_steps or self.schedule_steps > self.warmup_steps,
      f'config.{group}.schedule_steps is {self.schedule_steps}, which must be above warmup_steps '
      f'{self.warmup_steps}; both count from the start of training.',
    )
