"""Arranges devices as a mesh with the axes `data`, `fsdp` and `tensor`.

The later an axis, the more its devices talk to each other, so that `tensor` gets neighbours. TPU
slices are connected by a network that is far slower than that within a slice. Then only `data`
crosses slices, over which one reduction per step is made.

GPU and CPU devices are taken in the order of their hosts. So an axis crosses hosts only if those
after it fill a host: with 8 GPUs per host, `fsdp=8` stays within a host and `fsdp=16` does not. If
that is not wanted, `slices` divides the hosts into groups that are treated like TPU slices.
"""

import math
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from roberta_jax.errors import UsageError

MESH_AXES = ("data", "fsdp", "tensor")

_ALWAYS_SPLIT = ("TPU v5 lite", "TPU v5e")  # as `jax.make_mesh`; their networks have two axes


def create_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    *,
    slices: int | None = None,
) -> Mesh:
    """Arranges the devices as a mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
      data, fsdp, tensor: the size of each axis. At most one is -1: all remaining devices.
      devices: by default every device of every process.
      slices: number of slices, of which each holds an equal part of the `data` axis. None takes
        that of the TPU devices (their `slice_index`), and 1 for others. Other devices are divided
        into this many groups, in their order.

    Raises:
      UsageError: the product of the sizes is not the number of devices, or the `data` axis cannot
        be divided into the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(MESH_AXES, (data, fsdp, tensor), strict=True))
    requested = ", ".join(f"--config.mesh.{name}={size}" for name, size in sizes.items())
    if any(not isinstance(size, int) or size == 0 or size < -1 for size in sizes.values()):
        raise UsageError(
            f"{requested}: each size must be a positive whole number, or -1 for all other devices."
        )
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UsageError(f"{requested}: only one size can be -1 (all other devices).")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UsageError(
            f"{requested} does not fit the {len(devices)} {devices[0].platform} device(s) of this "
            f"run: the product of the sizes must be {len(devices)}. Set one of them to -1 (all "
            f"other devices) and the others to numbers that divide {len(devices)}."
        )
    groups = _groups(devices, slices)
    if sizes["data"] % len(groups):
        raise UsageError(_not_divided(requested, sizes, len(groups), len(devices)))
    # Auto axes: the compiler chooses what the rules leave open. With jax's default, Explicit axes,
    # linen's logical constraints raise an error.
    return Mesh(
        _arranged(tuple(sizes.values()), groups), MESH_AXES, axis_types=(AxisType.Auto,) * 3
    )


def _groups(devices: Sequence[jax.Device], slices: int | None) -> list[list[jax.Device]]:
    """The devices of each slice."""
    if slices is not None and (not isinstance(slices, int) or slices < 1):
        raise UsageError(f"--config.mesh.slices={slices} must be at least 1, or none.")
    if devices[0].platform != "tpu":  # GPUs call their hosts slices
        slices = slices or 1
        if len(devices) % slices:
            raise UsageError(
                f"--config.mesh.slices={slices} does not divide the {len(devices)} "
                f"{devices[0].platform} device(s) of this run. Use a number that does, or none."
            )
        size = len(devices) // slices
        return [list(devices[i * size : (i + 1) * size]) for i in range(slices)]
    counts = Counter(getattr(device, "slice_index", 0) for device in devices)
    if slices not in (None, len(counts)):
        raise UsageError(
            f"--config.mesh.slices={slices}, but the {len(devices)} TPU devices of this run are "
            f"of {len(counts)} slice(s). Use --config.mesh.slices=none."
        )
    if len(set(counts.values())) > 1:
        raise UsageError(
            "the TPU slices of this run have different numbers of devices: "
            f"{', '.join(str(counts[index]) for index in sorted(counts))}. Use slices of one size."
        )
    return [
        [device for device in devices if getattr(device, "slice_index", 0) == index]
        for index in sorted(counts)
    ]


def _not_divided(requested: str, sizes: dict[str, int], slices: int, devices: int) -> str:
    each = devices // slices
    return (
        f"{requested}: the devices are of {slices} slices, and only the axis `data` can cross "
        f"slices, but its size {sizes['data']} is not divisible by {slices}. Use "
        f"--config.mesh.fsdp and --config.mesh.tensor whose product divides the {each} devices of "
        "a slice, and --config.mesh.data=-1."
    )


def _arranged(shape: tuple[int, ...], groups: Sequence[Sequence[jax.Device]]) -> np.ndarray:
    """The devices as an array of this shape, whose first axis takes one group after the other."""
    if len(groups) == 1:
        return _device_mesh(shape, groups[0])
    part = (shape[0] // len(groups), *shape[1:])
    if groups[0][0].platform == "tpu":
        return mesh_utils.create_hybrid_device_mesh(
            part,
            (len(groups), 1, 1),
            [device for group in groups for device in group],
            allow_split_physical_axes=True,
        )
    return np.concatenate([_device_mesh(part, group) for group in groups])


def _device_mesh(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    if getattr(devices[0], "device_kind", None) not in _ALWAYS_SPLIT:
        try:
            return mesh_utils.create_device_mesh(shape, devices)
        except NotImplementedError:  # the sizes do not fit the axes of the TPU's network
            pass
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
