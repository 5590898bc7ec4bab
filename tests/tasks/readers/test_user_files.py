"""Tests of reading the user's own files: formats, quotes, encodings, and malformed input."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.tasks.readers.user_files import check_header, format_of, open_table

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
TRICKY = st.one_of(CELLS, st.text('",;\t\n\r|a', max_size=6))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | CELLS,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
SECOND = {"text": 'c "d"\r\ne', "label": "y"}
in_any_folder = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(path, format=None):
    return [(row.line, dict(row.values)) for row in open_table(path, format).rows()]


def values(path, format=None):
    return [row for _, row in read(path, format)]


def error(path, format=None, header=False):
    def read_all():
        table = open_table(path, format)
        if header:
            check_header(table)
        list(table.rows())

    with pytest.raises(UsageError) as caught:
        read_all()
    return str(caught.value)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'text,label\r\n"a, b",x\r\n\r\n"c ""d""\r\ne",y\r\n'),
        ("a.tsv", 'text\tlabel\na, b\tx\n\n"c ""d""\r\ne"\ty'),
        (
            "a.jsonl",
            '{"text": "a, b", "label": "x"}\n \n{"text": "c \\"d\\"\\r\\ne", "label": "y"}',
        ),
    ],
)
def test_formats_compressed_and_with_a_byte_order_mark(tmp_path, suffix, mark, name, text):
    path = write(tmp_path, name + suffix, COMPRESS[suffix](mark + text.encode()))
    first = 1 if "json" in name else 2
    assert read(path) == [
        (first, {"text": "a, b", "label": "x"}),
        (first + 2, SECOND),
    ]


@in_any_folder
@given(
    rows=st.lists(st.tuples(TRICKY, TRICKY, TRICKY), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_round_trip(tmp_path, rows, delimiter, quoting):
    text = io.StringIO()
    # The terminator makes `csv` quote all cells with a carriage return or a line feed.
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    writer.writerows([("alpha", "beta", "gamma"), *rows])
    path = write(tmp_path, "a.csv", text.getvalue())
    table = open_table(path)
    assert table.delimiter == delimiter
    assert [tuple(row.values.values()) for row in table.rows()] == rows


@in_any_folder
@given(rows=st.lists(st.tuples(TRICKY, TRICKY), min_size=1, max_size=6))
def test_tsv_round_trip_as_pandas_writes_it(tmp_path, rows):
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\r\n").writerows([("alpha", "beta"), *rows])
    got = values(write(tmp_path, "a.tsv", text.getvalue()))
    assert [tuple(row.values()) for row in got] == rows


@in_any_folder
@given(
    rows=st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=("Cs",), exclude_characters="."), max_size=4),
            JSON_VALUES,
            max_size=4,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_json_lines_round_trip(tmp_path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    table = open_table(write(tmp_path, "a.jsonl", text))
    got = list(table.rows())
    assert [dict(row.values) for row in got] == rows
    assert [row.source for row in got] == rows


def test_nested_fields_have_dotted_names(tmp_path):
    line = '{"a": {"b": 1, "c": {"d": [2]}}, "e": 3, "a.b": 4}\n'
    path = write(tmp_path, "a.jsonl", line)
    assert values(path) == [{"a.b": 4, "a.c.d": [2], "e": 3}]
    assert next(open_table(path).rows()).source == json.loads(line)


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
def test_fields_of_many_characters(tmp_path, format):
    long = "a\n" * 100_000 + "é" * 400_000
    if format == "jsonl":
        text = json.dumps({"text": long, "label": "x"})
    else:
        text = f'text,label\n"{long}",x\n'.replace(",", "\t" if format == "tsv" else ",")
    assert values(write(tmp_path, f"a.{format}", text)) == [{"text": long, "label": "x"}]


@pytest.mark.parametrize("delimiter", ",;\t|")
def test_delimiter_of_csv(tmp_path, delimiter):
    others = {",": ";", ";": ",", "\t": ",", "|": ","}[delimiter]
    rows = [("text", "label"), (f'"a{delimiter}b"', "1"), (f"c {others} d", "2")]
    text = "\n".join(delimiter.join(cells) for cells in rows)
    path = write(tmp_path, "a.csv", text)
    assert open_table(path).delimiter == delimiter
    assert values(path) == [
        {"text": f"a{delimiter}b", "label": "1"},
        {"text": f"c {others} d", "label": "2"},
    ]


def test_a_single_column(tmp_path):
    assert values(write(tmp_path, "a.csv", "text\na b\nc\n")) == [{"text": "a b"}, {"text": "c"}]


def test_quotes_in_tsv_are_text_unless_all_are_correct(tmp_path):
    glue = 'text\tlabel\n"An opening quote\tx\nHe said "no"\ty\n'
    assert values(write(tmp_path, "a.tsv", glue)) == [
        {"text": '"An opening quote', "label": "x"},
        {"text": 'He said "no"', "label": "y"},
    ]
    quoted = '"text"\t"label"\n"An ""inner"" quote"\t"x"\nHe said "no"\ty\n'
    assert values(write(tmp_path, "b.tsv", quoted)) == [
        {"text": 'An "inner" quote', "label": "x"},
        {"text": 'He said "no"', "label": "y"},
    ]


def test_columns_without_a_name(tmp_path):
    path = write(tmp_path, "a.csv", ",text,,\n0,a,,\n")
    assert values(path) == [{"": "0", "text": "a", "column_3": "", "column_4": ""}]
    check_header(open_table(path))


def test_text_files_have_one_column(tmp_path):
    path = write(tmp_path, "a.txt", 'one, "two"\r\n\nthree')
    assert values(path) == [{"text": 'one, "two"'}, {"text": ""}, {"text": "three"}]


def test_formats_of_names():
    names = ["a.CSV", "a.tsv.gz", "a.tab", "b.ndjson.zst", "a.txt", "a.parquet", "a", "a.gz"]
    assert [format_of(name) for name in names] == [
        *("csv", "tsv", "tsv", "jsonl", "txt", None, None, None)
    ]


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("a.csv", "", ["a.csv is empty"]),
        ("a.csv", "\n\n", ["a.csv is empty"]),
        ("a.jsonl", " \n", ["a.jsonl is empty"]),
        ("a.csv.gz", "", ["empty, which no compressed file is"]),
        ("a.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)[:-9], ["truncated or damaged"]),
        ("a.csv", "text,label\na,b,c\n", [":2:", "3 fields", "has 2 (text, label)", "quotes"]),
        ("a.csv", "text,label\na,b\n\nc\n", [":4:", "1 field,", "has 2"]),
        ("a.tsv", 'text\tlabel\n"a\tb\tc\n', [":2:", "3 fields", "Replace the tabs"]),
        ("a.csv", 'text,label\na,b\n"c"d,e\n', [":3:", "closing quote", "doubled"]),
        ("a.csv", 'text,label\n"c\nd" e,f\n', [":2-3:", "closing quote"]),
        ("a.csv", 'text,label\n"c,d\ne,f\n', ["begins in line 2", "does not end"]),
        ("a.csv", "text,label\ra,b\rc,d\r", [":1:", "carriage return", "tr '\\r' '\\n'"]),
        ("a.csv", "text,label,text\na,b,c\n", [":1:", "same name: text"]),
        ("a.tsv", "text,label\na,b\n", ["no tab in the header", "finetune.py:csv"]),
        ("a.csv", b"text,label\na\0,b\n", [":2:", "NUL byte"]),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), ["is UTF-16", "iconv -f UTF-16"]),
        ("a.csv", "text,label\na,b\n".encode("utf-32"), ["is UTF-32", "iconv -f UTF-32"]),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), [":1:", "NUL byte", "UTF-16LE"]),
        (
            "a.csv",
            "text,label\n\nun café noir,b\n".encode("latin-1"),
            [":3:", "0xe9", "'café noir,b' in WINDOWS-1252", "iconv -f WINDOWS-1252 -t UTF-8"],
        ),
        ("a.csv", "text,label\nпривет,b\n".encode("cp1251"), ["'привет,b' in WINDOWS-1251"]),
        ("a.csv", "text,label\n你好世界,b\n".encode("gb18030"), ["'你好世界,b' in GB18030"]),
        ("a.jsonl", '{"a": 1}\n{"a": 1\n', [":2:", "not JSON", "at character 8"]),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', [":3:", "the line is a list", "JSON object"]),
        ("a.jsonl", '{"a": 1}\n"b"\n', [":2:", "the line is a string"]),
        ("a.jsonl", "null\n", [":1:", "the line is null"]),
        ("a.jsonl", "[" * 100_000, ["one JSON list", "jq -c '.[]'"]),
        ("a.jsonl", '{"a":' + "[" * 100_000, [":1:", "not JSON", "nested too deep"]),
        ("a.json", '[{"a": 1}]', ["one JSON list", "jq -c '.[]'"]),
        ("a.jsonl", '{\n"a": 1\n}\n', [":1:", "not JSON", "jq -c ."]),
        ("a.parquet", "PAR1", ["does not say its format", ".csv", ".jsonl"]),
    ],
)
def test_malformed_files(tmp_path, name, data, parts):
    path = write(tmp_path, name, data)
    message = error(path)
    assert str(path) in message
    for part in parts:
        assert part in message
    assert len(message) < 500


def test_files_that_cannot_be_opened(tmp_path):
    write(tmp_path, "reviews.csv", "text,label\n")
    with pytest.raises(NotFoundError) as caught:
        open_table(tmp_path / "review.csv", "csv", "--config.data.validation")
    assert "--config.data.validation: no file" in str(caught.value)
    assert f"Did you mean {tmp_path / 'reviews.csv'}?" in str(caught.value)
    assert "is a folder" in error(tmp_path, "csv")
    assert "copy it first" in error("gs://bucket/a.csv", "csv")


def test_format_and_ending_that_contradict_each_other(tmp_path):
    message = error(write(tmp_path, "a.jsonl", '{"a": 1}'), "csv")
    assert "but the task is csv" in message
    assert "finetune.py:jsonl" in message
    assert "finetune.py:csv" in error(write(tmp_path, "a.csv", "a,b\n"), "jsonl")
    assert values(write(tmp_path, "a.txt", "a,b\n1,2\n"), "csv") == [{"a": "1", "b": "2"}]
    assert values(write(tmp_path, "a.tsv", "a\tb\n1\t2\n"), "csv") == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("great film,pos\nbad film,neg\nfine,pos\nwell,pos\n", "'pos' is also a value"),
        ("a b,3\nc d,4\n", "'3' is a number"),
        (f"{'long ' * 30},x\na,y\n", "too long for a name"),
        ("text,label\na,x\ntext,label\nb,y\n", "is repeated among the rows"),
    ],
)
def test_missing_and_repeated_headers(tmp_path, text, reason):
    path = write(tmp_path, "a.csv", text)
    assert reason in error(path, header=True)
    assert str(path) in error(path, header=True)


@pytest.mark.parametrize("header", ["text,label", "0,1", ",text", "label,text"])
def test_headers(tmp_path, header):
    path = write(tmp_path, "a.csv", f"{header}\nlabel,x\nb,y\n")
    check_header(open_table(path))
