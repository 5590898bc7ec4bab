"""The model card: README.md of the folder in Hugging Face's format that a run exports."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from roberta_jax.errors import listed, shortened
from roberta_jax.finetuning.outputs import COMMAND, STARTED_FROM, about_lines
from roberta_jax.finetuning.results import SplitResult
from roberta_jax.finetuning.tables import (
    INTERVALS,
    compared_with_baseline,
    escaped,
    fenced,
    one_line,
    score_table,
)
from roberta_jax.tasks.task import Task

# Kind -> the pipeline tag of the hub, and what the model does.
_KINDS = {
    "classification": ("text-classification", "gives a text one of {labels}"),
    "multi_label": ("text-classification", "gives a text any number of {labels}"),
    "regression": ("text-classification", "gives a text a number"),
    "tokens": ("token-classification", "gives each word of a text one of {labels}"),
    "choice": ("multiple-choice", "chooses one of several answers"),
    "question_answering": ("question-answering", "finds the answer to a question in a passage"),
    "pronoun": ("fill-mask", "decides whether a pronoun refers to a noun phrase"),
}
# Metric -> its name in the library `evaluate`, where that is another one.
_HUB_METRICS = {
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mean_squared_error": "mse",
    "mean_absolute_error": "mae",
}
_MOST_LABELS = 100


def model_card(
    task: Task,
    labels: Sequence[str],
    results: Sequence[SplitResult],
    about: Mapping[str, Any],
    *,
    folder: os.PathLike | str,
    examples: Mapping[str, int],
) -> str:
    """The text of the model card, with a YAML header for the hub.

    Args:
      task: the task.
      labels: the names of the labels, in the order of the model's ids.
      results: those of the splits with labels, with intervals (`results.with_intervals`).
      about: facts about the run, as for `outputs.write_outputs`.
      folder: where the model is exported to, for the examples of how to load it.
      examples: split -> number of its examples, that of training first.
    """
    folder = os.fspath(folder)
    pair = any(getattr(each, "text_b", None) is not None for r in results for each in r.examples)
    parts = [
        f"# {escaped(task.title)}",
        _introduction(task, labels, about),
        *_scores(task, results),
        "## Data",
        _data(task, labels, examples),
        "## Training",
        *about_lines({k: v for k, v in about.items() if k not in (STARTED_FROM, COMMAND)}),
    ]
    if about.get(COMMAND):
        parts += ["The command was:", fenced(str(about[COMMAND]))]
    parts += [
        "## Use",
        "With transformers:",
        _code(_with_transformers(task, folder, pair)),
        *_output_scale(task),
        "With roberta_jax:",
        _code(
            "from roberta_jax import AutoTokenizer, from_pretrained\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
            f"model, params = from_pretrained({folder!r})"
        ),
    ]
    return f"---\n{_header(task, results)}---\n\n" + "\n\n".join(parts) + "\n"


def _header(task: Task, results: Sequence[SplitResult]) -> str:
    """The YAML that the hub reads. The language is left out, since it is not known."""
    tag, _ = _KINDS[task.kind]
    scores = [
        EvalResult(
            task_type=tag,
            dataset_type=task.tfds or task.name,
            dataset_name=one_line(task.title),
            dataset_split=result.split,
            metric_type=_HUB_METRICS.get(name, name),
            metric_name=name,
            metric_value=float(result.scores[name]),
        )
        for result in results
        for name in task.metrics
        if name in result.scores and math.isfinite(result.scores[name])
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=tag,
        tags=["roberta", "roberta_jax"],
        model_name=one_line(task.title) if scores else None,
        eval_results=scores or None,
    )
    return data.to_yaml() + "\n"


def _introduction(task: Task, labels: Sequence[str], about: Mapping[str, Any]) -> str:
    does = _KINDS[task.kind][1].format(labels=f"{len(labels)} labels")
    start = about.get(STARTED_FROM)
    origin = f", fine-tuned from {escaped(str(start))}" if start else ""
    return f"A RoBERTa model that {does}{origin} with roberta\\_jax."


def _scores(task: Task, results: Sequence[SplitResult]) -> list[str]:
    if not any(each.scores for each in results):
        return []
    parts = ["## Scores", score_table(task, results)]
    if any(each.intervals for each in results):
        parts.append(INTERVALS)
    for result in results:
        if comparison := compared_with_baseline(task, result):
            parts.append(f"On {escaped(result.split)}, the model is {escaped(comparison)}.")
    return parts


def _data(task: Task, labels: Sequence[str], examples: Mapping[str, int]) -> str:
    lines = [f"- {escaped(split)}: {number:,} examples" for split, number in examples.items()]
    if task.source:
        lines.append(f"- source of task and recipe: {escaped(task.source)}")
    if labels:
        names = [escaped(shortened(one_line(name), 60)) for name in labels]
        lines.append(f"- labels: {listed(names, _MOST_LABELS)}")
    lines.append("- language: not recorded")
    return "\n".join(lines)


def _with_transformers(task: Task, folder: str, pair: bool) -> str:
    if task.kind in ("choice", "pronoun"):
        cls = "AutoModelForMultipleChoice" if task.kind == "choice" else "AutoModelForMaskedLM"
        return (
            f"from transformers import AutoTokenizer, {cls}\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
            f"model = {cls}.from_pretrained({folder!r})"
        )
    tag, _ = _KINDS[task.kind]
    options = {
        "multi_label": ", top_k=None",
        "regression": ', function_to_apply="none"',
        "tokens": ', aggregation_strategy="simple"',
    }.get(task.kind, "")
    text = '{"text": "The first text.", "text_pair": "The second text."}'
    call = {
        "question_answering": 'question="Who wrote it?", context="She wrote it in 1818."',
        "tokens": '"She lives in London."',
    }.get(task.kind, text if pair else '"A text."')
    return (
        "from transformers import pipeline\n\n"
        f'model = pipeline("{tag}", model={folder!r}{options})\n'
        f"print(model({call}))"
    )


def _output_scale(task: Task) -> list[str]:
    if task.kind == "multi_label":
        return ["A text has the labels whose score is at least 0.5."]
    if task.kind == "regression" and task.label_scale != 1:
        return [f"The output times {task.label_scale:g} is the prediction."]
    return []


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
