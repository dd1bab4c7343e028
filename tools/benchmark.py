"""Measures speed on this machine: training steps, sampling, checkpoints, reading, and dense against sparse attention.

    python tools/benchmark.py dvae --config=configs/quickstart.py
    python tools/benchmark.py prior --config=configs/quickstart.py --config.prior_training.batch_size=32
    python tools/benchmark.py draw --config=configs/quickstart.py
    python tools/benchmark.py checkpoint --config=configs/quickstart.py --stage=prior
    python tools/benchmark.py attention --grids=16,32,64,128
    python tools/benchmark.py data --image_size=64
    python tools/benchmark.py epoch --config=configs/emoji.py --config.dvae.pretrained=runs/emoji/model

In all but `data` and `epoch`, the data is random and the parameters are untrained. Only compiled programs are timed.

`dvae` and `prior` time a training step; `draw` times the generation of a batch of images. They print the time of the
first call, which includes compilation, and the median and range of several timed rounds.

`checkpoint` saves the state of a training stage `--rounds` times and restores it. It prints the time that training
waits, the time in the background, and the share of the background time that checksums take.

`attention` times the forward and backward pass of one attention layer. For dense attention with a mask and for sparse
attention, it prints the time, the temporary memory of the program, and the FLOPs of its matrix products. The row 'mix'
weighs the patterns like the 64 layers of the paper: 47 row, 16 column, 1 conv.

`data` reads pictures from memory and makes squares of them: JPEGs that it makes, 256 pixels on a side, or those of
`--path`. It prints pictures per second, on one core and on all, of this project's reader with each resampling, of
Pillow's decoding alone, and of PyTorch's DataLoader with Pillow's box filter (if the extra `bench` is installed).

`epoch` encodes the configured pictures with `config.dvae.pretrained`, as tools/encode_images.py does. It prints the
time of an epoch of the prior on the pictures and on the codes.
"""

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from dalle_jax import flags as doors

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'dvae, prior, draw, checkpoint: configuration file, such as configs/quickstart.py.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Number of timed rounds; the median is printed.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 20, 'Training steps, or batches of images, per round.', lower_bound=1)
_GRIDS = flags.DEFINE_list(
  'grids', ['16', '32', '64', '128'], 'attention: comma-separated sides of the image grid in tokens, at least 11.'
)
_TEXT_LENGTH = flags.DEFINE_integer('text_length', 256, 'attention: text tokens before the image.', lower_bound=1)
_NUM_HEADS = flags.DEFINE_integer('num_heads', 1, 'attention: number of heads.', lower_bound=1)
_HEAD_DIM = flags.DEFINE_integer('head_dim', 64, 'attention: channels per head.', lower_bound=1)
_STAGE = flags.DEFINE_enum('stage', 'prior', ['dvae', 'prior'], 'checkpoint: stage whose state is saved.')
_PATH = flags.DEFINE_string('path', '', 'data: directory of pictures; empty: JPEGs that are made for this.')
_NUM_PICTURES = flags.DEFINE_integer('num_pictures', 512, 'data: pictures per round.', lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer('image_size', 64, 'data: side of the squares in pixels.', lower_bound=1)
SUBJECTS = ('dvae', 'prior', 'draw', 'checkpoint', 'attention', 'data', 'epoch')
MIX = {'row': 47, 'column': 16, 'conv': 1}  # layers of each pattern (appendix B.1)


def time_rounds(run: Callable[[], Any], rounds: int, steps: int) -> tuple[float, list[float]]:
  """Times a function.

  Args:
    run: the function; each call starts a computation and returns its result.
    rounds: number of timed rounds.
    steps: calls per round.

  Returns:
    Seconds of the first call, including compilation, and seconds per call in each round.
  """
  import jax

  start = time.perf_counter()
  jax.block_until_ready(run())
  first, seconds = time.perf_counter() - start, []
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(steps):
      result = run()
    jax.block_until_ready(result)
    seconds.append((time.perf_counter() - start) / steps)
  return first, seconds


def random_batch(config: Any, batch_size: int, text_vocab_size: int) -> dict[str, Any]:
  """Random data: 'image' uint8 [B, H, W, 3] and 'text' int32 [B, text_length - 1]."""
  import numpy as np

  rng = np.random.default_rng(0)
  size = config.data.image_size
  text = rng.integers(1, text_vocab_size, (batch_size, config.tokenizer.text_length - 1)).astype(np.int32)
  return {'image': rng.integers(0, 256, (batch_size, size, size, 3), np.uint8), 'text': text}


def training_step(config: Any, stage: str, mesh: Any) -> tuple[Callable[[], Any], int, int]:
  """Returns a function that runs one training step, the number of trained parameters, and examples per call."""
  import jax

  from dalle_jax import sharding
  from dalle_jax.training.optimizer import make_optimizer
  from dalle_jax.training.stage_tasks import make_task, training_of
  from dalle_jax.training.state import create_state
  from dalle_jax.training.step import make_train_step

  training, task = training_of(config, stage), make_task(config, stage)
  tx = make_optimizer(training)
  state = create_state(task, tx, mesh, config.seed, training.ema_decay > 0)
  step = make_train_step(task, tx, training, mesh, config.seed)
  batch = random_batch(config, training.batch_size, config.tokenizer.vocab_size)
  batch = sharding.to_global({name: batch[name] for name in (('image',) if stage == 'dvae' else batch)}, mesh)
  num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))

  def run() -> Any:
    nonlocal state
    state, metrics = step(state, batch)
    return metrics

  return run, num_params, training.batch_size


