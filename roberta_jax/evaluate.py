"""Evaluates a trained model, as a language model on any text or on the examples of a task.

    python -m roberta_jax.evaluate PATH [PATH] --text=FILES
    python -m roberta_jax.evaluate PATH --split=validation

PATH is the workdir of a finished run, a folder in Hugging Face's or fairseq's format, or a hub id
such as roberta-base.

Language models predict masked tokens of the text, and the scores are printed with 95% intervals.
With a second PATH, the differences between the two models on the same text are printed as well.

  masked  loss, perplexity, and accuracy at 1 and at 5, with 15% of the tokens masked as in
          pretraining
  pseudo  pseudo-perplexity (Salazar et al. 2020): each token is masked once, alone. A row of n
          tokens is computed n times, so that this takes some hundred times longer

Without --text, a pretraining run is scored on its own held-out documents, if its prepared text is
still there.

Fine-tuned models predict for a split of their task and are scored by the task's metrics, again with
95% intervals and with the simplest baseline beside them. A model that is not the workdir of a run
needs --task, and --folder or --file.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from roberta_jax import cli
from roberta_jax.errors import UsageError, counted, listed
from roberta_jax.training.compilation_cache import use_compilation_cache

if TYPE_CHECKING:
    from roberta_jax.inference.loading import MaskedLanguageModel
    from roberta_jax.language_modeling.documents import Document, TextFiles
    from roberta_jax.language_modeling.evaluation import Evaluation, Options

_EXAMPLE = "--text='text/*.txt'"
DTYPES = ("float32", "bfloat16")
# Positions that a device computes at once, by platform; enough to keep it busy.
_BATCH_TOKENS = {"cpu": 4096}
_BATCH_TOKENS_OF_ACCELERATORS = 16384
# Options of language models -> their defaults. They are None unless they are given, so that the
# ones that have no effect are refused.
_OF_TEXT = {"text_field": "text", "sentences": "split", "language": "en"}
_OF_LANGUAGE_MODELS = {
    "text": None,
    **_OF_TEXT,
    "max_documents": None,
    "scores": "masked",
    "masks": 1,
    "max_tokens": None,
    "max_length": None,
    "seed": 0,
    "batch_tokens": None,
}
_OF_TASKS = ("split", "task", "folder", "file")


def evaluate_language_models(
    paths: Sequence[str | os.PathLike],
    text: "TextFiles | None",
    options: "Options",
    *,
    max_documents: int | None = None,
    dtype: str = "float32",
) -> tuple["Evaluation", str]:
    """Loads one or two masked language models and scores them on the same text.

    Args:
      paths: The models.
      text: The text; None takes the held-out documents of the first model's pretraining run.
      options: What is computed.
      max_documents: Score only the first documents, up to so many.
      dtype: The type of activations and matrix products, one of `DTYPES`.

    Returns:
      The scores, and a description of the text.

    Raises:
      UsageError: A model cannot be loaded, or there is no text.
    """
    import jax.numpy as jnp

    from roberta_jax.inference.loading import load_masked_lm
    from roberta_jax.language_modeling.evaluation import check_models, evaluate
    from roberta_jax.modeling.execution import for_inference

    config = None if text is not None else _pretraining_config(paths[0])
    execution = for_inference(jnp.dtype(dtype))
    names = [os.fspath(path) for path in paths]
    models = [(name, load_masked_lm(name, execution)) for name in names]
    check_models(models, options)
    if text is not None:
        documents, source = text.read(max_documents), text.description
    else:
        documents = _held_out(names[0], config, models[0][1], max_documents)
        source = f"held-out documents of {names[0]}"
    evaluation = evaluate(models, documents, options, lambda line: print(line, file=sys.stderr))
    return evaluation, source


def _pretraining_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config of a pretraining run, as a flat dictionary with the present names of its keys."""
    from roberta_jax.pretraining.config_keys import ADDED, RENAMED, REVALUED
    from roberta_jax.training.workdir import present_values, read_config

    config = read_config(path)
    if config is None or "data" not in config:
        raise UsageError(
            f"no text: {os.fspath(path)} is not the workdir of a pretraining run, whose held-out "
            f"documents could be scored. Name the text, such as {_EXAMPLE}; of a model that was "
            "fine-tuned name the task, such as --task=mnli"
        )
    return present_values(config, RENAMED, ADDED, REVALUED)


