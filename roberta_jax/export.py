"""Exports a model as a compiled program: `python -m roberta_jax.export SRC DST --to=stablehlo`.

SRC is a finished run's workdir, or anything else that `roberta_jax.from_pretrained` loads. DST gets
a JAX program with its weights (`--to=stablehlo`) or a TensorFlow SavedModel (`--to=saved_model`);
either takes any number of inputs of any length that the model has positions for. The program is run
once and compared with the model. `roberta_jax/interchange/serving.py` tells what is in DST and how
to call it.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from roberta_jax import cli

FORMS = ("stablehlo", "saved_model")


def export(source: str | os.PathLike, target: str | os.PathLike, to: str = "stablehlo") -> float:
    """Loads a model, writes it to `target` as a program, and compares their outputs.

    Returns:
      The largest difference between an output of the program and the model's.

    Raises:
      UsageError: there is no such model, `target` holds other files, or TensorFlow is missing.
    """
    import jax
    import numpy as np

    from roberta_jax import weights
    from roberta_jax.exporting import programs

    model, params = weights.from_pretrained(source)
    if to == "saved_model":
        programs.export_saved_model(target, model, params)
        program = _saved_model(target)
    else:
        programs.export_stablehlo(target, model, params)
        program = programs.load_stablehlo(target)
    config = model.config
    length = min(16, config.max_length)
    choices = [2] if type(model).__name__ == "RobertaForMultipleChoice" else []
    shape = [2, *choices, length]
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape, np.int32)
    inputs = {name: np.ones(shape, np.int32) for name in programs.input_names(model)}
    inputs |= {"input_ids": ids}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = np.zeros(shape, np.int32)
    wanted = jax.jit(programs.served(model))(params, inputs)
    found = program(**inputs)
    return max(float(np.abs(np.asarray(found[name]) - wanted[name]).max()) for name in wanted)


def _saved_model(folder: str | os.PathLike) -> Callable[..., dict[str, Any]]:
    import tensorflow as tf

    loaded = tf.saved_model.load(os.fspath(folder))
    serve = loaded.signatures["serving_default"]

    def run(**inputs):
        found = serve(**{name: tf.constant(value) for name, value in inputs.items()})
        # The signature lives as long as what it was loaded with.
        return {name: value.numpy() for name, value in found.items() if loaded is not None}

    return run


def main(argv: Sequence[str] | None = None) -> None:
    """The command; wrong input is printed without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m roberta_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a finished run's workdir, or a folder with a model")
    parser.add_argument("target", help="the folder to write")
    parser.add_argument("--to", choices=FORMS, default=FORMS[0])
    arguments = parser.parse_args(argv)
    with cli.usage_errors():
        difference = export(arguments.source, arguments.target, arguments.to)
    print(f"{arguments.target}: {arguments.to}; its outputs differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()
