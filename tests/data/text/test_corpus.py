"""Tests of the documents of each text source, and of the errors for malformed input."""

import bz2
import collections
import dataclasses
import gzip
import json
import lzma
import os
import pathlib
import pickle
import random
import sys

import numpy as np
import pytest
import zstandard

from configs.pretrain import get_config
from roberta_jax.data.text import builtin, corpus, files
from roberta_jax.data.text.corpus import is_heldout, open_corpus
from roberta_jax.data.text.source import TextSource
from roberta_jax.errors import UsageError

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
TEXTS = ["One. Two.", "trois è quatre\n\nfive", '"six"', "七。", " "]
JSONL = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()


def open_files(files, text_field="text"):
    return open_corpus(TextSource(files=str(files), text_field=text_field))


def read(opened):
    """All documents and the counts."""
    counts = collections.Counter()
    reader = pickle.loads(pickle.dumps(opened))  # as in a worker
    documents = [text for piece in opened.pieces() for text in reader.documents(piece, counts)]
    return documents, counts


@pytest.mark.parametrize("suffix", COMPRESS)
def test_json_lines(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](JSONL))
    opened = open_files(path)
    assert read(opened) == (TEXTS, {})
    assert sum(piece.read for piece in opened.pieces()) == opened.size == path.stat().st_size


@pytest.mark.parametrize("suffix", COMPRESS)
def test_plain_text(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]("one\ntwo\n\n\n \nthree é\n\nfour".encode()))
    assert read(open_files(path)) == (["one\ntwo", "three é", "four"], {})


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_files_of_several_frames(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](JSONL) + COMPRESS[suffix](JSONL))
    assert read(open_files(path))[0] == TEXTS * 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "A.NDJSON", "a.json.gz", "a.ndjson.zst"])
def test_file_names_of_json_lines(tmp_path, name):
    suffix = os.path.splitext(name)[1]
    (tmp_path / name).write_bytes(COMPRESS.get(suffix, bytes)(JSONL))
    assert read(open_files(tmp_path / name))[0] == TEXTS


def test_crlf_and_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n \t\r\nfour\r\n")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n"))
    documents, counts = read(open_files(tmp_path / "*"))
    assert documents == ["one\r\ntwo", "three", "four\r\n", *TEXTS]
    assert not counts


def test_byte_order_marks_are_no_text(tmp_path):
    """At the start of a file, a document or a line, where joining files has put them."""
    (tmp_path / "a.txt").write_text("\ufeffone\n\n\ufefftwo\n\ufeff\ufeffthree\n\nfo\ufeffur")
    lines = [json.dumps({"text": "\ufefffive\n\ufeffsix"}, ensure_ascii=ascii) for ascii in (0, 1)]
    (tmp_path / "b.jsonl").write_text("\ufeff" + "\n\ufeff".join(lines))
    documents, counts = read(open_files(tmp_path / "*"))
    assert documents == ["one", "two\nthree", "fo\ufeffur", "five\nsix", "five\nsix"]
    assert not counts


@pytest.mark.parametrize("piece_bytes", [1, 10, 100, 1000])
def test_pieces_end_with_documents(tmp_path, monkeypatch, piece_bytes):
    (tmp_path / "a.txt").write_text("\n\n".join(f"line {i}\nof {i}" for i in range(50)))
    (tmp_path / "b.jsonl").write_bytes(JSONL * 10)
    whole = read(open_files(tmp_path / "*"))
    monkeypatch.setattr(corpus, "PIECE_BYTES", piece_bytes)
    cut = open_files(tmp_path / "*")
    assert len(list(cut.pieces())) > 1
    assert read(cut) == whole
    data = b"".join(piece.data for piece in cut.pieces())
    assert data == (tmp_path / "a.txt").read_bytes() + JSONL * 10


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n\nb\xffd\n\ngood\n\n\xe4\xb8 cut \xc3\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "\xfe"}\n{"text": "half \\ud83d"}\n')
    documents, counts = read(open_files(tmp_path / "*"))
    assert documents == ["good", "b\ufffdd", "good", "\ufffd cut \ufffd\n", "\ufffd", "half \ufffd"]
    assert counts == {"invalid_utf8": 4}


