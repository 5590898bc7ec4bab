"""Model inputs from ids: `pad`, `prepare_for_model`, and wrong arguments."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.lists(
    st.one_of(
        st.sampled_from([" ", "<mask>", " <mask> ", "👍🏽", "e\u0301", "日本", "\x00", "\n"]),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)


@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from(["left", "right"]), st.booleans())
@settings(deadline=None, max_examples=50)
def test_pad_and_prepare_for_model_equal_a_call(tokenizer, texts, side, truncation):
    options = {"truncation": truncation, "max_length": 9} if truncation else {}
    options |= {"return_special_tokens_mask": True, "return_token_type_ids": True}
    expected = tokenizer(texts, padding=True, padding_side=side, pad_to_multiple_of=3, **options)
    rows = [tokenizer(text, **options) for text in texts]
    assert tokenizer.pad(rows, padding_side=side, pad_to_multiple_of=3) == expected
    prepared = [
        tokenizer.prepare_for_model(tokenizer.encode(text, add_special_tokens=False), **options)
        for text in texts
    ]
    assert tokenizer.pad(prepared, padding_side=side, pad_to_multiple_of=3) == expected


def test_wrong_arguments(tokenizer, own_tokenizer):
    with pytest.raises(TypeError, match="one string"):
        tokenizer.encode(["a", "b", "c"])
    assert tokenizer.encode(["a", "b"]) == tokenizer.encode("a", "b")
    with pytest.raises(TypeError, match="None"):
        tokenizer.encode_plus(None)
    with pytest.raises(TypeError, match="must be a list"):
        tokenizer.batch_encode_plus("a")
    with pytest.raises(ValueError, match="batch_decode"):
        tokenizer.decode([[1, 2]])
    with pytest.raises(ValueError, match="no token_ids_1"):
        tokenizer.get_special_tokens_mask([1], [2], already_has_special_tokens=True)
    with pytest.raises(ValueError, match="no 'input_ids' to pad"):
        tokenizer.pad({"ids": [1]})
    with pytest.raises(ValueError, match="2 rows, but these columns.*labels"):
        tokenizer.pad({"input_ids": [[1], [2]], "labels": [1]})
    with pytest.raises(ValueError, match="needs add_special_tokens=True"):
        tokenizer.prepare_for_model([5], add_special_tokens=False, return_token_type_ids=True)
    with pytest.raises(ValueError, match="'longest_first' removes"):
        tokenizer.prepare_for_model(
            [5], [6], truncation=True, max_length=5, return_overflowing_tokens=True
        )
    with pytest.raises(ValueError, match="truncation must be"):
        tokenizer.truncate_sequences([5, 6], truncation_strategy="middle")
    own_tokenizer.pad_token = None
    for call in (
        lambda: own_tokenizer("a", padding=True),
        lambda: own_tokenizer.pad({"input_ids": [5]}),
    ):
        with pytest.raises(ValueError, match="no padding token"):
            call()
