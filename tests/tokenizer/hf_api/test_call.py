"""Calling the tokenizer: truncation, padding, overflow, arrays, and wrong arguments."""

import logging

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tokenizer_examples import LONG_TEXT

# Truncation and padding


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_truncated_rows_are_prefixes_with_special_tokens(tokenizer, data):
    words = st.lists(st.sampled_from(["a", "bb", "class", "return", "<mask>"]), max_size=12)
    texts = data.draw(st.tuples(words, words).map(lambda pair: tuple(map(" ".join, pair))))
    a, b = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    strategy = data.draw(st.sampled_from(["longest_first", "only_first", "only_second", True]))
    limit = data.draw(st.integers(4, 40))
    room = limit - 4
    excess = max(0, len(a) + len(b) - room)
    # `tokenizers` leaves at least one id of the text that it truncates, if there is room for any.
    removable = {"only_first": len(a), "only_second": len(b)}.get(strategy, excess + 1)
    if room and excess and removable <= excess:
        with pytest.raises(ValueError, match="max_length"):
            tokenizer([texts], truncation=strategy, max_length=limit)
        return
    [ids] = tokenizer([texts], truncation=strategy, max_length=limit)["input_ids"]
    separator = next(i for i in range(len(ids)) if ids[i : i + 2] == [2, 2])
    rest_a, rest_b = ids[1:separator], ids[separator + 2 : -1]
    assert (ids[0], ids[-1]) == (0, 2)
    assert (rest_a, rest_b) == (a[: len(rest_a)], b[: len(rest_b)])
    assert len(ids) == min(limit, len(a) + len(b) + 4)
    if not room:
        assert rest_a == rest_b == []
    elif strategy == "only_first":
        assert rest_b == b
    elif strategy == "only_second":
        assert rest_a == a
    elif excess:  # ids were removed from the longer text until both were equally long
        assert rest_a == a or rest_b == b or abs(len(rest_a) - len(rest_b)) <= 1


def test_padding(tokenizer):
    texts = ["one", "one two three", ""]
    rows = [tokenizer.encode(text) for text in texts]
    longest = max(map(len, rows))
    for options, length in (
        ({"padding": True}, longest),
        ({"padding": "longest", "pad_to_multiple_of": 8}, -longest % 8 + longest),
        ({"padding": "max_length", "max_length": 20}, 20),
        ({"padding": "max_length"}, 512),
        ({"padding": "max_length", "max_length": 20, "pad_to_multiple_of": 16}, 32),
    ):
        out = tokenizer(texts, return_tensors="np", **options)
        assert out["input_ids"].shape == out["attention_mask"].shape == (3, length)
        assert out["input_ids"].dtype == np.int64
        for row, ids, mask in zip(rows, out["input_ids"], out["attention_mask"], strict=True):
            np.testing.assert_array_equal(ids, row + [1] * (length - len(row)))
            np.testing.assert_array_equal(mask, np.arange(length) < len(row))
    assert "length" not in tokenizer("one")
    assert tokenizer(texts)["input_ids"] == rows  # the pipeline's settings are reset


def test_overflowing_rows_join_to_the_whole_text(tokenizer):
    ids = tokenizer.encode(LONG_TEXT, add_special_tokens=False)
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        options = {"truncation": True, "max_length": 12, "stride": 3}
        encoded = tokenizer(["short", LONG_TEXT], return_overflowing_tokens=True, **options)
        tokenizer.truncation_side = "right"
        assert encoded["overflow_to_sample_mapping"][:2] == [0, 1]
        rows = [row[1:-1] for row in encoded["input_ids"][1:]]
        rows = rows if side == "right" else rows[::-1]
        assert [len(row) for row in rows[1:-1]] == [10] * len(rows[1:-1])
        whole = rows[0]
        for row in rows[1:]:
            assert whole[-3:] == row[:3]
            whole = whole + row[3:]
        assert whole == ids


def test_overflow_of_one_text_is_a_batch(tokenizer):
    options = {"truncation": True, "max_length": 12, "return_overflowing_tokens": True}
    encoded = tokenizer(LONG_TEXT, **options)
    assert len(encoded["input_ids"]) == len(encoded["overflow_to_sample_mapping"]) > 2
    arrays = tokenizer(LONG_TEXT, padding=True, return_tensors="np", **options)
    assert arrays["input_ids"].shape == (len(encoded["input_ids"]), 12)


def test_one_text_as_an_array_is_a_batch_of_one(tokenizer):
    out = tokenizer("one two", return_tensors="np")
    assert out["input_ids"].tolist() == [tokenizer.encode("one two")]


