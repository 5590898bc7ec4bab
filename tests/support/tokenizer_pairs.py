"""Pairs of this project's tokenizer and transformers', made from the same files, for comparison."""

import os

from hypothesis import strategies as st

from roberta_jax.tokenizer import RobertaTokenizerFast

os.environ["RUST_BACKTRACE"] = "0"  # otherwise some errors of transformers print a stack trace

EVERYTHING = {
    "return_token_type_ids": True,
    "return_attention_mask": True,
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
    "return_length": True,
}
PIECES = [
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\x00",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\u200b",
    ),
    *("<mask>", " <mask>", "<mask> ", "<s>", "</s>", "<pad>", "<unk>", "<mas", "@user", "<x>"),
    *(
        "👍🏽",
        "👩‍👩‍👧",
        "🇫🇷",
        "é",
        "e\u0301",
        "ﬁ",
        "İ",
        "ß",
        "𝒳",
        "日本語",
        "한국어",
        "مرحبا",
        "नमस्ते",
    ),
    *("the", " the", "Hello", "I'm", "they've", "'s", "''", "3.14", "x²", "--", "...", "def"),
]
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=9).map("".join)
WORDS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=6)


def make_pair(folder, **options):
    """Our tokenizer and transformers', from `vocab.json` and `merges.txt` in a folder."""
    import transformers

    paths = str(folder / "vocab.json"), str(folder / "merges.txt")
    options = {"model_max_length": 512, **options}
    return (
        RobertaTokenizerFast(*paths, **options),
        transformers.RobertaTokenizerFast(*paths, **options),
    )


def assert_same_rows(ours, theirs):
    """Asserts that all columns and all fields of the encodings are equal."""
    assert list(ours) == list(theirs)
    for name in theirs:
        assert ours[name] == theirs[name], name
    assert ours.n_sequences == theirs.n_sequences
    assert len(ours.encodings) == len(theirs.encodings)
    for one, other in zip(ours.encodings, theirs.encodings, strict=True):
        for name in ("ids", "tokens", "offsets", "word_ids", "sequence_ids", "type_ids"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.special_tokens_mask == other.special_tokens_mask
        assert len(one.overflowing) == len(other.overflowing)


PROPERTIES = (
    "vocab_size", "all_special_tokens", "all_special_ids", "special_tokens_map", "bos_token",
    "eos_token_id", "cls_token", "sep_token_id", "unk_token", "pad_token_id", "mask_token",
    "mask_token_id", "additional_special_tokens", "additional_special_tokens_ids",
    "pad_token_type_id", "model_max_length", "model_input_names", "max_len_single_sentence",
    "max_len_sentences_pair", "padding_side", "truncation_side", "is_fast", "vocab",
    "added_tokens_encoder", "added_tokens_decoder", "clean_up_tokenization_spaces",
    "split_special_tokens", "can_save_slow_tokenizer",
)  # fmt: skip


def assert_same_tokenizers(ours, theirs):
    for name in PROPERTIES:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    texts = [*("".join(PIECES[i:]) for i in range(0, len(PIECES), 5)), *PIECES]
    assert_same_rows(ours(texts, **EVERYTHING), theirs(texts, **EVERYTHING))
