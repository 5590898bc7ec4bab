"""The formula for what each chip sends in a step, by mesh axis.

The bytes are those of the ring algorithms (`hlo.ring_bytes`). The train step communicates

* over `data` once per step: the float32 gradients are added up (all-reduce);
* over `fsdp` in each microbatch: each matrix of a layer is gathered in the dtype of the matrix
  products, in the forward and in the backward pass, and the tables once per step (all-gather); the
  float32 gradients are added up and split again (reduce-scatter);
* over `tensor` in each microbatch: activations are added up (all-reduce), twice per layer in the
  forward pass and four times in the backward pass, where the gradients through queries, keys and
  values come one by one. `remat=full` repeats those of the forward pass.

`data` is the only axis that may cross slices or nodes. An all-reduce over it then reduces within
each slice, sends only each chip's part of the result to the other slices, and spreads it.
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
      slices: over which `data` is spread.
    """
    return [
        *_over_data(work, chip, slices),
        *_over_fsdp(work, chip),
        *_over_tensor(work, chip),
    ]


def _over_data(work: Workload, chip: Chip | None, slices: int) -> list[Traffic]:
    data = work.mesh["data"]
    inside, size = data // slices, work.parameter_bytes
    what = "gradients, float32, once per step"
    found = []
    if inside > 1:
        found.append(
            _inner(chip, "data", "all-reduce", what, ring_bytes("all-reduce", size, inside))
        )
    if slices > 1:
        sent = ring_bytes("all-reduce", size / inside, slices)
        network, bandwidth = (chip.outer, chip.network) if chip else ("network", math.inf)
        found.append(Traffic("data", "all-reduce", what, network, sent, sent / bandwidth))
    return found


def _over_fsdp(work: Workload, chip: Chip | None) -> list[Traffic]:
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
    each = "in each microbatch"
    return [
        _inner(
            chip, "fsdp", "all-gather", f"parameters, {each}, forward and backward",
            ring_bytes("all-gather", gathered, parts),
        ),
        _inner(
            chip, "fsdp", "reduce-scatter", f"gradients, float32, {each}",
            ring_bytes("reduce-scatter", reduced, parts),
        ),
    ]  # fmt: skip


def _over_tensor(work: Workload, chip: Chip | None) -> list[Traffic]:
    parts = work.mesh["tensor"]
    if parts == 1:
        return []
    activation = work.rows * work.length * work.model.hidden_size * work.item
    times = 8 if work.execution.remat == "full" else 6
    layers = work.accumulation * work.model.num_hidden_layers * times * activation
    found = _inner(
        chip, "tensor", "all-reduce", f"activations, {times} times per layer and microbatch",
        ring_bytes("all-reduce", layers, parts),
    )  # fmt: skip
    return [found]


def _inner(chip: Chip | None, axes: str, kind: str, what: str, sent: float) -> Traffic:
    network, bandwidth = (chip.inner, chip.link) if chip else ("devices", math.inf)
    return Traffic(axes, kind, what, network, sent, sent / bandwidth)
