"""Tests of holding out a share of the examples for validation."""

import collections
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.errors import UsageError
from roberta_jax.tasks.examples import (
    ChoiceExample,
    PronounExample,
    QuestionExample,
    TextExample,
    TokenExample,
)
from roberta_jax.tasks.validation_split import content_digest, split_validation

TEXTS = [TextExample(str(i), f"text {i}", None, "rare" if i % 10 == 0 else "x") for i in range(500)]

ids = st.integers(0, 10**6).map(str)
text_examples = st.builds(
    TextExample,
    ids,
    st.sampled_from(["a", "A ", "b", "c  d", "c d", "e", "f", "g"]),
    st.sampled_from([None, "y"]),
    st.one_of(
        st.sampled_from(["x", "y", "z", None]),
        st.lists(st.sampled_from("xyz"), unique=True).map(tuple),
    ),
)
token_examples = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["O", "B-X", "B-Y"])), min_size=1, max_size=3
).map(lambda pairs: TokenExample("", *map(tuple, zip(*pairs, strict=True))))


@settings(deadline=None)
@given(
    st.lists(text_examples, max_size=25) | st.lists(token_examples, max_size=25),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_a_split_has_every_example_once_and_no_text_twice(examples, share, seed, rng):
    try:
        train, validation = split_validation(examples, share, seed)
    except UsageError:
        # Then a side would be empty: there is one text, or a text for each label and no more.
        return
    assert train
    assert validation
    assert collections.Counter(train) + collections.Counter(validation) == collections.Counter(
        examples
    )
    contents = [{content_digest(each) for each in side} for side in (train, validation)]
    assert not contents[0] & contents[1]

    def labels(side):
        tags = [each.tags if isinstance(each, TokenExample) else each.label for each in side]
        return {
            one for each in tags if each for one in (each if isinstance(each, tuple) else [each])
        }

    assert labels(train) == labels(examples)
    shuffled = rng.sample(examples, len(examples))
    if len({content_digest(each) for each in examples}) == len(examples):
        # The order of the examples and their ids do not count.
        again = split_validation(shuffled, share, seed)
        assert collections.Counter(again[0]) == collections.Counter(train)


def test_labels_have_the_same_share_on_both_sides():
    for share, rare, others in [(0.1, 5, 45), (0.5, 25, 225), (0.01, 1, 4), (0.004, 0, 2)]:
        train, validation = split_validation(TEXTS, share)
        counts = collections.Counter(each.label for each in validation)
        assert abs(counts["rare"] - rare) <= 1
        assert counts["rare"] + counts["x"] == rare + others
        assert len(train) == 500 - rare - others


def test_the_order_within_the_sides_is_that_of_the_file():
    for side in split_validation(TEXTS, 0.3):
        numbers = [int(each.id) for each in side]
        assert numbers == sorted(numbers)


def test_the_seed_selects_another_division():
    sides = [
        frozenset(each.id for each in split_validation(TEXTS, 0.1, seed)[1]) for seed in range(4)
    ]
    assert len(set(sides)) == 4
    assert sides[0] == frozenset(each.id for each in split_validation(TEXTS, 0.1, 0)[1])


def test_targets_of_a_regression_have_the_same_range_on_both_sides():
    rng = random.Random(0)
    examples = [TextExample(str(i), f"t {i}", None, rng.gauss(0, 1) ** 3) for i in range(1000)]
    _, validation = split_validation(examples, 0.1)
    middle = sorted(each.label for each in examples)[500]
    below = sum(each.label < middle for each in validation)
    assert len(validation) == 100
    assert below == 50


def test_several_labels_are_divided_by_the_rarest():
    examples = [
        TextExample(str(i), f"t {i}", None, ("x", "rare") if i % 20 == 0 else ("x",))
        for i in range(200)
    ]
    _, validation = split_validation(examples, 0.2)
    assert sum("rare" in each.label for each in validation) == 2
    assert len(validation) == 40


def test_passages_are_on_one_side():
    contexts = [f"Passage {i // 4}." for i in range(40)]
    choices = [ChoiceExample(str(i), c, f"q {i}", ("a", "b"), 0) for i, c in enumerate(contexts)]
    questions = [
        QuestionExample(str(i), f"q {i}", c, ("a",) if i % 3 else (), (0,) if i % 3 else ())
        for i, c in enumerate(contexts)
    ]
    for examples in (choices, questions):
        train, validation = split_validation(examples, 0.2)
        assert not {each.context for each in train} & {each.context for each in validation}
        assert 4 <= len(validation) <= 8


def test_contents():
    same = [
        [TextExample("1", "A  b", None, "x"), TextExample("2", "a B ", None, "y")],
        [ChoiceExample("1", " ", "q", ("a",)), ChoiceExample("2", "", "Q", ("b",))],
        [PronounExample("1", "It is.", (0, 2), "x", -1)] * 2,
    ]
    different = [
        [TextExample("1", "a", "b"), TextExample("1", "a b"), TextExample("1", "a", "c")],
        [TokenExample("1", ("a", "b")), TokenExample("1", ("a b",))],
        [ChoiceExample("1", "", "q", ("a",)), ChoiceExample("1", "", "p", ("a",))],
    ]
    for examples in same:
        assert len({content_digest(each) for each in examples}) == 1
    for examples in different:
        assert len({content_digest(each) for each in examples}) == len(examples)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_shares_that_are_none(share):
    with pytest.raises(UsageError, match=r"--config.data.validation=.* between 0 and 1"):
        split_validation(TEXTS, share)


@pytest.mark.parametrize("examples", [[], TEXTS[:1], [TEXTS[0]] * 30])
def test_one_text_cannot_be_divided(examples):
    with pytest.raises(UsageError, match="cannot be divided. Name a file"):
        split_validation(examples, 0.1)


def test_one_text_for_each_label_cannot_be_divided():
    examples = [TextExample(str(i), f"t {i}", None, f"label {i}") for i in range(5)]
    with pytest.raises(UsageError, match="leaves no validation example"):
        split_validation(examples, 0.2)


def test_labels_that_are_not_held_out_are_named(caplog):
    examples = [*TEXTS[1:9], TextExample("r", "one", None, "single")]
    with caplog.at_level(logging.WARNING):
        _, validation = split_validation(examples, 0.3)
    assert {each.label for each in validation} == {"x"}
    assert "holds out no example of this label: single" in caplog.text
