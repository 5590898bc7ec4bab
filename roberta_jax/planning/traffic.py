"""The formula for what each chip sends in a step, by mesh axis.

The bytes are those of the ring algorithms (`hlo.ring_bytes`). The train step communicates

* over `data` once per step: the float32 gradients are added up (all-reduce);
* over `fsdp` in each microbatch: each matrix of a layer is gathered in the dtype of the matrix
  products, in the forward and in the backward pass, and the tables once per step (all-gather); the
  float32 gradients are added up and split again (reduce-scatter);
* over `tensor` in each microbatch: activations are added up (all-reduce), twice per layer in the
  forward pass and four times in the backward pass, where the gradients through queries, keys and
  values come one by one. `remat=full` repeats those of the forward pass.

Only `data` crosses TPU slices, and it crosses nodes of GPUs where the axes after it fill a node. An
all-reduce over it then reduces within each slice or node, sends only each chip's part of the result
to the others, and spreads it. Where `fsdp` or `tensor` cross nodes of GPUs, as many rings run at
the same time as the group has GPUs in a node, each over the network of another GPU.
"""

import dataclasses
import math

from roberta_jax.planning.chips import Chip
from roberta_jax.planning.hlo import ring_bytes
from roberta_jax.planning.workload import Workload


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What each chip sends in a step for one purpose.

    Attributes:
      axes: mesh axes, such as "data".
      kind: the collective.
      what: what is communicated.
      network: "ICI", "DCN", "NVLink", ...
      bytes: that each chip sends in a step.
      seconds: that it takes if nothing else uses the network.
    """

    axes: str
    kind: str
    what: str
    network: str
    bytes: float
    seconds: float


def traffic(work: Workload, chip: Chip | None, slices: int = 1) -> list[Traffic]:
    """What each chip sends in a step.

    Args:
      work: the run.
      chip: gives the bandwidths; None leaves the seconds 0.
      slices: slices, or nodes of GPUs, that the slow network connects.
    """
    return [
        *_over_data(work, chip, slices),
        *_over_fsdp(work, chip, slices),
        *_over_tensor(work, chip, slices),
    ]


def _together(work: Workload, axis: str, slices: int) -> int:
    """How many chips of a group along an axis are in the same slice or node."""
    sizes = list(work.mesh.values())
    at = list(work.mesh).index(axis)
    after, span = math.prod(sizes[at + 1 :]), math.prod(sizes[at:])
    return max(1, math.gcd(math.prod(sizes) // slices, span) // after)


def _over_data(work: Workload, chip: Chip | None, slices: int) -> list[Traffic]:
    data = work.mesh["data"]
    inside, size = _together(work, "data", slices), work.parameter_bytes
    groups = data // inside
    what = "gradients, float32, once per step"
    found = []
    if inside > 1:
        found.append(
            _inner(chip, "data", "all-reduce", what, ring_bytes("all-reduce", size, inside))
        )
    if groups > 1:
        sent = ring_bytes("all-reduce", size / inside, groups)
        network, bandwidth = (chip.outer, chip.network) if chip else ("network", math.inf)
        found.append(Traffic("data", "all-reduce", what, network, sent, sent / bandwidth))
    return found


def _over_fsdp(work: Workload, chip: Chip | None, slices: int) -> list[Traffic]:
    parts = work.mesh["fsdp"]
    if parts == 1:
        return []
    in_layers = outside = 0
    for path, (_, shard, spec) in work.shards.items():
        if "fsdp" not in str(spec):
            continue
        size = math.prod(shard) * parts  # elements, gathered over fsdp, split over tensor
        if "encoder/layer" in path:
            in_layers += size
        else:
            outside += size
    gathered = work.item * (work.accumulation * 2 * in_layers + outside)
    reduced = 4 * work.accumulation * (in_layers + outside)
    each, inside = "in each microbatch", _together(work, "fsdp", slices)
    return [
        _inner(
            chip, "fsdp", "all-gather", f"parameters, {each}, forward and backward",
            ring_bytes("all-gather", gathered, parts), inside if inside < parts else 0,
        ),
        _inner(
            chip, "fsdp", "reduce-scatter", f"gradients, float32, {each}",
            ring_bytes("reduce-scatter", reduced, parts), inside if inside < parts else 0,
        ),
    ]  # fmt: skip


def _over_tensor(work: Workload, chip: Chip | None, slices: int) -> list[Traffic]:
    parts = work.mesh["tensor"]
    if parts == 1:
        return []
    activation = work.rows * work.length * work.model.hidden_size * work.item
    times = 8 if work.execution.remat == "full" else 6
    layers = work.accumulation * work.model.num_hidden_layers * times * activation
    inside = _together(work, "tensor", slices)
    found = _inner(
        chip, "tensor", "all-reduce", f"activations, {times} times per layer and microbatch",
        ring_bytes("all-reduce", layers, parts), inside if inside < parts else 0,
    )  # fmt: skip
    return [found]


def _inner(
    chip: Chip | None, axes: str, kind: str, what: str, sent: float, rings: int = 0
) -> Traffic:
    """Traffic within slices or nodes, or in that many rings across nodes, if `rings` is not 0."""
    network, bandwidth = (chip.inner, chip.link) if chip else ("devices", math.inf)
    if chip and rings:
        network, bandwidth = chip.outer, min(chip.link, rings * chip.network)
    return Traffic(axes, kind, what, network, sent, sent / bandwidth)
