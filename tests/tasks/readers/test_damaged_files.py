"""Files with random damage are read, or refused with a message; nothing else happens."""

import json
import random

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.loading import load_split
from roberta_jax.tasks.table import TASKS
from tests.support.messages import one_screen

PASSAGE = {"article": "A.\nB.", "example_id": "high1.txt", "answer": "A", "question": "Q _ ?"}
CHOICES = [{"label": "A", "text": "a"}, {"label": "B", "text": "b"}]
QUESTION = {"id": "q", "question": "Q?", "answers": [{"text": "A", "answer_start": 0}]}
TARGET = {"span1_index": 0, "span1_text": "Mark", "span2_index": 2, "span2_text": "he"}
FILES = {
    "cola": ("train.tsv", 'gj04\t1\t\tA "b.\ngj04\t0\t*\tC d.\n'),
    "rte": ("train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"),
    "stsb": ("train.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t1.5\n1\tc\td\t2\n"),
    "qqp": ("train.jsonl", {"question1": "A?", "question2": "B?", "label": 1}),
    "squad1": ("dev.json", {"data": [{"paragraphs": [{"context": "A B", "qas": [QUESTION]}]}]}),
    "squad2": ("dev.json", {"data": [{"paragraphs": [{"context": "A B", "qas": [QUESTION]}]}]}),
    "race": ("train.jsonl", PASSAGE | {"options": ["a", "b"]}),
    "dream": ("dev.json", [[["M: A."], [{"question": "Q?", "choice": ["a"], "answer": "a"}], "1"]]),
    "swag": ("train.csv", ',sent1,sent2,ending0,ending1,label\n0,"A, ""b""",C,d,e,1\n'),
    "hellaswag": ("val.jsonl", {"ind": 1, "ctx": "A", "endings": ["a", "b"], "label": 1}),
    "commonsenseqa": (
        "train.jsonl",
        {"id": "x", "answerKey": "B", "question": {"stem": "W?", "choices": CHOICES}},
    ),
    "conll2003": ("eng.train", "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nIt PRP I-NP O\n"),
    "wsc": ("train.jsonl", {"text": "Mark said he slept.", "target": TARGET, "label": True}),
}
VALUES = [None, 0, -1, True, 1.5, "", "x", "\ud83d", [], {}, [1], {"text": "A"}]
BYTES = [b"\t", b"\n", b"\r", b'"', b",", b" ", b"\x00", b"\xff", b"\xef\xbb\xbf", b"nan", b"-1"]


def changed(value, rng):
    """The JSON value with some parts replaced and some keys left out."""
    if rng.random() < 0.1:
        return rng.choice(VALUES)
    if isinstance(value, list):
        return [changed(each, rng) for each in value]
    if isinstance(value, dict):
        return {key: changed(each, rng) for key, each in value.items() if rng.random() > 0.03}
    return value


def damaged(content, rng):
    if not isinstance(content, str) and rng.random() < 0.7:
        return json.dumps(changed(content, rng)).encode()
    data = bytearray((content if isinstance(content, str) else json.dumps(content)).encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.choice([0, 0, 1, 9])] = rng.choice([b"", *BYTES])
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path, name):
    rng = random.Random(0)
    file, content = FILES[name]
    path = tmp_path / file
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert load_split(TASKS[name], "test", folder=None, file=path)
    messages = []
    for _ in range(300):
        path.write_bytes(damaged(content, rng))
        try:
            for example in load_split(TASKS[name], "test", folder=None, file=path):
                str(example).encode()  # no halves of surrogate pairs
                hash(example)  # no lists
        except UsageError as error:
            messages.append(one_screen(error))
    assert 0 < len(messages) < 300
    assert all(str(path) in message for message in messages)
