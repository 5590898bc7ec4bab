"""Tasks and results made by hand, for the tests of what a run writes."""

from typing import Any

from roberta_jax.finetuning.results import SplitResult
from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import ChoiceExample, QuestionExample, TextExample, TokenExample
from roberta_jax.tasks.task import Task


def task(kind: str = "classification", **fields: Any) -> Task:
    """A task without a reader."""
    return Task(
        **{"name": "mine", "title": "MINE", "kind": kind, "reader": lambda *_: iter(())} | fields
    )


def example(kind: str, id_: str, label: Any) -> Any:
    if kind == "tokens":
        return TokenExample(id_, tuple("word" for _ in label or ()), label)
    if kind == "choice":
        return ChoiceExample(id_, "", "", ("a", "b", "c"), label)
    if kind == "question_answering":
        return QuestionExample(id_, "", "", label, None if label is None else (0,) * len(label))
    return TextExample(id_, "a text", None, label)


def result(
    of: Task,
    gold: list[Any],
    predicted: list[Any],
    labels: tuple[str, ...] = (),
    split: str = "validation",
    **fields: Any,
) -> SplitResult:
    """The result of predictions, with the metrics of the task as scores."""
    examples = [example(of.kind, str(number), label) for number, label in enumerate(gold)]
    predictions = [
        {"id": str(number), "prediction": value} for number, value in enumerate(predicted)
    ]
    known = [(a, b) for a, b in zip(gold, predicted, strict=True) if a is not None]
    scores = {}
    if known and of.kind != "question_answering":
        names = {metrics.of_kind(name, of.kind): name for name in of.metrics}
        found = metrics.compute(list(names), *zip(*known, strict=True), labels=labels)
        scores = {names[name]: value for name, value in found.items()}
    return SplitResult(split, examples, predictions, **{"scores": scores} | fields)
