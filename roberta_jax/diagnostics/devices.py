"""Checks of the devices: which they are, what they compute and how fast they communicate."""

import glob
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_jax.diagnostics.report import Result, ok, problem, warning
from roberta_jax.errors import counted
from roberta_jax.modeling.layers import Embedding

DEVICES, ALL_REDUCE, EMBEDDING = "devices", "all-reduce", "embedding"

# The gradient is slow where repeated tokens make it so many times slower than distinct ones.
SLOW = 20.0
ROWS, FEATURES, IDS = 50_265, 256, 8_192  # of the embedding that is checked
MICROBATCHES = 2
_TOLERANCE = 1e-5  # of a sum in float32, relative to the sum of the absolute values
REPEATS = 5


def devices() -> list[Result]:
    """Says which devices there are, and whether better ones are not used."""
    found, local = jax.devices(), jax.local_devices()
    text = f"{len(found)} x {found[0].device_kind} ({found[0].platform})"
    if len(local) != len(found):
        text += f", {len(local)} of them here"
    memory = _memory(local[0])
    results = [ok(DEVICES, text + (f", {memory / 2**30:.1f} GiB each" if memory else ""))]
    if found[0].platform == "cpu" and os.environ.get("JAX_PLATFORMS", "") != "cpu":
        unused = _accelerators()
        if unused:
            results.append(
                problem(
                    DEVICES,
                    f"JAX uses the CPU, although this machine has {unused[0]}.",
                    f"install JAX for it: pip install 'roberta_jax[{unused[1]}]'; if it is "
                    "installed, see whether another process holds the devices.",
                )
            )
    return results


