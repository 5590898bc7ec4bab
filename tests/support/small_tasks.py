"""Small files of every kind of task, for runs of a few steps on the model of `finetuning`."""

import json
import pathlib
from collections.abc import Callable, Sequence

from tests.support import finetuning

PASSAGE = "the film is good and the food is bad"
_SIZE = 24


def single(folder: pathlib.Path):
    return _own_file(folder, ("text", "label"), lambda n, text, label: (text, label))


def pairs(folder: pathlib.Path):
    columns = ("text", "text2", "label")

    def row(number, text, label):
        return text, finetuning.sentence(number + 100)[0], f"label {number % 3}"

    return _own_file(folder, columns, row)


def regression(folder: pathlib.Path):
    return _own_file(folder, ("text", "score"), lambda n, text, label: (text, f"{n / 7:.3f}"))


def multi_label(folder: pathlib.Path):
    names = ["first", "second|third", "first|third", ""]
    return _own_file(folder, ("text", "labels"), lambda n, text, label: (text, names[n % 4]))


def choice(folder: pathlib.Path):
    columns = ("text", "choice0", "choice1", "choice2", "label")

    def row(number, text, label):
        return text, "good", "bad", "so", str(number % 3)

    return _own_file(folder, columns, row)


def tokens(folder: pathlib.Path):
    lines = []
    for number in range(_SIZE):
        words = finetuning.sentence(number)[0].split()
        tags = ["B-ADJ" if word in ("good", "bad") else "O" for word in words]
        lines.append(json.dumps({"tokens": words, "tags": tags}))
    return "jsonl", _own(folder / "own.jsonl", lines)


def squad(folder: pathlib.Path):
    """Questions about passages of several windows."""

    def document(split, number):
        questions = []
        for n in range(number):
            text = ("good", "bad")[n % 2]
            answer = {"text": text, "answer_start": PASSAGE.index(text)}
            questions.append({"id": f"{split} {n}", "question": f"{text} ?", "answers": [answer]})
        paragraphs = [{"context": f"{PASSAGE} {split}", "qas": questions}]
        return {"version": "1.1", "data": [{"title": "one", "paragraphs": paragraphs}]}

    for split, name, number in (("train", "train-v1.1.json", 8), ("dev", "dev-v1.1.json", 5)):
        (folder / name).write_text(json.dumps(document(split, number)))
    options = {"format.max_query_length": 6, "format.doc_stride": 4, "format.max_length": 16}
    return "squad1", {"data.folder": str(folder), **options}


def wsc(folder: pathlib.Path):
    text = "the dog chased the cat because it was hungry ."
    for split, number in (("train", 8), ("val", 4), ("test", 3)):
        lines = []
        for n in range(number):
            phrase, place = (("the dog", 0), ("the cat", 3))[n % 2]
            target = {"span1_index": place, "span1_text": phrase}
            target |= {"span2_index": 6, "span2_text": "it"}
            lines.append(
                json.dumps({"text": text, "target": target, "label": n % 2 == 0, "idx": n})
            )
        _write(folder / f"{split}.jsonl", lines)
    return "wsc", {"data.folder": str(folder)}


TASKS: dict[str, Callable] = {
    write.__name__: write
    for write in (single, pairs, regression, multi_label, choice, tokens, squad, wsc)
}
"""Name -> function from an empty folder, where it writes files, to (task, values of the config)."""


def _own_file(folder: pathlib.Path, columns: Sequence[str], row: Callable):
    """A csv file; `row` is called with the number of each row, a text and its label."""
    rows = [row(number, *finetuning.sentence(number)) for number in range(_SIZE)]
    return "csv", _own(folder / "own.csv", [",".join(each) for each in (columns, *rows)])


def _own(path: pathlib.Path, lines: Sequence[str]) -> dict[str, str]:
    _write(path, lines)
    return {"data.train": str(path), "data.validation": "0.25"}


def _write(path: pathlib.Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