def test_null_is_an_empty_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n\n{"text": ""}\n')
    assert read(open_files(tmp_path / "*"))[0] == ["", ""]


def test_globs(tmp_path):
    for name in ("b/c/1.txt", "b/2.txt", "3.txt", "b/4.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) if "json" in name else name)
    assert read(open_files(tmp_path / "**/*.txt"))[0] == ["3.txt", "b/2.txt", "b/c/1.txt"]
    both = f"{tmp_path}/b/*.jsonl, {tmp_path}/**/?.txt,{tmp_path}/3*"
    assert read(open_files(both))[0] == ["3.txt", "b/2.txt", "b/4.jsonl", "b/c/1.txt"]
    # Matching folders are ignored.
    assert len(read(open_files(tmp_path / "**"))[0]) == 4


def test_order_and_identity_are_stable(tmp_path):
    for name in "bca":
        (tmp_path / f"{name}.txt").write_text(name)
    opened = open_files(tmp_path / "*")
    assert read(opened)[0] == ["a", "b", "c"]
    identity = opened.identity()
    assert json.loads(json.dumps(identity)) == open_files(tmp_path / "*.txt").identity()
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    assert open_files(tmp_path / "*").identity() != identity


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none*.txt", "no file matches .*none.*Check the path"),
        ("folder", r"only a folder does: name the files in it, such as .*folder/\*\*"),
        ("a.txt,none", "no file matches .*none"),
        (" , ", "is empty"),
    ],
)
def test_no_file_matches(tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UsageError, match=message):
        open_files(pattern)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to(path), "a link that leads to none"),
        (
            lambda path: path.symlink_to("nowhere"),
            "a link to a file that does not exist: 'nowhere'",
        ),
        (os.mkfifo, "a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, make, message):
    (tmp_path / "a.txt").write_text("a")
    make(tmp_path / "b.txt")
    for pattern in ("b.txt", "*.txt"):
        with pytest.raises(UsageError, match=rf"b\.txt' is no file of text, but {message}"):
            open_files(tmp_path / pattern)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_documents_and_lines_without_an_end(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 50)
    text, json_lines = tmp_path / f"a.txt{suffix}", tmp_path / f"a.jsonl{suffix}"
    text.write_bytes(COMPRESS[suffix](b"a" * 20 + b"\n\n" + b"b\n" * 30))
    json_lines.write_bytes(COMPRESS[suffix](b'{"text": "a"}\n{"text": "' + b"b" * 100))
    monkeypatch.setattr(corpus, "PIECE_BYTES", 10)
    with pytest.raises(UsageError, match=r"a\.txt\S*: the document from line 3 on is longer than"):
        read(open_files(text))
    with pytest.raises(UsageError, match=r"a\.jsonl\S*:2: this line is longer than"):
        read(open_files(json_lines))


def test_check(tmp_path, caplog):
    """What is wrong with the start of a file is noticed without reading all of it."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(JSONL * 10_000 + b"not JSON")
    open_files(path).check()
    assert not caplog.records
    with pytest.raises(UsageError, match=r"a\.jsonl:1: no field 'body'"):
        open_files(path, text_field="body").check()
    (tmp_path / "a.txt.gz").write_bytes(b"not compressed")
    with pytest.raises(UsageError, match=r"a\.txt\.gz cannot be read"):
        open_files(tmp_path / "*.gz").check()
    (tmp_path / "empty.txt").write_bytes(b"")
    open_files(tmp_path / "*.txt").check()
    open_corpus(TextSource(source="builtin")).check()


def test_check_reads_files_at_equal_distances(tmp_path, monkeypatch):
    for number in range(250):
        (tmp_path / f"{number:03}.txt").write_text("text")
    paths = []
    read_blocks = files.read_blocks

    def recorded(path, *rest):
        paths.append(path.stem)
        return read_blocks(path, *rest)

    monkeypatch.setattr(files, "read_blocks", recorded)
    open_files(tmp_path / "*").check()
    assert paths == [f"{number:03}" for number in range(0, 250, 3)]


def test_check_says_how_to_convert_latin_1(tmp_path, caplog):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_bytes("un\ndéjà vu".encode("latin-1"))
    open_files(tmp_path / "*").check()
    [record] = caplog.records
    assert "a.txt is not UTF-8: line 2 has the byte 0xe9" in record.getMessage()
    assert "iconv -f LATIN1 -t UTF-8" in record.getMessage()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("some text\n".encode("utf-16-le"), "holds zero bytes"),
        (bytes(1000), "holds zero bytes"),
        ("текст и текст\n".encode("koi8-r"), "is not UTF-8: .*% of its start cannot be read"),
        (random.Random(0).randbytes(1000).replace(b"\0", b""), "is not UTF-8: .*% of its start"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_check_refuses_what_is_no_text(tmp_path, data, message, suffix):
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](data))
    with pytest.raises(
        UsageError, match=rf"a\.txt{suffix} {message}.*iconv -f LATIN1.*leave it out"
    ):
        open_files(tmp_path / "*").check()


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    opened = open_files(tmp_path / "a.txt")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(UsageError, match=r"a\.txt cannot be read: Permission denied\.$"):
        opened.check()


def test_object_stores_are_refused():
    with pytest.raises(UsageError, match="local or mounted"):
        open_files("gs://bucket/*.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, "body": "x"}', r"no field 'text'; the fields are 'id', 'body'.*text_field"),
        ("{}", "the fields are none"),
        ('{"text": "x"', "this line is not JSON"),
        ("plain text", r"this line is not JSON.*rename a file of plain text to \.txt"),
        ('["x"]', "holds a list, not a JSON object"),
        ('{"text": 3}', "holds a int, not text"),
        ("[" * 100_000, "this line is not JSON"),
    ],
)
def test_errors_in_json_lines_name_file_and_line(tmp_path, monkeypatch, line, message):
    monkeypatch.setattr(corpus, "PIECE_BYTES", 20)  # so that lines are counted across pieces
    (tmp_path / "a.jsonl").write_bytes(JSONL + b"\n" + line.encode() + b"\n" + JSONL)
    with pytest.raises(UsageError, match=rf"a\.jsonl:{len(TEXTS) + 2}: .*{message}"):
        read(open_files(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["short", "garbage", "flipped", "empty"])
def test_damaged_compressed_files(tmp_path, suffix, damage):
    whole = COMPRESS[suffix](os.urandom(300_000).hex().encode())
    middle = len(whole) // 2
    data = {
        "short": whole[:middle],
        "garbage": b"this is no compressed file",
        "empty": b"",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
    }[damage]
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=rf"a\.txt\{suffix} cannot be read to its end"):
        read(open_files(path))


def test_utf16(tmp_path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-16")
    with pytest.raises(UsageError, match="is UTF-16: convert"):
        read(open_files(tmp_path / "a.txt"))


def test_empty_files(tmp_path):
    for suffix in COMPRESS:
        (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](b""))
    assert read(open_files(tmp_path / "*")) == ([], {})


def test_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text\n\n" * 1000)
    opened = open_files(path)
    path.write_text("text\n\n" * 2000)
    with pytest.raises(UsageError, match=r"a\.txt has changed while it was read"):
        read(opened)
    path.unlink()
    with pytest.raises(UsageError, match=r"a\.txt cannot be read"):
        read(opened)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "web"}, "must be one of builtin, files, tfds"),
        ({"source": "files"}, r"--config\.data\.files is not set"),
        (
            {"source": "tfds"},
            r"needs \S+tfds_name=... and \S+tfds_split=... and \S+field=...",
        ),
        ({"source": "tfds", "tfds_name": "x"}, r"needs --\S+tfds_split=... and --\S+field=..."),
        ({"source": "tfds", "tfds_name": "x", "tfds_split": "y"}, r"needs --\S+tfds_field=...$"),
    ],
)
def test_invalid_sources(fields, message):
    with pytest.raises(UsageError, match=message):
        open_corpus(TextSource(**fields))


def test_defaults_are_those_of_the_config():
    data = get_config("base").data
    for field in dataclasses.fields(TextSource):
        assert getattr(TextSource(), field.name) == data[field.name]


def test_heldout_depends_only_on_the_text():
    texts = [f"document {i}" for i in range(20_000)]
    chosen = {share: {t for t in texts if is_heldout(t, share)} for share in (0, 0.01, 0.1, 0.5)}
    assert not chosen[0]
    for share in (0.01, 0.1, 0.5):
        assert abs(len(chosen[share]) / len(texts) - share) < 4 * (share / len(texts)) ** 0.5
    assert chosen[0.01] < chosen[0.1] < chosen[0.5]
    # Never change these values: existing caches would become invalid.
    assert [i for i in range(100) if is_heldout(f"document {i}", 0.05)] == [10, 20, 39, 75]
    assert is_heldout(" document 0\n", 0.5) == is_heldout("document 0", 0.5)


def test_builtin_corpus():
    modules = set(sys.modules)
    opened = open_corpus(TextSource(source="builtin"))
    documents, counts = read(opened)
    assert len(documents) > 400
    assert not counts
    assert sum(map(len, documents)) > 1_000_000
    assert read(opened)[0] == documents
    names = [piece.source for piece in opened.pieces()]
    assert {"topic with", "turtle.py", "unittest/mock.py", "pdb.py"} <= set(names)
    assert not {"turtle", "this", "antigravity"} & (set(sys.modules) - modules)  # nothing imported
    assert "os.py" in names
    assert not any("test" in name.split("/") or "idlelib" in name for name in names)
    assert len(set(names)) == len(names)
    assert json.loads(json.dumps(opened.identity())) == opened.identity()


def test_builtin_reads_docstrings_in_source_order(tmp_path, monkeypatch):
    sources = {
        "b/__init__.py": '"""Package."""\nclass A:\n  """A.\n\n    More.\n  """\n  def f(self):\n'
        '    "f."\n    x = lambda: 1\n    def g(): "g."\nif x:\n  async def h(): "h."\n',
        "a.py": "x = 1\n",
        "c.py": "def broken(:\n",
        "test/d.py": '"""Left out."""',
        "b/tests/e.py": '"""Left out."""',
        "pydoc_data/topics.py": "# made\ntopics = {'with': 'W.', 'if': 'I.' '\\n'}\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(builtin, "_library", lambda: tmp_path)
    assert list(builtin.documents()) == [
        ("topic if", "I.\n"),
        ("topic with", "W."),
        ("b/__init__.py", "Package.\n\nA.\n\nMore.\n\nf.\n\ng.\n\nh."),
    ]
    digest = builtin.digest()
    (tmp_path / "a.py").write_text("x = 10\n")
    assert builtin.digest() != digest


def test_builtin_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "_library", lambda: tmp_path)
    with pytest.raises(UsageError, match=r"no library sources.*config\.data\.files"):
        list(builtin.documents())


def open_tfds(folder, **changes):
    fields = {"name": "letters", "split": "train", "field": "text", "data_dir": str(folder)}
    fields |= changes
    return open_corpus(
        TextSource(source="tfds", **{f"tfds_{key}": value for key, value in fields.items()})
    )


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A prepared dataset of 40 examples in several files."""
    tf = pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    texts = [f"Letter {i}. Yours." for i in range(40)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="letters",
        version="1.0.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": np.int32}),
        split_datasets={
            "train": tf.data.Dataset.from_tensor_slices({"text": texts, "id": range(40)})
        },
    )
    return folder


def test_tfds(tfds_folder):
    opened = open_tfds(tfds_folder)
    documents, counts = read(opened)
    assert sorted(documents) == sorted(f"Letter {i}. Yours." for i in range(40))
    assert not counts
    assert read(open_tfds(tfds_folder))[0] == documents
    assert read(open_tfds(tfds_folder, split="train[:25%]"))[0] == documents[:10]
    identity = opened.identity()
    assert identity["name"] == "letters/1.0.0"
    assert identity["examples"] == 40
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"field": "body"}, r"no field 'body'; the fields are .*'text'"),
        ({"name": "nothing_of_this_name"}, "TFDS cannot load 'nothing_of_this_name'"),
        ({"split": "dev"}, "TFDS cannot load 'letters', split 'dev'"),
        ({"field": "id"}, "holds a int32, not text"),
    ],
)
def test_invalid_tfds_sources(tfds_folder, changes, message):
    with pytest.raises(UsageError, match=message):
        read(open_tfds(tfds_folder, **changes))


def test_tfds_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UsageError, match=r"needs TensorFlow Datasets.*\.\[data\]"):
        open_tfds(tmp_path)
