"""What a call returns, what it refuses, and how a tokenizer is made, changed, copied and kept."""

import copy
import json
import logging
import pickle
import pydoc_data.topics

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Encoding, Tokenizer

import roberta_jax
from roberta_jax.tokenizer import BatchEncoding, RobertaTokenizer, RobertaTokenizerFast
from roberta_jax.tokenizer.hf_api.batch_encoding import CharSpan, TokenSpan
from roberta_jax.tokenizer.hf_api.tokens import TokenError

TEXT = st.lists(
    st.one_of(
        st.sampled_from([" ", "<mask>", " <mask> ", "👍🏽", "e\u0301", "日本", "\x00", "\n"]),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)
LONG = "def return class " * 9


@pytest.fixture(scope="module")
def tokenizer() -> RobertaTokenizer:
    return RobertaTokenizer.train(pydoc_data.topics.topics.values(), vocab_size=1000)


@pytest.fixture
def own(tokenizer) -> RobertaTokenizer:
    """A copy to change."""
    return copy.deepcopy(tokenizer)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(folder)
    return folder


def test_one_class_under_both_names():
    assert RobertaTokenizerFast is RobertaTokenizer is roberta_jax.RobertaTokenizerFast


# What a call returns


def test_columns_by_key_and_attribute(tokenizer):
    encoded = tokenizer("one two", "three", return_length=True)
    assert isinstance(encoded, BatchEncoding)
    assert list(encoded) == ["input_ids", "attention_mask", "length"]
    assert encoded.input_ids is encoded["input_ids"]
    assert encoded.length == [len(encoded.input_ids)]
    assert {**encoded} == dict(encoded.items()) == encoded
    assert encoded.n_sequences == 2
    assert isinstance(encoded[0], Encoding)
    assert encoded[0].ids == encoded.input_ids
    with pytest.raises(AttributeError, match="no 'labels'"):
        _ = encoded.labels
    encoded["labels"] = [1]
    assert encoded.labels == [1]


def test_columns_without_text():
    plain = BatchEncoding({"input_ids": [[1, 2], [3, 4]]})
    assert plain[:1] == {"input_ids": [[1, 2]]}
    assert not plain.is_fast
    assert plain.n_sequences is None
    with pytest.raises(KeyError, match="no encodings"):
        _ = plain[0]
    with pytest.raises(ValueError, match="not made from text"):
        plain.word_ids()
    arrays = BatchEncoding({"input_ids": [1, 2]}, tensor_type="np", prepend_batch_axis=True)
    assert arrays["input_ids"].shape == (1, 2)


def test_encodings_pickle_and_copy(tokenizer):
    encoded = tokenizer(["one two", "three"])
    for other in (pickle.loads(pickle.dumps(encoded)), copy.deepcopy(encoded)):
        assert other == encoded
        assert other.tokens(1) == encoded.tokens(1)
        assert other.n_sequences == 1


@given(TEXT, TEXT)
@settings(deadline=None, max_examples=100)
def test_offsets_lead_back_to_the_text(tokenizer, text, other):
    encoded = tokenizer([(text, other)], return_offsets_mapping=True)
    rows = zip(
        encoded["input_ids"][0], encoded["offset_mapping"][0], encoded.sequence_ids(), strict=True
    )
    for position, (i, (start, end), sequence) in enumerate(rows):
        if sequence is None:
            assert (start, end) == (0, 0)
            assert i in (tokenizer.bos_token_id, tokenizer.eos_token_id)
            continue
        source = (text, other)[sequence]
        assert 0 <= start <= end <= len(source)
        if i == tokenizer.mask_token_id:
            assert source[start:end].strip() == "<mask>"
        if "\ufffd" not in tokenizer.decode(i):  # a part of a character, else
            assert source[start:end].strip() == tokenizer.decode(i).strip()
        if start < end:
            assert encoded.token_to_chars(position) == CharSpan(start, end)
            first = encoded.char_to_token(start, sequence_index=sequence)
            assert first is not None
            assert encoded.token_to_chars(first).start <= start


def test_words_characters_and_tokens(tokenizer):
    encoded = tokenizer(["a return <mask> class", "x"], ["other words", "y"])
    tokens, words = encoded.tokens(), encoded.word_ids()
    assert tokens[0] == "<s>"
    assert words[0] is words[-1] is None
    assert encoded.tokens(-1) == encoded.tokens(1)
    assert encoded.token_to_word(-1, 1) == encoded.token_to_word(1, 1) == 0
    assert encoded.token_to_sequence(0, -2) == encoded.sequence_ids(0)[-2] == 1
    word = encoded.word_to_tokens(0, 1)
    assert isinstance(word, TokenSpan)
    assert [words[i] for i in range(*word)] == [1] * (word.end - word.start)
    assert encoded.word_to_chars(0, 1) == CharSpan(2, 8)
    assert encoded.word_to_chars(0, 1, sequence_index=1) == CharSpan(6, 11)
    assert encoded.char_to_word(0, 3) == encoded.char_to_word(3) == 1
    assert encoded.char_to_token(0, 1) is None  # the space, trimmed off the offsets
    assert encoded.word_to_tokens(0, 99) is None
    assert encoded.words(1) == encoded.word_ids(1)


def test_overflow_covers_the_text(tokenizer):
    ids = tokenizer.encode(LONG, add_special_tokens=False)
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        options = {"truncation": True, "max_length": 12, "stride": 3}
        encoded = tokenizer(["short", LONG], return_overflowing_tokens=True, **options)
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


def test_one_text_overflows_into_a_batch(tokenizer):
    options = {"truncation": True, "max_length": 12, "return_overflowing_tokens": True}
    encoded = tokenizer(LONG, **options)
    assert len(encoded["input_ids"]) == len(encoded["overflow_to_sample_mapping"]) > 2
    arrays = tokenizer(LONG, padding=True, return_tensors="np", **options)
    assert arrays["input_ids"].shape == (len(encoded["input_ids"]), 12)


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


@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from(["left", "right"]), st.booleans())
@settings(deadline=None, max_examples=50)
def test_padding_later_is_padding_now(tokenizer, texts, side, truncation):
    options = {"truncation": truncation, "max_length": 9} if truncation else {}
    options |= {"return_special_tokens_mask": True, "return_token_type_ids": True}
    now = tokenizer(texts, padding=True, padding_side=side, pad_to_multiple_of=3, **options)
    rows = [tokenizer(text, **options) for text in texts]
    assert tokenizer.pad(rows, padding_side=side, pad_to_multiple_of=3) == now
    prepared = [
        tokenizer.prepare_for_model(tokenizer.encode(text, add_special_tokens=False), **options)
        for text in texts
    ]
    assert tokenizer.pad(prepared, padding_side=side, pad_to_multiple_of=3) == now


