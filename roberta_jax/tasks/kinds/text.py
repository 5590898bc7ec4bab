"""Texts and pairs of texts: one label, several labels, or a number (`TextExample`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from roberta_jax.errors import UsageError, counted, listed, shortened
from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import TextExample
from roberta_jax.tasks.features import Features, flattened
from roberta_jax.tasks.kinds.base import Kind, Prediction
from roberta_jax.tasks.sequences import frame_of, longest_first, tokens_of_texts
from roberta_jax.tasks.task import Formatting

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer


class _Texts(Kind):
    """What the three kinds share: the encoding, and the head."""

    problem_type: ClassVar[str]

    @property
    def model_class(self):
        from roberta_jax.modeling.classifiers import RobertaForSequenceClassification

        return RobertaForSequenceClassification

    def config_changes(self) -> dict[str, Any]:
        changes = {"problem_type": self.problem_type}
        if self.labels:
            names = dict(enumerate(self.labels))
            return changes | {
                "num_labels": len(names),
                "id2label": names,
                "label2id": {name: number for number, name in names.items()},
            }
        return changes | {"num_labels": 1, "id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}

    def encode(self, examples: Sequence[TextExample], tokenizer: "RobertaTokenizer") -> Features:
        check_not_empty(examples)
        labels = self._targets(examples)
        sequences, cut = encode_texts(
            [(each.text_a, each.text_b) for each in examples], tokenizer, self.formatting
        )
        tokens, starts = flattened(sequences)
        return Features(
            tokens,
            starts,
            1,
            np.arange(len(examples), dtype=np.int32),
            {
                "labels": labels,
                "example_weights": np.array([e.label is not None for e in examples], np.float32),
            },
            notes=cut_note(cut, self.formatting),
        )

    def outputs(self, output: Any) -> dict[str, Any]:
        return {"logits": output.logits}

    def scores(self, examples, predictions) -> dict[str, float]:
        pairs = labelled(examples, predictions)
        if not pairs:
            return {}
        gold, predicted = zip(*pairs, strict=True)
        labels = self.task.in_own_order(self.labels)
        return metrics.compute(self.task.metrics, gold, predicted, labels=labels)

    def _targets(self, examples: Sequence[TextExample]) -> np.ndarray:
        raise NotImplementedError


class Classification(_Texts):
    """One label for each text or pair."""

    problem_type = "single_label_classification"

    def _targets(self, examples):
        ids = {name: number for number, name in enumerate(self.labels)}
        check_labels(
            (e.id, e.label) for e in examples if e.label is not None and e.label not in ids
        )
        return np.array([ids.get(each.label, -100) for each in examples], np.int32)

    def fill(self) -> Mapping[str, Any]:
        return {"labels": -100, "example_weights": 0.0}

    def predictions(self, examples, features, outputs) -> list[Prediction]:
        results = []
        for example, logits in zip(examples, outputs["logits"], strict=True):
            scores = softmax(logits)
            results.append(
                {
                    "id": example.id,
                    "prediction": self.labels[int(np.argmax(logits))],
                    "label": example.label,
                    "scores": dict(zip(self.labels, map(float, scores), strict=True)),
                }
            )
        return results

    def baseline(self, train) -> str | None:
        counts = Counter(each.label for each in train if each.label is not None)
        return max(self.labels, key=lambda name: counts[name]) if counts else None


class MultiLabel(_Texts):
    """Any number of labels for each text or pair: those with a probability of at least 1/2."""

    problem_type = "multi_label_classification"

    def _targets(self, examples):
        ids = {name: number for number, name in enumerate(self.labels)}
        labels = np.zeros((len(examples), len(ids)), np.float32)
        check_labels((e.id, name) for e in examples for name in e.label or () if name not in ids)
        for row, example in enumerate(examples):
            for name in example.label or ():
                labels[row, ids[name]] = 1
        return labels

    def fill(self) -> Mapping[str, Any]:
        return {"labels": 0.0, "example_weights": 0.0}

    def predictions(self, examples, features, outputs) -> list[Prediction]:
        results = []
        for example, logits in zip(examples, outputs["logits"], strict=True):
            scores = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
            chosen = [n for n, s in zip(self.labels, scores, strict=True) if s >= 0.5]
            results.append(
                {
                    "id": example.id,
                    "prediction": chosen,
                    "label": None if example.label is None else list(example.label),
                    "scores": dict(zip(self.labels, map(float, scores), strict=True)),
                }
            )
        return results

    def baseline(self, train) -> list[str] | None:
        known = [each.label for each in train if each.label is not None]
        counts = Counter(name for labels in known for name in labels)
        chosen = [name for name in self.labels if 2 * counts[name] >= len(known)]
        return chosen if known else None


class Regression(_Texts):
    """A number for each text or pair."""

    problem_type = "regression"

    def _targets(self, examples):
        values = np.array([np.nan if e.label is None else e.label for e in examples], np.float64)
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            targets = (values / self.task.label_scale).astype(np.float32)
        unusable = [
            e.id
            for e, target in zip(examples, targets, strict=True)
            if e.label is not None and not np.isfinite(target)
        ]
        if unusable:
            raise UsageError(
                f"the target is not a finite number (of float32) in "
                f"{counted(len(unusable), 'example')}, such as example {shortened(unusable[0])}. "
                "Correct or remove them."
            )
        return np.nan_to_num(targets)

    def fill(self) -> Mapping[str, Any]:
        return {"labels": 0.0, "example_weights": 0.0}

    def predictions(self, examples, features, outputs) -> list[Prediction]:
        return [
            {
                "id": example.id,
                "prediction": float(np.asarray(value).reshape(-1)[0]) * self.task.label_scale,
                "label": example.label,
            }
            for example, value in zip(examples, outputs["logits"], strict=True)
        ]

    def baseline(self, train) -> float | None:
        known = [each.label for each in train if each.label is not None]
        return float(np.mean(known)) if known else None


def encode_texts(
    texts: Sequence[tuple[str, str | None]], tokenizer: "RobertaTokenizer", formatting: Formatting
) -> tuple[list[list[int]], int]:
    """The tokens of texts and pairs: `<s> A </s>`, `<s> A </s></s> B </s>`, truncated.

    Args:
      texts: pairs (first text, second text or None); all of them pairs or none.
      tokenizer: the model's.
      formatting: gives the length, the prefixes and the number of separators.

    Returns:
      The sequences, and how many of them were truncated.
    """
    is_pair = any(b is not None for _, b in texts)
    frame = frame_of(tokenizer, formatting.separators)
    first = [formatting.prefix_a + a for a, _ in texts]
    if not is_pair:
        room = frame.room(formatting.max_length)
        tokens = tokens_of_texts(first, tokenizer)
        cut = sum(len(tokens[text]) > room for text in first)
        return [frame.one(tokens[text][:room]) for text in first], cut
    second = [formatting.prefix_b + (b or "") for _, b in texts]
    room = frame.pair_room(formatting.max_length)
    tokens = tokens_of_texts((*first, *second), tokenizer)
    rows, cut = [], 0
    for a, b in zip(first, second, strict=True):
        most_a, most_b = longest_first(len(tokens[a]), len(tokens[b]), room)
        rows.append(frame.two(tokens[a][:most_a], tokens[b][:most_b]))
        cut += most_a < len(tokens[a]) or most_b < len(tokens[b])
    return rows, cut


def cut_note(number: int, formatting: Formatting) -> dict[str, int]:
    """`Features.notes` for examples that were cut to the length of an input."""
    return {f"examples cut to {formatting.max_length} tokens": number} if number else {}


def check_not_empty(examples: Sequence[Any]) -> None:
    """Raises a UsageError if there are no examples."""
    if not examples:
        raise UsageError("there are no examples: the split is empty.")


def check_labels(wrong) -> None:
    """Raises a UsageError that names the labels that the task does not have, if there are any."""
    wrong = list(wrong)
    if wrong:
        names = sorted({str(name) for _, name in wrong})
        ids = list(dict.fromkeys(identity for identity, _ in wrong))
        raise UsageError(
            f"labels that the task does not have: "
            f"{listed([repr(shortened(name, 40)) for name in names])}, in "
            f"{counted(len(ids), 'example')}, such as example {shortened(ids[0])}. Correct them, "
            "or give all labels with --config.data.labels."
        )


def labelled(examples, predictions) -> list[tuple[Any, Any]]:
    """(label, prediction) of the examples whose label is known."""
    return [
        (example.label, prediction["prediction"])
        for example, prediction in zip(examples, predictions, strict=True)
        if example.label is not None
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits along the last axis, computed in float64."""
    values = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return values / values.sum(-1, keepdims=True)
