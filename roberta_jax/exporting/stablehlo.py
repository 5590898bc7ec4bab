"""Exports models as StableHLO programs, which run in JAX without this package.

A folder has three files: `model.stablehlo` is the program (`jax.export`), `params.safetensors` its
parameters, and `signature.json` describes its inputs and outputs. Loading verifies the checksums of
the first two. To run it:

    import flax, jax.export, safetensors.numpy

    flat = safetensors.numpy.load_file("params.safetensors")
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    program = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    outputs = program.call(params, {"input_ids": ids, "attention_mask": mask})

Inputs may have any batch size, and any length up to the model's `max_length`.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util
from jax import export

from roberta_jax.errors import UsageError
from roberta_jax.exporting.lowering import input_axes, input_names, lower
from roberta_jax.storage.atomic import check_replaceable, replace_folder, unchanged_on_error
from roberta_jax.storage.reading import parse_json, read_bytes, read_text
from roberta_jax.weights.formats.safetensors import TensorSpec, read_weights, write_safetensors
from roberta_jax.weights.tensors import read_all

PROGRAM = "model.stablehlo"
PARAMS = "params.safetensors"
SIGNATURE = "signature.json"
FILES = (PROGRAM, PARAMS, SIGNATURE)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_stablehlo(
    path: str | os.PathLike,
    model: nn.Module,
    params: Any,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes a folder with a program and its parameters; see the module's docstring.

    The folder is complete or absent. An earlier export in its place is replaced.

    Args:
      path: The folder to write.
      model: Any of the model classes, without a cache.
      params: Its parameters.
      platforms: What the program is to run on, of `PLATFORMS`.

    Raises:
      UsageError: A platform is unknown, the folder holds other files, or it cannot be written.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise UsageError(
            f"unknown platform {', '.join(unknown) or 'list'}: use some of {', '.join(PLATFORMS)}"
        )
    target = epath.Path(path)
    check_replaceable(target, FILES.__contains__)
    program = lower(model, params, platforms)
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    axes = input_axes(model)
    signature = {
        "inputs": {name: {"dtype": "int32", "shape": axes} for name in input_names(model)},
        "outputs": {
            name: {"dtype": value.dtype.name, "shape": [str(size) for size in value.shape]}
            for name, value in outputs.items()
        },
        "platforms": list(program.platforms),
        "max_length": model.config.max_length,
    }
    flat = traverse_util.flatten_dict(params, sep="/")
    specs = [TensorSpec(name, value.shape, np.dtype(value.dtype)) for name, value in flat.items()]
    specs.sort(key=lambda spec: -spec.dtype.itemsize)
    data = program.serialize()
    signature["crc32"] = f"{zlib.crc32(data):08x}"
    with unchanged_on_error(target), replace_folder(target, last=SIGNATURE) as folder:
        (folder / PROGRAM).write_bytes(data)
        arrays = (np.asarray(flat[spec.name]) for spec in specs)
        write_safetensors(folder / PARAMS, specs, arrays)
        text = json.dumps(signature, indent=2) + "\n"
        (folder / SIGNATURE).write_text(text, encoding="utf-8")


def load_stablehlo(path: str | os.PathLike) -> Callable[..., dict[str, jax.Array]]:
    """Loads an exported folder.

    Returns:
      A function of the inputs as keyword arguments (arrays that can be cast to int32). It returns
      the outputs by name, and raises a ValueError if inputs are missing, unknown or too long.

    Raises:
      UsageError: There is no such folder, or it is damaged.
    """
    folder = pathlib.Path(path)
    try:
        signature = parse_json(read_text(folder / SIGNATURE))
        names, max_length = set(signature["inputs"]), int(signature["max_length"])
        data = read_bytes(folder / PROGRAM, max_bytes=1 << 40)
        if f"{zlib.crc32(data):08x}" != signature.get("crc32", f"{zlib.crc32(data):08x}"):
            raise ValueError(f"{PROGRAM} does not have the checksum in {SIGNATURE}")
        tensors = read_weights(folder / PARAMS).tensors
        flat = {name: np.empty(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        read_all((name, tensor, flat[name]) for name, tensor in tensors.items())
        program = export.deserialize(bytearray(data))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no exported program: no {error.filename}") from None
    except Exception as error:  # flatbuffers, JSON and safetensors raise errors of their own
        raise UsageError(f"{folder} is damaged ({error}); export the model again") from error
    params = jax.device_put(traverse_util.unflatten_dict(flat, sep="/"))
    call = jax.jit(program.call)

    def run(**inputs: jax.Array) -> dict[str, jax.Array]:
        if set(inputs) != names:
            raise ValueError(f"give {', '.join(sorted(names))}, not {', '.join(sorted(inputs))}")
        arrays = {name: jnp.asarray(value, jnp.int32) for name, value in inputs.items()}
        length = arrays["input_ids"].shape[-1]
        if length > max_length:
            raise ValueError(f"input of {length} tokens; this model has positions for {max_length}")
        return call(params, arrays)

    return run