def test_labels(tokenizer):
    encoded = tokenizer(["a", "b"], text_target=["c", "d e"], padding=True)
    assert encoded["labels"] == tokenizer(["c", "d e"], padding=True)["input_ids"]
    assert tokenizer(text_target="c") == tokenizer("c")


def test_a_space_before_this_text(tokenizer):
    expected = tokenizer.encode(" return")
    assert tokenizer.encode("return", add_prefix_space=True) == expected
    assert tokenizer.encode("return") != expected  # for that call alone
    encoded = tokenizer("return", add_prefix_space=True, return_offsets_mapping=True)
    assert encoded["offset_mapping"][1] == (0, 6)
    words = tokenizer(["return", "class"], is_split_into_words=True, add_prefix_space=True)
    assert words["input_ids"] == tokenizer.encode(" return class")
    assert words.word_ids() == [None, 0, 1, None]


# What a call refuses


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((), {}, "text is None"),
        ((None,), {}, "text is None"),
        ((3,), {}, "must be a string or a list, not int"),
        ((["a", None],), {}, "string or a pair of strings, not None"),
        ((["a", 3],), {}, "not 3"),
        ((["a", ["b", "c", "d"]],), {}, "pair of strings"),
        (([["a", None]],), {}, "pair of strings"),
        ((b"bytes",), {}, "not bytes"),
        (("a", 3), {}, "text_pair must be a string"),
        ((["a", "b"], "c"), {}, "list of 2 texts"),
        (("a",), {"padding": "left"}, "'do_not_pad'"),
        (("a",), {"truncation": "middle"}, "'do_not_truncate'"),
        (("a",), {"padding_side": "top"}, "padding_side must be"),
        (("a",), {"return_tensors": "pt"}, "'np' or 'jax', not 'pt'.*torch"),
        (("a",), {"return_tensors": "tf"}, "not 'tf'.*tf.constant"),
        (("a",), {"return_tensors": "list"}, "not 'list'"),
        ((["a", "a b c"],), {"return_tensors": "np"}, "padding=True"),
        ((["a", "a b c"],), {"return_tensors": "jax"}, "padding=True"),
        (("a",), {"truncation": True, "max_length": 1}, "no room for the 2"),
        ((["a", ("b", "c")],), {"truncation": True, "max_length": 3}, "no room for the 4"),
        ((LONG,), {"truncation": True, "max_length": 8, "stride": 6}, "less than the 6 ids"),
        ((LONG,), {"truncation": True, "max_length": 8, "stride": -1}, "stride must be 0 or more"),
        ((LONG, "x"), {"truncation": True, "max_length": 9, "stride": 4}, "stride"),
        ((LONG, "x"), {"truncation": "only_second", "max_length": 9}, "may cut is too short"),
        (("a b",), {"is_split_into_words": True}, "list of words"),
        ((["a", "b"],), {"is_split_into_words": True}, "add_prefix_space=True"),
        ((["a", 3],), {"is_split_into_words": True, "add_prefix_space": True}, "list of words"),
        (([["a"], "b"],), {"is_split_into_words": True, "add_prefix_space": True}, None),
        (("a",), {"return_everything": True}, "return_everything"),
    ],
)
def test_wrong_calls(tokenizer, arguments, options, error):
    if error is None:  # a string among lists of words is a list of its letters
        assert len(tokenizer(*arguments, **options)["input_ids"]) == 2
        return
    with pytest.raises((TypeError, ValueError), match=error):
        tokenizer(*arguments, **options)
    assert tokenizer.encode("a") == tokenizer(["a"])["input_ids"][0]  # and nothing stays behind


