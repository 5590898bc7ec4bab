"""Prints how the parameters and the optimizer's state are split over the devices."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.training.partitioning import mesh_size
from roberta_jax.training.state import abstract_state

_HEADER = ("array", "shape", "axes", "mesh axes", "shards", "bytes a chip")


@dataclasses.dataclass(frozen=True)
class Row:
    """How one array is split.

    Attributes:
      name: its path, such as "roberta/embeddings/word_embeddings/embedding".
      shape: its global shape.
      axes: the logical name of each axis, or None.
      mesh_axes: the mesh axes that split each axis, those of size 1 left out; () if none does.
      shards: number of different parts. Each is on (devices / shards) devices.
      bytes_per_chip: size of a part.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    mesh_axes: tuple[tuple[str, ...], ...]
    shards: int
    bytes_per_chip: int


def shard_rows(spec: PretrainingSpec) -> tuple[list[Row], list[Row]]:
    """Returns (the parameters, the optimizer's state). No arrays are made and no text is read.

    The vocabulary is that of the tokenizer or model that the config names, which is loaded, or
    `new_tokenizer.vocab_size`, which a tokenizer trained on little text may not reach.

    Raises:
      UsageError: the tokenizer cannot be loaded, or a parameter cannot be split as the rules say.
    """
    config = spec.model
    if spec.text.tokenizer:
        config = spec.model_config(RobertaTokenizer.from_pretrained(spec.text.tokenizer))
    model, training = spec.model_class(config, spec.execution), spec.training

    def init_params() -> Any:
        return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    state = abstract_state(init_params, training.optimizer, training.mesh, training.rules)
    params = jax.eval_shape(init_params)
    opt_state = jax.eval_shape(lambda: training.optimizer.init(init_params()))
    return _rows(params, state.params), _rows(opt_state, state.opt_state)


def describe_sharding(spec: PretrainingSpec) -> str:
    """A table of `shard_rows`, with totals.

    Raises:
      UsageError: as `shard_rows`.
    """
    params, opt_state = shard_rows(spec)
    mesh = spec.training.mesh
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    kind = getattr(device, "device_kind", device.platform)
    table = [_HEADER, *map(_cells, params), *map(_cells, opt_state)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [_line(cells, widths) for cells in table]
    lines.insert(1 + len(params), "\nOptimizer state")
    held, state_held = (sum(row.bytes_per_chip for row in rows) for rows in (params, opt_state))
    count = sum(math.prod(row.shape) for row in params)
    whole = sum(row.shards * row.bytes_per_chip for row in params)
    state_whole = sum(row.shards * row.bytes_per_chip for row in opt_state)
    return "\n".join(
        [
            f"{mesh.size} x {kind} ({sizes})\n",
            *lines,
            f"\n{count:,} parameters. Bytes on each chip, and of one whole copy:",
            f"  parameters       {held:>16,} of {whole:,}",
            f"  optimizer state  {state_held:>16,} of {state_whole:,}",
            f"  gradients        {held:>16,} of {whole:,}",
            f"  together         {2 * held + state_held:>16,} of {2 * whole + state_whole:,}",
        ]
    )


def _rows(boxed: Any, abstract: Any) -> list[Row]:
    def is_box(leaf: Any) -> bool:
        return isinstance(leaf, nn.Partitioned)

    def row(path, box, leaf) -> Row:
        mesh, spec = leaf.sharding.mesh, tuple(leaf.sharding.spec)
        spec += (None,) * (len(leaf.shape) - len(spec))
        names = [(axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec]
        shards = math.prod(mesh_size(mesh, axes) for axes in names)
        return Row(
            name=jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"),
            shape=leaf.shape,
            axes=tuple(box.names) if is_box(box) else (None,) * len(leaf.shape),
            mesh_axes=tuple(tuple(axis for axis in axes if mesh.shape[axis] > 1) for axes in names),
            shards=shards,
            bytes_per_chip=math.prod(leaf.shape) * leaf.dtype.itemsize // shards,
        )

    boxes = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)
    leaves = jax.tree.leaves(abstract)
    return [row(path, box, leaf) for (path, box), leaf in zip(boxes, leaves, strict=True)]


def _cells(row: Row) -> tuple[str, ...]:
    mesh_axes = ["*".join(axes) or "-" for axes in row.mesh_axes]
    return (
        row.name,
        " x ".join(map(str, row.shape)) or "scalar",
        ", ".join(axis or "-" for axis in row.axes),
        ", ".join(mesh_axes) if any(row.mesh_axes) else "replicated",
        str(row.shards),
        f"{row.bytes_per_chip:,}",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(cells[:4], widths[:4], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[4:], widths[4:], strict=True)]
    return "  ".join([*left, *right])
