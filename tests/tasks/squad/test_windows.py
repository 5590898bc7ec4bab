"""Character offsets in any script, and where windows begin."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from roberta_jax.tasks.squad import windows
from roberta_jax.tokenizer import RobertaTokenizer
from tests.support.squad import PASSAGES
from tests.support.tokenizer_pairs import PIECES

# Without special tokens, of which HF's <mask> takes the space before it.
TEXT = st.lists(
    st.one_of(st.sampled_from([p for p in PIECES if "<" not in p]), st.text(max_size=5)),
    max_size=9,
).map("".join)


@pytest.fixture(scope="module", params=["merged", "bytes", "untrimmed", "prefix_space"])
def tokenizer(request):
    """With merges across characters, or with one token for each byte."""
    options = {"untrimmed": {"trim_offsets": False}, "prefix_space": {"add_prefix_space": True}}
    size = 261 if request.param == "bytes" else 550
    trained = RobertaTokenizer.train([*PASSAGES * 3, *PIECES * 3], vocab_size=size)
    if request.param not in options:
        return trained
    return RobertaTokenizer(tokenizer_object=trained.backend, **options[request.param])


def normalizing_tokenizer() -> RobertaTokenizer:
    """One like XLM-R's: it composes characters, and has one token for each of them."""
    characters = sorted({c for text in PASSAGES for c in text if not c.isspace()})
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocab += [(character, -4.0) for character in characters]
    backend = Tokenizer(models.Unigram(vocab, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"],
        pair=["<s>", "$A", "</s>", "</s>", "$B", "</s>"],
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return RobertaTokenizer(tokenizer_object=backend)


def encoded(text, tokenizer, prefix=""):
    """(ids, offsets) of one passage."""
    passages = windows.encode_passages([text], tokenizer, prefix)
    assert passages.starts.tolist() == [0, len(passages.tokens)]
    return passages.tokens, passages.offsets


@settings(max_examples=150, deadline=None)
@given(text=TEXT, data=st.data())
def test_tokens_of_a_span_spell_exactly_its_characters(tokenizer, text, data):
    ids, offsets = encoded(text, tokenizer)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    answer = text[start:end].strip()
    found = windows.covering(offsets, start, end)
    if not answer:
        assert found is None
        return
    first, last = found
    begin, stop = int(offsets[first, 0]), int(offsets[last, 1])
    # Independent of the offsets: the tokens spell the answer.
    assert answer in tokenizer.decode(ids[first : last + 1].tolist())
    assert answer in text[begin:stop]
    # As few tokens as possible, and nothing that is not a part of them.
    assert offsets[first, 1] > start
    assert offsets[last, 0] < end
    assert text[begin:stop] == text[begin:stop].strip()
    assert text[begin:stop] in tokenizer.decode(ids[max(0, first - 1) : last + 2].tolist())


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
@example("a\ud83db \ud83d\udc4d c\udc4dd")
def test_every_character_but_white_space_is_covered_in_order(tokenizer, text):
    _, offsets = encoded(text, tokenizer)
    covered = np.zeros(len(text), bool)
    last = (0, 0)
    for begin, end in offsets.tolist():
        covered[begin:end] = True
        assert 0 <= begin <= end <= len(text)
        if begin < end:
            assert text[begin:end] == text[begin:end].strip()
            assert (begin, end) >= last
            last = (begin, end)
    assert [c for c, here in zip(text, covered, strict=True) if not here and not c.isspace()] == []


@pytest.mark.parametrize("text", PASSAGES)
def test_each_character_is_found_by_itself(tokenizer, text):
    ids, offsets = encoded(text, tokenizer)
    for at, character in enumerate(text):
        found = windows.covering(offsets, at, at + 1)
        if character.isspace():
            assert found is None
            continue
        first, last = found
        assert character in tokenizer.decode(ids[first : last + 1].tolist())
        assert offsets[first, 0] <= at < offsets[last, 1]


@pytest.mark.parametrize("text", PASSAGES)
def test_each_character_is_covered_where_the_tokenizer_normalizes(text):
    _, offsets = encoded(text, normalizing_tokenizer())
    for at, character in enumerate(text):
        found = windows.covering(offsets, at, at + 1)
        if character.isspace():
            assert found is None
        else:
            assert offsets[found[0], 0] <= at < offsets[found[1], 1]


def test_a_combining_mark_without_a_token_is_a_part_of_its_character():
    text = "Cafe\u0301 and"
    _, offsets = encoded(text, normalizing_tokenizer())
    first, last = windows.covering(offsets, 0, 5)
    assert text[offsets[first, 0] : offsets[last, 1]] == "Cafe\u0301"
    assert windows.covering(offsets, 4, 5) == windows.covering(offsets, 3, 4)


def test_all_tokens_of_a_character_cover_all_of_it():
    tokenizer = RobertaTokenizer.train(PASSAGES, vocab_size=261)
    ids, offsets = encoded("a👍b", tokenizer)
    assert len(ids) == 6
    assert offsets.tolist() == [[0, 1], *[[1, 2]] * 4, [2, 3]]
    assert windows.covering(offsets, 1, 2) == (1, 4)


def test_surrogate_pairs_count_as_the_two_characters_that_python_has():
    tokenizer = RobertaTokenizer.train(PASSAGES, vocab_size=261)
    text = "\ud83d\udc4d\ud83d\udc4dxy\ud83d z"
    _, offsets = encoded(text, tokenizer)
    assert offsets[windows.covering(offsets, 4, 6)[0]].tolist() == [4, 5]
    first, last = windows.covering(offsets, 2, 4)
    assert (offsets[first, 0], offsets[last, 1]) == (2, 4)
    first, last = windows.covering(offsets, 8, 9)
    assert (offsets[first, 0], offsets[last, 1]) == (8, 9)


def test_a_prefix_covers_no_characters(tokenizer):
    ids, offsets = encoded("one two", tokenizer, "C: ")
    first, last = windows.covering(offsets, 0, 7)
    assert tokenizer.decode(ids[first : last + 1].tolist()).strip() == "one two"
    assert (offsets[first, 0], offsets[last, 1]) == (0, 7)
    assert offsets[:first].max() == 0


def test_distinct_passages_are_encoded_once_and_in_groups(tokenizer, monkeypatch):
    texts = [PASSAGES[0], "", PASSAGES[1], PASSAGES[0], PASSAGES[2]]
    whole = windows.encode_passages(texts, tokenizer)
    assert list(whole.number.values()) == [0, 1, 2, 3]
    monkeypatch.setattr(windows, "_CHARACTERS_AT_ONCE", 20)
    parts = windows.encode_passages(texts, tokenizer)
    for text, number in whole.number.items():
        tokens = slice(*whole.starts[number : number + 2])
        ids, offsets = encoded(text, tokenizer)
        np.testing.assert_array_equal(whole.tokens[tokens], ids)
        np.testing.assert_array_equal(whole.offsets[tokens], offsets)
    for name in ("tokens", "offsets", "starts"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_no_passages():
    passages = windows.encode_passages([], None)
    assert passages.starts.tolist() == [0]
    assert passages.offsets.shape == (0, 2)


@given(st.integers(0, 300), st.integers(1, 60), st.integers(1, 80))
def test_windows_are_those_of_the_definition(length, room, step):
    """One after the other, until one ends where the passage ends."""
    expected = [0]
    while expected[-1] + room < length:
        expected.append(expected[-1] + min(room, step))
    assert windows.window_starts(length, room, step).tolist() == expected
