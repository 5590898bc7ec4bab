"""Which device holds what: the mesh, the one table of logical-axis rules, and the batch's split.

A mesh has three axes. `data` repeats the parameters and splits the batch; `fsdp` splits both;
`tensor` splits the width of the layers. Modules name the axes of their parameters and activations
in words ("embed", "heads", ...), and RULES alone says which mesh axis each word lies on, so a new
way of splitting the model is a change of this table.

Embedding tables lie on their hidden axis: 50265 rows and 514 positions divide by nothing.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from roberta_jax.errors import UsageError

MESH_AXES = ("data", "fsdp", "tensor")
# The mesh axes over which the batch is split: everything that does not split a layer.
BATCH_AXES = ("data", "fsdp")

# In order of priority. Within one array each mesh axis is given out once, so "embed" is split over
# fsdp in a parameter, and whole in an activation, where "batch" has taken fsdp already.
RULES = (
    ("batch", BATCH_AXES),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("layers", None),
    ("vocab", None),
    ("positions", None),
    ("token_types", None),
    ("norm", None),
    ("length", None),
)


def join_processes() -> None:
    """Makes this process one of several that train together; call it before anything else of JAX.

    Pods, Slurm and Kubernetes tell who the others are. Elsewhere the environment has to:
    JAX_COORDINATOR_ADDRESS (read by JAX itself), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      UsageError: neither told.
    """
    told = {}
    for argument in ("num_processes", "process_id"):
        value = os.environ.get(f"JAX_{argument.upper()}")
        if value is not None:
            told[argument] = int(value)
    try:
        jax.distributed.initialize(**told)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"cannot find the other processes: {error}\nOutside of pods, Slurm and Kubernetes set "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0)."
        ) from error


def create_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Lays the devices out as `data` x `fsdp` x `tensor`.

    Args:
      data, fsdp, tensor: the size of each axis; at most one is -1, which takes what is left.
      devices: by default every device of every process.

    Raises:
      UsageError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(MESH_AXES, (data, fsdp, tensor), strict=True))
    asked = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    if any(size == 0 or size < -1 for size in sizes.values()):
        raise UsageError(f"{asked}: each size is a positive number, or -1 for what is left.")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UsageError(f"{asked}: only one size can be -1 (what is left of the devices).")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UsageError(
            f"{asked} does not fit this run's {len(devices)} {devices[0].platform} device(s): "
            f"the product of the sizes must be {len(devices)}. Set one of them to -1, which takes "
            f"what is left, and the others to numbers that divide {len(devices)}."
        )
    # Auto: the compiler places what the rules leave open. Under jax's default, Explicit axes,
    # linen's logical constraints raise.
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Makes `nn.with_logical_constraint` mean `mesh` and RULES; without it they do nothing.

    Both halves are needed while a function is traced: a mesh without the rules drops every
    constraint silently.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def parameter_spec(names: Sequence[str | None]) -> PartitionSpec:
    """Returns where a parameter with these logical axes lies.

    Raises:
      ValueError: an axis without a rule, or two axes of one parameter on one mesh axis, which
        would leave the second unsplit without a word.
    """
    table = dict(RULES)
    axes, taken = [], set()
    for name in names:
        if name is not None and name not in table:
            raise ValueError(f"no rule for the logical axis {name!r}; add it to partitioning.RULES")
        axis = table.get(name)
        if axis is not None and axis in taken:
            raise ValueError(f"two of the axes {tuple(names)} lie on the mesh axis {axis!r}")
        taken.add(axis)
        axes.append(axis)
    return PartitionSpec(*axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the batch is split: the sizes of `data` and `fsdp` multiplied."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def rows_and_accumulation(
    mesh: Mesh,
    batch_size: int,
    per_device_batch_size: int | None = None,
    key: str = "train.batch_size",
) -> tuple[int, int]:
    """Splits a global batch over the devices and over time.

    Args:
      mesh: its `data` and `fsdp` axes split the batch.
      batch_size: rows of the global batch.
      per_device_batch_size: at most so many rows on a device at once; None takes all in one go.
      key: the name of the batch size in messages.

    Returns:
      (rows a device works on at once, number of microbatches): the fewest microbatches that fit.

    Raises:
      UsageError: the batch does not divide over the devices.
    """
    shards = batch_shards(mesh)
    if batch_size < 1:
        raise UsageError(f"{key}={batch_size}: a batch has at least one row.")
    if per_device_batch_size is not None and per_device_batch_size < 1:
        raise UsageError(
            f"train.per_device_batch_size={per_device_batch_size}: it is at least 1, or none."
        )
    if batch_size % shards:
        below, above = batch_size // shards * shards, -(-batch_size // shards) * shards
        fitting = " or ".join(str(size) for size in (below, above) if size)
        raise UsageError(
            f"{key}={batch_size} does not divide over the {shards} devices that split the batch "
            f"(mesh.data x mesh.fsdp). Use {key}={fitting}, or another mesh."
        )
    rows = batch_size // shards
    at_once = rows if per_device_batch_size is None else min(rows, per_device_batch_size)
    accumulation = next(n for n in range(-(-rows // at_once), rows + 1) if rows % n == 0)
    return rows // accumulation, accumulation


def local_batch_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of the global batch that this host's devices hold, ascending, int64.

    Read from the sharding itself, since hosts and batch rows need not be in the same order (with
    `tensor` across hosts, two hosts hold the same rows).
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size, dtype=np.int64)[index] for index in indices]
    return np.unique(np.concatenate(rows))


def to_global(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int, local_rows: np.ndarray
) -> dict[str, jax.Array]:
    """Puts a host's part of a batch on the devices, as arrays of the global shape.

    Args:
      batch: arrays [len(local_rows), ...]: the rows `local_rows` of the global batch, in order.
      mesh: its `data` and `fsdp` axes split the rows.
      batch_size: rows of the global batch.
      local_rows: from `local_batch_rows`.

    Returns:
      Arrays [batch_size, ...], each device holding its own rows.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)

    def place(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(local_rows, start)
            return array[first : first + stop - start]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: place(array) for name, array in batch.items()}