def drawing(config: Any, mesh: Any) -> tuple[Callable[[], Any], int, int]:
  """Returns a function that generates a batch of images, the number of parameters, and images per call."""
  import jax
  from flax import linen as nn

  from dalle_jax.bundle import init_params
  from dalle_jax.factory import make_dvae, make_prior
  from dalle_jax.sampling.sampler import Sampler

  vocab_size = config.tokenizer.vocab_size
  params = jax.jit(lambda: nn.unbox(init_params(config, vocab_size)))()
  sampler = Sampler(make_prior(config, vocab_size), make_dvae(config.dvae), mesh, config.sampling)
  text = random_batch(config, sampler.batch_size, vocab_size)['text']
  num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
  return lambda: sampler(params, text, config.seed), num_params, sampler.batch_size


def measure_attention(kind: str, grid: int, dense: bool) -> dict[str, float]:
  """Time (ms), temporary memory (MiB) and GFLOPs of the forward and backward pass of one attention layer."""
  import jax
  import jax.numpy as jnp

  from dalle_jax.models import attention, sparse_attention
  from dalle_jax.training.flops import matmul_flops

  pattern = attention.Pattern(kind, _TEXT_LENGTH.value, grid)
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (1, pattern.length, _NUM_HEADS.value, _HEAD_DIM.value)
  *qkv, weights = (jax.random.normal(key, shape) for key in keys)

  def loss(qkv: list[jax.Array], weights: jax.Array, mask: jax.Array | None) -> jax.Array:
    out = attention.attend(*qkv, mask) if dense else sparse_attention.attend_in_blocks(pattern, *qkv)
    return jnp.sum(out * weights)

  arguments = (qkv, weights, jnp.asarray(pattern.mask()) if dense else None)
  step = jax.value_and_grad(loss)
  program = jax.jit(step).lower(*arguments).compile()
  _, seconds = time_rounds(lambda: program(*arguments), _ROUNDS.value, max(1, _STEPS.value * 16**2 // grid**2))
  return {
    'ms': 1e3 * statistics.median(seconds),
    'MiB': program.memory_analysis().temp_size_in_bytes / 2**20,
    'GFLOP': matmul_flops(jax.make_jaxpr(step)(*arguments).jaxpr) / 1e9,
  }


def attention_table(grids: list[int]) -> None:
  """Prints a table that compares dense and sparse attention, with one row per grid and pattern."""
  print(f'{"grid":>4} {"length":>6} pattern {"dense: ms":>11} {"MiB":>9} {"GFLOP":>8} {"sparse: ms":>12} {"MiB":>8} '
        f'{"GFLOP":>8} {"times faster":>13}')  # fmt: skip
  for grid in grids:
    rows = {}
    for kind in MIX:
      rows[kind] = [measure_attention(kind, grid, dense) for dense in (True, False)]
      print_row(grid, kind, rows[kind])
    total = sum(MIX.values())
    mix = [
      {unit: sum(MIX[kind] * rows[kind][i][unit] for kind in MIX) / total for unit in rows['row'][i]} for i in (0, 1)
    ]
    print_row(grid, 'mix', mix)


def print_row(grid: int, name: str, pair: list[dict[str, float]]) -> None:
  """Prints one row of the table; `pair` has the figures of dense and of sparse attention."""
  dense, sparse = pair
  print(f'{grid:>4} {_TEXT_LENGTH.value + grid**2:>6} {name:<7} {dense["ms"]:>11.1f} {dense["MiB"]:>9.1f} '
        f'{dense["GFLOP"]:>8.2f} {sparse["ms"]:>12.1f} {sparse["MiB"]:>8.1f} {sparse["GFLOP"]:>8.2f} '
        f'{dense["ms"] / sparse["ms"]:>13.1f}', flush=True)  # fmt: skip


def main(subject: str, argv: list[str]) -> int:
  del argv
  from dalle_jax.config import Config

  if subject == 'data':
    from benchmarking.reading import print_rates

    print_rates(_PATH.value, _NUM_PICTURES.value, _IMAGE_SIZE.value, _ROUNDS.value)
    return 0
  if subject == 'attention':
    grids = parse_grids(_GRIDS.value)
    doors.start_jax(distributed=False)
    attention_table(grids)
    return 0
  if _CONFIG.value is None:
    raise ValueError(f'{subject} needs --config=FILE, such as --config=configs/quickstart.py.')
  if subject == 'epoch':
    doors.start_jax(distributed=False)
    from benchmarking.epochs import print_epochs

    print_epochs(doors.read_config(), _ROUNDS.value)
    return 0
  time_program = time_checkpoints if subject == 'checkpoint' else functools.partial(time_configuration, subject)
  time_program(Config.from_dict(_CONFIG.value))
  return 0


def parse_grids(words: list[str]) -> list[int]:
  """Parses --grids.

  Raises:
    ValueError: a value is not a number, or is below 11, the side of the conv pattern's window.
  """
  if not words or not all(word.isdigit() and int(word) >= 11 for word in words):
    raise ValueError(
      f'--grids is {",".join(words)}; it must list integers of at least 11, separated by commas, such as 16,32.'
    )
  return [int(word) for word in words]


def time_configuration(subject: str, config: Any) -> None:
  """Prints the time of a training step, or of generating a batch of images."""
  doors.start_jax(distributed=False)
  from dalle_jax import sharding

  mesh = sharding.make_mesh(config.mesh, model=config)
  sharding.check(config, mesh)
  with sharding.use_mesh(mesh):
    run, num_params, examples = drawing(config, mesh) if subject == 'draw' else training_step(config, subject, mesh)
    first, seconds = time_rounds(run, _ROUNDS.value, _STEPS.value)
  median = statistics.median(seconds)
  call, item = ('batch', 'images') if subject == 'draw' else ('step', 'examples')
  rows = {
    'parameters': f'{num_params:,}',
    f'{item} per {call}': f'{examples}',
    f'first {call}, with compilation': f'{first:.1f} s',
    f'median time per {call}': f'{1e3 * median:.1f} ms (range {1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})',
    f'{item} per second': f'{examples / median:.1f}',
  }
  for label, value in rows.items():
    print(f'{label:<30}  {value}')


def time_checkpoints(config: Any) -> None:
  """Prints the times of saving and restoring the state of the stage --stage."""
  doors.start_jax(distributed=False)
  from dalle_jax import sharding

  mesh = sharding.make_mesh(config.mesh, model=config)
  sharding.check(config, mesh)
  with sharding.use_mesh(mesh), tempfile.TemporaryDirectory() as directory:
    size, waiting, background, checksums, restoring = checkpoint_seconds(config, mesh, directory)
  share = statistics.median(part / whole for part, whole in zip(checksums, background, strict=True))
  rows = {
    'size of the state': f'{size / 2**20:,.1f} MiB',
    'median time that training waits': f'{statistics.median(waiting):.2f} s',
    'median time in the background': f'{statistics.median(background):.2f} s',
    'of which checksums': f'{statistics.median(checksums):.3f} s, {100 * share:.1f} %',
    'time of restoring': f'{restoring:.2f} s',
  }
  for label, value in rows.items():
    print(f'{label:<32}  {value}')


def checkpoint_seconds(
  config: Any, mesh: Any, directory: str
) -> tuple[int, list[float], list[float], list[float], float]:
  """Saves the state of a stage in each round, then restores it.

  Returns:
    The bytes of the state; for each round the seconds of the call, of the background and of the checksums; and the
    seconds of restoring.
  """
  import jax

  from dalle_jax.training.checkpoint import Checkpoints
  from dalle_jax.training.optimizer import make_optimizer
  from dalle_jax.training.stage_tasks import make_task, training_of
  from dalle_jax.training.state import abstract_state, create_state

  training, task = training_of(config, _STAGE.value), make_task(config, _STAGE.value)
  tx, use_ema = make_optimizer(training), training.ema_decay > 0
  state = jax.block_until_ready(create_state(task, tx, mesh, config.seed, use_ema))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  waiting, background, checksums = [], [], []
  with Checkpoints(directory, keep=1) as checkpoints:
    for step in range(_ROUNDS.value):
      start = time.perf_counter()
      checkpoints.save(step, state, {}, {})
      waiting.append(time.perf_counter() - start)
      checkpoints.wait_until_finished()
      background.append(time.perf_counter() - start - waiting[-1])
      checksums.append(checkpoints.checksum_seconds)
    start = time.perf_counter()
    restored = checkpoints.restore_latest(abstract_state(task, tx, mesh, use_ema))
    jax.block_until_ready(restored)
  return size, waiting, background, checksums, time.perf_counter() - start


if __name__ == '__main__':
  doors.run(functools.partial(main, doors.take_subject(sys.argv, SUBJECTS)))
