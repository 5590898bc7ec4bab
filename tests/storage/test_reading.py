"""Reading files that others wrote: only regular files, of a bounded size, in UTF-8."""

import os
import pathlib
import socket

import pytest
from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.storage.reading import parse_json, read_bytes, read_text


@pytest.mark.parametrize("as_path", [str, pathlib.Path, epath.Path])
def test_a_regular_file_and_a_link_to_one_are_read(tmp_path, as_path):
    (tmp_path / "file").write_bytes(b"a\r\n\xc3\xa9")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_bytes(as_path(tmp_path / name)) == b"a\r\n\xc3\xa9"
        assert read_text(as_path(tmp_path / name)) == "a\r\né"


@pytest.mark.parametrize(
    ("create", "kind"),
    [
        (os.mkdir, "is a folder"),
        (os.mkfifo, "is a named pipe"),
        (lambda path: os.symlink("/dev/zero", path), "is a device"),
        (lambda path: os.symlink("/dev/null", path), "is a device"),
        (lambda path: os.symlink(path, path), "Too many levels of symbolic links"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "is a socket"),
    ],
)
def test_anything_else_is_refused_without_opening_it(tmp_path, create, kind):
    create(tmp_path / "x")
    with pytest.raises(UsageError, match=rf"{tmp_path / 'x'}.*{kind}"):
        read_bytes(tmp_path / "x")


def test_a_missing_a_huge_and_a_binary_file_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "missing")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="more than any file of its kind"):
        read_bytes(tmp_path / "huge")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_text(tmp_path / "binary")


def test_deep_json_is_a_value_error():
    assert parse_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 10**5)
