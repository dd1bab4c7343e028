"""What a training step takes by arithmetic alone, without a compiler: for GPUs that are not there, and to search.

Memory is that of arrays as they are written in the program. What a compiler fuses takes less, and what it copies takes
more. Time is that of the matrix products at a share of the peak, and of what the mesh makes devices exchange.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from dalle_jax import sharding
from dalle_jax.config import Config, MeshConfig
from dalle_jax.planning.estimate import Estimate, exchange_seconds
from dalle_jax.planning.hlo import Collective
from dalle_jax.planning.programs import Work, leaf_bytes, shard_bytes, training_work
from dalle_jax.planning.topologies import Topology
from dalle_jax.training import flops
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.stage_tasks import batch_shapes, make_task, training_of
from dalle_jax.training.state import TrainState, boxed_state, place

# Of the peak, what matrix products reach: GPUs training large transformers had 0.4 to 0.57 with all else included
# (Narayanan et al. 2021, table 1).
EFFICIENCY = 0.5


@dataclasses.dataclass(frozen=True)
class Costs:
  """What does not depend on the mesh: bytes of one example that the backward pass keeps, and FLOPs of one step."""

  row_bytes: int
  step_flops: float
  work: Work


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
  """A mesh without devices; axes that are not named have size 1."""
  whole = tuple(sizes.get(name, 1) for name in sharding.AXES)
  return AbstractMesh(whole, sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES))


def costs(config: Config, stage: str, work: Work | None = None) -> Costs:
  """Reads them off the program, with its policy of rematerialisation; `work` where it is known already."""
  task, training = make_task(config, stage), training_of(config, stage)
  params = _params(_plain(config, stage), stage)
  one, two = (_kept_bytes(task, params, batch_shapes(config, stage, rows)) for rows in (1, 2))
  step = flops.step_flops(task, batch_shapes(config, stage, training.batch_size), recomputed=True)
  return Costs(two - one, step, work or training_work(config, stage))


def _plain(config: Config, stage: str) -> Config:
  """The same model and optimizer, without what changes no shape of the state."""
  blocks = {name: dataclasses.replace(getattr(config, name), remat='none') for name in ('prior', 'model')}
  training = dataclasses.replace(training_of(config, stage), batch_size=1, accumulation_steps=1)
  return dataclasses.replace(config, mesh=MeshConfig(), **blocks, **{f'{stage}_training': training})


@functools.lru_cache(maxsize=4)
def _params(config: Config, stage: str) -> dict[str, Any]:
  return flops.abstract_params(make_task(config, stage))


@functools.lru_cache(maxsize=4)
def _boxes(config: Config, stage: str) -> TrainState:
  training = training_of(config, stage)
  return boxed_state(make_task(config, stage), make_optimizer(training), use_ema=training.ema_decay > 0)


def _kept_bytes(task: Any, params: dict[str, Any], batch: dict[str, Any]) -> int:
  """Bytes that the forward pass leaves for the backward pass."""
  trained = {name: params[name] for name in task.trainable}
  frozen = {name: params[name] for name in params if name not in task.trainable}

  def forward(trained: Any, frozen: Any, batch: Any) -> Any:
    def loss(trained: Any) -> jax.Array:
      return task.loss({**frozen, **trained}, batch, jax.random.key(0), jax.numpy.int32(0))[0]

    return jax.vjp(loss, trained)[1]

  return sum(map(leaf_bytes, jax.tree.leaves(jax.eval_shape(forward, trained, frozen, batch))))


def memory(config: Config, stage: str, mesh: Any, row_bytes: int) -> dict[str, int]:
  """Bytes on a device by kind.

  Args:
    config: of the experiment.
    stage: which is trained.
    mesh: of devices, or without any.
    row_bytes: as in `Costs`.
  """
  training = training_of(config, stage)
  state = place(_boxes(_plain(config, stage), stage), mesh)

  def held(tree: Any) -> int:
    return sum(map(shard_bytes, jax.tree.leaves(tree)))

  batch = sum(map(leaf_bytes, jax.tree.leaves(batch_shapes(config, stage, training.batch_size))))
  rows = training.batch_size / training.accumulation_steps / sharding.batch_divisor(mesh)
  found = {
    'parameters': held(state.params),
    'optimizer': held(state.opt_state),
    'averages': held(state.ema),
    'frozen': held(state.frozen),
    'batch': batch // sharding.batch_divisor(mesh),
    'gradients': held(state.params),
    # As if all of it were split over `tensor`: what is not makes it more.
    'activations and temporaries': int(rows * row_bytes / mesh.shape['tensor']),
  }
  return {name: size for name, size in found.items() if size}


def exchanged(config: Config, stage: str, mesh: Any) -> list[Collective]:
  """What devices exchange in a step, as if compiled perfectly.

  Parameters are gathered over `fsdp` for each pass in half precision where the model computes in it, gradients summed
  and scattered, and summed again over the axes that copy parameters. Over `tensor`, two sums a layer and pass.
  """
  task, training, params = make_task(config, stage), training_of(config, stage), _params(_plain(config, stage), stage)
  num_params = sum(leaf.size for name in task.trainable for leaf in jax.tree.leaves(params[name]))
  group = {'prior': config.prior, 'joint': config.prior, 'sequence': config.model}.get(stage)
  width = 2 if getattr(group, 'dtype', 'float32') == 'bfloat16' else 4
  sizes, parts, found = dict(mesh.shape), training.accumulation_steps, []
  whole = num_params * width // sizes['tensor']
  if sizes['fsdp'] > 1:
    received = whole * (sizes['fsdp'] - 1) // sizes['fsdp']
    found.append(Collective('all-gather', sizes['fsdp'], True, 2 * parts, 2 * parts * received))
    found.append(Collective('reduce-scatter', sizes['fsdp'], True, parts, parts * received))
  copies = sizes['dcn_data'] * sizes['data']
  if copies > 1:
    size = 2 * num_params * 4 // (sizes['fsdp'] * sizes['tensor']) * (copies - 1) // copies
    found.append(Collective('all-reduce', copies, True, 1, size))
  if sizes['tensor'] > 1 and group is not None:
    rows = training.batch_size // sharding.batch_divisor(mesh)
    tokens = rows * (config.sequence_length if stage == 'sequence' else config.image_length
                     + config.tokenizer.text_length)  # fmt: skip
    size = 2 * tokens * group.embed_dim * width * (sizes['tensor'] - 1) // sizes['tensor']
    count = group.num_layers * (6 if group.remat == 'full' else 4)
    found.append(Collective('all-reduce', sizes['tensor'], False, count, count * size))
  return found


def estimate(config: Config, stage: str, mesh: Any, topology: Topology, found: Costs, efficiency: float) -> Estimate:
  """How long a step takes with matrix products at this share of the peak."""
  peak = topology.num_devices * topology.chip.peak_flops
  blocking, hidden = exchange_seconds(exchanged(config, stage, mesh), topology)
  source = f'arithmetic: matrix products at {efficiency:.0%} of the peak; nothing was compiled'
  return Estimate(found.step_flops / peak / efficiency, blocking, hidden, found.work, topology, source)
