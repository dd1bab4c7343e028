"""How a model is trained."""

import dataclasses

from dalle_jax.config.checks import require, require_choice, require_positive

SCHEDULES = ('cosine', 'constant', 'plateau', 'steps')
OPTIMIZERS = ('adamw', 'muon')
# What happens where a loss, a gradient or a parameter is infinite or not a number.
NONFINITE = ('stop', 'skip', 'rewind')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
  """One stage of training: length, batch, optimizer, and what happens how often (in steps; 0: never)."""

  num_steps: int = 1_000
  batch_size: int = 32  # examples per optimizer step, over all devices and hosts
  accumulation_steps: int = 1  # parts into which a batch is cut to save memory
  # On TPU v5e and v5p, MiB of on-chip memory for one fused operation: 64 makes steps faster and compiles far longer.
  fusion_mib: int = 24
  optimizer: str = 'adamw'  # 'adamw' as in the paper, or 'muon' for the matrices of blocks and AdamW for the rest
  learning_rate: float = 3e-4  # AdamW's
  muon_learning_rate: float = 0.02  # Muon's, at the same points of the schedule
  final_learning_rate: float = 0.0  # at the end of a cosine schedule
  schedule: str = 'cosine'  # after the warm-up: 'cosine', 'constant', or halved: at each 'plateau', or at given 'steps'
  schedule_steps: int = 0  # the cosine's end, after which the rate stays; 0: the end of training
  warmup_steps: int = 100
  halving_steps: tuple[int, ...] = ()  # 'steps': those done before the first one at each lower rate
  plateau_window: int = 500  # 'plateau': the training loss is averaged over so many steps, and compared with the best
  plateau_patience: int = 5  # 'plateau': windows in a row without improvement, after which the rate is halved
  plateau_min_improvement: float = 0.005  # 'plateau': nats by which the loss must fall below the best to have improved
  max_halvings: int = 5  # 'plateau': the most halvings (appendix B.2 had five)
  b1: float = 0.9  # AdamW's, and Muon's momentum
  b2: float = 0.96
  eps: float = 1e-8
  second_moment_clip: float = 0.0  # AdamW's running variance is at most this (5 in the paper's prior); 0: no limit
  weight_decay: float = 0.0  # of matrices (in the paper 4.5e-2 for the prior, 1e-4 for the dVAE)
  clip_norm: float = 4.0  # global gradient norm; 0: no clipping
  ema_decay: float = 0.999  # of the parameters used for evaluation and kept in the model; 0: no averaging
  ema_every: int = 1  # steps from one update of the average to the next (25, decaying by 0.99, in the paper's prior)
  # Where an update is infinite or not a number: 'stop'; 'skip' it, changing nothing; or 'rewind' to the last checkpoint
  # and pass over the batch that it came with.
  nonfinite: str = 'stop'
  max_nonfinite: int = 10  # updates that a run skips, or batches that it passes over; at the next one it stops
  log_every: int = 50
  eval_every: int = 500
  eval_batches: int = 8
  sheet_every: int = 0  # pictures on the way
  checkpoint_every: int = 500
  keep_checkpoints: int = 2  # newest kept; besides them the best of those whose held-out loss was measured

  def __post_init__(self) -> None:
    group = '{dvae,prior,joint,sequence,reranker}_training'
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
      f'config.{group}.batch_size {self.batch_size} is not divisible by accumulation_steps {self.accumulation_steps}.',
    )
    self._check_schedule(group)

  def _check_schedule(self, group: str) -> None:
    require(
      list(self.halving_steps) == sorted(set(self.halving_steps)) and all(step > 0 for step in self.halving_steps),
      f'config.{group}.halving_steps is {self.halving_steps}; it must list steps above 0 in rising order.',
    )
    require(
      (self.schedule == 'steps') == bool(self.halving_steps),
      f"config.{group}.schedule is {self.schedule!r} and halving_steps is {self.halving_steps}; 'steps' needs some, "
      'and no other schedule takes them.',
    )
    require(
      not self.halving_steps or self.halving_steps[0] >= self.warmup_steps,
      f'config.{group}.halving_steps is {self.halving_steps}, which begins before the warmup_steps {self.warmup_steps} '
      'are done.',
    )
    require(
      not self.schedule_steps or self.schedule == 'cosine',
      f'config.{group}.schedule_steps is {self.schedule_steps}, but config.{group}.schedule is {self.schedule!r}; only '
      "'cosine' reads it.",
    )
    require(
      not self.schedule_steps or self.schedule_steps > self.warmup_steps,
      f'config.{group}.schedule_steps is {self.schedule_steps}, within the warmup_steps {self.warmup_steps}; both '
      'count from the start of training.',
    )
