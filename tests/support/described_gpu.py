"""Lowers functions for a GPU on a machine without one."""

import contextlib
from collections.abc import Callable

import jax


def lowered(function: Callable, *shapes: jax.ShapeDtypeStruct) -> str:
    """The text of the function, lowered for an H200 and arguments of these shapes and dtypes."""
    with _described():
        traced = jax.jit(function).trace(*shapes)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def _described() -> contextlib.AbstractContextManager:
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()  # assumes a GPU where there is none
    device = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
