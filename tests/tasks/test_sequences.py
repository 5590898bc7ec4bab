"""Tokens of texts, special tokens around them, and how pairs are cut."""

import random

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.sequences import frame_of, longest_first, tokens_of_texts
from tests.support.small_tokenizer import small_tokenizer


def test_the_frame_is_the_tokenizers():
    tokenizer = small_tokenizer()
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a dog", "a cat"))
    frame = frame_of(tokenizer, 2)
    assert frame.one(a) == tokenizer("a dog")["input_ids"]
    assert frame.two(a, b) == tokenizer("a dog", "a cat")["input_ids"]
    assert (frame.room(10), frame.pair_room(10)) == (8, 6)
    frame = frame_of(tokenizer, 1)
    assert frame.two(a, b) == [0, *a, 2, *b, 2]
    assert (frame.room(10), frame.pair_room(10)) == (8, 7)
    for room, length in ((frame.room, 2), (frame.pair_room, 3)):
        assert room(length + 1) == 1
        with pytest.raises(
            UsageError, match=rf"max_length={length} leaves .* at least {length + 1}"
        ):
            room(length)


def test_pairs_are_cut_as_the_tokenizer_cuts_them():
    tokenizer, rng = small_tokenizer(), random.Random(0)
    frame = frame_of(tokenizer, 2)
    for _ in range(150):
        texts = [
            " ".join(rng.choices(("dog", "class", "extraordinary"), k=rng.randrange(30)))
            for _ in "ab"
        ]
        if rng.random() < 0.1:
            texts[1] = texts[0]
        first, second = (tokens_of_texts(texts, tokenizer)[text] for text in texts)
        max_length = rng.randint(5, 60)
        a, b = longest_first(len(first), len(second), frame.pair_room(max_length))
        expected = tokenizer([texts[0]], [texts[1]], truncation=True, max_length=max_length)
        assert frame.two(first[:a], second[:b]) == expected["input_ids"][0]


@pytest.mark.parametrize("room", [0, 1, 7, 8])
def test_lengths_of_a_pair(room):
    for first in range(12):
        for second in range(12):
            a, b = longest_first(first, second, room)
            assert a <= first
            assert b <= second
            assert a + b == min(first + second, room)
            if a < first and b < second:
                assert abs(a - b) <= 1


def test_tokens_of_texts():
    tokenizer = small_tokenizer()
    texts = [f"text {n % 5000}" for n in range(9000)] + ["a </s><mask>", ""]
    tokens = tokens_of_texts(iter(texts), tokenizer)
    assert len(tokens) == 5002
    for text in ("text 0", "text 4095", "text 4096", "text 4999"):
        assert tokens[text] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens[""] == []
    assert not {0, 2, 999} & set(tokens["a </s><mask>"])
