"""Memory and time of a training step by arithmetic, without a compiler.

`fit` uses this for GPUs that this machine lacks; `search` uses it to sort the plans. Memory counts the arrays that the
program names. A compiler saves some of them by fusion, and adds others by copies. Time is the time of the matrix
products at a share of the peak, plus the communication that the mesh causes.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from dalle_jax import sharding, stages
from dalle_jax.config import Config, MeshConfig
from dalle_jax.planning.estimate import Estimate, exchange_seconds
from dalle_jax.planning.hlo import Collective
from dalle_jax.planning.programs import Work, leaf_bytes, shard_bytes, training_work
from dalle_jax.planning.topologies import Topology
from dalle_jax.training import flops
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.stage_tasks import batch_shapes, make_task, training_of
from dalle_jax.training.state import TrainState, boxed_state, place

# Throughput of matrix products as a share of the peak. GPUs that train large transformers reach 0.4 to 0.57 for the
# whole step (Narayanan et al. 2021, table 1).
EFFICIENCY = 0.5


@dataclasses.dataclass(frozen=True)
class Costs:
  """The costs of a step that do not depend on the mesh.

  Attributes:
    row_bytes: bytes per example that the forward pass keeps for the backward pass.
    step_flops: FLOPs of one step's matrix products, including the ones that rematerialisation repeats.
    work: the step's work, without these repetitions.
  """

  row_bytes: int
  step_flops: float
  work: Work


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
  """Make a mesh without devices. Axes missing from `sizes` have size 1."""
  axis_sizes = tuple(sizes.get(name, 1) for name in sharding.AXES)
  return AbstractMesh(axis_sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES))


def trace_costs(config: Config, stage: str, work: Work | None = None) -> Costs:
  """Trace the training step to find its costs under the configured rematerialisation.

  Args:
    config: the experiment's configuration.
    stage: the stage to train.
    work: the result of `programs.training_work`, if the caller has it already.
  """
  task, training = make_task(config, stage), training_of(config, stage)
  params = _params(_plain(config, stage), stage)
  one_row, two_rows = (_residual_bytes(task, params, batch_shapes(config, stage, rows)) for rows in (1, 2))
  step_flops = flops.step_flops(task, batch_shapes(config, stage, training.batch_size), recomputed=True)
  return Costs(two_rows - one_row, step_flops, work or training_work(config, stage))


def _plain(config: Config, stage: str) -> Config:
  """The configuration with defaults for mesh, batch size, accumulation steps and rematerialisation.

  These settings do not change the shapes of the training state. All plans of a search therefore share one cached trace.
  """
  groups: dict[str, Any] = {
    name: dataclasses.replace(getattr(config, name), remat='none') for name in ('prior', 'model')
  }
  groups[stages.find(stage).training_group] = dataclasses.replace(
    training_of(config, stage), batch_size=1, accumulation_steps=1
  )
  return dataclasses.replace(config, mesh=MeshConfig(), **groups)


@functools.lru_cache(maxsize=4)
def _params(config: Config, stage: str) -> dict[str, Any]:
  return flops.abstract_params(make_task(config, stage))


@functools.lru_cache(maxsize=4)
def _boxes(config: Config, stage: str) -> TrainState:
  training = training_of(config, stage)
  return boxed_state(make_task(config, stage), make_optimizer(training), use_ema=training.ema_decay > 0)


def _residual_bytes(task: Any, params: dict[str, Any], batch: dict[str, Any]) -> int:
  """Bytes of the residuals that the forward pass keeps for the backward pass."""
  trained = {name: params[name] for name in task.trainable}
  frozen = {name: params[name] for name in params if name not in task.trainable}

  def forward(trained: Any, frozen: Any, batch: Any) -> Any:
    def loss(trained: Any) -> jax.Array:
      return task.loss({**frozen, **trained}, batch, jax.random.key(0), jax.numpy.int32(0))[0]

    return jax.vjp(loss, trained)[1]

  return sum(map(leaf_bytes, jax.tree.leaves(jax.eval_shape(forward, trained, frozen, batch))))


def memory(config: Config, stage: str, mesh: Any, row_bytes: int) -> dict[str, int]:
  """Bytes per device by kind.

  Args:
    config: the experiment's configuration.
    stage: the stage to train.
    mesh: a mesh of devices or an abstract mesh.
    row_bytes: see `Costs`.
  """
  training = training_of(config, stage)
  state = place(_boxes(_plain(config, stage), stage), mesh)

  def device_bytes(tree: Any) -> int:
    return sum(map(shard_bytes, jax.tree.leaves(tree)))

  batch = sum(map(leaf_bytes, jax.tree.leaves(batch_shapes(config, stage, training.batch_size))))
  rows = training.batch_size / training.accumulation_steps / sharding.batch_divisor(mesh)
  sizes = {
    'parameters': device_bytes(state.params),
    'optimizer': device_bytes(state.opt_state),
    'averages': device_bytes(state.ema),
    'frozen': device_bytes(state.frozen),
    'batch': batch // sharding.batch_divisor(mesh),
    'gradients': device_bytes(state.params),
    # A lower bound: it assumes that `tensor` splits all activations.
    'activations and temporaries': int(rows * row_bytes / mesh.shape['tensor']),
  }
  return {name: size for name, size in sizes.items() if size}


def collectives(config: Config, stage: str, mesh: Any) -> list[Collective]:
  """The collectives of a training step under ideal compilation.

  - Over `fsdp`, the forward and the backward pass of each microbatch gather the parameters, in the model's dtype. The
    gradients of each microbatch are reduce-scattered.
  - Over `dcn_data` and `data`, the gradients are all-reduced once.
  - Over `tensor`, each layer has two all-reduces per pass. Full rematerialisation adds a pass.

  Args:
    config: the experiment's configuration.
    stage: the stage to train.
    mesh: a mesh of devices or an abstract mesh.
  """
  task, training, params = make_task(config, stage), training_of(config, stage), _params(_plain(config, stage), stage)
  num_params = sum(leaf.size for name in task.trainable for leaf in jax.tree.leaves(params[name]))
  group = {'prior': config.prior, 'joint': config.prior, 'sequence': config.model}.get(stage)
  width = 2 if getattr(group, 'dtype', 'float32') == 'bfloat16' else 4
  sizes, microbatches, result = dict(mesh.shape), training.accumulation_steps, []
  gathered = num_params * width // sizes['tensor']
  if sizes['fsdp'] > 1:
    received = gathered * (sizes['fsdp'] - 1) // sizes['fsdp']
    result.append(Collective('all-gather', sizes['fsdp'], True, 2 * microbatches, 2 * microbatches * received))
    result.append(Collective('reduce-scatter', sizes['fsdp'], True, microbatches, microbatches * received))
  copies = sizes['dcn_data'] * sizes['data']
  if copies > 1:
    size = 2 * num_params * 4 // (sizes['fsdp'] * sizes['tensor']) * (copies - 1) // copies
    result.append(Collective('all-reduce', copies, True, 1, size))
  if sizes['tensor'] > 1 and group is not None:
    rows = training.batch_size // sharding.batch_divisor(mesh)
    tokens = rows * (config.sequence_length if stage == 'sequence' else config.image_length
                     + config.tokenizer.text_length)  # fmt: skip
    size = 2 * tokens * group.embed_dim * width * (sizes['tensor'] - 1) // sizes['tensor']
    count = group.num_layers * (6 if group.remat == 'full' else 4)
    result.append(Collective('all-reduce', sizes['tensor'], False, count, count * size))
  return result


def estimate(config: Config, stage: str, mesh: Any, topology: Topology, costs: Costs, efficiency: float) -> Estimate:
  """Estimate the time of a step.

  Args:
    config: the experiment's configuration.
    stage: the stage to train.
    mesh: a mesh of devices or an abstract mesh.
    topology: the accelerators.
    costs: the result of `trace_costs`.
    efficiency: throughput of the matrix products as a share of the peak.
  """
  peak = topology.num_devices * topology.chip.peak_flops
  blocking, hidden = exchange_seconds(collectives(config, stage, mesh), topology)
  source = f'arithmetic: matrix products at {efficiency:.0%} of the peak; nothing was compiled'
  return Estimate(costs.step_flops / peak / efficiency, blocking, hidden, costs.work, topology, source)
