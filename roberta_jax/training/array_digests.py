"""Describes the arrays of a checkpoint: names, shapes, dtypes and digests.

Digests are computed on the devices that hold the arrays and do not depend on the mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from roberta_jax.errors import UsageError


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shape_and_dtype(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def describe(state: Any) -> dict[str, dict[str, Any]]:
    """Returns the shape, dtype and digest of each array in a tree, by its name."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(state), strict=True)
    digests = np.asarray(_digests(list(leaves)))
    return {
        _name(path): {**_shape_and_dtype(leaf), "digest": f"{digest:08x}"}
        for path, leaf, digest in zip(paths, leaves, digests.tolist(), strict=True)
    }


def check_same_leaves(saved: Mapping[str, Any], like: Any, folder: epath.Path) -> None:
    """Checks names, shapes and dtypes. (Orbax casts other dtypes silently.)

    Raises:
      UsageError: they differ; the message lists how.
    """
    in_checkpoint = {name: f"{leaf['dtype']}{leaf['shape']}" for name, leaf in saved.items()}
    in_run = {
        _name(path): "{dtype}{shape}".format(**_shape_and_dtype(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    differing = sorted(
        name for name in in_checkpoint | in_run if in_checkpoint.get(name) != in_run.get(name)
    )
    if differing:
        lines = [
            f"  {name}: saved {in_checkpoint.get(name, 'nothing')}, "
            f"this run has {in_run.get(name, 'nothing')}"
            for name in differing[:8]
        ]
        more = [f"  ... and {len(differing) - 8} more"] if len(differing) > 8 else []
        raise UsageError(
            "\n".join(
                [f"the checkpoint {folder} belongs to another model or optimizer:", *lines, *more]
            )
            + "\nUse the config of the run that wrote it, or a new --workdir."
        )


@jax.jit
def _digests(leaves: list[jax.Array]) -> jax.Array:
    """Returns the digest of each array, uint32 [number of arrays]."""
    return jnp.stack([digest(leaf) for leaf in leaves])


def digest(x: jax.Array) -> jax.Array:
    """Computes a checksum of an array that does not depend on its sharding.

    It is the sum, modulo 2^32, of each element's bits as an unsigned integer, times an odd weight
    that depends on the element's global index. The order of summation does not matter, so every
    mesh gives the same value, without a copy to the host. An odd weight has an inverse, so a change
    of one element always changes the sum. (Of 8-byte types, only the lower 32 bits count.)

    Returns:
      uint32 scalar.
    """
    if x.dtype == jnp.bool_:
        bits = x
    else:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # A hash of the index, so that weights of nearby elements differ in many bits. With consecutive
    # odd numbers as weights, many swaps of two elements would go unnoticed.
    weights = index * jnp.uint32(0x9E3779B1)
    weights = (weights ^ (weights >> 15)) | jnp.uint32(1)
    return jnp.sum(bits.astype(jnp.uint32) * weights, dtype=jnp.uint32)