def all_reduce() -> list[Result]:
    """Sums an array over all devices, checks the sum and measures the bandwidth."""
    found = jax.devices()
    count = len(found)
    if count == 1:
        return [ok(ALL_REDUCE, "one device: there is nothing to reduce over")]
    size = (1 << 20) if found[0].platform == "cpu" else (1 << 24)  # of float32
    mesh = Mesh(np.asarray(found), ("all",))
    split = NamedSharding(mesh, PartitionSpec("all"))
    shape = (count, size)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        rows = range(*index[0].indices(count))
        return np.repeat(np.asarray(rows, np.float32)[:, None] + 1, size, axis=1)

    array = jax.make_array_from_callback(shape, split, part)
    reduce = jax.jit(
        lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    seconds, total = _fastest(reduce, array)
    expected = count * (count + 1) / 2
    values = np.asarray(total.addressable_data(0))
    if not np.all(values == expected):
        wrong = float(values[values != expected][0])
        return [
            problem(
                ALL_REDUCE,
                f"the sum over {count} devices is {wrong:g} instead of {expected:g}.",
                "do not train on these devices. Restart the hosts; if it stays, replace them.",
            )
        ]
    # Each device of a ring sends and receives this share of the array.
    gigabytes = 2 * (count - 1) / count * 4 * size / 1e9
    return [
        ok(
            ALL_REDUCE,
            f"{4 * size / 2**20:.0f} MiB over {count} devices in {1e3 * seconds:.2f} ms: "
            f"{gigabytes / seconds:.1f} GB/s a device",
        )
    ]


def embedding() -> list[Result]:
    """Compares the gradient of an embedding with a reference, and its speed on repeated ids.

    The gradient is computed by each process on one device, and added up over microbatches on all
    devices of the run.
    """
    random = np.random.default_rng(0)
    table = jnp.zeros((ROWS, FEATURES), jnp.float32)
    distinct = random.permutation(ROWS)[:IDS].astype(np.int32)
    # As in text: a few ids make up most of it.
    repeated = np.minimum(random.zipf(1.2, IDS), ROWS - 1).astype(np.int32)
    gradient = random.standard_normal((IDS, FEATURES), np.float32)

    @jax.jit
    def backward(table, ids, gradient):
        _, pull_back = jax.vjp(lambda table: _look_up(table, ids), table)
        return pull_back(gradient)[0]

    seconds, differences = [], []
    for ids in (distinct, repeated):
        spent, found = _fastest(backward, table, jnp.asarray(ids), jnp.asarray(gradient))
        seconds.append(spent)
        differences.append(_difference(np.asarray(found), ids, gradient))
    difference = float(np.max(differences))  # NaN if one of them is
    added_up, scattered = _accumulated_differences(repeated, gradient)  # on all processes
    over = f"over {MICROBATCHES} microbatches on {counted(len(jax.devices()), 'device')}"
    for wrong, which in ((difference, ""), (added_up, f", added up {over},")):
        if not wrong <= _TOLERANCE:
            return [
                problem(
                    EMBEDDING,
                    f"the gradient of an embedding{which} differs from the reference by "
                    f"{wrong:.2g} of its size (at most {_TOLERANCE:.0e} is rounding).",
                    "do not train with this version of JAX on these devices; install another one.",
                )
            ]
    text = (
        f"the gradient equals the reference to {difference:.1e}, added up {over} to "
        f"{added_up:.1e}; {1e3 * seconds[1]:.2f} ms with repeated ids, {1e3 * seconds[0]:.2f} ms "
        "with distinct ones"
    )
    results = [ok(EMBEDDING, text)]
    if seconds[1] > SLOW * seconds[0]:
        advice = "install another version of JAX; see the line versions."
        results = [warning(EMBEDDING, f"{text}: {seconds[1] / seconds[0]:.0f} times.", advice)]
    if not scattered <= _TOLERANCE:
        results.append(
            warning(
                EMBEDDING,
                "`sum.at[ids].add(gradient)` within jax.lax.scan, on several devices, differs from "
                f"the reference by {scattered:.2g} of its size. Training does not use it; your own "
                "code may.",
                "install another version of JAX; see the line versions.",
            )
        )
    return results


def _accumulated_differences(ids: np.ndarray, gradient: np.ndarray) -> tuple[float, float]:
    """The largest errors of gradients that are added up over microbatches and all devices.

    Returns:
      Where the gradient of each microbatch has its sharding before it is added to the sum, as in
      the train step; and where it is scattered into the sum, of which compilers make another
      program.
    """
    found = jax.devices()
    rows = -(-len(ids) // len(found)) * len(found)  # of a microbatch: as many on each device
    ids = np.resize(ids, (MICROBATCHES, rows))
    ids[1:] = ids[1:, ::-1]  # other ids on each device
    gradient = np.resize(gradient, (MICROBATCHES, rows, FEATURES))
    mesh = Mesh(np.asarray(found), ("all",))
    split = NamedSharding(mesh, PartitionSpec(None, "all"))
    whole = NamedSharding(mesh, PartitionSpec())

    def add(totals, microbatch):
        ids, gradient = microbatch
        _, pull_back = jax.vjp(lambda table: _look_up(table, ids), jnp.zeros_like(totals[0]))
        part = jax.lax.with_sharding_constraint(pull_back(gradient)[0], whole)
        totals = totals[0] + part, totals[1].at[ids].add(gradient)
        return jax.lax.with_sharding_constraint(totals, whole), None

    @jax.jit
    def accumulate(ids, gradient):
        totals = (jnp.zeros((ROWS, FEATURES), jnp.float32),) * 2
        totals = jax.lax.with_sharding_constraint(totals, whole)
        return jax.lax.scan(add, totals, (ids, gradient))[0]

    sums = accumulate(
        *(
            jax.make_array_from_callback(
                array.shape, split, lambda index, array=array: array[index]
            )
            for array in (ids, gradient)
        )
    )
    ids, gradient = ids.reshape(-1), gradient.reshape(-1, FEATURES)
    added_up, scattered = (
        _difference(np.asarray(each.addressable_data(0)), ids, gradient) for each in sums
    )
    return added_up, scattered


def _look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows of an embedding table [V, D] for ids [N], as the model looks them up."""
    layer = Embedding(
        num_embeddings=table.shape[0],
        features=table.shape[1],
        rows_axis="vocab",
        initializer_range=0.02,
        dtype=jnp.float32,
    )
    return layer.apply({"params": {"embedding": table}}, ids)


def _difference(found: np.ndarray, ids: np.ndarray, gradient: np.ndarray) -> float:
    """The largest error of a gradient, relative to the sum of the absolute values of its terms."""
    expected = np.zeros(found.shape, np.float64)
    sizes = np.zeros(found.shape, np.float64)
    np.add.at(expected, ids, gradient.astype(np.float64))
    np.add.at(sizes, ids, np.abs(gradient).astype(np.float64))
    return float(np.max(np.abs(found - expected) / np.maximum(sizes, 1.0)))


def _fastest(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Returns the shortest of several times of a call, in seconds, and its result."""
    result = jax.block_until_ready(function(*arguments))  # compiles
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return min(times), result


def _memory(device: jax.Device) -> int | None:
    """The bytes of a device's memory that JAX may use, if the device tells."""
    try:
        statistics = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:
        return None
    return statistics.get("bytes_limit")


def _accelerators() -> tuple[str, str] | None:
    """Accelerators of this machine, and the extra of roberta_jax that uses them."""
    if shutil.which("nvidia-smi") and glob.glob("/dev/nvidia[0-9]*"):
        return "NVIDIA GPUs", "cuda13"
    if glob.glob("/dev/accel[0-9]*"):
        return "TPUs", "tpu"
    return None