def test_arrays(tokenizer):
    texts = ["one", "one two three"]
    lists = tokenizer(texts, padding=True, return_offsets_mapping=True)
    for kind, array, dtype in (("np", np.ndarray, np.int64), ("jax", jax.Array, np.int32)):
        arrays = tokenizer(texts, padding=True, return_offsets_mapping=True, return_tensors=kind)
        for name, column in lists.items():
            assert isinstance(arrays[name], array)
            assert arrays[name].dtype == dtype
            assert arrays[name].tolist() == np.array(column).tolist()
        assert arrays["offset_mapping"].shape == (*arrays["input_ids"].shape, 2)
        assert tokenizer.pad(lists, return_tensors=kind)["input_ids"].dtype == dtype
    padded = tokenizer.pad([{"input_ids": jax.numpy.arange(n)} for n in (2, 3)])
    assert isinstance(padded["input_ids"], jax.Array)
    assert padded["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_text_target_becomes_labels(tokenizer):
    encoded = tokenizer(["a", "b"], text_target=["c", "d e"], padding=True)
    assert encoded["labels"] == tokenizer(["c", "d e"], padding=True)["input_ids"]
    assert tokenizer(text_target="c") == tokenizer("c")


def test_add_prefix_space_of_one_call(tokenizer):
    expected = tokenizer.encode(" return")
    assert tokenizer.encode("return", add_prefix_space=True) == expected
    assert tokenizer.encode("return") != expected  # the next call is not affected
    encoded = tokenizer("return", add_prefix_space=True, return_offsets_mapping=True)
    assert encoded["offset_mapping"][1] == (0, 6)
    words = tokenizer(["return", "class"], is_split_into_words=True, add_prefix_space=True)
    assert words["input_ids"] == tokenizer.encode(" return class")
    assert words.word_ids() == [None, 0, 1, None]


# Wrong arguments, and warnings


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((), {}, "text is None"),
        ((None,), {}, "text is None"),
        ((3,), {}, "must be a string or a list, not int"),
        ((["a", None],), {}, "string or a pair of strings, not None"),
        ((["a", 3],), {}, "not 3"),
        ((["a", ["b", "c", "d"]],), {}, "pair of strings"),
        ((["a", ("b", "c", "d")],), {}, "pair of strings"),
        (([["a", None]],), {}, "pair of strings"),
        ((b"bytes",), {}, "not bytes"),
        (("a", 3), {}, "text_pair must be a string"),
        (("a", ["b"]), {}, "text_pair must be a string"),
        ((["a", "b"], "c"), {}, "list of 2 texts"),
        ((["a"], ["b", "c"]), {}, "list of 1 texts"),
        (("a",), {"padding": "left"}, "padding must be.*'do_not_pad'"),
        (("a",), {"truncation": "middle"}, "truncation must be.*'do_not_truncate'"),
        (("a",), {"padding_side": "top"}, "padding_side must be"),
        (("a",), {"return_tensors": "list"}, "'np', 'jax', 'pt' or 'tf', not 'list'"),
        ((["a", "a b c"],), {"return_tensors": "np"}, "padding=True"),
        ((["a", "a b c"],), {"return_tensors": "jax"}, "padding=True"),
        (("a",), {"truncation": True, "max_length": 1}, "no room for the 2 special tokens"),
        (("a", "b"), {"truncation": True, "max_length": 3}, "no room for the 4 special tokens"),
        ((["a", ("b", "c")],), {"truncation": True, "max_length": 3}, "no room for the 4"),
        ((LONG_TEXT,), {"truncation": True, "max_length": 8, "stride": 6}, "less than the 6 ids"),
        (
            (LONG_TEXT,),
            {"truncation": True, "max_length": 8, "stride": -1},
            "stride must be 0 or more",
        ),
        ((LONG_TEXT, "x"), {"truncation": True, "max_length": 9, "stride": 4}, "stride"),
        ((LONG_TEXT, "x"), {"truncation": "only_second", "max_length": 9}, "may cut is too short"),
        (
            ("a",),
            {"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 8},
            "multiple of 8",
        ),
        (("a b",), {"is_split_into_words": True}, "list of words"),
        ((["a", "b"],), {"is_split_into_words": True}, "add_prefix_space=True"),
        ((["a", 3],), {"is_split_into_words": True, "add_prefix_space": True}, "list of words"),
        (([["a"], "b"],), {"is_split_into_words": True, "add_prefix_space": True}, None),
        (("a",), {"return_everything": True}, "return_everything"),
    ],
)
def test_wrong_arguments(tokenizer, arguments, options, error):
    if error is None:  # a string in a batch of words is a list of its letters
        assert len(tokenizer(*arguments, **options)["input_ids"]) == 2
        return
    with pytest.raises((TypeError, ValueError), match=error):
        tokenizer(*arguments, **options)
    assert (
        tokenizer.encode("a") == tokenizer(["a"])["input_ids"][0]
    )  # the pipeline's settings are reset


def test_warnings_are_logged_once(own_tokenizer, caplog):
    own_tokenizer.model_max_length = 8
    with caplog.at_level(logging.WARNING, logger="roberta_jax.tokenizer"):
        own_tokenizer(LONG_TEXT, verbose=False)
        own_tokenizer(LONG_TEXT, truncation=True)
        own_tokenizer(LONG_TEXT, truncation=False, max_length=3)
        assert not caplog.messages
        for _ in range(2):
            own_tokenizer(["a", LONG_TEXT])
        assert len(caplog.messages) == 1
        assert "longer than the 8 ids" in caplog.text
        own_tokenizer("a", max_length=5)
        assert "truncates" in caplog.messages[-1]
        own_tokenizer("a", max_length=5, padding=True)
        assert "no effect" in caplog.messages[-1]
        own_tokenizer.model_max_length = int(1e30)
        assert own_tokenizer(LONG_TEXT, truncation=True, padding="max_length") == own_tokenizer(
            LONG_TEXT
        )
        assert "model_max_length is not known" in caplog.messages[-1]
        own_tokenizer.truncate_sequences([5, 6], num_tokens_to_remove=2)
        assert "nothing is truncated" in caplog.messages[-1]
