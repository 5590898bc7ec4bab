"""Texts and pairs of texts: one label, several labels, or a number (`TextExample`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from roberta_jax.errors import UsageError, listed, shortened
from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import TextExample
from roberta_jax.tasks.features import Features, flattened
from roberta_jax.tasks.kinds.base import Kind, Prediction

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

_TEXTS_AT_ONCE = 4096  # the tokenizer's results take far more memory than the tokens


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
        sequences = encode_texts(
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
        )

    def outputs(self, output: Any) -> dict[str, Any]:
        return {"logits": output.logits}

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

    def scores(self, examples, predictions) -> dict[str, float]:
        pairs = labelled(examples, predictions)
        if not pairs:
            return {}
        gold, predicted = zip(*pairs, strict=True)
        return metrics.compute(self.task.metrics, gold, predicted, labels=self.labels)

    def majority(self, train, examples) -> list[Prediction] | None:
        counts = Counter(each.label for each in train if each.label is not None)
        if not counts:
            return None
        commonest = max(self.labels, key=lambda name: counts[name])
        return [{"id": each.id, "prediction": commonest} for each in examples]


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

    def scores(self, examples, predictions) -> dict[str, float]:
        pairs = labelled(examples, predictions)
        if not pairs:
            return {}
        gold, predicted = zip(*pairs, strict=True)
        return metrics.compute(self.task.metrics, gold, predicted, labels=self.labels)

    def majority(self, train, examples) -> list[Prediction] | None:
        known = [each.label for each in train if each.label is not None]
        if not known:
            return None
        counts = Counter(name for labels in known for name in labels)
        chosen = [name for name in self.labels if 2 * counts[name] >= len(known)]
        return [{"id": each.id, "prediction": chosen} for each in examples]


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
                f"the target of {len(unusable)} examples is not a finite number, such as that of "
                f"example {shortened(unusable[0])}. Correct or remove them."
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

    def scores(self, examples, predictions) -> dict[str, float]:
        pairs = labelled(examples, predictions)
        if not pairs:
            return {}
        gold, predicted = zip(*pairs, strict=True)
        return metrics.compute(self.task.metrics, gold, predicted, labels=())

    def majority(self, train, examples) -> list[Prediction] | None:
        known = [each.label for each in train if each.label is not None]
        if not known:
            return None
        return [{"id": each.id, "prediction": float(np.mean(known))} for each in examples]


def encode_texts(texts, tokenizer: "RobertaTokenizer", formatting) -> list[list[int]]:
    """The tokens of texts and pairs: `<s> A </s>`, `<s> A </s></s> B </s>`, truncated.

    Args:
      texts: pairs (first text, second text or None); all of them pairs or none.
      tokenizer: the model's.
      formatting: gives the length, the prefixes and the number of separators.
    """
    is_pair = any(b is not None for _, b in texts)
    one_separator = is_pair and formatting.separators == 1
    # One separator: room for one more token, which is then removed.
    max_length = formatting.max_length + one_separator
    rows: list[list[int]] = []
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        part = texts[begin : begin + _TEXTS_AT_ONCE]
        encoded = tokenizer(
            [formatting.prefix_a + a for a, _ in part],
            [formatting.prefix_b + (b or "") for _, b in part] if is_pair else None,
            truncation=True,
            max_length=max_length,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        rows += encoded["input_ids"]
    if one_separator:
        rows = [_without_second_separator(row, tokenizer.sep_token_id) for row in rows]
    return rows


def _without_second_separator(row: list[int], separator: int) -> list[int]:
    at = next(i for i in range(1, len(row) - 1) if row[i] == row[i + 1] == separator)
    return row[:at] + row[at + 1 :]


def check_not_empty(examples: Sequence[Any]) -> None:
    """Raises a UsageError if there are no examples."""
    if not examples:
        raise UsageError("there are no examples: the split is empty.")


def check_labels(wrong) -> None:
    """Raises a UsageError that names the labels that the task does not have, if there are any."""
    wrong = list(wrong)
    if wrong:
        names = sorted({str(name) for _, name in wrong})
        raise UsageError(
            f"{len(wrong)} examples have labels that the task does not have: "
            f"{listed([repr(shortened(name, 40)) for name in names])}, the first in example "
            f"{shortened(wrong[0][0])}. Correct them, or give all labels with --config.data.labels."
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
