"""The training state: its contents, its shapes and shardings, and its creation on a mesh."""

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
from dalle_jax.training.tasks import boxed_params


class TrainState(flax.struct.PyTreeNode):
  """Everything that a training step changes and a checkpoint holds."""

  step: jax.Array  # int32 scalar: training steps done
  skipped: jax.Array  # int32 scalar: steps whose update was skipped because it was not finite
  params: dict[str, Any]  # trained collections by name
  frozen: dict[str, Any]  # all other collections; no gradient changes them
  opt_state: Any
  ema: dict[str, Any] | None  # moving average of `params` and of the task's updated collections; None without averaging


def all_params(state: TrainState, ema: bool) -> dict[str, Any]:
  """All collections by name, as tasks expect them. With `ema`, moving averages (if kept) replace their originals."""
  changed = state.ema if ema and state.ema is not None else state.params
  return {**state.frozen, **changed}


def changing(task: Any, params: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
  """The collections that training changes. The moving average covers exactly these."""
  return {**params, **{name: frozen[name] for name in task.updated}}


def abstract_state(task: Any, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh, use_ema: bool) -> TrainState:
  """Shapes, dtypes and shardings of the state as ShapeDtypeStruct leaves, without computing anything.

  Optimizer moments and averages are built from parameters that are still boxed with their axis names. So they get the
  same shardings as their parameters.
  """
  return place(boxed_state(task, tx, use_ema), mesh)


def boxed_state(task: Any, tx: optax.GradientTransformation, use_ema: bool) -> TrainState:
  """Shapes and dtypes of the state, boxed with logical axis names."""

  return jax.eval_shape(lambda collections: _assemble(task, collections, tx, use_ema), boxed_params(task))


def place(boxes: TrainState, mesh: Any) -> TrainState:
  """Shapes, dtypes and shardings of a state from `boxed_state` on a mesh, which may be abstract."""
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
  """Create the initial state, with every array sharded from the start.

  Args:
    task: a `tasks.Task`.
    tx: the optimizer.
    mesh: the device mesh.
    seed: seed of the run; initialisation uses the stream 'init'.
    use_ema: whether to keep a moving average.
    initial: arrays that replace whole collections, such as {'dvae': params of a trained dVAE}; they are copied.

  Raises:
    ValueError: `initial` names an unknown collection, or its tree or shapes differ from the task's.
  """
  abstract = abstract_state(task, tx, mesh, use_ema)
  expected = all_params(abstract, ema=False)
  replacements = {name: _place_collection(name, tree, expected) for name, tree in (initial or {}).items()}

  def build(key: jax.Array, replacements: dict[str, Any]) -> TrainState:
    return _assemble(task, {**_unbox(task.init(key)), **replacements}, tx, use_ema)

  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(build, out_shardings=shardings)(named_key(seed, 'init'), replacements)


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
  """Take parameters out of their boxes. Unlike `nn.unbox`, it adds no sharding constraint and so accepts shapes."""
  return jax.tree.map(
    lambda leaf: leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf,
    tree,
    is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
  )


def _place_collection(name: str, tree: Any, expected: dict[str, Any]) -> Any:
  if name not in expected:
    raise ValueError(f'Initial parameters include the collection {name!r}; the task has {", ".join(sorted(expected))}.')
  differences = trees.differences(tree, expected[name])
  if differences:
    raise ValueError(
      f'The initial parameters of {name!r} do not fit the configured model: {differences}. '
      'Use the configuration that they were trained with.'
    )
  return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), tree, expected[name])
