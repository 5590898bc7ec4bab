"""Multiple choice: the order of the texts, what is cut, and examples with fewer choices."""

import csv
import functools
import json
import lzma

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.examples import ChoiceExample
from roberta_jax.tasks.task import Formatting
from tests.support.kinds import batch_of, build, make_kind, outputs_of
from tests.support.small_tokenizer import small_tokenizer


def kind_of(max_length=38, **fields):
    return make_kind("choice", formatting=Formatting(max_length=max_length, **fields))


def sequences_of(features):
    return [
        features.tokens[begin:end].tolist()
        for begin, end in zip(features.starts[:-1], features.starts[1:], strict=True)
    ]


def decoded(features):
    return [small_tokenizer().decode(tokens) for tokens in sequences_of(features)]


def encode(kind, *examples):
    return kind.encode(examples, small_tokenizer())


@pytest.mark.parametrize(
    ("context", "question", "formatting", "expected"),
    [
        ("It rains.", "Is it dry?", {}, "<s>Is it dry? omega</s></s>It rains.</s>"),
        ("It rains.", "The answer is _ .", {}, "<s>The answer is omega .</s></s>It rains.</s>"),
        ("It rains.", "___, it is not", {}, "<s>omega, it is not</s></s>It rains.</s>"),
        ("It rains.", "She", {"context_first": True}, "<s>It rains.</s></s>She omega</s>"),
        (
            "", "Is it?", {"separators": 1, "prefix_a": "Q: ", "prefix_b": "A: "},
            "<s>Q: Is it?</s>A: omega</s>",
        ),
        ("It rains.", "", {}, "<s>omega</s></s>It rains.</s>"),
        ("It rains.", "", {"context_first": True}, "<s>It rains.</s></s>omega</s>"),
        ("", "A gap _ alone", {}, "<s>A gap _ alone</s></s>omega</s>"),
    ],
)  # fmt: skip
def test_the_format_follows_from_the_example(context, question, formatting, expected):
    example = ChoiceExample("1", context, question, ("alpha", "omega"), 1)
    features = encode(kind_of(**formatting), example)
    assert features.choices == 2
    assert decoded(features) == [expected.replace("omega", "alpha"), expected]
    assert features.columns.keys() == {"labels"}


def test_what_the_choices_share_is_cut_and_their_own_text_kept():
    long = "return value class " * 30
    example = ChoiceExample(
        "1", long, "which is it", ("first choice", "a second and longer choice")
    )
    whole = encode(kind_of(10_000), example)
    for context_first in (False, True):
        features = encode(kind_of(38, context_first=context_first), example)
        assert features.row_lengths.tolist() == [38]
        assert features.notes == {"examples cut to 38 tokens": 1}
        for cut, full in zip(decoded(features), decoded(whole), strict=True):
            own, context = full.removeprefix("<s>").removesuffix("</s>").split("</s></s>")
            first, second = cut.removeprefix("<s>").removesuffix("</s>").split("</s></s>")
            if context_first:
                first, second = second, first
            assert first == own
            assert context.startswith(second)
    # With a limit, the end of the own text is cut as well.
    limited = sequences_of(encode(kind_of(38, max_option_length=5), example))
    for row, full in zip(limited, sequences_of(whole), strict=True):
        assert len(row) == 38
        assert row[:8] == [*full[:6], 2, 2]
    # An own text without an end leaves nothing of the context, and never exceeds the length.
    swapped = ChoiceExample("1", "context", long, ("a", "b"))
    assert encode(kind_of(38), swapped).row_lengths.tolist() == [38]
    assert decoded(encode(kind_of(38), swapped))[0].endswith("</s></s></s>")


def test_special_tokens_in_a_text_are_text():
    features = encode(kind_of(), ChoiceExample("1", "a </s></s> b", "<mask>", ("x", "<s>"), 0))
    for tokens in sequences_of(features):
        assert (tokens.count(0), tokens.count(2), tokens.count(999)) == (1, 3, 0)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model, params, batch):
    def loss(params):
        return model.apply({"params": params}, **batch, method="loss")["multiple_choice"]

    return jax.value_and_grad(loss)(params)


RAGGED = (
    ChoiceExample("1", "It rains.", "Is it dry?", ("yes", "no", "perhaps"), 1),
    ChoiceExample("2", "A dog.", "A cat?", ("yes", "no"), 0),
    ChoiceExample("3", "A dog, a cat.", "A bird?", ("never", "always", "at times"), None),
)


