"""Wrong calls of `evaluate`: wrong models, texts, options and outputs."""

from collections.abc import Iterator

from experiments.robustness.forked_runs import CLOSED_PIPE
from experiments.robustness.wrong_call import Call
from experiments.robustness.wrong_calls_of_tools import BAD_FOLDERS, BAD_MODELS, BAD_TOKENIZERS

_LONG = "x" * 5000
_TEXTS = (
    "", " ", ",", "-", "no-such-file", "{files}", "{files}/full-folder", "{files}/loop",
    "{files}/pipe", "/dev/null", "/dev/full", "s3://bucket/a.txt", _LONG, "\udcff", "**",
    *(
        f"{{files}}/{name}"
        for name in (
            "empty.txt", "blank.txt", "latin1.txt", "utf16.txt", "binary.txt", "nul.txt",
            "broken.jsonl", "other-field.jsonl", "numbers.jsonl", "lists.jsonl", "cut.jsonl.gz",
            "no-gzip.jsonl.gz", "no-zst.txt.zst", "no-xz.txt.xz", "no-bz2.txt.bz2",
            "corpus.parquet",
        )
    ),
)  # fmt: skip
_INTEGERS = ("0", "-1", "1.5", "many", "", "nan", "true", str(10**20))


def evaluation_calls() -> Iterator[Call]:
    """Wrong calls of `evaluate`."""
    model, text = "{files}/run", "--text={files}/one-document.txt"
    for source in (*BAD_MODELS, *BAD_TOKENIZERS):
        yield Call("evaluate", (source, text), "model")
    for second in ("no-such-model", "", "{files}/models/weights-nan"):
        yield Call("evaluate", (model, second, text), "model")
    yield Call("evaluate", ("{files}/run/hf",), "corpus")
    for files in _TEXTS:
        yield Call("evaluate", (model, f"--text={files}"), "corpus")
    for stdin in (
        b"", b"\n\n", b"\xff\xfea\0", b"\0\0\0\0", "Un \xe9t\xe9\n".encode("latin-1"), b"x" * 10**5,
        "\u3042".encode("shift-jis") * 50,
    ):  # fmt: skip
        yield Call("evaluate", (model, "--text=-"), "stdin", stdin=stdin)
    for option in ("masks", "max_documents", "max_length", "batch_tokens", "seed", "max_tokens"):
        pseudo = ("--scores=pseudo",) if option == "max_tokens" else ()
        for value in _INTEGERS:
            yield Call("evaluate", (model, text, f"--{option}={value}", *pseudo), "flags")
    for flags in (
        ("--scores=",), ("--scores=,",), ("--scores=perplexity",), ("--scores=masked,none",),
        ("--max_tokens=9",), ("--sentences=words",), ("--sentences=",), ("--language=English",),
        ("--language=",), ("--text_field=",), ("--dtype=int8",), ("--dtype=",), ("--unknown",),
        ("--mask=3",), ("--text",), ("--output",), (model, model), ("--help=3",),
    ):  # fmt: skip
        yield Call("evaluate", (model, text, *flags), "flags")
    for arguments in ((), (text,), ("--scores=masked",)):
        yield Call("evaluate", arguments, "flags")
    # No devices: a command that wrongly took one would replace it, if it runs as root.
    paths = [path for path in BAD_FOLDERS if not path.startswith("/dev/")]
    for path in (*paths, "{out}/scores.json", "{files}/full-folder/x/y.json"):
        yield Call("evaluate", (model, text, f"--output={path}"), "unwritable output")
    for stdout in ("/dev/full", CLOSED_PIPE):
        yield Call("evaluate", (model, text), "output", stdout=stdout)
