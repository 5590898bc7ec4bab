"""Places parameters and batches on devices: the sharding rules.

A mesh has three axes. Devices along `data` hold copies of the parameters and different rows of the
batch; `fsdp` splits both the parameters and the batch; `tensor` splits the width of the layers and
the logits. Modules give the axes of their parameters and activations logical names ("embed",
"heads", ...), and `RULES` maps each logical name to mesh axes.

Embedding tables are split along their hidden axis, because 50265 vocabulary entries and 514
positions are not divisible by common mesh sizes.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_jax.errors import UsageError
from roberta_jax.training.mesh import MESH_AXES as MESH_AXES
from roberta_jax.training.mesh import create_mesh as create_mesh

# The mesh axes of a logical axis: one, several, or None for an axis that is not split.
MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]

# The mesh axes that split the batch.
BATCH_AXES = ("data", "fsdp")

_OPTIMIZER_STATE = "optimizer_state"

# Logical axis -> mesh axes, in order of priority. Within one array each mesh axis is used once:
# "embed" is split over fsdp in a parameter, but not in an activation, where "batch" uses fsdp.
RULES: Rules = (
    ("batch", BATCH_AXES),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("logits", "tensor"),
    ("embed", "fsdp"),
    ("embedding", ("fsdp", "tensor")),
    ("layers", None),
    ("vocab", None),
    ("positions", None),
    ("token_types", None),
    ("norm", None),
    ("length", None),
    # No axis of an array: the mesh axis over which the optimizer's state is split besides those of
    # its parameters, "data" or None. See `optimizer_sharding`.
    (_OPTIMIZER_STATE, None),
)

# What `mesh.rules` cannot change.
_FIXED = ("batch", _OPTIMIZER_STATE)

# Logical axes of activations that `batch` splits as well, and what they can be split over.
_TENSOR_ONLY = ("logits",)


def rules_with(
    overrides: Sequence[tuple[str, str | Sequence[str] | None]],
    *,
    shard_optimizer_state: bool = False,
) -> Rules:
    """Returns `RULES` with other mesh axes for some logical axes.

    Args:
      overrides: pairs (logical axis, mesh axes). The mesh axes are a name, a sequence of names, or
        None for an axis that is not split. The batch is always split over `data` and `fsdp`.
      shard_optimizer_state: whether to split the optimizer's state over `data` too.

    Raises:
      UsageError: an entry is not such a pair, a name is unknown, or a logical or mesh axis is named
        twice.
    """
    rules = dict(RULES)
    overridden = set()
    for override in overrides:
        if not isinstance(override, tuple | list) or len(override) != 2:
            raise UsageError(
                f"--config.mesh.rules: {override!r} is not a pair of a logical axis and its mesh "
                'axes, such as ("embed", "fsdp").'
            )
        name, axes = override
        if not isinstance(name, str) or name in _FIXED or name not in rules:
            raise UsageError(
                f"--config.mesh.rules: {name!r} is not a logical axis that can be changed: use one "
                f"of {', '.join(rule for rule in rules if rule not in _FIXED)}."
            )
        if name in overridden:
            raise UsageError(f"--config.mesh.rules: the logical axis {name!r} has two rules.")
        overridden.add(name)
        if axes is not None and not isinstance(axes, str | tuple | list):
            axes = (axes,)  # refused below
        names = _axis_names(axes)
        for axis in names:
            if not isinstance(axis, str) or axis not in MESH_AXES:
                raise UsageError(
                    f"--config.mesh.rules: {axis!r} (for the logical axis {name!r}) is not a mesh "
                    f"axis: use {', '.join(MESH_AXES)}, or None for an axis that is not split."
                )
            if names.count(axis) > 1:
                raise UsageError(
                    f"--config.mesh.rules: the logical axis {name!r} has the mesh axis {axis!r} "
                    "twice."
                )
            if name in _TENSOR_ONLY and axis != "tensor":
                raise UsageError(
                    f"--config.mesh.rules: the logical axis {name!r} cannot be split over "
                    f"{axis!r}, which splits the batch: use 'tensor', or None."
                )
        rules[name] = axes if axes is None or isinstance(axes, str) else (names or None)
    if shard_optimizer_state:
        rules[_OPTIMIZER_STATE] = "data"
    return tuple(rules.items())


def of_one_data_shard(rules: Rules) -> Rules | None:
    """The rules for arrays of one data shard: their batch is split over `fsdp` alone.

    None if other arrays than those of the batch are split over `data`: there is no such shard.
    """
    if any("data" in _axis_names(axes) for name, axes in rules if name not in _FIXED):
        return None
    return tuple((name, "fsdp" if name == "batch" else axes) for name, axes in rules)


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Makes `nn.with_logical_constraint` constrain arrays to `mesh` by `rules`.

    Trace every function that runs on the mesh in this context. With a mesh but no rules, linen
    drops every constraint silently.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def parameter_spec(names: Sequence[str | None], rules: Rules = RULES) -> PartitionSpec:
    """Returns the partition spec of a parameter with the given logical axes.

    Raises:
      UsageError: two axes of the parameter are on one mesh axis. (linen would leave the second
        one unsplit silently.)
      ValueError: an axis has no rule.
    """
    mesh_axes_of = dict(rules)
    spec, used = [], set()
    for name in names:
        if name is not None and name not in mesh_axes_of:
            raise ValueError(f"no rule for the logical axis {name!r}; add it to partitioning.RULES")
        axes = mesh_axes_of.get(name)
        for axis in _axis_names(axes):
            if axis in used:
                raise UsageError(
                    f"--config.mesh.rules: two of the axes {tuple(names)} of a parameter are on "
                    f"the mesh axis {axis!r}. Give one of them another mesh axis, or None."
                )
            used.add(axis)
        spec.append(axes)
    return PartitionSpec(*spec)


def optimizer_sharding(
    sharding: NamedSharding, shape: Sequence[int], rules: Rules = RULES
) -> NamedSharding:
    """The sharding of the optimizer's state of a parameter, which has the parameter's shape.

    It is the parameter's own, unless the rules split the state over `data` as well (ZeRO stage 1,
    Rajbhandari et al. 2020). Then the longest of the parts along an axis that `data` divides is
    split once more; a parameter without such an axis keeps its sharding.
    """
    extra, mesh = dict(rules).get(_OPTIMIZER_STATE), sharding.mesh
    parts = mesh_size(mesh, extra)
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    if parts == 1 or any(extra in _axis_names(axes) for axes in spec):
        return sharding
    lengths = [size // mesh_size(mesh, axes) for size, axes in zip(shape, spec, strict=True)]
    divisible = [axis for axis, length in enumerate(lengths) if length and length % parts == 0]
    if not divisible:
        return sharding
    # The last of equally long axes: the first axis of stacked layers is the loop's.
    axis = max(divisible, key=lambda axis: (lengths[axis], axis))
    spec[axis] = (*_axis_names(spec[axis]), extra) if spec[axis] else extra
    return NamedSharding(mesh, PartitionSpec(*spec))


def mesh_size(mesh: Mesh, axes: MeshAxes) -> int:
    """The number of parts into which an array axis on these mesh axes is split."""
    return math.prod(mesh.shape[axis] for axis in _axis_names(axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_and_accumulation(
    mesh: Mesh,
    batch_size: int,
    per_device_batch_size: int | None = None,
    key: str = "train.batch_size",
) -> tuple[int, int]:
    """Divides a global batch into microbatches and over the devices.

    Args:
      mesh: its `data` and `fsdp` axes split the batch.
      batch_size: rows of the global batch.
      per_device_batch_size: the most rows per device and microbatch; None uses one microbatch.
      key: the config key of the batch size, for messages.

    Returns:
      (rows per device and microbatch, number of microbatches), with as few microbatches as fit.

    Raises:
      UsageError: the batch is not divisible by the number of devices that split it.
    """
    key = f"--config.{key}"
    shards = mesh_size(mesh, BATCH_AXES)
    if batch_size < 1:
        raise UsageError(f"{key}={batch_size} must be at least 1.")
    if per_device_batch_size is not None and per_device_batch_size < 1:
        raise UsageError(
            f"--config.train.per_device_batch_size={per_device_batch_size} must be at least 1, or "
            "None for no limit."
        )
    if batch_size % shards:
        below, above = batch_size // shards * shards, -(-batch_size // shards) * shards
        fitting = " or ".join(f"{key}={size}" for size in (below, above) if size)
        raise UsageError(
            f"{key}={batch_size} is not divisible by {shards}, the number of devices that split "
            "the batch (--config.mesh.data times --config.mesh.fsdp). "
            f"Use {fitting}, or another mesh."
        )
    shard_rows = batch_size // shards
    most_rows = shard_rows if per_device_batch_size is None else per_device_batch_size
    fewest = -(-shard_rows // most_rows)
    accumulation = next(n for n in range(fewest, shard_rows + 1) if shard_rows % n == 0)
    return shard_rows // accumulation, accumulation


def local_batch_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of the global batch that this host's devices hold, ascending, int64.

    They are read from the sharding, because hosts and batch rows need not be in the same order.
    Two hosts hold the same rows if `tensor` spans hosts.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size, dtype=np.int64)[index] for index in indices]
    return np.unique(np.concatenate(rows))


def to_global(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int, local_rows: np.ndarray
) -> dict[str, jax.Array]:
    """Creates arrays of the global batch from the rows that each host has.

    Args:
      batch: arrays [len(local_rows), ...], which hold the rows `local_rows` of the global batch in
        this order.
      mesh: its `data` and `fsdp` axes split the rows.
      batch_size: rows of the global batch.
      local_rows: from `local_batch_rows`.

    Returns:
      Arrays [batch_size, ...], split over the devices by `batch_sharding`.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)

    def globalize(array: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(local_rows, start)
            return array[first : first + stop - start]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return {name: globalize(array) for name, array in batch.items()}


def _axis_names(axes: str | Sequence[str] | None) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)
