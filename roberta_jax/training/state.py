"""The training state: step, parameters and optimizer state, created directly on the mesh.

No device or host ever holds all parameters of a sharded model: shapes come from `jax.eval_shape`,
shardings from the logical axes of the parameters, and the arrays from one jitted initialisation
with these shardings as `out_shardings`.
"""

import contextlib
import math
import os
import pathlib
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
from roberta_jax.training.partitioning import (
    RULES,
    Rules,
    mesh_size,
    on_mesh,
    optimizer_sharding,
    parameter_spec,
)

_CONTAINER_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")

_OPT_STATE = jax.tree_util.GetAttrKey("opt_state")

# Returns the parameters as linen's `init` does: boxed with their logical axes.
InitParams = Callable[[], Any]

# From here on float32 numbers are more than 1 apart, so that no update below 1/2 changes a
# parameter: it can no longer learn. No recipe comes near. Parameters of the released models stay
# below 100, an update of Adam is a small multiple of the learning rate, and LAMB's changes a tensor
# by the learning rate times its norm. Losses can be finite far beyond, because LayerNorm takes away
# the size of its input.
LARGEST_PARAMETER = 2.0**24


@flax.struct.dataclass
class TrainState:
    """The arrays that a training step updates.

    Attributes:
      step: updates made, int32 scalar.
      params: the parameters, a tree of arrays without boxes.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def abstract_state(
    init_params: InitParams,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules = RULES,
) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state, without creating arrays.

    Args:
      init_params: () -> boxed parameters.
      optimizer: its `init` creates the optimizer's state.
      mesh: the devices.
      rules: mesh axes of the parameters' logical axes.

    Returns:
      A `TrainState` of `jax.ShapeDtypeStruct`s.

    Raises:
      UsageError: an axis of a parameter is not divisible by the size of its mesh axes.
    """
    boxed = jax.eval_shape(lambda: _initial_state(init_params(), optimizer))

    def with_sharding(path, leaf):
        if isinstance(leaf, nn.Partitioned):
            spec, array = parameter_spec(leaf.names, rules), leaf.value
            _check_divisible(path, array.shape, leaf.names, spec, mesh)
        else:
            spec, array = PartitionSpec(), leaf
        sharding = NamedSharding(mesh, spec)
        if path[0] == _OPT_STATE and isinstance(leaf, nn.Partitioned):
            sharding = optimizer_sharding(sharding, array.shape, rules)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(with_sharding, boxed, is_leaf=_is_box)


def create_state(
    init_params: InitParams,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    params: Any = None,
    rules: Rules = RULES,
) -> TrainState:
    """Creates the state of step 0 on the mesh.

    Args:
      init_params: () -> boxed parameters.
      optimizer: its `init` creates the optimizer's state.
      mesh: the devices.
      params: initial parameters, a tree of arrays; None uses `init_params()`.
      rules: mesh axes of the parameters' logical axes.

    Raises:
      UsageError: `params` does not fit the model, or an axis of a parameter is not divisible by the
        size of its mesh axes.
    """
    abstract = abstract_state(init_params, optimizer, mesh, rules)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if params is None:
        with on_mesh(mesh, rules):
            initialize = jax.jit(
                lambda: nn.unbox(_initial_state(init_params(), optimizer)), out_shardings=shardings
            )
            return initialize()
    _check_same_tree(params, abstract.params)
    # Copied through the host, so that donating the state does not delete the caller's arrays.
    host = jax.tree.map(lambda p, like: np.asarray(p, like.dtype), params, abstract.params)
    sharded = jax.device_put(host, shardings.params)
    with on_mesh(mesh, rules):
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(sharded)
    step = jax.device_put(jnp.zeros([], jnp.int32), shardings.step)
    return TrainState(step, sharded, opt_state)


def unsound_arrays(state: TrainState) -> list[str]:
    """Lists the arrays with which training cannot go on: not finite, or of huge parameters.

    Parameters are huge beyond `LARGEST_PARAMETER`. Computed in one pass on the devices; with
    several processes, each gets the same list.

    Returns:
      Paths in the state, such as "params/lm_head/bias".
    """
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    limits = [LARGEST_PARAMETER if name.startswith("params") else math.inf for name, _ in leaves]
    sound = np.asarray(_are_sound([leaf for _, leaf in leaves], limits))
    return [
        name for (name, _), is_sound in zip(leaves, sound.tolist(), strict=True) if not is_sound
    ]


@jax.jit
def _are_sound(leaves: list[jax.Array], limits: list[float]) -> jax.Array:
    """Whether each array is finite and at most as large as its limit, bool [arrays]."""
    return jnp.stack(
        [
            jnp.all(jnp.isfinite(leaf) & (jnp.abs(leaf) <= limit))
            for leaf, limit in zip(leaves, limits, strict=True)
        ]
    )


def count_parameters(params: Any) -> int:
    """Returns the total number of elements in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def memory_limit(device: jax.Device) -> int | None:
    """Returns the bytes that the arrays on a device can take, or None if that is unknown.

    For a CPU it is the memory of the machine or of the container, which all CPU devices share.
    """
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = []
    with contextlib.suppress(ValueError, OSError, AttributeError):  # no such names elsewhere
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # "max" is no limit
        limits.append(int(_CONTAINER_LIMIT.read_text()))
    return min(limits, default=None)


def _initial_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)


def _check_divisible(path, shape, names, spec, mesh: Mesh) -> None:
    for size, name, axes in zip(shape, names, spec, strict=True):
        parts = mesh_size(mesh, axes)
        if size % parts:
            keys = [f"--config.mesh.{axis}" for axis in ([axes] if isinstance(axes, str) else axes)]
            raise UsageError(
                f"{' * '.join(keys)} = {parts} does not divide the axis {name!r} of size {size} of "
                f"the parameter {jax.tree_util.keystr(path, simple=True, separator='/')}. Use a "
                f"value that divides {size}."
            )


def _check_same_tree(params: Any, expected: Any) -> None:
    shapes, expected_shapes = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (params, expected)
    )
    differing = sorted(
        name for name in shapes | expected_shapes if shapes.get(name) != expected_shapes.get(name)
    )
    if differing:
        lines = [
            f"  {name}: {shapes.get(name, 'missing')} in the weights, "
            f"{expected_shapes.get(name, 'missing')} in the model"
            for name in differing[:8]
        ]
        more = [f"  ... and {len(differing) - 8} more"] if len(differing) > 8 else []
        raise UsageError("the initial weights do not fit the model:\n" + "\n".join(lines + more))