def _held_out(
    path: str,
    config: Mapping[str, Any],
    loaded: "MaskedLanguageModel",
    max_documents: int | None,
) -> list["Document"]:
    """The held-out documents of a pretraining run, from the cache of its prepared text."""
    from ml_collections import ConfigDict

    from roberta_jax.language_modeling.documents import documents_of_store
    from roberta_jax.pretraining.text import cached_heldout
    from roberta_jax.pretraining.text_spec import read_text_spec

    nested: dict[str, Any] = {}
    for key, value in config.items():
        *groups, last = key.split(".")
        group = nested
        for each in groups:
            group = group.setdefault(each, {})
        group[last] = value
    try:
        store = cached_heldout(read_text_spec(ConfigDict(nested)), loaded.tokenizer)
    except (UsageError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).rstrip(".")
        raise UsageError(
            f"the held-out documents of {path} cannot be found: {reason}. Name the text to score, "
            f"such as {_EXAMPLE}"
        ) from error
    print(
        f"Scoring the {counted(store.num_documents, 'held-out document')} of {path}"
        + (
            f", of which the first {max_documents:,}"
            if max_documents is not None and max_documents < store.num_documents
            else ""
        ),
        file=sys.stderr,
    )
    return documents_of_store(store, loaded.tokenizer, "held-out", max_documents)


def _is_finetuned(path: str) -> bool:
    """Whether a path is the workdir of a fine-tuning run: its config names a task."""
    from roberta_jax.storage.objects import check_readable
    from roberta_jax.training.workdir import read_config

    check_readable(path)
    try:
        config = read_config(path) or {}
    except (UsageError, OSError, ValueError, RuntimeError):
        return False  # no workdir here; what is wrong with the path is said when it is loaded
    return "task" in config and "model_type" not in config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roberta_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a model, or two that are compared"
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--text",
        metavar="FILES",
        help="comma-separated globs of text files, or - for standard input. Plain text has blank "
        "lines between documents; .jsonl, .json and .ndjson files have an object per line; also "
        "with .gz, .bz2, .xz or .zst",
    )
    text.add_argument("--text_field", help="field of JSON objects with the text (default: text)")
    text.add_argument(
        "--sentences",
        choices=("split", "lines"),
        help="find the sentences of a document, or take its lines as sentences (default: split)",
    )
    text.add_argument(
        "--language", help="code of the language, for --sentences=split (default: en)"
    )
    text.add_argument(
        "--max_documents",
        type=int,
        metavar="N",
        help="score only the first N documents (default: all)",
    )
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--scores",
        metavar="NAMES",
        help="masked, pseudo or masked,pseudo (default: masked)",
    )
    scores.add_argument(
        "--masks",
        type=int,
        metavar="N",
        help="masked: mask the text N times, each time other tokens (default: 1)",
    )
    scores.add_argument(
        "--max_tokens",
        type=int,
        metavar="N",
        help="pseudo: score a random sample of the documents, of about N tokens (default: all)",
    )
    scores.add_argument(
        "--max_length",
        type=int,
        metavar="N",
        help="tokens of a row at most (default: what the model takes, or both models)",
    )
    scores.add_argument(
        "--seed",
        type=int,
        help="seed of masks, samples and intervals (default: 0)",
    )
    task = parser.add_argument_group("fine-tuned models")
    task.add_argument(
        "--split", help="train, validation, test or another split (default: validation)"
    )
    task.add_argument("--task", help="the task, such as mnli, if the model is not a workdir's")
    task.add_argument("--folder", help="the folder of the task's official files")
    task.add_argument("--file", help="a file of labelled examples in place of the split's own")
    computation = parser.add_argument_group("computation and output")
    computation.add_argument(
        "--batch_tokens",
        type=int,
        metavar="N",
        help="tokens that a device computes at once (default: "
        f"{_BATCH_TOKENS_OF_ACCELERATORS}, on CPUs {_BATCH_TOKENS['cpu']})",
    )
    computation.add_argument(
        "--dtype",
        choices=DTYPES,
        help=f"type of activations and matrix products (default: {DTYPES[0]}; of the workdir of a "
        "fine-tuning run, that of the run)",
    )
    computation.add_argument(
        "--output",
        metavar="FILE",
        help="also write everything: to this JSON file, with the scores of each document; of a "
        "fine-tuned model to this folder, with its predictions",
    )
    return parser


