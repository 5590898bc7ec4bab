"""Tests of the sample for tokenizer training: even, limited, and the same however it is read."""

import gzip

import numpy as np
import pytest

from roberta_jax.data.text import corpus as corpora
from roberta_jax.data.text import sample
from roberta_jax.data.text.corpus import FilesCorpus
from roberta_jax.errors import UsageError


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(corpora, "PIECE_BYTES", 100)
    monkeypatch.setattr(sample, "_TASK_BYTES", 4000)


def training_sentences(corpus, sample_bytes=10**9, **options):
    options = {
        "validation_fraction": 0,
        "sentences": "split",
        "language": "en",
        "workers": 1,
        **options,
    }
    return list(sample.training_sentences(corpus, sample_bytes=sample_bytes, **options))


def write_numbers(folder, *, compressed):
    """1,000 documents of 100 digits in three files, the second with a byte-order mark."""
    numbers = [f"{i:0100d}" for i in range(1000)]
    parts = numbers[:500], numbers[500:700], numbers[700:]
    paths = []
    for name, part in zip("abc", parts, strict=True):
        data = (b"\xef\xbb\xbf" if name == "b" else b"") + "\n\n".join(part).encode()
        path = folder / (f"{name}.txt.gz" if compressed else f"{name}.txt")
        path.write_bytes(gzip.compress(data) if compressed else data)
        paths.append(path)
    return FilesCorpus(paths, "text")


@pytest.mark.parametrize("kept_bytes", [0, 1 << 27])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_sample_is_even_and_limited(tmp_path, monkeypatch, compressed, kept_bytes):
    monkeypatch.setattr(sample, "_KEPT_BYTES", kept_bytes)
    corpus = write_numbers(tmp_path, compressed=compressed)
    assert list(map(int, training_sentences(corpus))) == list(range(1000))
    numbers = list(map(int, training_sentences(corpus, 10_200)))
    assert 98 <= len(numbers) <= 100
    assert set(np.diff(numbers)) <= {10, 11}
    assert numbers == list(map(int, training_sentences(corpus, 10_200)))


def test_any_number_of_processes_gives_the_same_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_KEPT_BYTES", 0)
    expected = training_sentences(write_numbers(tmp_path, compressed=False), 60_000)
    corpus = write_numbers(tmp_path, compressed=True)
    assert training_sentences(corpus, 60_000, workers=2) == expected
    heldout = training_sentences(corpus, workers=2, validation_fraction=0.3)
    assert 600 < len(heldout) < 800
    assert heldout == training_sentences(corpus, workers=1, validation_fraction=0.3)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_size_that_is_known_is_that_of_the_pieces(tmp_path, compressed):
    corpus = write_numbers(tmp_path, compressed=compressed)
    size = sum(len(piece.data) for piece in corpus.pieces())
    assert corpus.num_bytes() == (None if compressed else size)
    parts = [piece for part in corpus.parts() for piece in part.pieces()]
    assert parts == list(corpus.pieces())


@pytest.mark.parametrize(("compressed", "kept_bytes", "reads"), [(False, 0, 1), (True, 1 << 27, 1)])
def test_text_is_not_read_twice_where_that_can_be_avoided(
    tmp_path, monkeypatch, compressed, kept_bytes, reads
):
    monkeypatch.setattr(sample, "_KEPT_BYTES", kept_bytes)
    corpus = write_numbers(tmp_path, compressed=compressed)
    read_blocks, opened = corpora.files.read_blocks, []

    def counting(path, *rest):
        opened.append(path)
        return read_blocks(path, *rest)

    monkeypatch.setattr(corpora.files, "read_blocks", counting)
    training_sentences(corpus, 10_200)
    assert len(opened) == 3 * reads


def test_a_file_that_cannot_be_read(tmp_path):
    corpus = write_numbers(tmp_path, compressed=False)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UsageError, match=r"b\.txt cannot be read"):
        training_sentences(corpus)


def test_no_text(tmp_path):
    (tmp_path / "a.txt").touch()
    assert training_sentences(FilesCorpus([tmp_path / "a.txt"], "text")) == []
