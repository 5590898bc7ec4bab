"""The tokenizer's files: each format, what is saved, and errors for missing and corrupt files."""

import copy
import json
import os
import pathlib
import pickle

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from roberta_jax.errors import UsageError
from roberta_jax.tokenizer import RobertaTokenizer
from tests.support.tokenizer_examples import (
    HARD_STRINGS,
    LONG_TEXT,
    byte_vocab,
    write_vocab_and_merges,
)


def test_each_set_of_files_gives_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "all")
    names = ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [*names, "vocab.json"]
    for subset in (["tokenizer.json"], ["vocab.json", "merges.txt"]):
        folder = tmp_path / subset[0]
        folder.mkdir()
        for name in subset:
            (folder / name).write_bytes((tmp_path / "all" / name).read_bytes())
        loaded = RobertaTokenizer.from_pretrained(folder)
        assert loaded.fingerprint() == tokenizer.fingerprint()
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded(HARD_STRINGS) == tokenizer(HARD_STRINGS)
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.fingerprint() == tokenizer.fingerprint()
    assert copied(HARD_STRINGS) == tokenizer(HARD_STRINGS)


def test_fairseq_files_survive_saving(roberta, tmp_path):
    roberta.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    loaded = RobertaTokenizer.from_pretrained(tmp_path)
    assert loaded.fingerprint() == roberta.fingerprint()
    assert loaded(HARD_STRINGS) == roberta(HARD_STRINGS)


def test_changed_options_are_saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    changed = RobertaTokenizer.from_pretrained(
        tmp_path, add_prefix_space=True, model_max_length=128
    )
    assert changed.fingerprint() != tokenizer.fingerprint()
    assert changed.encode("the") == tokenizer.encode(" the") != tokenizer.encode("the")
    assert len(changed.encode("word " * 500, truncation=True)) == 128
    changed.save_pretrained(tmp_path)
    for _ in range(2):
        again = RobertaTokenizer.from_pretrained(tmp_path)
        assert again.add_prefix_space
        assert again.fingerprint() == changed.fingerprint()
        (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)  # tokenizer.json has it, too
    assert RobertaTokenizer.from_pretrained(tmp_path).model_max_length == 512


def test_saving_pickling_and_copying_keep_every_option(saved_folder, tmp_path):
    first = RobertaTokenizer.from_pretrained(
        saved_folder,
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


def test_download_options_are_not_saved(saved_folder, tmp_path):
    download_options = {
        "token": "secret",
        "revision": "main",
        "cache_dir": "/secret",
        "use_fast": True,
    }
    loaded = RobertaTokenizer.from_pretrained(
        saved_folder.parent, subfolder=saved_folder.name, **download_options
    )
    loaded.save_pretrained(tmp_path)
    assert "secret" not in (tmp_path / "tokenizer_config.json").read_text()
    assert not set(download_options) & set(loaded.init_kwargs)


def test_filename_prefix(tokenizer, tmp_path):
    names = tokenizer.save_pretrained(tmp_path, filename_prefix="my")
    assert sorted(names) == sorted(str(p) for p in tmp_path.iterdir())
    assert all(path.name.startswith("my-") for path in tmp_path.iterdir())
    assert len(names) == 5


def test_wrong_settings_in_tokenizer_json_are_corrected(tokenizer, tmp_path):
    """Some programs write <mask> without `lstrip`, or the truncation of a call, to the file."""
    tokenizer.save_pretrained(tmp_path)
    pipeline = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in pipeline["added_tokens"]:
        token["lstrip"] = token["normalized"] = False
    pipeline["post_processor"] = None
    pipeline["truncation"] = {
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline))
    loaded = RobertaTokenizer.from_pretrained(tmp_path)
    assert loaded(HARD_STRINGS) == tokenizer(HARD_STRINGS)
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_only_the_sides_of_saved_truncation_and_padding_are_used(saved_folder, tmp_path):
    backend = Tokenizer.from_file(str(saved_folder / "tokenizer.json"))
    backend.enable_padding(direction="left", length=9)
    backend.enable_truncation(5, direction="left")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = RobertaTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    assert len(tokenizer.encode(LONG_TEXT)) > 9


