"""BulkEncoder gives the ids of encoding one by one, for any vocabulary and text."""

import itertools
import json
import lzma
import pickle

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from roberta_jax.tokenizer import RobertaTokenizer, bulk, pipeline, vocabulary
from roberta_jax.tokenizer.bulk import BulkEncoder
from roberta_jax.tokenizer.byte_alphabet import byte_alphabet
from tests.support.tokenizer_examples import TEXTS

# Includes many characters at which GPT-2's regular expression splits text.
TEXT = st.lists(
    st.one_of(
        st.sampled_from([" ", "  ", "\t", "\u00a0", "'", "'s", "a", "é", "1", "!"]), st.text()
    ),
    max_size=8,
).map(lambda parts: "".join("".join(parts).split("\n")))
DOCUMENTS = st.lists(st.lists(TEXT, max_size=6), max_size=5)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "add_prefix_space"])
def encoder(request) -> BulkEncoder:
    tokenizer = RobertaTokenizer.train(TEXTS, vocab_size=2000)
    pipeline.complete(tokenizer.backend, add_prefix_space=request.param)
    encoder = BulkEncoder(tokenizer)
    assert encoder.uses_tiktoken
    return encoder


def one_by_one(tokenizer, documents):
    rows = [
        tokenizer.encode(text.strip(), add_special_tokens=False, split_special_tokens=True)
        for text in itertools.chain.from_iterable(documents)
    ]
    return [i for row in rows for i in row], [*map(len, rows)], [*map(len, documents)]


def check(encoder: BulkEncoder, documents) -> None:
    tokens, lengths, counts = encoder.encode_documents(documents)
    assert (tokens.dtype, lengths.dtype, counts.dtype) == (np.uint32, np.int64, np.int64)
    expected = one_by_one(encoder._tokenizer, documents)
    assert (tokens.tolist(), lengths.tolist(), counts.tolist()) == expected


@given(DOCUMENTS)
@settings(deadline=None, max_examples=300)
@example([])
@example([[], [""], ["", ""], ["a", "", "", "b  c", "", "d"], ["", "  x  ", ""]])
@example([["a \tb", "\x1c a\x1f", "c\x85d \u3000 e", "don't  'tis''s"]])
@example([["<mask> </s>", "<s>", "a<unk> <pad>"]])
@example([["\ud800", "a\udfff  b", "\ud83d", "\ude00"]])
def test_same_ids_as_one_by_one(encoder, documents):
    check(encoder, documents)


def test_characters_next_to_a_line_feed(encoder):
    """Sentences are separated at line feeds, so no piece may extend across one."""
    characters = [
        chr(i) for i in [*range(0x3100), *range(0xFE00, 0x10000), *range(0x1F300, 0x1FB00)]
    ]
    tokens, lengths, _ = encoder.encode_documents([characters])
    assert len(lengths) == len(characters)
    ends = np.cumsum(lengths)
    for i in range(0, len(characters), 37):
        alone = one_by_one(encoder._tokenizer, [[characters[i]]])[0]
        assert tokens[ends[i] - lengths[i] : ends[i]].tolist() == alone


def test_line_feed_in_a_sentence_is_refused(encoder):
    with pytest.raises(ValueError, match="line feed"):
        encoder.encode_documents([["one", "two\nthree"]])


def test_unpickling_does_not_repeat_the_check(encoder, monkeypatch):
    copied = pickle.dumps(encoder)
    monkeypatch.setattr(bulk._TiktokenModel, "of", None)
    monkeypatch.setattr(BulkEncoder, "_tiktoken_agrees", None)
    copied = pickle.loads(copied)
    assert copied.uses_tiktoken
    check(copied, [TEXTS[0].split("\n"), TEXTS[1].split("\n")])


def test_characters_of_another_unicode_version(monkeypatch):
    """Sentences with characters that the libraries classify differently use `tokenizers`."""
    monkeypatch.setattr(
        bulk, "_ambiguous_code_points", lambda: np.array([ord("é"), ord("b")], np.uint32)
    )
    encoder = BulkEncoder(RobertaTokenizer.train(TEXTS, vocab_size=500))
    assert encoder.uses_tiktoken
    seen = []
    with_tokenizers = encoder._encode_with_tokenizers
    monkeypatch.setattr(
        encoder,
        "_encode_with_tokenizers",
        lambda lines: seen.extend(lines) or with_tokenizers(lines),
    )
    check(encoder, [["café é", "ascii b", "日本 b"], ["", "x  y é", "x  y ü", "zü"]])
    # ASCII text is not searched, because both libraries always classify ASCII alike.
    assert {"café é", "日本 b", "x  y é"} <= {*seen} <= {"café é", "ascii b", "日本 b", "x  y é"}


def test_libraries_agree_on_most_characters():
    differing = bulk._ambiguous_code_points()
    assert len(differing) < 20_000
    assert not len(differing) or differing.min() > 0x400


# Vocabularies that training does not produce


