"""Opening the files of tasks."""

import bz2
import gzip
import lzma

import pytest
import zstandard

from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.tasks.readers.opening import read_json, read_json_lines, read_lines
from tests.support.messages import one_screen

TEXT = 'index\tsentence\n0\tA "quote, and\u2028a separator.\n1\té 😀\n'
COMPRESSED = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_lines_of_compressed_files(tmp_path, suffix):
    path = tmp_path / f"train.tsv{suffix}"
    path.write_bytes(COMPRESSED[suffix](TEXT.encode()))
    assert list(read_lines(path)) == list(enumerate(TEXT.split("\n")[:3], 1))


def test_mark_line_ends_and_a_last_line_without_one(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_bytes(b"\xef\xbb\xbfQuality\ta\r\n1\tb\rc\r\n\r\n0\td")
    assert list(read_lines(path)) == [(1, "Quality\ta"), (2, "1\tb\rc"), (3, ""), (4, "0\td")]
    assert [line for _, line in read_lines(path, keep_ends=True)][1] == "1\tb\rc\r\n"


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_damaged_files_are_errors(tmp_path, suffix):
    path = tmp_path / f"train.tsv{suffix}"
    for data in (COMPRESSED[suffix](TEXT.encode() * 100)[:-9], b"", b"no archive"):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="cannot be read to its end") as error:
            list(read_lines(path))
        assert str(path) in one_screen(error.value)


def test_what_is_no_utf8_names_the_line(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(b"a\nb\nna\xefve\n")
    with pytest.raises(UsageError, match=r"train.tsv:3: this line is not UTF-8.*0xef"):
        list(read_lines(path))
    path.write_bytes("a\tb\n".encode("utf-16"))
    with pytest.raises(UsageError, match="UTF-16"):
        list(read_lines(path))


def test_what_is_no_file(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        list(read_lines(tmp_path / "none.tsv"))
    with pytest.raises(UsageError, match="is a folder"):
        list(read_lines(tmp_path))


def test_json_errors_name_the_place(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('{"data": [}')
    with pytest.raises(UsageError, match=r"train.json is not JSON: .*line 1 column 11"):
        read_json(path)
    path = tmp_path / "train.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(UsageError, match=r"train.jsonl:3: this line is not JSON"):
        list(read_json_lines(path))
    path.write_text("[1]\n")
    with pytest.raises(UsageError, match=r"train.jsonl:1: .*this one is a list"):
        list(read_json_lines(path))
    path.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="not JSON"):
        list(read_json_lines(path))


def test_halves_of_surrogate_pairs_become_replacement_characters(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(r'{"text": "a\ud83d\ude00b\ud83dc", "list": ["\ude00"]}')
    value = read_json(path)
    assert value == {"text": "a😀b\ufffdc", "list": ["\ufffd"]}
    assert len(value["text"]) == 5  # offsets are those of the file
