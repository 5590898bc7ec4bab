"""RobertaTokenizer: RoBERTa's ids, special tokens, decoding, construction, and copies."""

import concurrent.futures
import inspect
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import roberta_jax
from roberta_jax.tokenizer import RobertaTokenizer, RobertaTokenizerFast
from tests.support.tokenizer_examples import write_vocab_and_merges

# Without "<", so that no special token occurs: <mask> would include the space before it.
PLAIN_TEXT = st.text().filter(lambda text: "<" not in text)

# RoBERTa's own ids


def test_fairseq_files_give_the_ids_of_the_golden_strings(roberta, real_data):
    spaced = RobertaTokenizer.from_pretrained(real_data / "bpe_gpt2", add_prefix_space=True)
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    rows = (real_data / "golden_bpe" / "golden_strings.jsonl").read_text().split("\n")
    rows = [json.loads(row) for row in rows if row]
    assert len(rows) > 50
    for row in rows:
        assert roberta.encode(row["text"], **plain) == row["roberta_ids"], row["text"]
        assert roberta.decode(row["roberta_ids"]) == row["text"]
        if (expected := row.get("roberta_ids_with_prefix_space")) is not None:
            assert spaced.encode(row["text"], **plain) == expected, row["text"]
            assert roberta.encode(" " + row["text"], **plain) == expected, row["text"]


def test_fairseq_files_give_the_ids_of_huggingface(roberta, real_data):
    expected = json.loads((real_data / "golden_bpe" / "hf_expected.json").read_text())
    for row in expected["encode"]:
        assert roberta.encode(row["text"]) == row["ids"]
    for text, ids in {
        "Hello world": [0, 31414, 232, 2],
        " Hello world": [0, 20920, 232, 2],
        " world": [0, 232, 2],
        "world": [0, 8331, 2],
    }.items():
        assert roberta.encode(text) == ids
    assert len(roberta) == roberta.vocab_size == 50265
    assert roberta.convert_tokens_to_ids(["madeupword0000", "madeupword0002"]) == [50261, 50263]
    assert roberta.all_special_ids == [0, 2, 3, 1, 50264]


def test_toy_vocabulary_of_the_tests_of_huggingface(tmp_path):
    tokens = [
        *"lowerstidnĠ",
        "Ġl",
        "Ġn",
        "Ġlo",
        "Ġlow",
        "er",
        "Ġlowest",
        "Ġnewer",
        "Ġwider",
        "<unk>",
    ]
    merges = ["Ġ l", "Ġl o", "Ġlo w", "e r"]
    folder = write_vocab_and_merges(tmp_path / "toy", {t: i for i, t in enumerate(tokens)}, merges)
    toy = RobertaTokenizer.from_pretrained(folder)
    assert toy.tokenize("lower newer") == ["l", "o", "w", "er", "Ġ", "n", "e", "w", "er"]
    ids = toy.convert_tokens_to_ids([*toy.tokenize("lower newer"), toy.unk_token])
    assert ids == [0, 1, 2, 15, 10, 9, 3, 2, 15, 19]
    # Missing special tokens get the ids after the vocabulary.
    assert toy.convert_tokens_to_ids(["<s>", "</s>", "<pad>", "<mask>"]) == [20, 21, 22, 23]
    assert (toy.vocab_size, len(toy)) == (20, 24)


# Special tokens