def test_wrong_arguments_of_other_methods(tokenizer, own):
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
    own.pad_token = None
    for call in (
        lambda: own("a", padding=True),
        lambda: own.pad({"input_ids": [5]}),
    ):
        with pytest.raises(ValueError, match="no padding token"):
            call()


def test_warnings(own, caplog):
    own.model_max_length = 8
    with caplog.at_level(logging.WARNING, logger="roberta_jax.tokenizer"):
        own(LONG, verbose=False)
        own(LONG, truncation=True)
        own(LONG, truncation=False, max_length=3)
        assert not caplog.messages
        for _ in range(2):
            own(["a", LONG])
        assert len(caplog.messages) == 1
        assert "longer than the 8 ids" in caplog.text
        own("a", max_length=5)
        assert "truncates" in caplog.messages[-1]
        own("a", max_length=5, padding=True)
        assert "no effect" in caplog.messages[-1]
        own.model_max_length = int(1e30)
        assert own(LONG, truncation=True, padding="max_length") == own(LONG)
        assert "model_max_length is not known" in caplog.messages[-1]
        own.truncate_sequences([5, 6], num_tokens_to_remove=2)
        assert "nothing is truncated" in caplog.messages[-1]


# Special tokens


def test_setting_special_tokens(own):
    own.sep_token = "Ġthe"
    assert own.sep_token_id == own.convert_tokens_to_ids("Ġthe")
    own.mask_token_id = 9
    assert own.mask_token == own.convert_ids_to_tokens(9)
    own.bos_token = None
    assert own.bos_token_id is None
    assert "bos_token" not in own.special_tokens_map
    assert own.cls_token == "<s>"
    own.additional_special_tokens = ["<a>"]
    assert own.all_special_tokens[-1] == "<a>"
    for wrong in (3, ["a"]):
        with pytest.raises(ValueError, match="pad_token must be"):
            own.pad_token = wrong
    with pytest.raises(TokenError, match="is not a special token; use one of bos_token"):
        own.add_special_tokens({"first_token": "x"})
    for wrong in ({"pad_token": 3}, {"additional_special_tokens": "<a>"}):
        with pytest.raises(TokenError):
            own.add_special_tokens(wrong)
    with pytest.raises(TokenError):
        own.add_tokens([3])


def test_added_tokens(own):
    size = len(own)
    assert own.add_tokens(["@user", AddedToken("<x>", lstrip=True), "Ġthe"]) == 3
    assert own.add_tokens("@user") == 0
    assert own.add_special_tokens({"pad_token": "[PAD]"}) == 1
    assert len(own) == own.word_start_table().size == size + 3  # "Ġthe" was there
    assert own.get_added_vocab()["@user"] == size
    ids = own.encode("a <x>@userb", add_special_tokens=False)
    assert ids == [*own.encode("a", add_special_tokens=False), *ids[1:]]
    assert own.convert_ids_to_tokens(ids[1:3]) == ["<x>", "@user"]
    batch = own(["a", "a b c"], padding=True)
    assert batch["input_ids"][0][-1] == own.convert_tokens_to_ids("[PAD]") == own.pad_token_id


# Making and keeping


def test_constructors(folder, tokenizer):
    vocab, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
    made = [
        RobertaTokenizer(vocab, merges),
        RobertaTokenizer(vocab_file=vocab, merges_file=merges, cls_token="<s>"),
        RobertaTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")),
        RobertaTokenizerFast(tokenizer_object=tokenizer.backend),
        RobertaTokenizer.from_pretrained(folder, use_fast=True),
    ]
    for other in made:
        assert other.fingerprint() == tokenizer.fingerprint()
        assert other.model_max_length == 512
    made[3].add_tokens("@user")
    assert len(tokenizer) == len(made[3]) - 1  # it has a copy
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