def with_merges(*merges: tuple[str, str], missing=()) -> RobertaTokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet()]
    vocab = {t: i for i, t in enumerate(t for t in tokens if t not in missing)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    vocab["<mask>"] = len(vocab)
    return RobertaTokenizer(pipeline.build(vocab, merges, add_prefix_space=False))


def textbook_bpe(merges, text: str) -> list[str]:
    """Applies the earliest merge at its leftmost pair until no merge applies."""
    rank = {pair: i for i, pair in enumerate(merges)}
    parts = list(text)
    while True:
        pairs = [
            (rank[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in rank
        ]
        if not pairs:
            return parts
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def naive_ids(tokenizer, text: str) -> list[int]:
    """Encodes with a tiktoken model of all merged tokens, whose ids can be wrong."""
    import tiktoken

    alphabet = byte_alphabet()
    vocab, merges = vocabulary.vocab_and_merges(tokenizer.backend)
    tokens = [*sorted(alphabet, key=alphabet.get), *(a + b for a, b in merges)]
    ranks = {bytes(alphabet[c] for c in token): r for r, token in enumerate(tokens)}
    encoding = tiktoken.Encoding(
        "naive", pat_str=bulk._PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    return [vocab[tokens[r]] for r in encoding.encode_ordinary(text)]


@pytest.mark.parametrize(
    ("merges", "text"),
    [
        # "ab" + "c" never occurs, because "bc" is merged first; tiktoken looks up whole pieces.
        ([("b", "c"), ("a", "b"), ("ab", "c")], "abc"),
        # "a" + "bc" is not a merge, although "abc" is a token.
        ([("b", "c"), ("a", "b"), ("ab", "c")], "zabcz"),
        # A merge that comes before the merges of its parts.
        ([("ab", "ab"), ("a", "b"), ("b", "a")], "ababab"),
    ],
)
def test_pathological_merges(merges, text):
    tokenizer = with_merges(*merges)
    encoder = BulkEncoder(tokenizer)
    check(encoder, [[text, text * 3, "x" + text]])
    tokens = encoder.encode_documents([[text]])[0]
    assert tokenizer.convert_ids_to_tokens(tokens) == textbook_bpe(merges, text)


def test_tiktoken_with_all_tokens_would_be_wrong():
    tokenizer = with_merges(("b", "c"), ("a", "b"), ("ab", "c"))
    plain = tokenizer.encode("abc", add_special_tokens=False)
    assert naive_ids(tokenizer, "abc") != plain
    assert BulkEncoder(tokenizer).encode_documents([["abc"]])[0].tolist() == plain


@st.composite
def merge_lists(draw):
    """Merges of one to three letters in any order; many never apply."""
    tokens = ["a", "b", "c"][: draw(st.integers(1, 3))]
    merges = []
    for _ in range(draw(st.integers(1, 12))):
        pair = draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if "".join(pair) not in tokens and len("".join(pair)) < 12:
            merges.append(pair)
            tokens.append("".join(pair))
    return draw(st.permutations(merges))


@given(merge_lists(), st.lists(st.text("abc", min_size=1, max_size=60), min_size=1))
@settings(deadline=None, max_examples=100)
def test_any_merges(merges, texts):
    assume(merges)
    tokenizer = with_merges(*merges)
    encoder = BulkEncoder(tokenizer)
    assert encoder.uses_tiktoken
    check(encoder, [texts])
    tokens = encoder.encode_documents([texts[:1]])[0]
    assert tokenizer.convert_ids_to_tokens(tokens) == textbook_bpe(merges, texts[0])


def with_plain_added_token() -> RobertaTokenizer:
    tokenizer = with_merges(("a", "b"))
    tokenizer.backend.add_tokens(["@user"])
    return RobertaTokenizer(tokenizer.backend)


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_merges(("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")),  # "abc" twice
        lambda: with_merges(("a", "b"), missing="z"),  # "z" cannot be encoded
        with_plain_added_token,
    ],
    ids=["two merges for one token", "a byte missing", "an added token"],
)
def test_falls_back_to_tokenizers(make):
    encoder = BulkEncoder(make())
    assert not encoder.uses_tiktoken
    check(encoder, [["abc ab z", "xyz  @user"], ["", "abcabc"], []])
    check(pickle.loads(pickle.dumps(encoder)), [["abc"]])
    assert [len(part) for part in encoder.encode_documents([])] == [0, 0, 0]


def test_falls_back_if_the_libraries_disagree(monkeypatch):
    """Simulated by an expression that splits text differently."""
    monkeypatch.setattr(bulk, "_PATTERN_FOR_SINGLE_SPACES", r"\w+|\W")
    encoder = BulkEncoder(RobertaTokenizer.train(TEXTS, vocab_size=500))
    assert not encoder.uses_tiktoken


# Real text


@pytest.mark.parametrize("name", ["multilingual", "books_en.train", "wiki_en.valid"])
def test_real_text(real_data, name, roberta_encoder):
    documents, size = [], 0
    with lzma.open(real_data / "pretrain" / f"{name}.jsonl.xz", "rt") as file:
        for line in itertools.islice(file, 0, None, 7):
            text = json.loads(line)["text"][:20_000]
            documents.append(text.splitlines())
            size += len(text)
            if size > 250_000:
                break
    tokens, lengths, _ = roberta_encoder.encode_documents(documents)
    lines = [line.strip() for document in documents for line in document]
    expected_tokens, expected_lengths = roberta_encoder._encode_with_tokenizers(lines)
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_array_equal(lengths, expected_lengths)


@pytest.fixture(scope="module")
def roberta_encoder(real_data) -> BulkEncoder:
    encoder = BulkEncoder(RobertaTokenizer.from_pretrained(real_data / "bpe_gpt2"))
    assert encoder.uses_tiktoken
    return encoder