def test_contents_of_tokenizer_config(saved_folder):
    config = json.loads((saved_folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "RobertaTokenizer"
    assert config["model_max_length"] == 512
    assert {t["content"] for t in config["added_tokens_decoder"].values()} == {
        "<s>", "</s>", "<unk>", "<pad>", "<mask>"
    }  # fmt: skip
    assert not {"padding_side", "single_separator_pairs", "my_own"} & set(config)


def test_added_tokens_are_saved(tokenizer, tmp_path):
    changed = pickle.loads(pickle.dumps(tokenizer))
    changed.backend.add_tokens(["@user"])
    changed.save_pretrained(tmp_path)
    loaded = RobertaTokenizer.from_pretrained(tmp_path)
    assert (len(loaded), loaded.vocab_size) == (1001, 1000)
    assert loaded.encode("@user", add_special_tokens=False) == [1000]
    assert loaded.fingerprint() != tokenizer.fingerprint()


def test_a_failed_save_leaves_the_earlier_files(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        tokenizer.save_pretrained(tmp_path)
    monkeypatch.undo()
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    tokenizer.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# Missing and corrupt files


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="nor a hub id"):
        RobertaTokenizer.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="found nothing"):
        RobertaTokenizer.from_pretrained(tmp_path)
    write_vocab_and_merges(tmp_path, byte_vocab(), [])
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab.json \+ merges.txt.*found vocab.json"):
        RobertaTokenizer.from_pretrained(tmp_path)


def test_gpt2_files_without_dict_are_refused(tmp_path):
    (tmp_path / "encoder.json").write_text("{}")
    (tmp_path / "vocab.bpe").write_text("")
    with pytest.raises(FileNotFoundError, match="GPT-2's tokenizer.*dict.txt"):
        RobertaTokenizer.from_pretrained(tmp_path)


def word_piece() -> str:
    return Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str()


def bpe_with_another_pre_tokenizer() -> str:
    backend = Tokenizer(models.BPE(byte_vocab(), []))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend.to_str()


VOCAB = json.dumps(byte_vocab("ab"))


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"tokenizer.json": '{"model": '}, "tokenizer.json is not a readable"),
        ({"tokenizer.json": word_piece()}, "tokenizer.json.*WordPiece, not BPE"),
        ({"tokenizer.json": bpe_with_another_pre_tokenizer()}, "Whitespace, not ByteLevel"),
        ({"vocab.json": VOCAB[:99], "merges.txt": "a b"}, "vocab.json is corrupt.*not JSON"),
        ({"vocab.json": "[1, 2]", "merges.txt": "a b"}, "vocab.json is corrupt.*object"),
        ({"vocab.json": '{"a": "b"}', "merges.txt": "a b"}, "vocab.json is corrupt.*number"),
        ({"vocab.json": b"\xff", "merges.txt": "a b"}, "vocab.json is corrupt.*UTF-8"),
        ({"vocab.json": VOCAB, "merges.txt": "#version: 0.2\na b\nc"}, "merges.txt.*line 3"),
        ({"vocab.json": VOCAB, "merges.txt": "a b\nc d"}, "'cd', which is not in the vocabulary"),
        ({"vocab.json": '{"a": 0, "b": 7}', "merges.txt": ""}, "unique and without gaps"),
        (
            {"encoder.json": '{"a": 0}', "vocab.bpe": "", "dict.txt": "0 5\n1 4"},
            "dict.txt: line 2, '1 4'",
        ),
        (
            {"encoder.json": '{"a": 0}', "vocab.bpe": "", "dict.txt": "0 5\n0 4"},
            "dict.txt: line 2 lists 'a' a second time",
        ),
    ],
)
def test_corrupt_files(tmp_path, files, error):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=error) as raised:
        RobertaTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)


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
def test_corrupt_options(saved_folder, tmp_path, files, error):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((saved_folder / name).read_bytes())
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=error):
        RobertaTokenizer.from_pretrained(tmp_path)


# Files that do not belong together


def with_new_token(text: str) -> str:
    """The id of one token of a vocab.json is given to another token."""
    return text.replace('"Ġthe"', '"Ġthf"')


def with_swapped_ids(text: str) -> str:
    return text.replace(": 500,", ": -").replace(": 501,", ": 500,").replace(": -", ": 501,")


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("vocab.json", with_new_token),
        ("tokenizer.json", with_swapped_ids),
        ("merges.txt", lambda text: text[: text.rindex("\n", 0, -1) + 1]),
        ("merges.txt", lambda text: text + "a b\n"),
        ("merges.txt", lambda text: "\n".join([*text.split("\n")[:3], *text.split("\n")[4:]])),
        ("vocab.json", lambda text: text[:100]),
        ("vocab.json", lambda text: text.replace('"<mask>": 999', '"<mask>": 1000')),
    ],
)
def test_vocabulary_files_that_are_not_tokenizer_jsons_are_refused(tokenizer, tmp_path, name, edit):
    tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(edit(text))
    assert (tmp_path / name).read_text() != text
    other = "merges.txt" if name == "merges.txt" else "vocab.json"
    with pytest.raises(UsageError, match=rf"{other}.*Copy|tokenizer.json.*{other}.*Copy both"):
        RobertaTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").unlink()
    if name != "tokenizer.json":  # alone, tokenizer.json is enough
        assert RobertaTokenizer.from_pretrained(tmp_path).fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("lines", [1, 100])
def test_truncated_merges_are_refused(tokenizer, tmp_path, lines):
    tokenizer.save_pretrained(tmp_path, legacy_format=True)
    merges = (tmp_path / "merges.txt").read_text().splitlines(keepends=True)
    (tmp_path / "merges.txt").write_text("".join(merges[:-lines]))
    with pytest.raises(
        UsageError, match=rf"merges.txt has no merge for {lines} of the 1000 tokens"
    ):
        RobertaTokenizer.from_pretrained(tmp_path)


def test_added_tokens_need_no_merge(tokenizer, tmp_path):
    changed = pickle.loads(pickle.dumps(tokenizer))
    changed.add_tokens(["@user"])
    changed.save_pretrained(tmp_path)
    for name in ("merges.txt", "tokenizer.json"):
        loaded = RobertaTokenizer.from_pretrained(tmp_path)
        assert loaded.encode("@user", add_special_tokens=False) == [1000]
        (tmp_path / name).unlink()
        if name == "merges.txt":
            changed.save_pretrained(tmp_path, legacy_format=True)


def test_a_workdir_stands_for_its_model_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "run" / "hf")
    for path in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / "hf"):
        assert RobertaTokenizer.from_pretrained(path).fingerprint() == tokenizer.fingerprint()
    # A folder that has a tokenizer itself keeps it beside an unrelated folder of that name.
    tokenizer.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "hf").mkdir()
    RobertaTokenizer.from_pretrained(tmp_path / "own")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("replace", "kind"),
    [
        (os.mkfifo, "a named pipe"),
        (os.mkdir, "a folder"),
        (lambda path: os.symlink("/dev/zero", path), "a device"),
    ],
)
def test_only_regular_files_are_read(tokenizer, tmp_path, name, replace, kind):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    replace(tmp_path / name)
    with pytest.raises(UsageError, match=f"{name} is {kind}"):
        RobertaTokenizer.from_pretrained(tmp_path)
