"""BatchEncoding: columns, and the mapping between characters, words and tokens."""

import copy
import importlib.machinery
import pickle
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding

from roberta_jax.tokenizer import BatchEncoding
from roberta_jax.tokenizer.hf_api.batch_encoding import (
    CharSpan,
    TokenSpan,
    array_converter,
    array_library,
)

TEXT = st.lists(
    st.one_of(
        st.sampled_from([" ", "<mask>", " <mask> ", "👍🏽", "e\u0301", "日本", "\x00", "\n"]),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)


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


def test_columns_without_encodings():
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


def test_pickle_and_copy(tokenizer):
    encoded = tokenizer(["one two", "three"])
    for other in (pickle.loads(pickle.dumps(encoded)), copy.deepcopy(encoded)):
        assert other == encoded
        assert other.tokens(1) == encoded.tokens(1)
        assert other.n_sequences == 1


@given(TEXT, TEXT)
@settings(deadline=None, max_examples=100)
def test_offsets_are_the_characters_of_each_token(tokenizer, text, other):
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
        if "\ufffd" not in tokenizer.decode(i):  # otherwise a token is part of a character
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
    assert encoded.char_to_token(0, 1) is None  # offsets exclude the space
    assert encoded.word_to_tokens(0, 99) is None
    assert encoded.words(1) == encoded.word_ids(1)


# Arrays


class FakeTensor:
    """A tensor of a library that may not be installed."""

    def __init__(self, array, device="cpu"):
        self.array, self.device = array, device
        self.dtype, self.shape = array.dtype, array.shape

    def to(self, device, non_blocking=False):
        return FakeTensor(self.array, device)

    def tolist(self):
        return self.array.tolist()


@pytest.fixture
def fake_libraries(monkeypatch):
    """torch and tensorflow with the functions that convert arrays."""
    for library, function in (("torch", "from_numpy"), ("tensorflow", "constant")):
        module = types.ModuleType(library)
        module.__spec__ = importlib.machinery.ModuleSpec(library, None)
        setattr(module, function, type("Tensor", (FakeTensor,), {"__module__": library}))
        monkeypatch.setitem(sys.modules, library, module)


@pytest.mark.parametrize(
    ("kind", "integers", "floats"),
    [
        ("np", "int64", "float64"),
        ("jax", "int32", "float32"),
        ("pt", "int64", "float32"),
        ("tf", "int32", "float32"),
    ],
)
def test_arrays_of_every_library(kind, integers, floats, tokenizer, fake_libraries):
    encoded = tokenizer(["one two", "three"], padding=True, return_tensors=kind)
    expected = tokenizer(["one two", "three"], padding=True)
    assert array_library(encoded["input_ids"]) == kind
    for name, column in encoded.items():
        assert str(column.dtype) == integers
        assert column.tolist() == expected[name]
    rows = [{"input_ids": ids, "label": 0.5 + i} for i, ids in enumerate(([5, 6], [7]))]
    padded = tokenizer.pad(rows, return_tensors=kind)
    assert str(padded["label"].dtype) == floats
    assert padded["label"].tolist() == [0.5, 1.5]
    # Rows of arrays are padded to an array of the same library.
    rows = [tokenizer(text, return_tensors=kind) for text in ("one two", "three")]
    rows = [{name: column.tolist()[0] for name, column in row.items()} for row in rows]
    converter = array_converter(kind)
    arrays = [{name: converter(value) for name, value in row.items()} for row in rows]
    padded = tokenizer.pad(arrays)
    assert array_library(padded["input_ids"]) == kind
    assert padded["input_ids"].tolist() == expected["input_ids"]
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(["one two", "three"], return_tensors=kind)


def test_to_moves_torch_tensors_alone(tokenizer, fake_libraries):
    encoded = tokenizer("one", return_tensors="pt")
    encoded["other"] = [1]
    assert encoded.to("cuda:0") is encoded
    assert (encoded["input_ids"].device, encoded["other"]) == ("cuda:0", [1])


@pytest.mark.parametrize(("kind", "library"), [("pt", "torch"), ("tf", "tensorflow")])
def test_missing_libraries(kind, library, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"return_tensors='{kind}' needs {library}.*install it"):
        tokenizer("one", return_tensors=kind)


def test_only_numbers_become_arrays(tokenizer):
    with pytest.raises(ValueError, match="must be numbers"):
        BatchEncoding({"text": ["a", "b"]}, tensor_type="np")
    empty = BatchEncoding({"input_ids": [[]]}, tensor_type="np")["input_ids"]
    assert (empty.shape, empty.dtype) == ((1, 0), "int64")
