"""The files that SQuAD's official scripts read: written, read and checked.

`predictions.json` maps the id of each question to the text of its answer, "" for no answer;
`null_odds.json` maps it to a number that is larger the likelier it has no answer; and
`nbest_predictions.json`, which no official script reads, to BERT's list of the best answers.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from roberta_jax.errors import UsageError, counted, listed, shortened
from roberta_jax.storage.reading import read_bytes
from roberta_jax.tasks.examples import QuestionExample


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Which questions a file of predictions covers.

    Attributes:
      missing: ids of questions without a prediction, in the order of the questions.
      extra: ids of predictions for which there is no question.
    """

    missing: tuple[str, ...]
    extra: tuple[str, ...]


def official_files(predictions: Sequence[Mapping[str, Any]], *, null_odds: bool) -> dict[str, Any]:
    """The files of predictions of `kinds.question_answering`: name -> JSON value.

    Args:
      predictions: for each question, with the keys "id", "prediction", "n_best" and "null_odds".
      null_odds: whether to include `null_odds.json`, which is for SQuAD 2.0.
    """
    keys = ("text", "probability", "start_logit", "end_logit")
    files: dict[str, Any] = {
        "predictions.json": {each["id"]: each["prediction"] for each in predictions},
        "nbest_predictions.json": {
            each["id"]: [{key: answer[key] for key in keys} for answer in each["n_best"]]
            for each in predictions
        },
    }
    if null_odds:
        files["null_odds.json"] = {each["id"]: each["null_odds"] for each in predictions}
    return files


def read_predictions(path: str | os.PathLike) -> dict[str, str]:
    """Reads a `predictions.json`.

    Raises:
      FileNotFoundError: there is no such file.
      UsageError: it is not a JSON object of texts, or names a question twice, of which the official
        scripts would silently use the last value.
    """
    try:
        pairs = json.loads(read_bytes(path), object_pairs_hook=_Pairs)
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a JSON file: {error}.") from None
    if not isinstance(pairs, _Pairs):
        raise UsageError(
            f"{path} must hold one JSON object that maps the id of each question to the text of "
            "its answer."
        )
    _check_distinct([name for name, _ in pairs], f"{path} has", "predictions")
    predictions = dict(pairs)
    _check_texts(predictions, f"{path}: ")
    return predictions


def check_predictions(
    examples: Sequence[QuestionExample], predictions: Mapping[str, str], *, answerable: bool
) -> Coverage:
    """Checks what the official script demands of predictions, and what it would do with the rest.

    Both scripts read one JSON object and ignore the predictions for ids that the data set lacks.
    `evaluate-v1.1.py` scores a question without a prediction 0. `evaluate-v2.0.py` warns of it and
    then ends with a KeyError, because it scores the questions with an answer, and those without
    one, by themselves. Either fails on a prediction that is not a string.

    Args:
      examples: the questions of the data set.
      predictions: id -> text.
      answerable: whether the data set is of the form of SQuAD 1.1, else of 2.0.

    Returns:
      The questions without a prediction, which is none if `answerable` is False, and the
      predictions without a question.

    Raises:
      UsageError: the script cannot score the predictions, or two questions have one id.
    """
    _check_distinct([example.id for example in examples], "the data has", "questions")
    _check_texts(predictions, "")
    ids = {example.id for example in examples}
    coverage = Coverage(
        tuple(example.id for example in examples if example.id not in predictions),
        tuple(name for name in predictions if name not in ids),
    )
    if coverage.missing and not answerable:
        raise UsageError(
            f"{counted(len(coverage.missing), 'question')} without a prediction, which SQuAD 2.0's "
            f"script does not take: {_quoted(coverage.missing)}. Predict an empty text for a "
            "question without an answer."
        )
    return coverage


class _Pairs(list):
    """The members of a JSON object, in order, so that repeated names are noticed."""


def _check_distinct(ids: Sequence[str], subject: str, noun: str) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UsageError(
            f"{subject} several {noun} with the same id: {_quoted(repeated)}. Give each question "
            "its own id."
        )


def _check_texts(predictions: Mapping[str, Any], subject: str) -> None:
    wrong = [name for name, text in predictions.items() if not isinstance(text, str)]
    if wrong:
        raise UsageError(
            f"{subject}{counted(len(wrong), 'prediction')} not a text: {_quoted(wrong)}. "
            "Write a string for each, and an empty one for no answer."
        )


def _quoted(ids: Sequence[str]) -> str:
    return listed([repr(shortened(name, 40)) for name in ids])
