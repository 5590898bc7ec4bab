"""What kernels for one kind of accelerator need to know: the platform, and how arrays are split."""

import contextlib
import contextvars
import importlib
import math
from collections.abc import Iterator, Mapping
from types import ModuleType

import flax.linen as nn
import jax
from jax.sharding import AxisType

# {implementation: (platform, module of its kernels)}.
Kinds = Mapping[str, tuple[str, str]]

# The value of an option that chooses the implementation by the platform.
AUTO = "auto"

_interpreted = contextvars.ContextVar("interpreted", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Traces Pallas kernels as ordinary operations inside the context: slow, on any platform."""
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def is_interpreted() -> bool:
    """Whether kernels are traced inside `interpreted`."""
    return _interpreted.get()


def platform() -> str:
    """The platform of the mesh, or else of JAX's default backend: "cpu", "gpu", "tpu", ..."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    name = getattr(device, "platform", None) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def kind_of_platform(kinds: Kinds, where: str | None = None) -> str:
    """The kind of kernels for a platform, by default `platform()`; "xla" without one.

    Without `where` it is "xla" as well if it is not known how arrays are split over devices.
    """
    if where is None and not knows_splits():
        return "xla"
    of_platforms = {of: kind for kind, (of, _) in kinds.items()}
    return of_platforms.get(where or platform(), "xla")


def kernels_of(kinds: Kinds, kind: str) -> ModuleType:
    """The module of a kind of kernels. It imports Pallas, which takes time."""
    return importlib.import_module(kinds[kind][1])


def refusal(option: str, kind: str, reason: str) -> ValueError:
    """The error of an option that names a kind of kernels which cannot compute something."""
    return ValueError(
        f"{option}={kind} cannot be used here: {reason}. Use {option}=auto, which takes another "
        "implementation where this one cannot be used."
    )


def mesh_to_split_over() -> jax.sharding.AbstractMesh | None:
    """The mesh over which arrays are split here; None where they are one device's."""
    mesh = jax.sharding.get_abstract_mesh()
    is_manual = all(kind == AxisType.Manual for kind in mesh.axis_types)
    return None if mesh.empty or mesh.size == 1 or is_manual else mesh


def knows_splits() -> bool:
    """Whether it is known how arrays are split over devices.

    The partitioner cannot split a kernel. Without a mesh or rules, arrays may be split in any way.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return jax.device_count() == 1
    return mesh_to_split_over() is None or "batch" in dict(nn.get_logical_axis_rules())


def axes_of(name: str) -> tuple[str, ...]:
    """The mesh axes of several devices that split a logical axis, by the sharding rules."""
    axes = dict(nn.get_logical_axis_rules()).get(name) or ()
    sizes = jax.sharding.get_abstract_mesh().shape
    return tuple(
        axis for axis in ((axes,) if isinstance(axes, str) else axes) if sizes.get(axis, 1) > 1
    )


def parts_of(axes: tuple[str, ...]) -> int:
    """Into how many parts the mesh axes split an array's axis."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def dividing_axes(name: str, size: int) -> tuple[str, ...] | None:
    """`axes_of` a logical axis of this size, or None if they do not split it into equal parts."""
    axes = axes_of(name)
    return axes if axes and size % parts_of(axes) == 0 else None
