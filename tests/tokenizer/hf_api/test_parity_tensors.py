"""Tensors of PyTorch and transformers' collators, with our tokenizer and transformers'."""

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity

TEXTS = ["one two three four five six seven", "the cat", "and a longer text than the second"]


def assert_same_columns(actual, expected):
    assert list(actual) == list(expected)
    for name, column in expected.items():
        assert type(actual[name]) is type(column)
        assert actual[name].dtype == column.dtype
        np.testing.assert_array_equal(actual[name], column)


@pytest.mark.parametrize("kind", ["np", "pt", "jax"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[0]])
def test_calls(plain, texts, kind):
    ours, theirs = plain
    options = {"padding": True, "return_special_tokens_mask": True, "return_tensors": kind}
    assert_same_columns(ours(texts, **options), theirs(texts, **options))
    moved = ours(texts, **options).to("cpu") if kind == "pt" else ours(texts, **options)
    assert_same_columns(moved, theirs(texts, **options))


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_padding_of_rows_with_labels(plain, kind):
    ours, theirs = plain
    for labels in ([0, 2, 1], [0.5, 1.0, -2.25]):
        features = [
            {**ours(text), "labels": label} for text, label in zip(TEXTS, labels, strict=True)
        ]
        options = {"return_tensors": kind, "pad_to_multiple_of": 8}
        assert_same_columns(ours.pad(features, **options), theirs.pad(features, **options))


def collators(tokenizer, kind):
    words = {"mlm_probability": 0.4, "seed": 3}
    return {
        "padding": transformers.DataCollatorWithPadding(tokenizer, return_tensors=kind),
        "mlm": transformers.DataCollatorForLanguageModeling(
            tokenizer, return_tensors=kind, pad_to_multiple_of=8, **words
        ),
        "clm": transformers.DataCollatorForLanguageModeling(
            tokenizer, mlm=False, return_tensors=kind
        ),
        "tokens": transformers.DataCollatorForTokenClassification(tokenizer, return_tensors=kind),
        "choices": transformers.DataCollatorForMultipleChoice(tokenizer),
        "default": transformers.DefaultDataCollator(return_tensors=kind),
    }


@pytest.mark.parametrize("kind", ["np", "pt"])
@pytest.mark.parametrize("name", ["padding", "mlm", "clm", "tokens", "choices", "default"])
def test_collators_work_unchanged(plain, name, kind):
    if (name, kind) == ("choices", "np"):
        pytest.skip("transformers' collator returns tensors of PyTorch only")
    results = []
    for tokenizer in plain:
        if name == "choices":
            rows = [tokenizer([text, text[:5]]) for text in TEXTS]
            features = [{**row, "label": i % 2} for i, row in enumerate(rows)]
        elif name == "tokens":
            rows = [tokenizer(text) for text in TEXTS]
            features = [{**row, "labels": row["input_ids"][::-1]} for row in rows]
        elif name == "default":
            features = [{**tokenizer("one two"), "label": i} for i in range(3)]
        else:
            features = [dict(tokenizer(t, return_special_tokens_mask=name == "mlm")) for t in TEXTS]
        results.append(collators(tokenizer, kind)[name](features))
    assert_same_columns(dict(results[0]), dict(results[1]))
