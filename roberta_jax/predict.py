"""Predicts for a file of examples: `python -m roberta_jax.predict MODEL --input=F --output=F`.

MODEL is the workdir of a finished fine-tuning run, or a folder in Hugging Face's format or a hub id
of a model with a head for a task. The input is a csv, tsv or jsonl file with the columns that the
model was trained on, or a .txt file with a text on each line; also compressed (.gz, .xz, .bz2,
.zst). The output has the rows of the input with the columns `prediction`, `score` and one per
label; it is csv, tsv or jsonl as the ending of its name says. It appears when it is complete, and
the same command continues one that was interrupted.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

from tqdm import tqdm

from roberta_jax import cli
from roberta_jax.errors import UsageError, counted, listed
from roberta_jax.evaluate import DTYPES
from roberta_jax.training.compilation_cache import use_compilation_cache

_BLOCK = 4096  # rows that are predicted and written together


def predict(
    model: str | os.PathLike,
    input: str | os.PathLike,
    output: str | os.PathLike,
    *,
    task: str | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    choice_columns: Sequence[str] = (),
    id_column: str | None = None,
    dtype: str | None = None,
    progress: bool = False,
) -> int:
    """Predicts for all rows of a file and writes them with the predictions.

    Args:
      model: see `finetuning.finished.open_finished`.
      input: the file of examples.
      output: the file to write; it may not be the input.
      task: the name of the model's task, for a model that is not a workdir's.
      text_column, pair_column, choice_columns, id_column: columns of the input, in place of those
        that the model was trained on.
      dtype: of activations and matrix products, "float32" or "bfloat16". None takes that of the
        run, or float32 for a model that is not a workdir's.
      progress: whether to show a progress bar on stderr.

    Returns:
      The number of rows.

    Raises:
      UsageError: a file or the model is missing or wrong; nothing is written then.
    """
    # Imported here, so that a mistake in the arguments is reported without waiting for them.
    from roberta_jax.finetuning.finished import read_finished
    from roberta_jax.tasks.prediction_files import (
        PredictionFile,
        added_columns,
        blocks,
        prediction_columns,
        profile_input,
    )
    from roberta_jax.tasks.readers.user_examples import examples_of
    from roberta_jax.tasks.readers.user_files import open_table

    table = open_table(input, key="--input")
    profile = profile_input(table, id_column)
    trained_for = read_finished(model, task)
    columns = prediction_columns(
        trained_for.task,
        table,
        profile,
        text_column=text_column,
        pair_column=pair_column,
        choice_columns=choice_columns,
    )
    if id_column is not None:
        if id_column not in profile.columns:
            raise UsageError(
                f"--id_column={id_column}: {input} has the columns {listed(list(profile.columns))}."
            )
        columns = dataclasses.replace(columns, id=id_column)
    execution = trained_for.execution(dtype)
    added = added_columns(trained_for.task.kind, trained_for.kind.labels)
    # Predictions made with other options are not continued.
    fingerprint = trained_for.fingerprint(execution) | {"columns read": columns.to_json()}
    file = PredictionFile(output, table, profile, added, fingerprint)
    for _ in examples_of(table.rows(), columns, (), table.path):
        pass  # so that rows that cannot be used are reported before anything is predicted
    finished = trained_for.load(execution=execution)
    with file:
        bar = tqdm(
            total=profile.rows,
            initial=file.rows,
            desc="Predicting",
            unit=" rows",
            disable=not progress,
        )
        with bar:
            for first, rows in blocks(table, _BLOCK, file.rows):
                examples = list(examples_of(rows, columns, (), table.path, start=first))
                file.write(rows, finished.predictions(examples))
                bar.update(len(rows))
    return profile.rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Wrong input is printed without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m roberta_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a workdir, a folder in HF's format or a hub id")
    parser.add_argument("--input", required=True, help="the file of examples")
    parser.add_argument("--output", required=True, help="the file to write: .csv, .tsv or .jsonl")
    parser.add_argument("--task", help="the model's task, such as mnli, if it is not a workdir's")
    parser.add_argument("--text_column", help="the column of the text")
    parser.add_argument("--pair_column", help="the column of the second text of a pair")
    parser.add_argument("--id_column", help="the column that identifies an example")
    parser.add_argument(
        "--choice_columns", default="", help="the columns of the choices, divided by commas"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of activations and matrix products (default: that of the run; float32 if the "
        "model is not a workdir's)",
    )
    options = vars(parser.parse_args(argv))
    options["choice_columns"] = tuple(filter(None, options["choice_columns"].split(",")))
    with cli.usage_errors("Stopping; the same command continues from here."):
        use_compilation_cache()
        rows = predict(**options, progress=sys.stderr.isatty())
        print(f"Wrote {counted(rows, 'prediction')} to {options['output']}")


if __name__ == "__main__":
    main()
