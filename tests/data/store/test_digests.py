"""Tests of the hashes of files: which files are read, and that any damage is noticed."""

import contextlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.store import digests
from roberta_jax.data.store.digests import (
    CHECKED,
    DamagedError,
    check_files,
    read_json,
    remember_files,
    with_digest,
    without_digest,
)
from roberta_jax.storage.atomic import write_json
from roberta_jax.storage.reading import describe_file

NAMES = ("a", "b", "c")


@pytest.fixture
def expected(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode() * 1000)
    return {name: describe_file(tmp_path / name) for name in NAMES}


def test_files_are_read_once(tmp_path, expected):
    assert check_files(tmp_path, expected) == list(NAMES)
    assert check_files(tmp_path, expected) == []
    assert check_files(tmp_path, expected, read_all=True) == list(NAMES)
    assert check_files(tmp_path, expected, remember=False) == list(NAMES)
    assert check_files(tmp_path, expected) == []


def test_a_file_that_was_written_again_is_read_again(tmp_path, expected):
    check_files(tmp_path, expected)
    before = (tmp_path / "b").stat()
    (tmp_path / "b").write_bytes(b"b" * 1000)
    os.utime(tmp_path / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check_files(tmp_path, expected) == ["b"]
    os.replace(tmp_path / "c", tmp_path / "d")
    (tmp_path / "c").write_bytes(b"c" * 1000)
    assert check_files(tmp_path, expected) == ["c"]
    assert check_files(tmp_path, expected) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', "\\xff"])
def test_a_damaged_record_remembers_nothing(tmp_path, expected, text):
    check_files(tmp_path, expected)
    (tmp_path / CHECKED).write_text(text)
    assert check_files(tmp_path, expected) == list(NAMES)
    assert check_files(tmp_path, expected) == []


def test_a_folder_that_cannot_be_written(tmp_path, expected):
    (tmp_path / CHECKED).mkdir()
    for _ in range(2):
        assert check_files(tmp_path, expected) == list(NAMES)


def test_files_that_were_hashed_while_they_were_written_are_not_read(tmp_path, expected):
    remember_files(tmp_path, expected)
    assert check_files(tmp_path, expected) == []
    (tmp_path / "b").write_bytes(b"c" * 1000)
    with pytest.raises(DamagedError, match="the contents of b have changed"):
        check_files(tmp_path, expected)
    (tmp_path / "b").unlink()
    with pytest.raises(DamagedError, match="b is missing"):
        remember_files(tmp_path, expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "b is missing"),
        (lambda path: path.write_bytes(b""), "b has 0 bytes, not 1000"),
        (lambda path: path.write_bytes(b"b" * 999 + b"c"), "the contents of b have changed"),
        (lambda path: path.unlink() or path.mkdir(), "b is not a file"),
        (lambda path: path.unlink() or path.symlink_to(path), "b cannot be read"),
    ],
)
def test_damage(tmp_path, expected, damage, message):
    check_files(tmp_path, expected)
    damage(tmp_path / "b")
    with pytest.raises(DamagedError, match=message):
        check_files(tmp_path, expected)


def test_a_file_that_may_not_be_read(tmp_path, expected, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(digests, "_hash_of", refuse)
    with pytest.raises(DamagedError, match=r"a cannot be read \(Permission denied\)"):
        check_files(tmp_path, expected)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values), st.data())
@settings(max_examples=200, deadline=None)
def test_a_json_object_with_a_flipped_bit_is_not_taken_for_another(tmp_path_factory, value, data):
    value.pop("blake2b", None)
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, with_digest(value))
    assert read_json(path) == (value, True)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with contextlib.suppress(DamagedError):
        read, has_digest = read_json(path)
        assert read == value or not has_digest  # other white space, or the name of the hash


def test_json_that_is_no_object():
    with pytest.raises(DamagedError, match="does not hold a JSON object"):
        without_digest([1])
    assert without_digest({"a": 1}) == ({"a": 1}, False)
