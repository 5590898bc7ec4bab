"""Models as compiled programs, for servers that do not have this package.

Two forms. **StableHLO** (`jax.export`): `model.stablehlo` is the program, `params.safetensors` its
weights, `signature.json` what goes in and comes out; any JAX runs it:

    import flax, jax.export, safetensors.numpy

    flat = safetensors.numpy.load_file("params.safetensors")
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    program = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    outputs = program.call(params, {"input_ids": ids, "attention_mask": mask})

**SavedModel**: what TensorFlow Serving runs, with the signature `serving_default` of
Hugging Face's TensorFlow classes: int32 `input_ids` and `attention_mask` (and `token_type_ids`,
where the model has more than one) in, their outputs' names out.

Both take any number of inputs, of any length that the model has positions for.
"""

import json
import os
import pathlib
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
from roberta_jax.storage.atomic import check_replaceable, replace_folder
from roberta_jax.weights.files import TensorSpec, write_safetensors

PROGRAM = "model.stablehlo"
PARAMS = "params.safetensors"
SIGNATURE = "signature.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# In the order of Hugging Face's outputs.
_OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")


def served(model: nn.Module) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """The function that is exported: (params, inputs by name) -> outputs by name."""

    def call(params: Any, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        output = model.apply({"params": params}, **inputs)
        found = {name: getattr(output, name, None) for name in _OUTPUTS}
        return {name: value for name, value in found.items() if value is not None}

    return call


def input_names(model: nn.Module) -> list[str]:
    """What the exported program takes: int32 arrays, all of one shape."""
    names = ["input_ids", "attention_mask"]
    return [*names, "token_type_ids"] if model.config.type_vocab_size > 1 else names


def _axes(model: nn.Module) -> list[str]:
    choices = ["choices"] if type(model).__name__ == "RobertaForMultipleChoice" else []
    return ["batch", *choices, "length"]


def export_stablehlo(
    path: str | os.PathLike,
    model: nn.Module,
    params: Any,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes a folder with the program and its weights; see the module's docstring.

    The folder appears whole or not at all, and replaces one of its kind.

    Args:
      path: the folder to write.
      model: any of the models, without a cache.
      params: its parameters.
      platforms: what the program is to run on, of `PLATFORMS`.

    Raises:
      UsageError: an unknown platform, or the folder holds other files.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise UsageError(
            f"unknown platform {', '.join(unknown) or 'list'}: use some of {', '.join(PLATFORMS)}"
        )
    target = epath.Path(path)
    check_replaceable(target, (PROGRAM, PARAMS, SIGNATURE).__contains__)
    program = _exported(model, params, platforms)
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    signature = {
        "inputs": {name: {"dtype": "int32", "shape": _axes(model)} for name in input_names(model)},
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
    with replace_folder(target, last=SIGNATURE) as folder:
        (folder / PROGRAM).write_bytes(program.serialize())
        write_safetensors(folder / PARAMS, specs, (np.asarray(flat[spec.name]) for spec in specs))
        (folder / SIGNATURE).write_text(json.dumps(signature, indent=2) + "\n", encoding="utf-8")


def load_stablehlo(
    path: str | os.PathLike,
) -> Callable[..., dict[str, jax.Array]]:
    """Loads what `export_stablehlo` wrote: a function of int32 arrays by name.

    Raises:
      UsageError: there is no such folder, or it is damaged.
    """
    from safetensors.numpy import load_file

    folder = pathlib.Path(path)
    try:
        signature = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
        program = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
        flat = load_file(folder / PARAMS)
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no exported program: no {error.filename}") from None
    except Exception as error:  # flatbuffers, JSON and safetensors each have their own
        raise UsageError(f"{folder} is damaged ({error}); export the model again") from error
    params = jax.device_put(traverse_util.unflatten_dict(flat, sep="/"))
    names, most = set(signature["inputs"]), signature["max_length"]
    call = jax.jit(program.call)

    def run(**inputs: jax.Array) -> dict[str, jax.Array]:
        if set(inputs) != names:
            raise ValueError(f"give {', '.join(sorted(names))}, not {', '.join(sorted(inputs))}")
        arrays = {name: jnp.asarray(value, jnp.int32) for name, value in inputs.items()}
        if arrays["input_ids"].shape[-1] > most:
            length = arrays["input_ids"].shape[-1]
            raise ValueError(f"input of {length} tokens; this model has positions for {most}")
        return call(params, arrays)

    return run


def export_saved_model(path: str | os.PathLike, model: nn.Module, params: Any) -> None:
    """Writes a TensorFlow SavedModel that runs on CPUs and CUDA GPUs; see the module's docstring.

    Raises:
      UsageError: TensorFlow is not installed, or the folder holds other files.
    """
    target = epath.Path(path)
    check_replaceable(
        target, ("assets", "fingerprint.pb", "saved_model.pb", "variables").__contains__
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf
        from tensorflow.compiler.tf2xla.python.xla import call_module
    except ImportError:
        raise UsageError(
            'a SavedModel is written by TensorFlow: pip install "roberta_jax[data]"'
        ) from None

    program = _exported(model, params, ["cpu", "cuda"])
    module = tf.Module()
    module.params = [
        tf.Variable(np.asarray(leaf), trainable=False) for leaf in jax.tree.leaves(params)
    ]
    results = jax.tree.unflatten(program.out_tree, range(len(program.out_avals)))

    def serve(**inputs):
        given = [*module.params, *(inputs[name] for name in sorted(inputs))]
        found = call_module(
            [given[i] for i in program.module_kept_var_idx],
            version=program.calling_convention_version,
            module=_readable_by_tensorflow(program),
            Tout=[tf.as_dtype(value.dtype) for value in program.out_avals],
            Sout=[_known_sizes(value.shape) for value in program.out_avals],
            platforms=[name.upper() for name in program.platforms],
        )
        return {name: found[i] for name, i in results.items()}

    rank = len(_axes(model))
    specs = {name: tf.TensorSpec([None] * rank, tf.int32, name=name) for name in input_names(model)}
    module.serve = tf.function(serve, autograph=False)
    signature = module.serve.get_concrete_function(**specs)
    with replace_folder(target, last="saved_model.pb") as folder:
        tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})


def _exported(model: nn.Module, params: Any, platforms: Sequence[str]) -> export.Exported:
    """The program of (params, inputs by name), for any batch and length."""
    sizes = export.symbolic_shape(
        ", ".join(_axes(model)), constraints=[f"length <= {model.config.max_length}"]
    )
    inputs = {name: jax.ShapeDtypeStruct(sizes, jnp.int32) for name in input_names(model)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    return export.export(jax.jit(served(model)), platforms=list(platforms))(shapes, inputs)


def _readable_by_tensorflow(program: export.Exported) -> bytes:
    """The program in the StableHLO of 12 weeks ago, composite operations made into plain calls.

    `jax2tf` writes what JAX writes, for readers of 4 weeks ago. The newest TensorFlow may be older
    than that, and does not see through a composite (erf is one) of unknown shape.
    """
    from jax.interpreters import mlir
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import func, stablehlo

    composites = []

    def collect(operation):
        if operation.name == "stablehlo.composite":
            composites.append(operation)
        return ir.WalkResult.ADVANCE

    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.parse(program.mlir_module())
        module.operation.walk(collect)
        for operation in composites:
            with ir.InsertionPoint(operation):
                call = func.CallOp(
                    [result.type for result in operation.results],
                    operation.attributes["decomposition"],
                    list(operation.operands),
                )
            for old, new in zip(operation.results, call.results, strict=True):
                old.replace_all_uses_with(new)
            operation.erase()
        text = str(module)
    version = stablehlo.get_version_from_compatibility_requirement(
        stablehlo.StablehloCompatibilityRequirement.WEEK_12
    )
    return stablehlo.serialize_portable_artifact_str(text, version)


def _known_sizes(shape: Sequence[Any]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]
