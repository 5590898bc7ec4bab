"""Exports models as TensorFlow SavedModels, which TensorFlow Serving runs without this package.

The signature `serving_default` is that of Hugging Face's TensorFlow classes. Its inputs are int32
`input_ids` and `attention_mask`, and `token_type_ids` if the model has more than one token type.
Its outputs have the names of the model's. Inputs may have any batch size, and any length up to the
model's `max_length`.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from jax import export

from roberta_jax.errors import UsageError
from roberta_jax.exporting.lowering import input_axes, input_names, lower
from roberta_jax.storage.atomic import check_replaceable, replace_folder

FILES = ("assets", "fingerprint.pb", "saved_model.pb", "variables")


def export_saved_model(path: str | os.PathLike, model: nn.Module, params: Any) -> None:
    """Writes a SavedModel that runs on CPUs and CUDA GPUs; see the module's docstring.

    Args:
      path: The folder to write. An earlier SavedModel in its place is replaced.
      model: Any of the model classes, without a cache.
      params: Its parameters.

    Raises:
      UsageError: TensorFlow is not installed, the folder holds other files, or it cannot be
        written.
    """
    target = epath.Path(path)
    check_replaceable(target, FILES.__contains__)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf
        from tensorflow.compiler.tf2xla.python.xla import call_module
    except ImportError:
        raise UsageError(
            'writing a SavedModel needs TensorFlow: pip install "roberta_jax[data]"'
        ) from None

    program = lower(model, params, ["cpu", "cuda"])
    module = tf.Module()
    module.params = [
        tf.Variable(np.asarray(leaf), trainable=False) for leaf in jax.tree.leaves(params)
    ]
    output_indices = jax.tree.unflatten(program.out_tree, range(len(program.out_avals)))

    def serve(**inputs):
        arguments = [*module.params, *(inputs[name] for name in sorted(inputs))]
        outputs = call_module(
            [arguments[i] for i in program.module_kept_var_idx],
            version=program.calling_convention_version,
            module=_portable_module(program),
            Tout=[tf.as_dtype(value.dtype) for value in program.out_avals],
            Sout=[_static_shape(value.shape) for value in program.out_avals],
            platforms=[name.upper() for name in program.platforms],
        )
        return {name: outputs[i] for name, i in output_indices.items()}

    rank = len(input_axes(model))
    specs = {name: tf.TensorSpec([None] * rank, tf.int32, name=name) for name in input_names(model)}
    module.serve = tf.function(serve, autograph=False)
    signature = module.serve.get_concrete_function(**specs)
    try:
        with replace_folder(target, last="saved_model.pb") as folder:
            tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UsageError(
            f"cannot write {target}: {reason}; what was there before is unchanged. Free some space "
            "or choose another folder"
        ) from error


def load_saved_model(path: str | os.PathLike) -> Callable[..., dict[str, np.ndarray]]:
    """Loads an exported folder: a function of the inputs as keyword arguments, int32 arrays."""
    import tensorflow as tf

    loaded = tf.saved_model.load(os.fspath(path))
    serve = loaded.signatures["serving_default"]

    def run(**inputs):
        outputs = serve(**{name: tf.constant(value) for name, value in inputs.items()})
        # A signature is valid as long as its model exists, so that this function refers to it.
        return {name: value.numpy() for name, value in outputs.items() if loaded is not None}

    return run


def _portable_module(program: export.Exported) -> bytes:
    """Serializes a program for a TensorFlow that is older than JAX.

    It uses the version of StableHLO of 12 weeks ago; JAX serializes for readers of 4 weeks ago, and
    the newest TensorFlow may be older than that. Composite operations (erf is one) become function
    calls, since TensorFlow cannot infer their shapes if sizes are unknown.
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


def _static_shape(shape: Sequence[Any]) -> list[int | None]:
    """A shape with None for each symbolic size."""
    return [size if isinstance(size, int) else None for size in shape]
