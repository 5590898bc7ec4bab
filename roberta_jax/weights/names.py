"""One model's parameters in three layouts, and the ways between them.

* **Stacked**: all blocks' parameters in one subtree, `encoder.layer`, each leaf with a leading
  axis of layers (`Execution(scan_layers=True)`, which training uses).
* **A layer each**: subtrees `encoder.layer.0`, `.1`, …, as Hugging Face's Flax classes have it.
* **PyTorch's**: a flat dictionary. A name is the tree's path, dotted, with `weight` for `kernel`,
  `embedding` and `scale`; a `kernel` [in, out] is transposed into a `weight` [out, in].

The rule is mechanical, so that it holds for every head that is named as Hugging Face names it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

Params = Mapping[str, Any]  # a nested dictionary with arrays at its leaves

_LAYER = "layer"
_PREFIX = "roberta."
_TO_TORCH = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


def stack_layers(params: Params) -> dict[str, Any]:
    """Turns a layer each into stacked; parameters that are stacked already come back as they are.

    Args:
      params: Nested dictionary of NumPy or JAX arrays; the stacked leaves are of the same kind.

    Raises:
      ValueError: The layers are not numbered 0, 1, … or differ from each other in their leaves.
    """
    return _map_layers(params, _stack)


def unstack_layers(params: Params) -> dict[str, Any]:
    """Turns stacked into a layer each; NumPy leaves become views, not copies."""
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
        raise ValueError("layers differ in their parameters, so they cannot be stacked")
    stacked = {}
    for path, first in flat[0].items():
        stack = np.stack if isinstance(first, np.ndarray) else jnp.stack
        stacked[path] = stack([leaves[path] for leaves in flat])
    return traverse_util.unflatten_dict(stacked)


def _unstack(layers: Params) -> dict[str, Any]:
    if not _is_stacked(layers):
        return dict(layers)
    flat = traverse_util.flatten_dict(layers)
    count = len(next(iter(flat.values())))
    return {
        str(i): traverse_util.unflatten_dict({path: leaf[i] for path, leaf in flat.items()})
        for i in range(count)
    }


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our leaves and the PyTorch tensors that hold it.

    Attributes:
      path: Its path in our tree.
      value: The leaf itself: an array, or anything with `shape` and `dtype`.
      names: The PyTorch names: one, or for a stacked leaf one a layer.
      stacked: Whether the leaf's first axis is the layers.
      transposed: Whether the tensors are the transposes of ours.
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
    """Lists a tree's leaves, stacked or a layer each, with their PyTorch names."""
    found = []
    for path, value in traverse_util.flatten_dict(nn.meta.unbox(dict(params))).items():
        *parents, last = path
        names = [torch_name(path)]
        depth = path.index(_LAYER) + 1 if _LAYER in path else len(path)
        stacked = depth < len(path) and not path[depth].isdecimal()
        if stacked:
            head, tail = path[:depth], [*parents[depth:], _TO_TORCH.get(last, last)]
            names = [".".join([*head, str(i), *tail]) for i in range(value.shape[0])]
        found.append(Leaf(path, value, tuple(names), stacked, last == "kernel"))
    return found


def torch_name(path: tuple[str, ...]) -> str:
    """The PyTorch name of a leaf of a tree with a layer each."""
    return ".".join([*path[:-1], _TO_TORCH.get(path[-1], path[-1])])


def canonical(name: str) -> str:
    """A PyTorch name as every class shares it.

    The encoder's own class saves `embeddings…`, every other class `roberta.embeddings…`; files
    converted from TensorFlow call LayerNorm's parameters `gamma` and `beta`.
    """
    name = name.removeprefix(_PREFIX)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
