"""An evaluation as a table for the terminal and as JSON."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from roberta_jax.data.masking import Masking
from roberta_jax.errors import UsageError, counted, shortened
from roberta_jax.language_modeling.documents import total_words
from roberta_jax.language_modeling.evaluation import Evaluation, ModelScores
from roberta_jax.language_modeling.statistics import (
    CONFIDENCE,
    MASKED_METRICS,
    METRICS,
    PSEUDO_METRICS,
    RESAMPLES,
    Estimate,
    Metric,
)
from roberta_jax.storage.atomic import temporary_path, write_json

# Documents of unequal length with normally distributed losses: percentile intervals hold the true
# value 82% of the time with 5 documents, 89% with 10, 92% with 20 and 93% with 40.
_FEW_DOCUMENTS = 20
_OTHER_TOKENIZERS = (
    "The tokenizers differ, so values per token cannot be compared. Those per word can, with care: "
    "they favour the tokenizer that divides words into more tokens, since the other tokens of a "
    "word are visible when one is masked."
)


def table(evaluation: Evaluation, source: str) -> str:
    """The scores with their intervals, one column per model and one for the difference."""
    models, options = evaluation.models, evaluation.options
    titles = [model.name for model in models]
    if len(models) == 2:
        titles.append("second - first")
    lines = [["", *titles]]
    rows = [counted(model.num_rows, "row") for model in models]
    lines.append(["tokens", *(f"{int(m.tokens.sum()):,}, {n}" for m, n in zip(models, rows))])  # noqa: B905
    for title, metrics, targets in (
        ("Masked", MASKED_METRICS, "masked_targets"),
        ("Each token masked once", PSEUDO_METRICS, "pseudo_targets"),
    ):
        names = [name for name in metrics if name in models[0].metrics]
        if not names:
            continue
        lines.append([f"{title}: targets", *(f"{int(m.sums[targets].sum()):,}" for m in models)])
        for name in names:
            cells = [_cell(METRICS[name], model.metrics[name]) for model in models]
            if len(models) == 2:
                difference = evaluation.differences.get(name)
                cells.append("" if difference is None else _cell(METRICS[name], difference, "+"))
            lines.append([f"  {METRICS[name].title}", *cells])
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )
    return "\n".join([_heading(evaluation, source), "", text, "", *_notes(evaluation, options)])


def _heading(evaluation: Evaluation, source: str) -> str:
    documents = evaluation.documents
    sentences = sum(len(document.sentences) for document in documents)
    return (
        f"{source}: {counted(len(documents), 'document')}, {counted(sentences, 'sentence')}, "
        f"{counted(total_words(documents), 'word')}; rows of up to "
        f"{evaluation.options.max_length} tokens"
    )


def _notes(evaluation: Evaluation, options: Any) -> list[str]:
    notes = []
    if "masked" in options.scores:
        notes.append(
            f"Masked: {Masking().rate:.0%} of the tokens as in pretraining, special tokens "
            f"included, {counted(options.masks, 'time')}."
        )
    sums = evaluation.models[0].sums
    if "pseudo_targets" in sums and options.max_tokens is not None:
        scored = int((sums["pseudo_targets"] > 0).sum())
        notes.append(
            f"Each token masked once: in a random sample of {counted(scored, 'document')} "
            f"(--max_tokens={options.max_tokens})."
        )
    estimates = [estimate for model in evaluation.models for estimate in model.metrics.values()]
    if all(estimate.low is not None for estimate in estimates):
        notes.append(
            f"[low, high]: {CONFIDENCE:.0%} intervals of a bootstrap over the documents"
            + (", the same samples for both models." if len(evaluation.models) == 2 else ".")
        )
        if min(map(_num_scored, evaluation.models)) < _FEW_DOCUMENTS:
            notes.append(
                f"With fewer than {_FEW_DOCUMENTS} documents they are too narrow: score more, or "
                "divide the text into more documents."
            )
    else:
        notes.append("There are no intervals: these take at least two documents with targets.")
    if not evaluation.same_tokenizer:
        notes.append(_OTHER_TOKENIZERS)
    return notes


def _num_scored(model: ModelScores) -> int:
    """The number of documents with targets of each kind."""
    names = [name for name in model.sums if name.endswith("_targets")]
    return min(int((model.sums[name] > 0).sum()) for name in names)


def _cell(metric: Metric, estimate: Estimate, sign: str = "") -> str:
    def number(value: float) -> str:
        if metric.is_share:
            return f"{value:{sign}.2%}"
        return f"{value:{sign}.4f}" if not metric.is_exponential else f"{value:{sign}.2f}"

    text = number(estimate.value)
    if estimate.low is not None:
        text += f" [{number(estimate.low)}, {number(estimate.high)}]"
    return text


def as_json(evaluation: Evaluation, source: str) -> dict[str, Any]:
    """Everything as a JSON value: options, metrics with intervals, and the sums per document.

    Losses are in nats. A document's `masked_loss` and `pseudo_loss` are sums over its targets;
    metrics are computed from the sums of all documents.
    """
    return {
        "text": source,
        "num_documents": len(evaluation.documents),
        "num_words": total_words(evaluation.documents),
        "options": dataclasses.asdict(evaluation.options),
        "intervals": {
            "confidence": CONFIDENCE,
            "method": "percentile bootstrap over documents",
            "resamples": RESAMPLES,
        },
        "models": [_model_json(model) for model in evaluation.models],
        "same_tokenizer": evaluation.same_tokenizer,
        "differences": {
            name: dataclasses.asdict(estimate) for name, estimate in evaluation.differences.items()
        },
        "documents": [
            {
                "name": document.name,
                "sentences": len(document.sentences),
                "words": document.num_words,
                "models": [_document_json(model, number) for model in evaluation.models],
            }
            for number, document in enumerate(evaluation.documents)
        ],
    }


def _model_json(model: ModelScores) -> dict[str, Any]:
    return {
        "model": model.name,
        "tokenizer": model.fingerprint,
        "num_rows": model.num_rows,
        "num_tokens": int(model.tokens.sum()),
        "metrics": {name: dataclasses.asdict(estimate) for name, estimate in model.metrics.items()},
        "sums": {name: _number(values.sum()) for name, values in model.sums.items()},
    }


def _document_json(model: ModelScores, number: int) -> dict[str, Any]:
    sums = {name: _number(values[number]) for name, values in model.sums.items()}
    return {"tokens": int(model.tokens[number]), **sums}


def _number(value: np.generic) -> float | int:
    return value.item()


def check_output(path: str) -> None:
    """Checks that a JSON file can be written, before long work.

    Raises:
      UsageError: its folder does not exist or cannot be written, or something of its name is no
        file.
    """
    file = pathlib.Path(path)
    try:
        if not file.name or file.is_dir():
            raise UsageError(
                f"--output={path} is a folder: name a file, such as --output=scores.json"
            )
        if os.path.lexists(file) and not file.is_file():
            # It would be replaced: also a device, such as /dev/null, by a user who may do so.
            raise UsageError(f"--output={path} is not a regular file: name a new file")
        if not file.parent.is_dir():
            raise UsageError(f"--output={path}: there is no folder {file.parent}; create it first")
        probe = temporary_path(file)
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name that is not valid UTF-8
        if isinstance(error, UsageError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"--output={shortened(path, 200)} cannot be written: {reason}; name another file"
        ) from None


def write_output(path: str, evaluation: Evaluation, source: str) -> None:
    """Writes `as_json` as a whole, or nothing.

    Raises:
      UsageError: it cannot be written.
    """
    try:
        write_json(path, as_json(evaluation, source))
    except OSError as error:
        raise UsageError(f"--output={path} cannot be written: {error.strerror or error}") from None
