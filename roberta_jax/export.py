"""Exports a model as a compiled program: `python -m roberta_jax.export SRC DST --to=stablehlo`.

SRC is the workdir of a finished run, or anything else that `roberta_jax.from_pretrained` loads. DST
gets a JAX program with its parameters (`--to=stablehlo`) or a TensorFlow SavedModel
(`--to=saved_model`). Both take inputs of any batch size, and of any length that the model has
positions for. The program is run once and compared with the model. For the contents of DST and how
to run it, see `roberta_jax/exporting/stablehlo.py` and `roberta_jax/exporting/saved_model.py`.
"""

import argparse
import os
from collections.abc import Sequence

from roberta_jax import cli

FORMATS = ("stablehlo", "saved_model")


def export(source: str | os.PathLike, target: str | os.PathLike, to: str = "stablehlo") -> float:
    """Loads a model, writes it to `target` as a program, and compares their outputs.

    Returns:
      The largest absolute difference between the outputs of the program and of the model.

    Raises:
      UsageError: There is no such model, `target` holds other files, or TensorFlow is missing.
    """
    import jax
    import numpy as np

    from roberta_jax import weights
    from roberta_jax.exporting.lowering import input_axes, input_names, serving_function

    model, params = weights.from_pretrained(source)
    if to == "saved_model":
        from roberta_jax.exporting.saved_model import export_saved_model, load_saved_model

        export_saved_model(target, model, params)
        program = load_saved_model(target)
    else:
        from roberta_jax.exporting.stablehlo import export_stablehlo, load_stablehlo

        export_stablehlo(target, model, params)
        program = load_stablehlo(target)
    config = model.config
    sizes = {"batch": 2, "choices": 2, "length": min(16, config.max_length)}
    shape = [sizes[axis] for axis in input_axes(model)]
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape, np.int32)
    inputs = {name: np.ones(shape, np.int32) for name in input_names(model)}
    inputs |= {"input_ids": ids}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = np.zeros(shape, np.int32)
    expected = jax.jit(serving_function(model))(params, inputs)
    outputs = program(**inputs)
    return max(float(np.abs(np.asarray(outputs[name]) - expected[name]).max()) for name in expected)


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
        difference = export(arguments.source, arguments.target, arguments.to)
        print(f"{arguments.target}: {arguments.to}; its outputs differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()
