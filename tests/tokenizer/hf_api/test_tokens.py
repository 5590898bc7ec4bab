"""Special tokens and added tokens: assigning and adding them."""

import pytest
from tokenizers import AddedToken

from roberta_jax.tokenizer.hf_api.tokens import TokenError


def test_assigning_special_tokens(own_tokenizer):
    tokenizer = own_tokenizer
    tokenizer.sep_token = "Ġthe"
    assert tokenizer.sep_token_id == tokenizer.convert_tokens_to_ids("Ġthe")
    tokenizer.mask_token_id = 9
    assert tokenizer.mask_token == tokenizer.convert_ids_to_tokens(9)
    tokenizer.bos_token = None
    assert tokenizer.bos_token_id is None
    assert "bos_token" not in tokenizer.special_tokens_map
    assert tokenizer.cls_token == "<s>"
    tokenizer.additional_special_tokens = ["<a>"]
    assert tokenizer.all_special_tokens[-1] == "<a>"
    for wrong in (3, ["a"]):
        with pytest.raises(ValueError, match="pad_token must be"):
            tokenizer.pad_token = wrong
    with pytest.raises(TokenError, match="is not a special token; use one of bos_token"):
        tokenizer.add_special_tokens({"first_token": "x"})
    for wrong in ({"pad_token": 3}, {"additional_special_tokens": "<a>"}):
        with pytest.raises(TokenError):
            tokenizer.add_special_tokens(wrong)
    with pytest.raises(TokenError):
        tokenizer.add_tokens([3])


def test_added_tokens(own_tokenizer):
    tokenizer = own_tokenizer
    size = len(tokenizer)
    assert tokenizer.add_tokens(["@user", AddedToken("<x>", lstrip=True), "Ġthe"]) == 3
    assert tokenizer.add_tokens("@user") == 0
    assert tokenizer.add_special_tokens({"pad_token": "[PAD]"}) == 1
    assert len(tokenizer) == tokenizer.word_start_table().size == size + 3  # "Ġthe" was there
    assert tokenizer.get_added_vocab()["@user"] == size
    ids = tokenizer.encode("a <x>@userb", add_special_tokens=False)
    assert ids == [*tokenizer.encode("a", add_special_tokens=False), *ids[1:]]
    assert tokenizer.convert_ids_to_tokens(ids[1:3]) == ["<x>", "@user"]
    batch = tokenizer(["a", "a b c"], padding=True)
    assert (
        batch["input_ids"][0][-1]
        == tokenizer.convert_tokens_to_ids("[PAD]")
        == tokenizer.pad_token_id
    )
