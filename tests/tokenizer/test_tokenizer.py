"""The tokenizer: RoBERTa's ids, every file format, training, and the options of a call."""

import concurrent.futures
import inspect
import json
import pathlib
import pickle
import pydoc_data.topics
import random
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from roberta_jax.tokenizer import RobertaTokenizer, training, vocabulary
from roberta_jax.tokenizer import byte_alphabet as ba

TEXTS = list(pydoc_data.topics.topics.values())
# Any text but special tokens spelled out: those are recognised, and <mask> takes a space with it.
PLAIN_TEXT = st.text().filter(lambda text: "<" not in text)
HARD_STRINGS = [
    "",
    " ",
    "Hello world",
    " Hello  world \n\n\tI'm he'LL they've 3.14159",
    "café İstanbul 日本語のテキスト 한국어 مرحبا नमस्ते 👍🏽🇫🇷",
    "a <mask> b<mask>c  <mask></s> <s>x <pad>",
    "x\u00a0y\u3000z\u200b\x1c\x85",
]


@pytest.fixture(scope="module")
def tokenizer() -> RobertaTokenizer:
    return RobertaTokenizer.train(TEXTS, vocab_size=1000)


@pytest.fixture(scope="module")
def roberta(real_data) -> RobertaTokenizer:
    return RobertaTokenizer.from_pretrained(real_data / "bpe_gpt2")


def write_hf(folder, vocab, merges):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return folder


def byte_vocab(*more: str) -> dict[str, int]:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *ba.byte_alphabet(), *more, "<mask>"]
    return {token: i for i, token in enumerate(tokens)}


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


def test_toy_vocabulary_of_huggingfaces_tests(tmp_path):
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
    folder = write_hf(tmp_path / "toy", {t: i for i, t in enumerate(tokens)}, merges)
    toy = RobertaTokenizer.from_pretrained(folder)
    assert toy.tokenize("lower newer") == ["l", "o", "w", "er", "Ġ", "n", "e", "w", "er"]
    ids = toy.convert_tokens_to_ids([*toy.tokenize("lower newer"), toy.unk_token])
    assert ids == [0, 1, 2, 15, 10, 9, 3, 2, 15, 19]
    # The special tokens it lacks are put at its end.
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


def test_mask_takes_the_space_on_its_left_alone(tokenizer):
    tokens = tokenizer.tokenize("one <mask> two")
    assert tokens[tokens.index("<mask>") + 1].startswith("Ġ")
    assert "".join(tokens) == "one<mask>Ġtwo"
    assert "".join(tokenizer.tokenize("one<mask>two")) == "one<mask>two"


def test_special_tokens_can_be_read_as_plain_text(tokenizer):
    text = "one <mask> </s>two"
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert not {*ids} & {*tokenizer.all_special_ids}
    assert tokenizer.decode(ids) == text
    assert tokenizer.mask_token_id in tokenizer.encode(text)  # the next call recognises them


def test_word_start_table_is_fairseqs_rule(tokenizer):
    table = tokenizer.word_start_table()
    assert table.dtype == bool
    assert table.shape == (1000,)
    for i in range(1000):
        special = i in tokenizer.all_special_ids
        assert table[i] == (special or tokenizer.decode(i).startswith(" "))


def test_word_start_table_counts_fillers_as_words(roberta):
    table = roberta.word_start_table()
    assert table[50261:].all()
    assert not table[50260]  # <|endoftext|>, plain text to RoBERTa


# Ids to text


@given(PLAIN_TEXT)
@settings(deadline=None, max_examples=200)
@example("\r\n \t x\u2028")
def test_decoding_undoes_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


@given(st.lists(PLAIN_TEXT, max_size=5))
@settings(deadline=None, max_examples=50)
def test_batches_are_their_rows(tokenizer, texts):
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


# Truncation and padding


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_truncation_keeps_prefixes_and_special_tokens(tokenizer, data):
    words = st.lists(st.sampled_from(["a", "bb", "class", "return", "<mask>"]), max_size=12)
    texts = data.draw(st.tuples(words, words).map(lambda pair: tuple(map(" ".join, pair))))
    a, b = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    how = data.draw(st.sampled_from(["longest_first", "only_first", "only_second", True]))
    limit = data.draw(st.integers(4, 40))
    room = limit - 4
    excess = max(0, len(a) + len(b) - room)
    # The library leaves at least one id of the text it may cut, unless there is no room at all.
    cuttable = {"only_first": len(a), "only_second": len(b)}.get(how, excess + 1)
    if room and excess and cuttable <= excess:
        with pytest.raises(ValueError, match="max_length"):
            tokenizer([texts], truncation=how, max_length=limit)
        return
    [ids] = tokenizer([texts], truncation=how, max_length=limit)["input_ids"]
    separator = next(i for i in range(len(ids)) if ids[i : i + 2] == [2, 2])
    kept_a, kept_b = ids[1:separator], ids[separator + 2 : -1]
    assert (ids[0], ids[-1]) == (0, 2)
    assert (kept_a, kept_b) == (a[: len(kept_a)], b[: len(kept_b)])
    assert len(ids) == min(limit, len(a) + len(b) + 4)
    if not room:
        assert kept_a == kept_b == []
    elif how == "only_first":
        assert kept_b == b
    elif how == "only_second":
        assert kept_a == a
    elif excess:  # the longer gave the ids that went, down to where both are as long
        assert kept_a == a or kept_b == b or abs(len(kept_a) - len(kept_b)) <= 1


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
    assert tokenizer(texts)["input_ids"] == rows  # no option outlives its call


