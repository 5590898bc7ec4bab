"""The documents of text files, standard input and token stores."""

import bz2
import gzip
import io
import json
import lzma

import pytest
import zstandard

from roberta_jax.data.store.token_store import write_store
from roberta_jax.errors import UsageError
from roberta_jax.language_modeling.documents import (
    Document,
    TextFiles,
    documents_of_store,
    total_words,
)
from tests.support import language_models

TEXT = "One sentence here. Another one.\n\nThe second document.\r\n\n \n\nThird, the last.\n"
SENTENCES = [
    ("One sentence here.", "Another one."),
    ("The second document.",),
    ("Third, the last.",),
]
WRITERS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def sentences_of(documents):
    return [document.sentences for document in documents]


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_plain_text_and_json_lines_with_every_compression(tmp_path, suffix):
    (tmp_path / f"a.txt{suffix}").write_bytes(WRITERS[suffix](TEXT.encode()))
    lines = [json.dumps({"body": " ".join(sentences)}) for sentences in SENTENCES]
    (tmp_path / f"b.jsonl{suffix}").write_bytes(WRITERS[suffix]("\n".join(lines).encode()))
    plain = TextFiles(str(tmp_path / "a*")).read()
    assert sentences_of(plain) == SENTENCES
    assert [each.name for each in plain] == [f"{tmp_path}/a.txt{suffix}#{n}" for n in (1, 2, 3)]
    as_json = TextFiles(str(tmp_path / "b*"), text_field="body").read()
    assert sentences_of(as_json) == SENTENCES
    both = TextFiles(f"{tmp_path}/a*,{tmp_path}/b*", text_field="body")
    assert sentences_of(both.read(max_documents=4)) == [*SENTENCES, SENTENCES[0]]
    assert total_words(plain) == 5 + 3 + 3


def test_lines_can_be_sentences(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.\nthree\n")
    assert sentences_of(TextFiles(str(tmp_path / "a.txt"), sentences="lines").read()) == [
        ("One. Two.", "three")
    ]


def test_standard_input_is_plain_text():
    stdin = io.BytesIO(b"\xef\xbb\xbf" + TEXT.encode())
    documents = TextFiles("-", stdin=stdin).read()
    assert sentences_of(documents) == SENTENCES
    assert documents[1].name == "standard input#2"


def test_empty_documents_are_left_out_with_a_warning(tmp_path, caplog):
    lines = [json.dumps({"text": text}) for text in ("", " \n ", "A text.")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents = TextFiles(str(tmp_path / "a.jsonl")).read()
    assert documents == [Document(f"{tmp_path}/a.jsonl#3", ("A text.",))]
    assert "2 empty documents were left out" in caplog.text


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({}, {}, "--text: no file matches '.*a[*]'"),
        ({"a.txt": b""}, {}, "holds no text"),
        ({"a.txt": b" \n\n \n"}, {}, "holds no text"),
        ({"a.jsonl": b'{"text": ""}\n'}, {}, "all of its 1 documents are empty"),
        ({"a.jsonl": b'{"body": "x"}\n'}, {}, "no field 'text'; .* Set --text_field=[.]"),
        ({"a.jsonl": b"no JSON\n"}, {}, r"a.jsonl:1: this line is not JSON"),
        ({"a.txt": "a".encode("utf-16")}, {}, "is UTF-16"),
        ({"a.txt": bytes(1000)}, {}, "zero bytes.*leave it out of --text"),
        ({"a.txt.gz": gzip.compress(TEXT.encode())[:-9]}, {}, "cannot be read to its end"),
        ({"a.txt": b"x"}, {"language": "English"}, "--language is 'English'"),
    ],
)
def test_text_that_cannot_be_scored(tmp_path, files, options, said):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=said) as error:
        TextFiles(str(tmp_path / "a*"), **options).read()
    assert "--config" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "standard input holds no text"),
        ("text".encode("utf-16"), "standard input is UTF-16"),
        ("ひらがな".encode("shift-jis"), "standard input is not UTF-8"),
    ],
)
def test_standard_input_that_cannot_be_scored(data, said):
    with pytest.raises(UsageError, match=said):
        TextFiles("-", stdin=io.BytesIO(data)).read()


def test_closed_standard_input():
    with pytest.raises(UsageError, match="--text=- reads standard input, which is closed"):
        TextFiles("-", stdin=None)


def test_documents_of_a_store_are_those_that_were_stored(tmp_path):
    tokenizer, documents = language_models.tokenizer(), language_models.documents()
    ids = [
        [tokenizer.encode(sentence, add_special_tokens=False) for sentence in document.sentences]
        for document in documents
    ]
    store = write_store(tmp_path / "store", ids, len(tokenizer), shard_tokens=60)
    assert len(store.shards) > 1
    read = documents_of_store(store, tokenizer, "held-out")
    assert sentences_of(read) == [
        tuple(sentence.strip() for sentence in document.sentences) for document in documents
    ]
    assert [each.name for each in read] == [f"held-out#{n}" for n in (1, 2, 3, 4)]
    assert documents_of_store(store, tokenizer, "held-out", 2) == read[:2]
