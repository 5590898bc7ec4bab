"""Exports a model as a compiled program: `python -m roberta_jax.export SRC DST --to=stablehlo`.

SRC is the workdir of a finished run, or anything else that `roberta_jax.from_pretrained` loads. DST
gets a JAX program with its parameters (`--to=stablehlo`) or a TensorFlow SavedModel
(`--to=saved_model`). Both take inputs of any batch size, and of any length that the model has
positions for. The program is run once and compared with the model. The command prints the files,
the inputs and outputs, and a Python program that runs the export without this package.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Sequence

from roberta_jax import cli

FORMATS = ("stablehlo", "saved_model")

_SNIPPETS = {
    "stablehlo": """\
import flax, jax.export, numpy as np, safetensors.numpy

folder = {folder!r}
program = jax.export.deserialize(bytearray(open(folder + "/model.stablehlo", "rb").read()))
flat = safetensors.numpy.load_file(folder + "/params.safetensors")
params = flax.traverse_util.unflatten_dict(flat, sep="/")
ids = np.array({ids}, np.int32)  # {axes}
outputs = program.call(params, {{{inputs}}})
print({{name: value.shape for name, value in outputs.items()}})
""",
    "saved_model": """\
import numpy as np, tensorflow as tf

program = tf.saved_model.load({folder!r})
ids = np.array({ids}, np.int32)  # {axes}
inputs = {{{inputs}}}
serve = program.signatures["serving_default"]
outputs = serve(**{{name: tf.constant(value) for name, value in inputs.items()}})
print({{name: value.shape for name, value in outputs.items()}})
""",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What `export` wrote.

    Attributes:
      model: The name of the model's class.
      files: {path relative to the folder: size in bytes}.
      inputs: {name: shape}; the shape names each axis. All inputs are int32.
      outputs: {name: (type, shape)}.
      max_length: The largest size of the axis "length".
      difference: The largest absolute difference between the outputs of the program and the model.
      snippet: A Python program that runs the export on one example.
    """

    model: str
    files: dict[str, int]
    inputs: dict[str, list[str]]
    outputs: dict[str, tuple[str, list[str]]]
    max_length: int
    difference: float
    snippet: str


def export(source: str | os.PathLike, target: str | os.PathLike, to: str = "stablehlo") -> Report:
    """Loads a model, writes it to `target` as a program, and compares their outputs.

    Raises:
      UsageError: There is no such model, `target` holds other files or cannot be written, or
        TensorFlow is missing.
    """
    import jax
    import numpy as np
    from etils import epath

    from roberta_jax import weights
    from roberta_jax.exporting import saved_model, stablehlo
    from roberta_jax.exporting.lowering import input_axes, input_names, serving_function
    from roberta_jax.storage.atomic import check_replaceable, is_local, local_copy

    module = saved_model if to == "saved_model" else stablehlo
    check_replaceable(epath.Path(target), module.FILES.__contains__)  # before the model is loaded
    model, params = weights.from_pretrained(source)
    if to == "saved_model":
        saved_model.export_saved_model(target, model, params)
    else:
        stablehlo.export_stablehlo(target, model, params)
    with local_copy(epath.Path(target)) as folder:
        load = saved_model.load_saved_model if to == "saved_model" else stablehlo.load_stablehlo
        program = load(folder)
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    config, axes, names = model.config, input_axes(model), input_names(model)
    sizes = {"batch": 2, "choices": 2, "length": min(16, config.max_length)}
    shape = [sizes[axis] for axis in axes]
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape, np.int32)
    inputs = {name: np.ones(shape, np.int32) for name in names} | {"input_ids": ids}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = np.zeros(shape, np.int32)
    expected = jax.jit(serving_function(model))(params, inputs)
    outputs = program(**inputs)
    difference = max(
        float(np.abs(np.asarray(outputs[name]) - expected[name]).max()) for name in expected
    )
    special = (config.bos_token_id, config.eos_token_id)
    symbols = jax.eval_shape(serving_function(model), params, inputs)
    snippet = _snippet(to, os.path.abspath(target), names, axes, special)
    if not is_local(target):
        where = pathlib.PurePosixPath(os.fspath(target)).name
        copy = f"# After: gcloud storage cp -r {os.fspath(target)} .\n"
        snippet = copy + _snippet(to, where, names, axes, special)
    return Report(
        type(model).__name__,
        files,
        dict.fromkeys(names, axes),
        {
            name: (value.dtype.name, _output_axes(value.shape, axes, shape))
            for name, value in symbols.items()
        },
        config.max_length,
        difference,
        snippet,
    )


def _output_axes(shape: Sequence[int], axes: list[str], sizes: list[int]) -> list[str]:
    """The names of an output's leading axes, which are those of the inputs, then its sizes."""
    shared = 0
    while shared < min(len(shape), len(axes)) and shape[shared] == sizes[shared]:
        shared += 1
    return [*axes[:shared], *map(str, shape[shared:])]


def _snippet(
    to: str, folder: str, names: Sequence[str], axes: Sequence[str], ids: Sequence[int]
) -> str:
    values = {"input_ids": "ids", "attention_mask": "np.ones_like(ids)"}
    values["token_type_ids"] = "np.zeros_like(ids)"
    nested = str(list(ids))
    for _ in axes[1:]:
        nested = f"[{nested}]"
    return _SNIPPETS[to].format(
        folder=folder,
        ids=nested,
        axes=f"[{', '.join(axes)}]",
        inputs=", ".join(f'"{name}": {values[name]}' for name in names),
    )


def table(report: Report, target: str | os.PathLike, to: str) -> str:
    """Formats a report as text."""
    shapes = {name: f"int32 [{', '.join(axes)}]" for name, axes in report.inputs.items()}
    outputs = {
        name: f"{dtype} [{', '.join(axes)}]" for name, (dtype, axes) in report.outputs.items()
    }
    width = max(map(len, (*report.files, *shapes, *outputs)))
    lines = [f"{report.model} as {to} in {os.fspath(target)}", "", "files"]
    lines += [f"  {name:<{width}}  {size:>15,} bytes" for name, size in report.files.items()]
    lines += [f"inputs (length: at most {report.max_length} tokens)"]
    lines += [f"  {name:<{width}}  {shape}" for name, shape in shapes.items()]
    lines += ["outputs", *(f"  {name:<{width}}  {shape}" for name, shape in outputs.items())]
    lines += ["", "To run it in Python, also without roberta_jax:", ""]
    lines += [f"    {line}".rstrip() for line in report.snippet.splitlines()]
    lines += ["", f"largest difference from the model's outputs: {report.difference:.1e}"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Wrong input is printed without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m roberta_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="the workdir of a finished run, or a folder with a model")
    parser.add_argument("target", help="the folder to write")
    parser.add_argument("--to", choices=FORMATS, default=FORMATS[0])
    arguments = parser.parse_args(argv)
    with cli.usage_errors():
        report = export(arguments.source, arguments.target, arguments.to)
        print(table(report, arguments.target, arguments.to))


if __name__ == "__main__":
    main()
