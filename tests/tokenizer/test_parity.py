"""The tokenizer against transformers' RobertaTokenizerFast, live: every method and option.

Theirs is made by transformers itself from `vocab.json` and `merges.txt`; ours from the same two.

Where the two differ, and why:

- `tokenize` of theirs writes the space that `<mask>` takes into the token (" <mask>", which is no
  token of the vocabulary); ours writes `<mask>`, as their slower class does.
- `get_special_tokens_mask` of theirs refuses ids without special tokens; ours answers as their
  slower class does.
- Ids that do not exist are left out by theirs when decoding; ours are an error. So is a max_length
  without room for the special tokens, a stride that leaves nothing new, and rows of unequal length
  for arrays (theirs makes arrays of objects).
"""

import json
import lzma
import os
import pydoc_data.topics
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

from tokenizers import AddedToken

from roberta_jax.tokenizer import RobertaTokenizer, RobertaTokenizerFast

pytestmark = pytest.mark.parity

os.environ["RUST_BACKTRACE"] = "0"  # some of their errors are printed with a trace

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


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small vocabulary, as `vocab.json` and `merges.txt` alone."""
    folder = tmp_path_factory.mktemp("vocabulary")
    texts = [*pydoc_data.topics.topics.values(), "".join(PIECES) * 3]
    RobertaTokenizer.train(texts, vocab_size=1500).save_vocabulary(folder)
    return folder


@pytest.fixture(scope="module", params=["plain", "prefixed", "untrimmed"])
def pair(request, files):
    """Ours and theirs."""
    options = {
        "plain": {},
        "prefixed": {"add_prefix_space": True},
        "untrimmed": {"trim_offsets": False, "add_prefix_space": True},
    }[request.param]
    return make_pair(files, **options)


@pytest.fixture(scope="module")
def plain(files):
    return make_pair(files)


def make_pair(folder, **options):
    paths = str(folder / "vocab.json"), str(folder / "merges.txt")
    options = {"model_max_length": 512, **options}
    return (
        RobertaTokenizerFast(*paths, **options),
        transformers.RobertaTokenizerFast(*paths, **options),
    )


@pytest.fixture(scope="module")
def released(real_data, tmp_path_factory):
    """Ours and theirs with RoBERTa's own vocabulary; theirs through its own conversion."""
    folder = tmp_path_factory.mktemp("released")
    RobertaTokenizer.from_pretrained(real_data / "bpe_gpt2").save_vocabulary(folder)
    return {prefix: make_pair(folder, add_prefix_space=prefix) for prefix in (False, True)}


def assert_same_rows(ours, theirs):
    """Every column, and everything that the encodings know."""
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


def real_texts(real_data) -> dict[str, list[str]]:
    rows = (real_data / "golden_bpe" / "golden_strings.jsonl").read_text().split("\n")
    golden = [json.loads(row)["text"] for row in rows if row]
    with lzma.open(real_data / "pretrain" / "multilingual.jsonl.xz", "rt") as file:
        documents = [json.loads(line) for line, _ in zip(file, range(200), strict=False)]
    multilingual = [d["text"] if isinstance(d, dict) else d for d in documents]
    lines = [line[:600] for text in multilingual for line in text.split("\n")[:4]]
    with lzma.open(real_data / "tweeteval" / "irony" / "train_text.txt.xz", "rt") as file:
        tweets = file.read().split("\n")[:1000]
    return {"golden": golden, "multilingual": lines, "tweets": tweets}


# Texts


@pytest.mark.parametrize("kind", ["golden", "multilingual", "tweets"])
@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_real_text(released, real_data, kind, add_prefix_space):
    ours, theirs = released[add_prefix_space]
    texts = real_texts(real_data)[kind]
    assert len(texts) > 50
    assert_same_rows(ours(texts, **EVERYTHING), theirs(texts, **EVERYTHING))
    other = texts[::-1]
    options = {"truncation": True, "max_length": 24, "stride": 3, "padding": True}
    options |= EVERYTHING | {"return_overflowing_tokens": True}
    assert_same_rows(ours(texts, other, **options), theirs(texts, other, **options))
    ids = ours(texts)["input_ids"]
    for skip in (False, True):
        decoded = ours.batch_decode(ids, skip_special_tokens=skip)
        assert decoded == theirs.batch_decode(ids, skip_special_tokens=skip)
    if add_prefix_space:
        words = [text.split() for text in texts]
        split = {"is_split_into_words": True, **EVERYTHING}
        assert_same_rows(ours(words, **split), theirs(words, **split))


