"""Texts and pairs: their sequences, targets, predictions and scores."""

import json
import math

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.examples import TextExample
from roberta_jax.tasks.kinds import text
from roberta_jax.tasks.task import Formatting
from tests.support.kinds import batch_of, build, make_kind, mean_loss, outputs_of
from tests.support.small_tokenizer import small_tokenizer

LABELS = ("bad", "good", "so so")


def kind_of(name, labels=LABELS, max_length=38, metrics=(), label_scale=1.0, **formatting):
    formatting = Formatting(max_length=max_length, **formatting)
    return make_kind(name, labels, formatting=formatting, metrics=metrics, label_scale=label_scale)


def sequences_of(features):
    return [
        features.tokens[begin:end].tolist()
        for begin, end in zip(features.starts[:-1], features.starts[1:], strict=True)
    ]


def encode(kind, *examples):
    return kind.encode(examples, small_tokenizer())


@pytest.mark.parametrize(
    ("text_b", "formatting", "expected"),
    [
        (None, {}, "<s>It rains.</s>"),
        ("A dog", {}, "<s>It rains.</s></s>A dog</s>"),
        ("", {}, "<s>It rains.</s></s></s>"),
        ("A dog", {"separators": 1}, "<s>It rains.</s>A dog</s>"),
        ("", {"separators": 1}, "<s>It rains.</s></s>"),
        (None, {"separators": 1}, "<s>It rains.</s>"),
        ("A dog", {"prefix_a": "Q: ", "prefix_b": "A: "}, "<s>Q: It rains.</s></s>A: A dog</s>"),
        (None, {"prefix_a": "Q: ", "prefix_b": "A: "}, "<s>Q: It rains.</s>"),
    ],
)
def test_the_sequence_of_a_text_and_of_a_pair(text_b, formatting, expected):
    example = TextExample("1", "It rains.", text_b, "good")
    features = encode(kind_of("classification", **formatting), example)
    assert [small_tokenizer().decode(tokens) for tokens in sequences_of(features)] == [expected]
    assert features.choices == 1
    assert not features.notes


@pytest.mark.parametrize("separators", [1, 2])
def test_long_pairs_are_cut_where_they_are_longer(separators):
    kind = kind_of("classification", max_length=20, separators=separators)
    long, short = "class return value " * 3000, "It rains."
    tokenizer = small_tokenizer()
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (long, short)]
    features = encode(
        kind,
        TextExample("1", long, short),
        TextExample("2", short, long),
        TextExample("3", long, long),
        TextExample("4", "", ""),
    )
    assert features.row_lengths.tolist() == [20, 20, 20, 2 + separators]
    assert features.notes == {"examples cut to 20 tokens": 3}
    alone = encode(kind, TextExample("1", long), TextExample("2", short))
    assert alone.row_lengths.tolist() == [20, 2 + len(whole[1])]
    assert sequences_of(alone)[0] == [0, *whole[0][:18], 2]
    assert alone.notes == {"examples cut to 20 tokens": 1}
    room = 18 - separators
    left = room - len(whole[1])
    middle = [2] * separators
    rows = sequences_of(features)
    assert rows[0] == [0, *whole[0][:left], *middle, *whole[1], 2]
    assert rows[1] == [0, *whole[1], *middle, *whole[0][:left], 2]
    first = rows[2].index(2) - 1
    assert abs(first - room / 2) <= 0.5
    assert rows[2] == [0, *whole[0][:first], *middle, *whole[0][: room - first], 2]


def test_special_tokens_in_a_text_are_text():
    for separators in (1, 2):
        kind = kind_of("classification", separators=separators)
        features = encode(kind, TextExample("1", "a </s></s> <mask>", "<s></s>"))
        tokens = sequences_of(features)[0]
        assert (tokens.count(0), tokens.count(2), tokens.count(999)) == (1, 1 + separators, 0)


def test_many_texts_are_encoded_in_parts_in_their_order():
    examples = [TextExample(str(n), f"text {n}", label="good") for n in range(9000)]
    features = encode(kind_of("classification"), *examples)
    assert features.num_rows == 9000
    tokenizer = small_tokenizer()
    for n in (0, 4095, 4096, 8191, 8192, 8999):
        assert sequences_of(features)[n] == tokenizer(f"text {n}")["input_ids"]


# (kind, labels, gold of four examples, targets, weights)
KINDS = {
    "classification": (LABELS, ("good", "bad", None, "so so"), [1, 0, -100, 2]),
    "multi_label": (
        LABELS,
        (("good", "bad"), (), None, ("so so",)),
        [[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]],
    ),
    "regression": ((), (2.5, -1.0, None, 5.0), [0.5, -0.2, 0.0, 1.0]),
}  # fmt: skip


def examples_of(gold):
    texts = ("It rains.", "A dog and a cat", "A class", "return value")
    pairs = zip(texts, gold, strict=True)
    return [TextExample(str(n), words, label=label) for n, (words, label) in enumerate(pairs)]


