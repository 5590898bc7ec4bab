"""What is planned for: `v5e:8x8`, `gpu:h200x8` or `local`, possibly several slices of it.

The formulas need no accelerator and no library of its maker: they run on `PlannedDevice`s, which
have a number and a name. To compile, the TPU's own compiler is asked for the topology
(`compile_only_devices`); it comes with the package `libtpu`, the extra `plan`. The devices of
`local` are compiled for by their own compiler.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from roberta_jax.errors import UsageError, listed, shortened
from roberta_jax.planning.chips import (
    CHIPS,
    FLAT_SHAPES,
    MOST_CHIPS_OF_A_BOX,
    SMALL_BOXES,
    Chip,
)

LOCAL = "local"
EXAMPLES = "v5e:8x8, v5p:4x4x4, v6e:16x16, gpu:h200x8 or local"
_MOST_SLICES = 1024


@dataclasses.dataclass(frozen=True)
class PlannedDevice:
    """A device that a mesh can hold and that cannot compute."""

    id: int
    platform: str
    device_kind: str
    process_index: int = 0


@dataclasses.dataclass(frozen=True)
class Topology:
    """The accelerators of a run.

    Attributes:
      name: of one slice, as typed.
      chip: what is known of each; None for a kind of local device that is in no table.
      shape: of a TPU slice, such as (8, 8); () for GPUs and local devices.
      per_slice: chips of a slice: what the fast network connects.
      slices: slices, or nodes of GPUs, that the slow network connects.
      local: the devices of this machine, for the topology "local".
    """

    name: str
    chip: Chip | None
    shape: tuple[int, ...]
    per_slice: int
    slices: int = 1
    local: tuple[Any, ...] = ()

    @property
    def chips(self) -> int:
        return self.per_slice * self.slices

    @property
    def is_tpu(self) -> bool:
        return bool(self.shape)

    def __str__(self) -> str:
        if self.slices == 1:
            return self.name
        if self.is_tpu:
            return f"{self.slices} slices of {self.name}"
        return f"{self.slices} nodes of gpu:{self.chip.name}x{self.per_slice}"

    def devices(self) -> Sequence[Any]:
        """The devices to read the specification of a run for."""
        if self.local:
            return self.local
        per_host = self.chip.per_host
        return [
            PlannedDevice(i, self.chip.name, self.chip.kind, i // per_host)
            for i in range(self.chips)
        ]


def parse(text: str | None, slices: int = 1) -> Topology:
    """Reads `--topology` and `--slices`.

    Args:
      text: such as "v5e:8x8", "gpu:h200x8" or "local".
      slices: how many of them the slow network connects. For GPUs these are nodes; more than eight
        GPUs are several nodes of eight as well.

    Raises:
      UsageError: there is no such topology.
    """
    if not text:
        raise UsageError(f"no topology to plan for: give one, such as --topology={EXAMPLES}.")
    if not 1 <= slices <= _MOST_SLICES:
        raise UsageError(f"--slices={slices} must be from 1 to {_MOST_SLICES}.")
    if text == LOCAL:
        if slices > 1:
            raise UsageError(
                f"--slices={slices} has no meaning for --topology=local, which is this machine."
            )
        return _local()
    kind, _, size = text.partition(":")
    if kind == "gpu":
        return _gpus(text, size, slices)
    chip = CHIPS.get(kind)
    if chip is None or not chip.dimensions:
        raise UsageError(
            f"--topology={shortened(text)} is unknown: use one like {EXAMPLES}. The TPUs are "
            f"{', '.join(name for name, chip in CHIPS.items() if chip.dimensions)}; the GPUs are "
            f"{', '.join(name for name, chip in CHIPS.items() if not chip.dimensions)}."
        )
    if not re.fullmatch(r"[0-9]{1,4}(x[0-9]{1,4})*", size):
        raise UsageError(
            f"--topology={shortened(text)} has no shape: write the chips along each axis, such as "
            f"{_example(chip)}."
        )
    shape = tuple(map(int, size.split("x")))
    _check_shape(text, chip, shape)
    return Topology(text, chip, shape, math.prod(shape), slices)


def _example(chip: Chip) -> str:
    return f"{chip.name}:{'4x4x4' if chip.dimensions == 3 else '4x4'}"


def _check_shape(text: str, chip: Chip, shape: tuple[int, ...]) -> None:
    if len(shape) != chip.dimensions:
        raise UsageError(
            f"--topology={text} has {len(shape)} axes, but a {chip.name} slice has "
            f"{chip.dimensions}, such as {_example(chip)}."
        )
    if chip.dimensions == 2:
        known, shapes = shape in FLAT_SHAPES, FLAT_SHAPES
        also = ""
    else:
        multiples = all(side and side % 4 == 0 for side in shape)
        known = shape in SMALL_BOXES or (multiples and math.prod(shape) <= MOST_CHIPS_OF_A_BOX)
        shapes = SMALL_BOXES
        also = f", and boxes whose sides are multiples of 4, up to {MOST_CHIPS_OF_A_BOX} chips"
    if not known:
        names = [f"{chip.name}:{'x'.join(map(str, each))}" for each in shapes]
        raise UsageError(
            f"--topology={text}: there is no such slice. The slices are {listed(names, 12)}{also}."
        )


def _gpus(text: str, size: str, slices: int) -> Topology:
    names = [name for name, chip in CHIPS.items() if not chip.dimensions]
    match = re.fullmatch(r"([a-z0-9]+?)x([0-9]{1,6})", size)
    if match is None or match[1] not in names:
        raise UsageError(
            f"--topology={shortened(text)} is unknown: write gpu:KINDxNUMBER, such as gpu:h200x8. "
            f"The kinds are {', '.join(names)}."
        )
    chip, number = CHIPS[match[1]], int(match[2])
    if number < 1 or (number > chip.per_host and number % chip.per_host):
        raise UsageError(
            f"--topology={text}: plan for 1 to {chip.per_host} GPUs of one node, or a multiple of "
            f"{chip.per_host} for several nodes."
        )
    if number > chip.per_host:
        if slices > 1:
            raise UsageError(
                f"--topology={text} is {number // chip.per_host} nodes already: leave out "
                f"--slices={slices}."
            )
        return Topology(text, chip, (), chip.per_host, number // chip.per_host)
    return Topology(text, chip, (), number, slices)


def _local() -> Topology:
    import jax

    devices = tuple(jax.devices())
    kinds = {chip.kind: chip for chip in CHIPS.values()}
    return Topology(LOCAL, kinds.get(devices[0].device_kind), (), len(devices), 1, devices)


def compile_only_devices(topology: Topology) -> Sequence[Any]:
    """The devices of a TPU topology as its compiler describes them; none of them need exist.

    Raises:
      UsageError: libtpu is missing, is not one for this jax, or does not know the topology; or the
        topology is not one of TPUs.
    """
    if not topology.is_tpu:
        raise UsageError(
            f"--compile works for TPUs and for --topology=local: the compiler for {topology.name} "
            "needs the device. Leave out --compile for the formulas, or plan for local on the "
            "device itself."
        )
    # Without these, libtpu asks the metadata server of a TPU VM, and refuses a second process.
    variables = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": f"{topology.chip.name}-{topology.per_slice}",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    added = {name: text for name, text in variables.items() if name not in os.environ}
    os.environ.update(added)
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.per_slice == 1:  # by default a host has 2 x 2 chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        ).devices
    except Exception as error:  # of several types, with jax's version
        for name in added:  # with the compiler they stay, since it may read them later
            os.environ.pop(name, None)
        reason = shortened(" ".join(str(error).split()), 300)
        raise UsageError(
            f"--compile: the compiler of TPUs cannot plan for {topology}: {reason}\nIt is the "
            "package libtpu: install the version that belongs to this jax "
            f"({jax.__version__}) with pip install 'roberta_jax[plan]', or leave out --compile "
            "for the formulas."
        ) from error
