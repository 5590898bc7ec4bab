"""The vocabulary and the files compared with transformers' RobertaTokenizerFast."""

import json
import os
import pydoc_data.topics
import random

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from tokenizers import AddedToken

from roberta_jax.tokenizer import RobertaTokenizer
from tests.support.tokenizer_pairs import (
    EVERYTHING,
    assert_same_rows,
    assert_same_tokenizers,
    make_pair,
)

pytestmark = pytest.mark.parity


def test_properties(pair):
    assert_same_tokenizers(*pair)


def test_conversion_and_decoding(plain):
    ours, theirs = plain
    tokens = ["<s>", "Ġthe", "no such token", "<mask>"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("Ġthe") == theirs.convert_tokens_to_ids("Ġthe")
    rng = random.Random(2)
    for _ in range(60):
        ids = rng.choices(range(len(ours)), k=20) + rng.choices(ours.all_special_ids, k=3)
        for skip in (False, True):
            expected = theirs.convert_ids_to_tokens(ids, skip)
            assert ours.convert_ids_to_tokens(ids, skip) == expected
            assert ours.convert_tokens_to_string(expected) == (
                theirs.convert_tokens_to_string(expected)
            )
            for clean in (None, False, True):
                assert ours.decode(ids, skip, clean) == theirs.decode(ids, skip, clean)
                assert ours.decode(np.array(ids), skip, clean) == theirs.decode(ids, skip, clean)
        text = ours.decode(ids)
        assert ours.clean_up_tokenization(text) == theirs.clean_up_tokenization(text)
    assert ours.decode(7) == theirs.decode(7)


def test_adding_tokens(vocabulary_folder):
    ours, theirs = make_pair(vocabulary_folder)
    for change in (
        lambda t: t.add_tokens(["@user", "the", AddedToken("<x>", lstrip=True, rstrip=True)]),
        lambda t: t.add_tokens("http"),
        lambda t: t.add_tokens([]),
        lambda t: t.add_tokens(["<sp>"], special_tokens=True),
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<e1>", "</e1>"]}),
        lambda t: t.add_special_tokens(
            {"additional_special_tokens": ["<e2>"]}, replace_additional_special_tokens=False
        ),
        lambda t: t.add_special_tokens({"pad_token": "[PAD]", "bos_token": "@user"}),
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<e3>"]}),
        lambda t: t.add_special_tokens({}),
        lambda t: setattr(t, "sep_token", "Ġthe"),
        lambda t: setattr(t, "mask_token_id", 77),
        lambda t: setattr(t, "additional_special_tokens", ["<e1>"]),
        lambda t: setattr(t, "padding_side", "left"),
    ):
        assert change(ours) == change(theirs)
        assert_same_tokenizers(ours, theirs)
        texts = ["a @user <x> b", "the<e1>http</e1> <e2>@user<sp>"]
        options = {"padding": True, **EVERYTHING}
        assert_same_rows(ours(texts, **options), theirs(texts, **options))
        ids = ours(texts)["input_ids"]
        for skip in (False, True):
            assert ours.batch_decode(ids, skip) == theirs.batch_decode(ids, skip)


def test_train_new_from_iterator(vocabulary_folder):
    ours, theirs = make_pair(vocabulary_folder, add_prefix_space=True, model_max_length=77)
    corpus = [list(pydoc_data.topics.topics.values())[i : i + 3] for i in range(0, 12, 3)]
    options = {"vocab_size": 500, "new_special_tokens": ["<new>"], "show_progress": False}
    options["special_tokens_map"] = {"<mask>": "<hidden>", "</s>": "<end>"}
    assert_same_tokenizers(
        ours.train_new_from_iterator(corpus, **options),
        theirs.train_new_from_iterator(corpus, **options),
    )


# Files


def with_added_tokens(tokenizer):
    tokenizer.add_tokens(["@user", AddedToken("<x>", lstrip=True, rstrip=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e1>"], "pad_token": "[PAD]"})
    return tokenizer


@pytest.mark.parametrize("legacy", [None, False, True])
def test_each_library_loads_the_files_of_the_other(vocabulary_folder, tmp_path, legacy):
    options = {"padding_side": "left", "truncation_side": "left", "model_max_length": 99}
    ours, theirs = map(with_added_tokens, make_pair(vocabulary_folder, **options))
    assert_same_tokenizers(ours, theirs)
    ours.save_pretrained(tmp_path / "ours", legacy_format=legacy)
    theirs.save_pretrained(tmp_path / "theirs", legacy_format=legacy)
    for folder in ("ours", "theirs"):
        assert_same_tokenizers(
            RobertaTokenizer.from_pretrained(tmp_path / folder),
            transformers.RobertaTokenizerFast.from_pretrained(tmp_path / folder),
        )
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        assert_same_tokenizers(RobertaTokenizer.from_pretrained(tmp_path / folder), auto)
    saved = {p.name for p in (tmp_path / "theirs").iterdir()} - {"added_tokens.json"}
    assert {p.name for p in (tmp_path / "ours").iterdir()} == saved


def test_old_files_without_a_list_of_added_tokens(vocabulary_folder, tmp_path):
    _, theirs = make_pair(vocabulary_folder)
    with_added_tokens(theirs).save_pretrained(tmp_path, legacy_format=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    special = json.loads((tmp_path / "special_tokens_map.json").read_text())
    for name in ("added_tokens_decoder", *special):
        config.pop(name)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = RobertaTokenizer.from_pretrained(tmp_path)
    theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    texts = ["a @user b", "the<e1>http [PAD]"]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]


def test_transformers_reads_single_separator_pairs(vocabulary_folder, tmp_path):
    paths = str(vocabulary_folder / "vocab.json"), str(vocabulary_folder / "merges.txt")
    for prefix in (False, True):
        ours = RobertaTokenizer(*paths, single_separator_pairs=True, add_prefix_space=prefix)
        ours.save_pretrained(tmp_path)
        theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
        other = make_pair(vocabulary_folder, add_prefix_space=prefix)[1]
        texts = ["a <mask> the", " e\u0301  x ", ""]
        assert_same_rows(ours(texts, texts, **EVERYTHING), theirs(texts, texts, **EVERYTHING))
        assert_same_rows(ours(texts, **EVERYTHING), other(texts, **EVERYTHING))
        bare = {"add_special_tokens": False, "return_offsets_mapping": True}
        got, expected = ours(texts, texts, **bare), other(texts, texts, **bare)
        assert got["offset_mapping"] == expected["offset_mapping"]


def test_save_vocabulary(vocabulary_folder, tmp_path):
    ours, theirs = make_pair(vocabulary_folder)
    for folder, tokenizer in (("ours", ours), ("theirs", theirs)):
        (tmp_path / folder).mkdir()
        names = tokenizer.save_vocabulary(str(tmp_path / folder), filename_prefix="x")
        assert [os.path.basename(name) for name in names] == ["x-vocab.json", "x-merges.txt"]
    for name, read in (("x-vocab.json", json.loads), ("x-merges.txt", str.split)):
        written = [read((tmp_path / folder / name).read_text()) for folder in ("ours", "theirs")]
        assert written[0] == written[1]