def test_special_ids_of_a_trained_tokenizer(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 1000
    names = ("bos", "cls", "pad", "eos", "sep", "unk", "mask")
    ids = [getattr(tokenizer, f"{name}_token_id") for name in names]
    assert ids == [0, 0, 1, 2, 2, 3, 999]
    tokens = [getattr(tokenizer, f"{name}_token") for name in names]
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.convert_tokens_to_ids("no such token") == tokenizer.unk_token_id


def test_special_tokens_around_one_text_and_a_pair(tokenizer):
    a = tokenizer.encode("a text", add_special_tokens=False)
    b = tokenizer.encode("another", add_special_tokens=False)
    assert tokenizer.encode("a text") == [0, *a, 2]
    assert tokenizer.encode("a text", "another") == [0, *a, 2, 2, *b, 2]
    assert tokenizer.encode("a text", "another", add_special_tokens=False) == a + b
    assert tokenizer.tokenize("a text", "another", add_special_tokens=True) == (
        tokenizer.convert_ids_to_tokens([0, *a, 2, 2, *b, 2])
    )


def test_mask_includes_only_the_space_on_its_left(tokenizer):
    tokens = tokenizer.tokenize("one <mask> two")
    assert tokens[tokens.index("<mask>") + 1].startswith("Ġ")
    assert "".join(tokens) == "one<mask>Ġtwo"
    assert "".join(tokenizer.tokenize("one<mask>two")) == "one<mask>two"


def test_split_special_tokens(tokenizer):
    text = "one <mask> </s>two"
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert not {*ids} & {*tokenizer.all_special_ids}
    assert tokenizer.decode(ids) == text
    assert tokenizer.mask_token_id in tokenizer.encode(text)  # the next call is not affected


def test_single_separator_pairs(saved_folder, tokenizer, tmp_path):
    single = RobertaTokenizer.from_pretrained(saved_folder, single_separator_pairs=True)
    a, b = (tokenizer.encode(text, add_special_tokens=False) for text in ("one", "two"))
    for _ in range(2):
        assert single.encode("one", "two") == [0, *a, 2, *b, 2]
        assert single.build_inputs_with_special_tokens(a, b) == [0, *a, 2, *b, 2]
        assert single.get_special_tokens_mask(a, b) == [1, *(0 for _ in a), 1, *(0 for _ in b), 1]
        assert single.num_special_tokens_to_add(pair=True) == 3
        assert single.max_len_sentences_pair == 509
        assert single("one") == tokenizer("one")
        spaced = [tokenizer.encode(t, add_special_tokens=False) for t in (" one", " two")]
        assert single.encode("one", "two", add_prefix_space=True) == [
            0,
            *spaced[0],
            2,
            *spaced[1],
            2,
        ]
        single.save_pretrained(tmp_path)
        (tmp_path / "tokenizer_config.json").unlink()  # tokenizer.json has it, too
        single = RobertaTokenizer.from_pretrained(tmp_path)
    assert single.fingerprint() != tokenizer.fingerprint()
    back = RobertaTokenizer.from_pretrained(tmp_path, single_separator_pairs=False)
    assert back.fingerprint() == tokenizer.fingerprint()


def test_word_start_table(tokenizer):
    table = tokenizer.word_start_table()
    assert table.dtype == bool
    assert table.shape == (1000,)
    for i in range(1000):
        special = i in tokenizer.all_special_ids
        assert table[i] == (special or tokenizer.decode(i).startswith(" "))


def test_filler_tokens_are_words(roberta):
    table = roberta.word_start_table()
    assert table[50261:].all()
    assert not table[50260]  # <|endoftext|> is plain text for RoBERTa


# Ids to text


@given(PLAIN_TEXT)
@settings(deadline=None, max_examples=200)
@example("\r\n \t x\u2028")
def test_decoding_undoes_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


@given(st.lists(PLAIN_TEXT, max_size=5))
@settings(deadline=None, max_examples=50)
def test_a_batch_equals_its_rows(tokenizer, texts):
    batch = tokenizer(texts)["input_ids"]
    assert batch == [tokenizer.encode(text) for text in texts]
    assert tokenizer.batch_decode(batch, skip_special_tokens=True) == texts


def test_decode_options(tokenizer):
    ids = tokenizer.encode("Is it ? Yes , it 's <mask> .")
    assert tokenizer.decode(ids) == "<s>Is it ? Yes , it 's<mask> .</s>"
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(ids)
    tight = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    assert tight == "Is it? Yes, it's."
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids("Ã")) == "\ufffd"
    for wrong in (1000, -1):
        with pytest.raises(ValueError, match=str(wrong)):
            tokenizer.decode([5, wrong])


def test_lone_surrogates_become_the_replacement_character(tokenizer):
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("\U0001f600")
    assert tokenizer(["x", ("y\udfff", "z")])["input_ids"][1] == tokenizer.encode("y\ufffd", "z")


# The class


def test_both_names_are_one_class():
    assert RobertaTokenizerFast is RobertaTokenizer is roberta_jax.RobertaTokenizerFast


def test_constructors(saved_folder, tokenizer):
    vocab, merges = str(saved_folder / "vocab.json"), str(saved_folder / "merges.txt")
    others = [
        RobertaTokenizer(vocab, merges),
        RobertaTokenizer(vocab_file=vocab, merges_file=merges, cls_token="<s>"),
        RobertaTokenizerFast(tokenizer_file=str(saved_folder / "tokenizer.json")),
        RobertaTokenizerFast(tokenizer_object=tokenizer.backend),
        RobertaTokenizer.from_pretrained(saved_folder, use_fast=True),
    ]
    for other in others:
        assert other.fingerprint() == tokenizer.fingerprint()
        assert other.model_max_length == 512
    others[3].add_tokens("@user")
    assert len(tokenizer) == len(others[3]) - 1  # tokenizer_object is copied
    with pytest.raises(TypeError, match="from_pretrained"):
        RobertaTokenizer(vocab)
    with pytest.raises(ValueError, match="padding_side"):
        RobertaTokenizer(vocab, merges, padding_side="top")
    with pytest.raises(TypeError, match="pad_token"):
        RobertaTokenizer(vocab, merges, pad_token=1)
    with pytest.raises(TypeError, match="must be a list"):
        RobertaTokenizer(vocab, merges, additional_special_tokens="<a>")
    with pytest.raises(AttributeError, match="conflicts with the method"):
        RobertaTokenizer(vocab, merges, get_vocab=1)
    spaced = RobertaTokenizer(vocab, merges, add_prefix_space=True, trim_offsets=False)
    assert spaced("a b", return_offsets_mapping=True)["offset_mapping"][2] == (1, 3)


def test_threads_do_not_share_options(tokenizer):
    text = " ".join(["def return class"] * 30)
    full = tokenizer.encode(text)

    def check(limit):
        ids = tokenizer.encode(text, truncation=True, max_length=limit)
        return len(ids) == limit and tokenizer.encode(text) == full

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, [5, 9, 17, 33] * 50))


def test_public_methods_have_docstrings():
    for name, method in inspect.getmembers(RobertaTokenizer, inspect.isfunction):
        if not name.startswith("_"):
            assert method.__doc__, name