@given(text=TEXT, second=st.none() | TEXT, specials=st.booleans(), split=st.booleans())
@settings(deadline=None, max_examples=150)
@example("Hello <mask>", "", True, False)
@example(" <mask>  <mask>", "<mask>", True, True)
@example("", None, True, False)
@example("e\u0301\u0301 <mask>\n", None, False, False)
def test_any_text(pair, text, second, specials, split):
    ours, theirs = pair
    options = {"add_special_tokens": specials, "split_special_tokens": split, **EVERYTHING}
    assert_same_rows(ours(text, second, **options), theirs(text, second, **options))
    batch = [text, (text, second or "")]
    assert_same_rows(ours(batch, **options), theirs(batch, **options))
    assert ours.encode(text, second) == theirs.encode(text, second)
    tokens = [token.strip() if "<mask>" in token else token for token in theirs.tokenize(text)]
    assert ours.tokenize(text) == tokens
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)


@st.composite
def calls(draw):
    """Inputs and options, of a text, a pair, a batch or words."""
    kind = draw(st.sampled_from(["one", "batch", "words", "batch of words"]))
    item = WORDS if "words" in kind else TEXT
    item = st.lists(item, min_size=1, max_size=4) if "batch" in kind else item
    text = draw(item)
    paired = draw(st.booleans())
    if kind == "batch of words":  # theirs looks at the first one to see what they are
        text = [["a"], *text]
    second = draw(st.lists(WORDS if "words" in kind else TEXT, min_size=9, max_size=9))
    second = second[: len(text)] if "batch" in kind else second[0]
    limit = draw(st.none() | st.integers(0, 30))
    options = {
        "add_special_tokens": draw(st.booleans()),
        "padding": draw(st.sampled_from([False, True, "longest", "max_length", "do_not_pad"])),
        "truncation": draw(
            st.sampled_from(
                [None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate"]
            )
        ),
        "max_length": limit,
        "stride": draw(st.sampled_from([0, 0, 1, 2, 5])),
        "is_split_into_words": "words" in kind,
        "pad_to_multiple_of": draw(st.sampled_from([None, None, 4, 8])),
        "padding_side": draw(st.sampled_from([None, "left", "right"])),
        "return_token_type_ids": draw(st.sampled_from([None, True, False])),
        "return_attention_mask": draw(st.sampled_from([None, True, False])),
        "return_overflowing_tokens": draw(st.booleans()),
        "return_special_tokens_mask": draw(st.booleans()),
        "return_offsets_mapping": draw(st.booleans()),
        "return_length": draw(st.booleans()),
        "verbose": draw(st.booleans()),
    }
    return (text, second if paired else None), options, draw(st.sampled_from(["left", "right"]))


@pytest.mark.filterwarnings("ignore:.*max_length")
@given(calls())
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_any_call(files_of_words, call):
    ours, theirs = files_of_words
    arguments, options, side = call
    ours.truncation_side = theirs.truncation_side = side
    try:
        got = ours(*arguments, **options)
    except ValueError as error:
        if "no room" in str(error) or "stride=" in str(error):  # theirs depends on the text
            return
        with pytest.raises(BaseException, match="(?i)truncat|stride|multiple"):
            theirs(*arguments, **options)
        return
    assert_same_rows(got, theirs(*arguments, **options))


@pytest.fixture(scope="module")
def files_of_words(files):
    return make_pair(files, add_prefix_space=True, model_max_length=40)


def test_labels(plain):
    ours, theirs = plain
    targets = {"text_target": ["x y", "z"]}
    assert dict(ours(**targets)) == dict(theirs(**targets))
    both = {"text": ["a b", "c"], "text_target": ["x", "y z"], "text_pair_target": ["1", "2"]}
    assert dict(ours(**both)) == dict(theirs(**both))


@pytest.mark.parametrize("kind", ["np", "jax"])
def test_arrays(plain, kind):
    ours, theirs = plain
    texts, others = ["a", "the def class return", ""], ["x y z", "", "<mask>"]
    options = {"padding": True, "truncation": True, "max_length": 8, "stride": 1, **EVERYTHING}
    for overflow in (False, True):
        options |= {"return_tensors": kind, "return_overflowing_tokens": overflow}
        for arguments in ((texts,), (texts, others), ("the def",), ("the", "def")):
            got, expected = ours(*arguments, **options), theirs(*arguments, **options)
            assert list(got) == list(expected)
            for name, array in expected.items():
                assert type(got[name]) is type(array)
                assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
                np.testing.assert_array_equal(got[name], array)


# What an encoding knows


@given(text=TEXT, second=st.none() | TEXT, words=st.booleans())
@settings(deadline=None, max_examples=60)
@example("e\u0301 👍🏽 <mask> x", "the the", False)
def test_alignment(files_of_words, text, second, words):
    ours, theirs = files_of_words
    if words:
        assume(second)
        text, second = text.split(" "), second.split(" ")
    options = {"is_split_into_words": words, "truncation": True, "max_length": 20}
    got = ours([text, text], None if second is None else [second, second], **options)
    expected = theirs([text, text], None if second is None else [second, second], **options)
    for row in (0, 1):  # theirs fails at negative ones
        for name in ("tokens", "word_ids", "sequence_ids"):
            assert getattr(got, name)(row) == getattr(expected, name)(row)
        for position in range(len(got.encodings[row])):
            for name in ("token_to_sequence", "token_to_word", "token_to_chars"):
                found = getattr(got, name)(row, position)
                assert found == getattr(expected, name)(row, position)
                assert type(found).__name__ == type(getattr(expected, name)(row, position)).__name__
        for sequence in range(got.n_sequences):
            length = len((text, second)[sequence])
            for position in range(length):
                for name in ("char_to_token", "char_to_word"):
                    assert getattr(got, name)(row, position, sequence) == (
                        getattr(expected, name)(row, position, sequence)
                    )
            for word in {w for w in got.word_ids(row) if w is not None}:
                try:
                    span = expected.word_to_chars(row, word, sequence)
                except TypeError:  # theirs, where the word is not in that text
                    span = None
                assert got.word_to_chars(row, word, sequence) == span
                assert got.word_to_tokens(row, word, sequence) == (
                    expected.word_to_tokens(row, word, sequence)
                )
    assert got.char_to_token(0) == expected.char_to_token(0)
    assert got.token_to_word(0) == expected.token_to_word(0)


# From ids

IDS = st.lists(st.integers(5, 90), max_size=12)


@given(
    ids=IDS,
    second=st.none() | IDS,
    options=st.fixed_dictionaries({
        "add_special_tokens": st.booleans(),
        "padding": st.sampled_from([False, True, "max_length"]),
        "truncation": st.sampled_from([None, False, True, "only_first", "only_second"]),
        "max_length": st.integers(5, 20),
        "stride": st.integers(0, 3),
        "pad_to_multiple_of": st.sampled_from([None, 4]),
        "padding_side": st.sampled_from([None, "left"]),
        "return_attention_mask": st.sampled_from([None, True, False]),
        "return_token_type_ids": st.sampled_from([None, True]),
        "return_special_tokens_mask": st.booleans(),
        "return_overflowing_tokens": st.booleans(),
        "return_length": st.booleans(),
    }),
    side=st.sampled_from(["left", "right"]),
)  # fmt: skip
@settings(deadline=None, max_examples=300)
@pytest.mark.filterwarnings("ignore:.*max_length")
def test_prepare_for_model(slow_pair, ids, second, options, side):
    ours, theirs = slow_pair
    ours.truncation_side = theirs.truncation_side = side
    try:
        expected = theirs.prepare_for_model(list(ids), second and list(second), **options)
    except ValueError:
        with pytest.raises(ValueError):
            ours.prepare_for_model(ids, second and second, **options)
        return
    assert dict(ours.prepare_for_model(ids, second and second, **options)) == dict(expected)


@given(
    IDS, st.none() | IDS, st.integers(0, 30), st.integers(0, 5), st.sampled_from(["left", "right"])
)
@settings(deadline=None, max_examples=200)
def test_truncate_sequences(slow_pair, ids, second, count, stride, side):
    ours, theirs = slow_pair
    ours.truncation_side = theirs.truncation_side = side
    for strategy in ("longest_first", "only_first", "only_second", "do_not_truncate"):
        arguments = (ids, second, count, strategy, stride)
        assert ours.truncate_sequences(*arguments) == theirs.truncate_sequences(*arguments)


@given(IDS, st.none() | IDS)
@settings(deadline=None, max_examples=50)
def test_special_tokens_around_ids(slow_pair, ids, second):
    ours, theirs = slow_pair
    for name in (
        "build_inputs_with_special_tokens",
        "create_token_type_ids_from_sequences",
        "get_special_tokens_mask",
    ):
        assert getattr(ours, name)(ids, second) == getattr(theirs, name)(ids, second)
    row = ours.build_inputs_with_special_tokens(ids, second)
    full = {"already_has_special_tokens": True}
    assert ours.get_special_tokens_mask(row, **full) == theirs.get_special_tokens_mask(row, **full)


@pytest.fixture(scope="module")
def slow_pair(files):
    paths = str(files / "vocab.json"), str(files / "merges.txt")
    options = {"model_max_length": 30}
    return RobertaTokenizer(*paths, **options), transformers.RobertaTokenizer(*paths, **options)


def test_pad(plain):
    ours, theirs = plain
    texts = ["one two three", "", "four"]
    rows = [ours(text, return_special_tokens_mask=True) for text in texts]
    columns = ours(texts, return_token_type_ids=True)
    forms = {
        "list of calls": lambda: [dict(row) for row in rows],
        "batch": lambda: dict(columns),
        "one row": lambda: dict(rows[0]),
        "ids alone": lambda: {"input_ids": [[1, 2], [3]]},
        "arrays": lambda: [{"input_ids": np.array(row["input_ids"])} for row in rows],
        "nothing": lambda: {"input_ids": []},
        "labels beside": lambda: [
            {"input_ids": [4, 5], "label": 1},
            {"input_ids": [6], "label": 0},
        ],
    }
    for form, make in forms.items():
        for options in (
            {},
            {"padding": "max_length", "max_length": 12},
            {"padding": "longest", "pad_to_multiple_of": 5, "padding_side": "left"},
            {"padding": "do_not_pad"} if form != "arrays" else {},
            {"return_attention_mask": False},
            {"return_tensors": "np"} if form != "nothing" else {"return_attention_mask": True},
        ):
            got, expected = ours.pad(make(), **options), theirs.pad(make(), **options)
            assert list(got) == list(expected), (form, options)
            for name, column in expected.items():
                assert type(got[name]) is type(column), (form, name)
                assert str(got[name]) == str(column), (form, options, name)


# The vocabulary

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


def test_properties(pair):
    assert_same_tokenizers(*pair)


def test_converting(plain):
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


def test_adding_tokens(files):
    ours, theirs = make_pair(files)
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


def test_training_anew(files):
    ours, theirs = make_pair(files, add_prefix_space=True, model_max_length=77)
    corpus = [list(pydoc_data.topics.topics.values())[i : i + 3] for i in range(0, 12, 3)]
    options = {"vocab_size": 500, "new_special_tokens": ["<new>"], "show_progress": False}
    options["special_tokens_map"] = {"<mask>": "<hidden>", "</s>": "<end>"}
    assert_same_tokenizers(
        ours.train_new_from_iterator(corpus, **options),
        theirs.train_new_from_iterator(corpus, **options),
    )


# Files


def changed(tokenizer):
    tokenizer.add_tokens(["@user", AddedToken("<x>", lstrip=True, rstrip=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e1>"], "pad_token": "[PAD]"})
    return tokenizer


@pytest.mark.parametrize("legacy", [None, False, True])
def test_each_loads_what_the_other_saved(files, tmp_path, legacy):
    options = {"padding_side": "left", "truncation_side": "left", "model_max_length": 99}
    ours, theirs = map(changed, make_pair(files, **options))
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


def test_old_files_without_a_list_of_added_tokens(files, tmp_path):
    _, theirs = make_pair(files)
    changed(theirs).save_pretrained(tmp_path, legacy_format=True)
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


def test_one_separator_is_read_by_transformers(files, tmp_path):
    paths = str(files / "vocab.json"), str(files / "merges.txt")
    for prefix in (False, True):
        ours = RobertaTokenizer(*paths, single_separator_pairs=True, add_prefix_space=prefix)
        ours.save_pretrained(tmp_path)
        theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
        other = make_pair(files, add_prefix_space=prefix)[1]
        texts = ["a <mask> the", " e\u0301  x ", ""]
        assert_same_rows(ours(texts, texts, **EVERYTHING), theirs(texts, texts, **EVERYTHING))
        assert_same_rows(ours(texts, **EVERYTHING), other(texts, **EVERYTHING))
        bare = {"add_special_tokens": False, "return_offsets_mapping": True}
        got, expected = ours(texts, texts, **bare), other(texts, texts, **bare)
        assert got["offset_mapping"] == expected["offset_mapping"]


def test_save_vocabulary_writes_what_theirs_writes(files, tmp_path):
    ours, theirs = make_pair(files)
    for folder, tokenizer in (("ours", ours), ("theirs", theirs)):
        (tmp_path / folder).mkdir()
        names = tokenizer.save_vocabulary(str(tmp_path / folder), filename_prefix="x")
        assert [os.path.basename(name) for name in names] == ["x-vocab.json", "x-merges.txt"]
    for name, read in (("x-vocab.json", json.loads), ("x-merges.txt", str.split)):
        written = [read((tmp_path / folder / name).read_text()) for folder in ("ours", "theirs")]
        assert written[0] == written[1]