def test_one_text_as_an_array_is_a_batch_of_one(tokenizer):
    out = tokenizer("one two", return_tensors="np")
    assert out["input_ids"].tolist() == [tokenizer.encode("one two")]


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("a",), {"padding": "left"}, "padding must be"),
        (("a",), {"truncation": "last"}, "truncation must be"),
        (("a",), {"truncation": True, "max_length": 1}, "no room for the 2 special tokens"),
        (("a", "b"), {"truncation": True, "max_length": 3}, "no room for the 4 special tokens"),
        (("a",), {"return_tensors": "pt"}, "return_tensors"),
        ((["a", "b c d"],), {"return_tensors": "np"}, "padding=True"),
        ((["a"], ["b", "c"]), {}, "list of 1 texts"),
        ((["a"], "b"), {}, "list of 1 texts"),
        (("a", ["b"]), {}, "text_pair must be"),
        ((3,), {}, "must be a string or a list"),
        ((["a", 3],), {}, "not 3"),
        ((["a", ("b", "c", "d")],), {}, "pair of strings"),
        (
            ("a",),
            {"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 8},
            "multiple of 8",
        ),
    ],
)
def test_wrong_arguments(tokenizer, arguments, options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        tokenizer(*arguments, **options)


def test_threads_do_not_see_each_others_options(tokenizer):
    text = " ".join(["def return class"] * 30)
    full = tokenizer.encode(text)

    def check(limit):
        ids = tokenizer.encode(text, truncation=True, max_length=limit)
        return len(ids) == limit and tokenizer.encode(text) == full

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, [5, 9, 17, 33] * 50))


# Files


def test_every_set_of_files_holds_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "all")
    names = ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [*names, "vocab.json"]
    for kept in (["tokenizer.json"], ["vocab.json", "merges.txt"]):
        folder = tmp_path / kept[0]
        folder.mkdir()
        for name in kept:
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


def test_options_are_kept(tokenizer, tmp_path):
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
        (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)  # tokenizer.json says it too
    assert RobertaTokenizer.from_pretrained(tmp_path).model_max_length == 512


def test_a_tokenizer_json_with_other_settings_becomes_robertas(tokenizer, tmp_path):
    """Some writers drop <mask>'s left strip or keep a call's truncation in the file."""
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


def test_added_tokens_are_kept(tokenizer, tmp_path):
    changed = pickle.loads(pickle.dumps(tokenizer))
    changed.backend.add_tokens(["@user"])
    changed.save_pretrained(tmp_path)
    loaded = RobertaTokenizer.from_pretrained(tmp_path)
    assert (len(loaded), loaded.vocab_size) == (1001, 1000)
    assert loaded.encode("@user", add_special_tokens=False) == [1000]
    assert loaded.fingerprint() != tokenizer.fingerprint()


def test_a_failing_save_leaves_the_earlier_files(tokenizer, tmp_path, monkeypatch):
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


def test_no_tokenizer_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nor a hub id"):
        RobertaTokenizer.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="found nothing"):
        RobertaTokenizer.from_pretrained(tmp_path)
    write_hf(tmp_path, byte_vocab(), [])
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab.json \+ merges.txt.*found vocab.json"):
        RobertaTokenizer.from_pretrained(tmp_path)


def test_gpt2s_files_alone_are_refused(tmp_path):
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


# Training


def test_training_twice_gives_the_same_tokenizer():
    texts = TEXTS[:20]
    one = RobertaTokenizer.train(texts, vocab_size=600)
    two = RobertaTokenizer.train(iter(texts), vocab_size=600)
    assert vocabulary.vocab_and_merges(one.backend) == vocabulary.vocab_and_merges(two.backend)
    assert one.fingerprint() == two.fingerprint()
    # Shares its first merges with a larger one: the vocabulary grows by frequency.
    more = RobertaTokenizer.train(texts, vocab_size=700)
    assert list(more.get_vocab()) != list(one.get_vocab())
    merges = vocabulary.vocab_and_merges(one.backend)[1]
    assert vocabulary.vocab_and_merges(more.backend)[1][: len(merges)] == merges