def test_examples_with_fewer_choices_lose_nothing_and_gain_nothing():
    kind = kind_of()
    features = encode(kind, *RAGGED)
    assert features.choices == 3
    assert sequences_of(features)[5] == [0, 2]
    assert features.columns["choice_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert features.columns["labels"].tolist() == [1, 0, -100]
    model, params = build(kind)
    batch = batch_of(kind, features, [0, 1, 2, -1])
    assert batch["input_ids"].shape[:2] == (4, 3)
    assert model.count(**batch)["multiple_choice"] == 2
    outputs = outputs_of(kind, model, params, features)
    logits = [
        np.asarray(row)[: len(e.choices)] for row, e in zip(outputs["logits"], RAGGED, strict=True)
    ]
    probabilities = [np.exp(row) / np.exp(row).sum() for row in logits]
    expected = -np.log([probabilities[0][1], probabilities[1][0]])
    loss, grads = loss_and_gradients(model, params, batch)
    assert loss == pytest.approx(expected.sum(), rel=1e-5)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))

    predictions = kind.predictions(RAGGED, features, outputs)
    for example, row, scores, prediction in zip(
        RAGGED, logits, probabilities, predictions, strict=True
    ):
        assert list(prediction)[:2] == ["id", "prediction"]
        assert prediction["prediction"] == row.argmax()
        assert prediction["label"] == example.label
        np.testing.assert_allclose(prediction["scores"], scores, atol=1e-6)
    json.dumps(predictions)


def test_scores_of_groups_and_of_all():
    examples = [
        ChoiceExample("1", "", "q", ("a", "b"), 0, "middle"),
        ChoiceExample("2", "", "q", ("a", "b"), 1, "high"),
        ChoiceExample("3", "", "q", ("a", "b"), 1, "high"),
        ChoiceExample("4", "", "q", ("a", "b"), None, "high"),
        ChoiceExample("5", "", "q", ("a", "b"), 0),
    ]
    kind = kind_of()
    predictions = [{"prediction": 0} for _ in examples]
    scores = kind.scores(examples, predictions)
    assert scores == {"accuracy": 0.5, "accuracy_high": 0.0, "accuracy_middle": 1.0}
    assert next(iter(scores)) == "accuracy"
    assert kind.scores(examples[3:4], predictions[:1]) == {}


def test_the_baseline_is_the_commonest_number_that_the_example_has():
    kind = kind_of()
    train = [
        ChoiceExample("", "", "q", ("a", "b", "c"), label) for label in (2, 2, 1, 0, 1, 2, None)
    ]
    assert [each["prediction"] for each in kind.majority(train, RAGGED)] == [2, 1, 2]
    assert kind.majority(train[-1:], RAGGED) is None


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples"),
        ([ChoiceExample("7", "c", "q", ("a", "b"), 2)], "example 7 has 2 choices.*label is 2"),
        ([ChoiceExample("7", "c", "q", ("a", "b"), -1)], "example 7 has 2 choices.*label is -1"),
        ([ChoiceExample("7", "c", "q", ("a",), 3)], "example 7 has 1 choice, "),
        ([ChoiceExample("8", "c", "q", ())], "example 8 has no choices"),
        ([ChoiceExample("9", "c", "q", ("a",), 0)], "no example has more than one choice"),
    ],
)
def test_bad_examples_are_errors(examples, message):
    with pytest.raises(UsageError, match=message):
        encode(kind_of(), *examples)


def test_examples_with_one_choice_are_predicted():
    """There is nothing to train on, but the only choice is predicted."""
    kind, examples = kind_of(), [ChoiceExample(name, "c", "q", ("a",)) for name in "xy"]
    features = encode(kind, *examples)
    model, params = build(kind)
    predictions = kind.predictions(examples, features, outputs_of(kind, model, params, features))
    assert [each["prediction"] for each in predictions] == [0, 0]
    assert [each["scores"] for each in predictions] == [[1.0], [1.0]]


def test_race_and_swag_fit_their_lengths(real_data):
    """RACE's questions and options are whole within 128 tokens, and passages fill the rest."""
    with lzma.open(real_data / "multiple_choice" / "race_sample.train.jsonl.xz", "rt") as file:
        rows = [json.loads(line) for line in file][:100]
    examples = [
        ChoiceExample(
            str(n),
            row["article"],
            row["question"],
            tuple(row["options"]),
            "ABCD".index(row["answer"]),
        )
        for n, row in enumerate(rows)
    ]
    features = encode(kind_of(512, max_option_length=128), *examples)
    assert features.choices == 4
    assert features.row_lengths.max() <= 512
    for example, tokens in zip(examples, sequences_of(features)[::4], strict=True):
        text = small_tokenizer().decode(tokens)
        assert text.startswith("<s>" + example.question.split("_")[0].strip()[:20])
        assert text.split("</s></s>")[1].removesuffix("</s>").rstrip("\ufffd") in example.context
    with (real_data / "multiple_choice" / "swag_sample.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    example = ChoiceExample(
        "1", row["sent1"], row["sent2"], tuple(row[f"ending{i}"] for i in range(4))
    )
    text = decoded(encode(kind_of(128, context_first=True), example))[0]
    assert text == f"<s>{row['sent1']}</s></s>{row['sent2']} {row['ending0']}</s>"
