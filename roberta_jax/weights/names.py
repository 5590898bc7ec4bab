"""Converts between the layouts of a model's parameters and gives each one its PyTorch name.

* **Stacked**: the parameters of all blocks are in one subtree, `encoder.layer`, whose leaves have a
  leading axis of layers (`Execution(scan_layers=True)`, which training uses).
* **Unstacked**: one subtree per block, `encoder.layer.0`, `.1`, …, as in Hugging Face's Flax
  classes.
* **PyTorch**: a flat dictionary. A name is the path in the unstacked tree, joined by dots, with
  `weight` instead of `kernel`, `embedding` and `scale`. A `kernel` [in, out] is the transpose of
  its `weight` [out, in].

The rule holds for every module whose name is Hugging Face's.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

Params = Mapping[str, Any]  # a nested dictionary of arrays

_LAYER = "layer"
_PREFIX = "roberta."
_TO_TORCH = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


def stack_layers(params: Params) -> dict[str, Any]:
    """Stacks the parameters of all layers; stacked parameters are returned unchanged.

    Args:
      params: A nested dictionary of NumPy or JAX arrays. Stacked leaves are of the same kind.

    Raises:
      ValueError: The layers are not numbered 0, 1, …, or do not all have the same parameters.
    """
    return _map_layers(params, _stack)


def unstack_layers(params: Params) -> dict[str, Any]:
    """Undoes `stack_layers`; NumPy leaves become views, not copies."""
    return _map_layers(params, _unstack)


def _map_layers(tree, change):
    if not isinstance(tree, Mapping):
        return tree
    return {
        key: change(value) if key == _LAYER else _map_layers(value, change)
        for key, value in tree.items()
    }


def _is_stacked(layers: Params) -> bool:
    return not all(key.isdecimal() for key in layers)


def _stack(layers: Params) -> dict[str, Any]:
    if _is_stacked(layers):
        return dict(layers)
    flat = [traverse_util.flatten_dict(layers[key]) for key in sorted(layers, key=int)]
    if sorted(map(int, layers)) != list(range(len(layers))):
        raise ValueError(f"layers must be numbered from 0 without a gap, not {sorted(layers)}")
    if any(leaves.keys() != flat[0].keys() for leaves in flat):
        raise ValueError("the layers have different parameters and cannot be stacked")
    stacked = {}
    for path, first in flat[0].items():
        stack = np.stack if isinstance(first, np.ndarray) else jnp.stack
        stacked[path] = stack([leaves[path] for leaves in flat])
    return traverse_util.unflatten_dict(stacked)


def _unstack(layers: Params) -> dict[str, Any]:
    if not _is_stacked(layers):
        return dict(layers)
    flat = traverse_util.flatten_dict(layers)
    num_layers = len(next(iter(flat.values())))
    return {
        str(i): traverse_util.unflatten_dict({path: leaf[i] for path, leaf in flat.items()})
        for i in range(num_layers)
    }


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of a parameter tree and the PyTorch tensors it corresponds to.

    Attributes:
      path: Its path in the tree.
      value: The leaf itself: an array, or anything with `shape` and `dtype`.
      names: The PyTorch names: one, or for a stacked leaf one per layer.
      stacked: Whether the leaf's first axis is the layers.
      transposed: Whether the PyTorch tensors are the transposes of the leaf.
    """

    path: tuple[str, ...]
    value: Any
    names: tuple[str, ...]
    stacked: bool
    transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of each of the PyTorch tensors."""
        shape = tuple(self.value.shape[1:] if self.stacked else self.value.shape)
        return shape[::-1] if self.transposed else shape


def leaves(params: Params) -> list[Leaf]:
    """Lists the leaves of a tree, stacked or unstacked, with their PyTorch names."""
    result = []
    for path, value in traverse_util.flatten_dict(nn.meta.unbox(dict(params))).items():
        *parents, last = path
        names = [torch_name(path)]
        depth = path.index(_LAYER) + 1 if _LAYER in path else len(path)
        stacked = depth < len(path) and not path[depth].isdecimal()
        if stacked:
            prefix, suffix = path[:depth], [*parents[depth:], _TO_TORCH.get(last, last)]
            names = [".".join([*prefix, str(i), *suffix]) for i in range(value.shape[0])]
        result.append(Leaf(path, value, tuple(names), stacked, last == "kernel"))
    return result


def split_leaves(
    leaves: Iterable[Leaf], arrays: Iterable[np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the PyTorch tensors of leaves with their names.

    Args:
      leaves: The leaves.
      arrays: Their values, in the same order; consumed one at a time.
    """
    for leaf, array in zip(leaves, arrays, strict=True):
        for name, tensor in zip(leaf.names, array if leaf.stacked else [array], strict=True):
            yield name, tensor.T if leaf.transposed else tensor


def torch_name(path: tuple[str, ...]) -> str:
    """The PyTorch name of a leaf, given its path in the unstacked tree."""
    return ".".join([*path[:-1], _TO_TORCH.get(path[-1], path[-1])])


def canonical(name: str) -> str:
    """The form of a PyTorch name that all model classes share.

    `RobertaModel` saves `embeddings…`, every other class `roberta.embeddings…`. Files converted
    from TensorFlow name LayerNorm's parameters `gamma` and `beta`.
    """
    name = name.removeprefix(_PREFIX)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
