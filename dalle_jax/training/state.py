"""The training state, created already sharded over the mesh."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from dalle_jax import trees
from dalle_jax.sharding import param_shardings
from dalle_jax.training.keys import named_key


class TrainState(flax.struct.PyTreeNode):
  """All that a step changes, and what a checkpoint holds."""

  step: jax.Array  # int32 scalar: optimizer steps done
  skipped: jax.Array  # int32 scalar: those of them that changed nothing, as they were not finite
  params: dict[str, Any]  # the trained collections
  frozen: dict[str, Any]  # the others, which no gradient changes
  opt_state: Any
  ema: dict[str, Any] | None  # moving average of params and of the updated collections, or None


def all_params(state: TrainState, ema: bool) -> dict[str, Any]:
  """Every collection by name, as tasks take them; the trained ones averaged where `ema` asks and a mean is kept."""
  trained = state.ema if ema and state.ema is not None else state.params
  return {**state.frozen, **trained}


def changing(task: Any, params: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
  """The collections that training changes: what moving averages are kept of."""
  return {**params, **{name: frozen[name] for name in task.updated}}


def abstract_state(task: Any, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh, use_ema: bool) -> TrainState:
  """The state's shapes, dtypes and shardings (ShapeDtypeStruct leaves); nothing is computed.

  The optimizer's moments and the averages are made from parameters still in their boxes of axis names, so that
  they are sharded just as the parameters they belong to.
  """
  return place(boxed_state(task, tx, use_ema), mesh)


def boxed_state(task: Any, tx: optax.GradientTransformation, use_ema: bool) -> TrainState:
  """The state's shapes, in boxes of axis names."""

  def boxed() -> TrainState:
    # The key is made in here: the mesh in force may be of devices that are not there, on which nothing can be computed.
    return _assemble(task, task.init(jax.random.key(0)), tx, use_ema)

  return jax.eval_shape(boxed)


def place(boxes: TrainState, mesh: Any) -> TrainState:
  """Shapes, dtypes and shardings of a state from `boxed_state`, on a mesh with devices or without."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    _unbox(boxes),
    param_shardings(boxes, mesh),
  )


def create_state(
  task: Any,
  tx: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  seed: int,
  use_ema: bool,
  initial: Mapping[str, Any] | None = None,
) -> TrainState:
  """A fresh state, every array of it born sharded.

  Args:
    initial: arrays which replace whole collections, such as {'dvae': a trained dVAE}; they are copied.

  Raises:
    ValueError: `initial` names an unknown collection, or its tree or shapes are not the task's.
  """
  abstract = abstract_state(task, tx, mesh, use_ema)
  expected = all_params(abstract, ema=False)
  given = {name: _place(name, tree, expected) for name, tree in (initial or {}).items()}

  def build(key: jax.Array, given: dict[str, Any]) -> TrainState:
    return _assemble(task, {**_unbox(task.init(key)), **given}, tx, use_ema)

  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(build, out_shardings=shardings)(named_key(seed, 'init'), given)


def _assemble(task: Any, collections: dict[str, Any], tx: optax.GradientTransformation, use_ema: bool) -> TrainState:
  missing = set(task.trainable) - set(collections)
  assert not missing, f'Task {task.name} trains {missing}, which its init does not return.'
  params = {name: tree for name, tree in collections.items() if name in task.trainable}
  frozen = {name: tree for name, tree in collections.items() if name not in task.trainable}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    params=params,
    frozen=frozen,
    opt_state=tx.init(params),
    ema=jax.tree.map(jnp.copy, changing(task, params, frozen)) if use_ema else None,
  )


def _unbox(tree: Any) -> Any:
  """Takes parameters out of their boxes; unlike nn.unbox it also serves shapes, adding no sharding constraint."""
  return jax.tree.map(
    lambda leaf: leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf,
    tree,
    is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
  )


def _place(name: str, tree: Any, expected: dict[str, Any]) -> Any:
  if name not in expected:
    raise ValueError(f'Initial parameters name the collection {name!r}; the task has {", ".join(sorted(expected))}.')
  shown = trees.differences(tree, expected[name])
  if shown:
    raise ValueError(
      f'The initial parameters of {name!r} do not fit the model which the configuration describes: {shown}. '
      'Use the configuration that they were trained with.'
    )
  return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), tree, expected[name])
