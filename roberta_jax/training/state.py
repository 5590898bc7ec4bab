"""What a training run carries from step to step, created where it will live.

No parameter ever exists unsharded: shapes come from `eval_shape`, shardings from the parameters'
logical axes, and the arrays from one jitted initialisation with those shardings as its output.
"""

import math
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.training.partitioning import on_mesh, parameter_spec

# Returns the parameters as linen's `init` gives them, boxed with their logical axes.
InitParams = Callable[[], Any]


@flax.struct.dataclass
class TrainState:
    """Attributes:

    step: updates made, int32 scalar.
    params: the parameter tree, plain arrays.
    opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def abstract_state(
    init_params: InitParams, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct`s); no arrays.

    Raises:
      UsageError: an axis of a parameter does not divide over its mesh axis.
    """
    boxed = jax.eval_shape(lambda: _fresh(init_params(), optimizer))

    def place(path, leaf):
        if isinstance(leaf, nn.Partitioned):
            spec, shape = parameter_spec(leaf.names), leaf.value
            _check_divides(path, shape.shape, leaf.names, spec, mesh)
        else:
            spec, shape = PartitionSpec(), leaf
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, boxed, is_leaf=_is_box)


def create_state(
    init_params: InitParams,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    params: Any = None,
) -> TrainState:
    """Creates the state of step 0 on the mesh.

    Args:
      init_params: () -> boxed parameters.
      optimizer: its `init` makes the optimizer's state.
      mesh: where the arrays go.
      params: weights to start from in place of `init_params()`, a plain tree of arrays.

    Raises:
      UsageError: `params` is of another model, or an axis does not divide over the mesh.
    """
    abstract = abstract_state(init_params, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if params is None:
        with on_mesh(mesh):
            fresh = jax.jit(
                lambda: nn.unbox(_fresh(init_params(), optimizer)), out_shardings=shardings
            )
            return fresh()
    _check_same_tree(params, abstract.params)
    # By way of the host: the caller's own arrays must outlive the donation of the state.
    host = jax.tree.map(lambda p, like: np.asarray(p, like.dtype), params, abstract.params)
    placed = jax.device_put(host, shardings.params)
    with on_mesh(mesh):
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(placed)
    return TrainState(jax.device_put(jnp.zeros([], jnp.int32), shardings.step), placed, opt_state)


def count_parameters(params: Any) -> int:
    """The number of values in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _fresh(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)


def _check_divides(path, shape, names, spec, mesh: Mesh) -> None:
    for size, name, axis in zip(shape, names, spec, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise UsageError(
                f"mesh.{axis}={mesh.shape[axis]} does not divide the axis {name!r} of size {size} "
                f"of the parameter {jax.tree_util.keystr(path, simple=True, separator='/')}: use a "
                f"mesh.{axis} that divides {size}."
            )


def _check_same_tree(params: Any, expected: Any) -> None:
    have, want = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (params, expected)
    )
    differing = sorted(name for name in have | want if have.get(name) != want.get(name))
    if differing:
        lines = [
            f"  {name}: {have.get(name, 'missing')} there, {want.get(name, 'none')} here"
            for name in differing[:8]
        ]
        more = [f"  ... and {len(differing) - 8} more"] if len(differing) > 8 else []
        raise UsageError(
            "the weights to start from are not of this model:\n" + "\n".join(lines + more)
        )