@pytest.mark.parametrize("name", KINDS)
def test_targets_losses_and_predictions(name):
    labels, gold, targets = KINDS[name]
    kind = kind_of(name, labels, label_scale=5.0)
    examples = examples_of(gold)
    features = encode(kind, *examples)
    np.testing.assert_allclose(features.columns["labels"], targets, rtol=1e-6)
    assert features.columns["labels"].dtype == (
        np.int32 if name == "classification" else np.float32
    )
    assert features.columns["example_weights"].tolist() == [1, 1, 0, 1]

    model, params = build(kind)
    assert model.config.num_labels == (len(labels) or 1)
    assert model.config.id2label == (dict(enumerate(labels)) or {0: "LABEL_0"})
    outputs = outputs_of(kind, model, params, features)
    logits = np.asarray(outputs["logits"], np.float64)
    # By hand, over the three examples that have a label.
    known, wanted = logits[[0, 1, 3]], np.asarray(targets)[[0, 1, 3]]
    if name == "classification":
        chances = np.exp(known) / np.exp(known).sum(-1, keepdims=True)
        expected = -np.log(chances[range(3), wanted]).mean()
    elif name == "multi_label":
        chances = 1 / (1 + np.exp(-known))
        expected = -np.log(np.where(wanted > 0, chances, 1 - chances)).mean()
    else:
        expected = ((known[:, 0] - wanted) ** 2).mean()
    for rows in ([0, 1, 2, 3], [3, -1, 1, 2, 0, -1]):
        assert mean_loss(model, params, batch_of(kind, features, rows)) == pytest.approx(
            expected, rel=1e-4
        )

    predictions = kind.predictions(examples, features, outputs)
    for row, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
        assert list(prediction)[:2] == ["id", "prediction"]
        assert prediction["id"] == example.id
        if name == "classification":
            assert prediction["prediction"] == labels[logits[row].argmax()]
            assert list(prediction["scores"]) == list(labels)
            assert sum(prediction["scores"].values()) == pytest.approx(1)
        elif name == "multi_label":
            assert prediction["prediction"] == [
                n for n, x in zip(labels, logits[row], strict=True) if x >= 0
            ]
        else:
            assert prediction["prediction"] == pytest.approx(5 * logits[row, 0])
        label = example.label
        assert prediction["label"] == (list(label) if isinstance(label, tuple) else label)
    json.dumps(predictions)


@pytest.mark.parametrize("name", KINDS)
def test_scores_count_what_has_a_label(name, monkeypatch):
    """What the metrics get: labels and predictions of the same examples, and the names."""
    labels, gold, _ = KINDS[name]
    kind = kind_of(name, labels, metrics=("one", "two"))
    examples = examples_of(gold)
    predictions = [{"prediction": n} for n in range(4)]
    monkeypatch.setattr(text.metrics, "compute", lambda *args, **options: (args, options))
    names, wanted, predicted = kind.scores(examples, predictions)[0]
    assert names == ("one", "two")
    assert list(wanted) == [gold[0], gold[1], gold[3]]
    assert list(predicted) == [0, 1, 3]
    assert kind.scores(examples, predictions)[1] == {"labels": labels}
    assert kind.scores(examples[2:3], predictions[2:3]) == {}


def test_scores_of_several_labels_do_not_depend_on_their_order():
    examples = examples_of((("good", "bad"), (), None, ("so so",)))
    kind = kind_of("multi_label", metrics=("exact_match", "micro_f1"))
    predictions = [{"prediction": each} for each in (["bad", "good"], [], ["bad"], [])]
    scores = kind.scores(examples, predictions)
    assert scores == {"exact_match": pytest.approx(2 / 3), "micro_f1": pytest.approx(0.8)}


def test_baselines():
    new = [TextExample("9", "x")]
    train = examples_of(("good", "so so", None, "so so"))
    classification = kind_of("classification")
    assert classification.majority(train, new) == [{"id": "9", "prediction": "so so"}]
    assert classification.majority(new, new) is None
    train = examples_of((("good", "bad"), (), None, ("good",)))
    assert kind_of("multi_label").majority(train, new) == [{"id": "9", "prediction": ["good"]}]
    assert kind_of("multi_label").majority(new, new) is None
    train = examples_of((1.0, 2.0, None, 6.0))
    assert kind_of("regression", ()).majority(train, new) == [{"id": "9", "prediction": 3.0}]
    assert kind_of("regression", ()).majority(new, new) is None


@pytest.mark.parametrize(
    ("name", "gold", "message"),
    [
        (
            "classification",
            ("good", "great", None, "great"),
            r"'great', in 2 examples, such as example 1",
        ),
        (
            "multi_label",
            (("good", "x"), ("y",), (), None),
            r"'x', 'y', in 2 examples, such as example 0",
        ),
        ("regression", (1.0, math.nan, None, math.inf), r"in 2 examples, such as example 1"),
        (
            "regression",
            (1.0, 1e300, None, 2.0),
            r"not a finite number .*in 1 example, such as example 1",
        ),
    ],
)
def test_labels_that_cannot_be_used_are_errors(name, gold, message):
    kind = kind_of(name, () if name == "regression" else LABELS)
    with pytest.raises(UsageError, match=message):
        encode(kind, *examples_of(gold))


@pytest.mark.parametrize("name", KINDS)
def test_an_empty_split_is_an_error(name):
    with pytest.raises(UsageError, match="no examples"):
        encode(kind_of(name, KINDS[name][0]))


def test_gradients_of_a_batch_with_filling_rows_are_finite():
    kind = kind_of("regression", ())
    features = encode(kind, *examples_of((1.0, 2.0, None, 3.0)))
    model, params = build(kind)
    batch = batch_of(kind, features, [2, -1])
    sums = jax.jit(lambda p: model.apply({"params": p}, **batch, method="loss"))(params)
    assert float(sums["classification"]) == 0
    assert float(model.count(**batch)["classification"]) == 0