def test_training_merges_the_most_frequent_pairs():
    tokenizer = RobertaTokenizer.train(["zq zq zq qz"], vocab_size=263)
    assert vocabulary.vocab_and_merges(tokenizer.backend)[1] == [("z", "q"), ("Ġ", "zq")]


def test_smallest_vocabulary_is_bytes():
    tokenizer = RobertaTokenizer.train([], vocab_size=261)
    assert len(tokenizer.encode("é", add_special_tokens=False)) == 2
    with pytest.raises(ValueError, match="at least 261"):
        RobertaTokenizer.train(TEXTS, vocab_size=260)


def test_text_too_small_for_the_vocabulary():
    with pytest.raises(ValueError, match=r"new_tokenizer\.vocab_size") as raised:
        RobertaTokenizer.train(["some text, and some more"], vocab_size=5000)
    allowed = int(re.search(r"allows (\d+) tokens", str(raised.value))[1])
    assert len(RobertaTokenizer.train(["some text, and some more"], vocab_size=allowed)) == allowed


def test_training_reads_no_further_than_its_sample():
    texts = iter(["abc", "déf", "ghi", "never read"])
    assert list(training.take_bytes(texts, 9)) == ["abc", "déf", "gh"]
    assert next(texts) == "never read"
    assert list(training.take_bytes(["a\ud800"], 9)) == ["a\ufffd"]
    assert list(training.take_bytes(["aé"], 2)) == ["a"]


def test_training_takes_overlong_lines_and_surrogates():
    long_line = "word " * 300_000 + "\ud800"
    assert "Ġword" in RobertaTokenizer.train([long_line], vocab_size=265).get_vocab()


def test_public_signatures_are_documented():
    for name, method in inspect.getmembers(RobertaTokenizer, inspect.isfunction):
        if not name.startswith("_"):
            assert method.__doc__, name


# Against transformers


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parity
def test_transformers_loads_what_we_save(tokenizer, theirs):
    assert type(theirs).__name__.startswith("RobertaTokenizer")
    assert theirs.model_max_length == 512
    assert theirs.get_vocab() == tokenizer.get_vocab()
    assert theirs.all_special_ids == tokenizer.all_special_ids
    assert theirs(HARD_STRINGS)["input_ids"] == tokenizer(HARD_STRINGS)["input_ids"]


@pytest.mark.parity
def test_transformers_loads_vocab_and_merges_alike(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    if int(transformers.__version__.split(".")[0]) >= 5:
        pytest.skip("transformers 5 loses <mask>'s left strip without tokenizer.json")
    tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
    assert theirs(HARD_STRINGS)["input_ids"] == tokenizer(HARD_STRINGS)["input_ids"]
    for options in ("added_tokens", "post_processor", "pre_tokenizer", "decoder"):
        ours = json.loads(tokenizer.backend.to_str())[options]
        assert json.loads(theirs.backend_tokenizer.to_str())[options] == ours


@pytest.mark.parity
def test_we_load_what_transformers_saves(tokenizer, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    loaded = RobertaTokenizer.from_pretrained(tmp_path)
    assert loaded(HARD_STRINGS) == tokenizer(HARD_STRINGS)
    assert loaded.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parity
def test_calls_equal_transformers(tokenizer, theirs):
    rng = random.Random(0)
    pieces = [*HARD_STRINGS, *(w for text in TEXTS[:5] for w in text.split(" ")[:60])]
    for _ in range(150):
        texts = [" ".join(rng.choices(pieces, k=rng.randint(0, 9))) for _ in range(3)]
        pairs = texts[::-1] if rng.random() < 0.5 else None
        options = {
            "padding": rng.choice([False, True, "max_length"]),
            "truncation": rng.choice([None, False, True, "only_first", "only_second"]),
            "max_length": rng.choice([None, 6, 24]),
            "add_special_tokens": rng.random() < 0.8,
            "pad_to_multiple_of": rng.choice([None, 8]),
        }
        if rng.random() < 0.3:
            texts, pairs = texts[0], pairs and pairs[0]
        try:
            expected = theirs(texts, pairs, **options)
        except Exception:
            with pytest.raises(ValueError):
                tokenizer(texts, pairs, **options)
            continue
        assert tokenizer(texts, pairs, **options) == dict(expected), (texts, pairs, options)


@pytest.mark.parity
def test_decoding_equals_transformers(tokenizer, theirs):
    rng = random.Random(1)
    for _ in range(100):
        ids = rng.choices(range(1000), k=30) + rng.choices(tokenizer.all_special_ids, k=3)
        for skip in (False, True):
            tokens = tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=skip)
            assert tokens == theirs.convert_ids_to_tokens(ids, skip_special_tokens=skip)
            for clean in (None, True):
                options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
                assert tokenizer.decode(ids, **options) == theirs.decode(ids, **options)