def _options(arguments: argparse.Namespace) -> "Options":
    import jax

    from roberta_jax.language_modeling.evaluation import Options

    names = tuple(dict.fromkeys(filter(None, (n.strip() for n in arguments.scores.split(",")))))
    keys = {field.name for field in dataclasses.fields(Options)} - {"scores", "batch_tokens"}
    default = _BATCH_TOKENS.get(jax.default_backend(), _BATCH_TOKENS_OF_ACCELERATORS)
    return Options(
        scores=names,
        batch_tokens=default if arguments.batch_tokens is None else arguments.batch_tokens,
        **{key: getattr(arguments, key) for key in keys},
    )


def _text(arguments: argparse.Namespace) -> "TextFiles | None":
    """The text of --text; None where that is not given."""
    from roberta_jax.language_modeling.documents import STANDARD_INPUT, TextFiles
    from roberta_jax.language_modeling.evaluation import check_range

    check_range("max_documents", arguments.max_documents, 1, 10**12)
    if arguments.text is None:
        return None
    stdin = getattr(sys.stdin, "buffer", None)
    if arguments.text == STANDARD_INPUT and stdin is not None and sys.stdin.isatty():
        print("Type the text, then Ctrl-D:", file=sys.stderr)
    return TextFiles(
        arguments.text,
        text_field=arguments.text_field,
        sentences=arguments.sentences,
        language=arguments.language,
        stdin=stdin,
    )


def _evaluate_language_models(arguments: argparse.Namespace) -> None:
    from roberta_jax.language_modeling import report

    if len(arguments.paths) > 2:
        raise UsageError(
            f"{len(arguments.paths)} models are given: name one model, or two to compare them"
        )
    without_text = [name for name in _OF_TEXT if getattr(arguments, name) is not None]
    if arguments.text is None and without_text:
        raise UsageError(
            f"--{without_text[0]} has no effect without --text: add {_EXAMPLE}, or leave it out."
        )
    for name, default in _OF_LANGUAGE_MODELS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    if arguments.output is not None:
        report.check_output(arguments.output)
    evaluation, source = evaluate_language_models(
        arguments.paths,
        _text(arguments),
        _options(arguments),
        max_documents=arguments.max_documents,
        dtype=arguments.dtype or DTYPES[0],
    )
    print(report.table(evaluation, source))
    if arguments.output is not None:
        report.write_output(arguments.output, evaluation, source)


def _evaluate_tasks(arguments: argparse.Namespace) -> None:
    if arguments.output is not None and len(arguments.paths) > 1:
        raise UsageError("--output takes the results of one model: evaluate each by itself.")
    from roberta_jax.finetuning.evaluate_task import evaluate_task
    from roberta_jax.finetuning.outputs import summary_line

    for path in arguments.paths:
        finished, result = evaluate_task(
            path,
            "validation" if arguments.split is None else arguments.split,
            task=arguments.task,
            folder=arguments.folder,
            file=arguments.file,
            output=arguments.output,
            dtype=arguments.dtype,
        )
        examples = counted(len(result.examples), "example")
        print(f"{path}: {finished.task.title}, {result.split}, {examples}")
        print(f"  {summary_line(finished.task, result)}")
    if arguments.output is not None:
        print(f"Wrote the results and predictions to {arguments.output}")


def _is_for_tasks(arguments: argparse.Namespace) -> bool:
    """Whether fine-tuned models are evaluated.

    Raises:
      UsageError: options of language models are given for them.
    """
    finetuned = [path for path in arguments.paths if _is_finetuned(path)]
    of_tasks = [name for name in _OF_TASKS if getattr(arguments, name) is not None]
    if not finetuned and not of_tasks:
        return False
    given = [name for name in _OF_LANGUAGE_MODELS if getattr(arguments, name) is not None]
    if given:
        options = listed([f"--{name}" for name in given])
        are, them = ("is", "it") if len(given) == 1 else ("are", "them")
        if not finetuned:
            raise UsageError(
                f"{options} {are} for language models, and --{of_tasks[0]} is for fine-tuned "
                "models. Leave one of them out."
            )
        instead = f"Leave {them} out."
        if "text" in given:
            instead = "Give --split, or --file with labelled examples."
        raise UsageError(
            f"{options} {are} for language models, and {finetuned[0]} is fine-tuned. {instead}"
        )
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Wrong input is printed without a traceback, with exit status 2."""
    arguments = _parser().parse_args(argv)
    with cli.usage_errors():
        use_compilation_cache()
        if _is_for_tasks(arguments):
            _evaluate_tasks(arguments)
        else:
            _evaluate_language_models(arguments)


if __name__ == "__main__":
    main()