def test_everything_is_kept(folder, tmp_path):
    first = RobertaTokenizer.from_pretrained(
        folder,
        model_max_length=77,
        padding_side="left",
        truncation_side="left",
        model_input_names=["input_ids", "token_type_ids"],
        clean_up_tokenization_spaces=True,
        split_special_tokens=True,
        add_prefix_space=True,
        trim_offsets=False,
        single_separator_pairs=True,
        pad_token="[PAD]",
        mask_token=AddedToken("[MASK]", rstrip=True),
        additional_special_tokens=["<e>"],
        my_own="entry",
    )
    first.add_tokens(["@user", AddedToken("<x>", lstrip=True, single_word=True)])
    first.save_pretrained(tmp_path / "all")
    first.save_pretrained(tmp_path / "legacy", legacy_format=True)
    assert not (tmp_path / "legacy" / "tokenizer.json").exists()
    first.save_pretrained(tmp_path / "fast", legacy_format=False)
    assert not (tmp_path / "fast" / "vocab.json").exists()
    texts = ["a [MASK] b<x> c", "x  <e>@user <s> the class"]
    for other in (
        *(RobertaTokenizer.from_pretrained(tmp_path / n) for n in ("all", "legacy", "fast")),
        pickle.loads(pickle.dumps(first)),
        copy.deepcopy(first),
    ):
        assert other.fingerprint() == first.fingerprint()
        assert repr(other).split("name_or_path")[0] == repr(first).split("name_or_path")[0]
        for name in (
            "model_max_length", "padding_side", "truncation_side", "model_input_names",
            "clean_up_tokenization_spaces", "split_special_tokens", "add_prefix_space",
            "trim_offsets", "single_separator_pairs", "special_tokens_map",
            "added_tokens_decoder",
        ):  # fmt: skip
            assert getattr(other, name) == getattr(first, name), name
        assert other.init_kwargs["my_own"] == "entry"
        for options in ({}, {"split_special_tokens": False}):
            options |= {"padding": True, "return_offsets_mapping": True}
            assert other(texts, texts, **options) == first(texts, texts, **options)


def test_what_is_said_of_a_download_is_not_kept(folder, tmp_path):
    said = {"token": "secret", "revision": "main", "cache_dir": "/secret", "use_fast": True}
    loaded = RobertaTokenizer.from_pretrained(folder.parent, subfolder=folder.name, **said)
    loaded.save_pretrained(tmp_path)
    assert "secret" not in (tmp_path / "tokenizer_config.json").read_text()
    assert not set(said) & set(loaded.init_kwargs)


def test_names_with_a_prefix(tokenizer, tmp_path):
    names = tokenizer.save_pretrained(tmp_path, filename_prefix="my")
    assert sorted(names) == sorted(str(p) for p in tmp_path.iterdir())
    assert all(path.name.startswith("my-") for path in tmp_path.iterdir())
    assert len(names) == 5


def test_fairseqs_single_separator(folder, tokenizer, tmp_path):
    single = RobertaTokenizer.from_pretrained(folder, single_separator_pairs=True)
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
        (tmp_path / "tokenizer_config.json").unlink()  # tokenizer.json says it, too
        single = RobertaTokenizer.from_pretrained(tmp_path)
    assert single.fingerprint() != tokenizer.fingerprint()
    back = RobertaTokenizer.from_pretrained(tmp_path, single_separator_pairs=False)
    assert back.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"tokenizer_config.json": "{"}, "tokenizer_config.json is corrupt"),
        ({"tokenizer_config.json": '{"pad_token": {"content": 3}}'}, "does not describe a token"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"a": 1}}'}, "must map ids to tokens"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"9": 1}}'}, "must map ids to tokens"),
        ({"tokenizer_config.json": '{"padding_side": "up"}'}, "padding_side"),
        ({"tokenizer_config.json": '{"model_max_length": "512"}'}, "must be a number, not '512'"),
        ({"special_tokens_map.json": "[]"}, "special_tokens_map.json is corrupt"),
        ({"added_tokens.json": '{"x": "y"}'}, "added_tokens.json is corrupt"),
    ],
)
def test_corrupt_options(folder, tmp_path, files, error):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=error):
        RobertaTokenizer.from_pretrained(tmp_path)


def test_a_call_left_in_the_file_says_the_sides_alone(folder, tmp_path):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding(direction="left", length=9)
    backend.enable_truncation(5, direction="left")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = RobertaTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    assert len(tokenizer.encode(LONG)) > 9


def test_config_is_json_that_people_can_read(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "RobertaTokenizer"
    assert config["model_max_length"] == 512
    assert {t["content"] for t in config["added_tokens_decoder"].values()} == {
        "<s>", "</s>", "<unk>", "<pad>", "<mask>"
    }  # fmt: skip
    assert not {"padding_side", "single_separator_pairs", "my_own"} & set(config)
