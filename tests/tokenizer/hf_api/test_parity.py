"""Calls of the tokenizer compared with transformers' RobertaTokenizerFast: methods and options.

Both tokenizers are made from the same `vocab.json` and `merges.txt`. They differ as follows:

- `tokenize` of transformers includes the space before `<mask>` in the token (" <mask>", which is
  not in the vocabulary). Ours returns `<mask>`, as transformers' slow class does.
- `get_special_tokens_mask` of transformers' fast class refuses ids without special tokens. Ours
  accepts them, as the slow class does.
- When decoding, transformers skips ids that do not exist, and ours raises an error. Ours also
  raises errors for a max_length without room for the special tokens, a stride that leaves no new
  ids, and rows of different lengths for arrays (transformers makes arrays of objects).
"""

import json
import lzma

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

from roberta_jax.tokenizer import RobertaTokenizer
from tests.support.tokenizer_pairs import EVERYTHING, TEXT, WORDS, assert_same_rows, make_pair

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def released(real_data, tmp_path_factory):
    """Both tokenizers with RoBERTa's own vocabulary, by `add_prefix_space`."""
    folder = tmp_path_factory.mktemp("released")
    RobertaTokenizer.from_pretrained(real_data / "bpe_gpt2").save_vocabulary(folder)
    return {prefix: make_pair(folder, add_prefix_space=prefix) for prefix in (False, True)}


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
    """Arguments of a call with one text, a pair, a batch or words, and a truncation side."""
    kind = draw(st.sampled_from(["one", "batch", "words", "batch of words"]))
    item = WORDS if "words" in kind else TEXT
    item = st.lists(item, min_size=1, max_size=4) if "batch" in kind else item
    text = draw(item)
    paired = draw(st.booleans())
    if kind == "batch of words":  # transformers takes the type of the batch from its first item
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
def test_any_call(word_pair, call):
    ours, theirs = word_pair
    arguments, options, side = call
    ours.truncation_side = theirs.truncation_side = side
    try:
        got = ours(*arguments, **options)
    except ValueError as error:
        if "no room" in str(error) or "stride=" in str(
            error
        ):  # transformers raises only for some texts
            return
        with pytest.raises(BaseException, match="(?i)truncat|stride|multiple"):
            theirs(*arguments, **options)
        return
    assert_same_rows(got, theirs(*arguments, **options))


@pytest.fixture(scope="module")
def word_pair(vocabulary_folder):
    return make_pair(vocabulary_folder, add_prefix_space=True, model_max_length=40)


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


# Alignment


@given(text=TEXT, second=st.none() | TEXT, words=st.booleans())
@settings(deadline=None, max_examples=60)
@example("e\u0301 👍🏽 <mask> x", "the the", False)
def test_alignment(word_pair, text, second, words):
    ours, theirs = word_pair
    if words:
        assume(second)
        text, second = text.split(" "), second.split(" ")
    options = {"is_split_into_words": words, "truncation": True, "max_length": 20}
    got = ours([text, text], None if second is None else [second, second], **options)
    expected = theirs([text, text], None if second is None else [second, second], **options)
    for row in (0, 1):  # transformers does not support negative rows
        for name in ("tokens", "word_ids", "sequence_ids"):
            assert getattr(got, name)(row) == getattr(expected, name)(row)
        for position in range(len(got.encodings[row])):
            for name in ("token_to_sequence", "token_to_word", "token_to_chars"):
                span, expected_span = (getattr(e, name)(row, position) for e in (got, expected))
                assert span == expected_span
                assert type(span).__name__ == type(expected_span).__name__
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
                except TypeError:  # transformers raises if the text does not have the word
                    span = None
                assert got.word_to_chars(row, word, sequence) == span
                assert got.word_to_tokens(row, word, sequence) == (
                    expected.word_to_tokens(row, word, sequence)
                )
    assert got.char_to_token(0) == expected.char_to_token(0)
    assert got.token_to_word(0) == expected.token_to_word(0)


# Model inputs from ids


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
def test_adding_special_tokens_to_ids(slow_pair, ids, second):
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
def slow_pair(vocabulary_folder):
    paths = str(vocabulary_folder / "vocab.json"), str(vocabulary_folder / "merges.txt")
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
