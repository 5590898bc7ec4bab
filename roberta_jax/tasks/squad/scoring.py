"""Exact match and F1 of answers, as SQuAD's official scripts define them.

Rajpurkar et al. 2016 (`evaluate-v1.1.py`) and 2018 (`evaluate-v2.0.py`). Scores are per cent.
Texts are compared in lower case, without ASCII punctuation, without the words "a", "an" and "the",
and with single spaces.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from roberta_jax.tasks.examples import QuestionExample

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """The text as it is compared: see the module's docstring."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(gold: str, predicted: str) -> int:
    """1 if both texts are equal after normalisation, else 0."""
    return int(normalized(gold) == normalized(predicted))


def f1(gold: str, predicted: str, *, empty_matches: bool) -> float:
    """The harmonic mean of precision and recall over the words of the normalised texts, 0 to 1.

    Args:
      gold, predicted: the texts.
      empty_matches: the score of two texts without words: True gives 1, as in SQuAD 2.0, False
        gives 0, as in 1.1.
    """
    gold_words, words = normalized(gold).split(), normalized(predicted).split()
    if not gold_words or not words:
        return float(empty_matches and gold_words == words)
    common = sum((Counter(gold_words) & Counter(words)).values())
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def evaluate_v1(
    examples: Sequence[QuestionExample], predicted: Sequence[str | None]
) -> dict[str, float]:
    """SQuAD 1.1's metrics.

    Args:
      examples: questions with known answers. A question without any, on which the official script
        fails, scores 0.
      predicted: the prediction for each; None for a question without one, which scores 0.

    Returns:
      {"exact_match", "f1"}, per cent: the mean over all questions of the best value that any of a
      question's answers gives.
    """
    exact = overlap = 0.0
    for example, text in zip(examples, predicted, strict=True):
        if text is not None and example.answers:
            exact += max(exact_match(gold, text) for gold in example.answers)
            overlap += max(f1(gold, text, empty_matches=False) for gold in example.answers)
    return {"exact_match": 100 * exact / len(examples), "f1": 100 * overlap / len(examples)}


def question_scores(
    examples: Sequence[QuestionExample], predicted: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """SQuAD 2.0's exact match and F1 of each question, from 0 to 1; float64 [Q] each.

    Answers without words do not count; a question that has no other has the answer "".

    Args:
      examples: questions with known answers.
      predicted: the prediction for each.
    """
    exact, overlap = [], []
    for example, text in zip(examples, predicted, strict=True):
        answers = [gold for gold in example.answers if normalized(gold)] or [""]
        exact.append(max(exact_match(gold, text) for gold in answers))
        overlap.append(max(f1(gold, text, empty_matches=True) for gold in answers))
    return np.array(exact, np.float64), np.array(overlap, np.float64)


def evaluate_v2(examples: Sequence[QuestionExample], predicted: Sequence[str]) -> dict[str, float]:
    """SQuAD 2.0's metrics.

    Args:
      examples: questions with known answers, of which some have none.
      predicted: the prediction for each, "" for no answer.

    Returns:
      "exact", "f1" and "total", the number of questions; the same with the prefix "HasAns_" over
      the questions with an answer, and with "NoAns_" over the others, if there are any. Per cent.
    """
    exact, overlap = question_scores(examples, predicted)
    has_answer = np.array([bool(each.answers) for each in examples])
    scores = {}
    parts = {"": has_answer | True, "HasAns_": has_answer, "NoAns_": ~has_answer}
    for prefix, chosen in parts.items():
        if chosen.any():
            total = int(chosen.sum())
            # Added one after the other, as in the script: np.sum adds in another order.
            scores[f"{prefix}exact"] = 100 * sum(exact[chosen].tolist()) / total
            scores[f"{prefix}f1"] = 100 * sum(overlap[chosen].tolist()) / total
            scores[f"{prefix}total"] = total
    return scores


def best_threshold(
    scores: np.ndarray, null_odds: np.ndarray, has_answer: np.ndarray, answered: np.ndarray
) -> tuple[float, float]:
    """The best score that a threshold on the null odds can give, as in `evaluate-v2.0.py`.

    No answer is predicted for the questions whose null odds exceed the threshold.

    Args:
      scores: float [Q], from `question_scores`, of texts that ignore the null odds.
      null_odds: float [Q].
      has_answer: bool [Q], whether the question has an answer.
      answered: bool [Q], whether the text is not "".

    Returns:
      (mean score per cent, threshold). As in the script, the threshold is 0 where predicting no
      answer for all questions is best; see `applied_threshold`.
    """
    order = np.argsort(null_odds, kind="stable")
    gain = np.where(has_answer, scores, -1.0 * answered)[order]
    totals = np.cumsum(np.concatenate([[float(np.sum(~has_answer))], gain]))
    best = int(np.argmax(totals))  # the first of several
    threshold = float(null_odds[order[best - 1]]) if best else 0.0
    return 100 * float(totals[best]) / len(scores), threshold


def applied_threshold(
    scores: np.ndarray, null_odds: np.ndarray, has_answer: np.ndarray, answered: np.ndarray
) -> float:
    """The threshold of `best_threshold`, which is below all null odds if no answer is best."""
    best, threshold = best_threshold(scores, null_odds, has_answer, answered)
    if best == 100 * float(np.sum(~has_answer)) / len(scores):
        return float(np.nextafter(np.min(null_odds), -np.inf))
    return threshold


def evaluate_thresholds(
    examples: Sequence[QuestionExample], texts: Sequence[str], null_odds: Sequence[float]
) -> dict[str, float]:
    """The best scores that a threshold on the null odds can give, per cent, and the thresholds.

    Args:
      examples: questions with known answers.
      texts: the best answer to each, whatever its null odds.
      null_odds: of each.

    Returns:
      "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh": what `evaluate-v2.0.py`
      computes from files of these texts and null odds.
    """
    has_answer = np.array([bool(each.answers) for each in examples])
    answered = np.array([bool(text) for text in texts])
    odds = np.asarray(null_odds, np.float64)
    results = {}
    for name, scores in zip(("exact", "f1"), question_scores(examples, texts), strict=True):
        best, threshold = best_threshold(scores, odds, has_answer, answered)
        results |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return results
