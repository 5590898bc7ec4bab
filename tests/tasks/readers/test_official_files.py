"""Every reader on real files: the numbers of examples and of labels are those of the data."""

import json
import lzma
from collections import Counter

import pytest

from roberta_jax.tasks.loading import available_splits, load_split
from roberta_jax.tasks.table import TASKS

# Task -> folder, and split -> number of examples.
FILES = {
    "cola": ("glue/CoLA", {"train": 8551, "validation": 1043, "test": 1063}),
    "sst2": ("glue/SST-2", {"train": 67349, "validation": 872, "test": 1821}),
    "mrpc": ("glue/MRPC", {"train": 3667, "validation": 408, "test": 1725}),
    "stsb": ("glue/STS-B", {"train": 5749, "validation": 1500, "test": 1379}),
    "qnli": ("glue/QNLI", {"validation": 5463, "test": 5463}),
    "rte": ("glue", {"train": 2490, "validation": 277, "test": 3000}),
    "wnli": ("glue", {"train": 635, "validation": 71, "test": 146}),
    "mnli": ("glue", {"diagnostic": 1104}),
    "race": ("multiple_choice/RACE", {"train": 22, "validation": 17}),
    "dream": ("multiple_choice", {"train": 6116, "validation": 2040}),
    "conll2003": ("ner/conll2003", {"train": 14041, "validation": 3250}),
    "wikiann": ("ner/wikiann_en", {"train": 20000, "validation": 10000}),
}


@pytest.mark.parametrize("name", FILES)
def test_official_files(real_data, name):
    folder, numbers = FILES[name]
    task = TASKS[name]
    assert available_splits(task, real_data / folder) == tuple(numbers)
    for split, number in numbers.items():
        examples = load_split(task, split, folder=real_data / folder)
        assert len(examples) == len({each.id for each in examples}) == number
        labels = [each.tags if task.kind == "tokens" else each.label for each in examples]
        hidden = split in ("test", "diagnostic")
        assert all((label is None) == hidden for label in labels)


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("mnli", {"train": 8999, "validation": 500}),
        ("qqp", {"train": 8999, "validation": 500}),
        ("qnli", {"train": 8999}),
    ],
)
def test_json_lines(real_data, name, splits):
    task = TASKS[name]
    for split, number in splits.items():
        examples = load_split(task, split, folder=real_data / "glue_json")
        assert len(examples) == number
        assert {each.label for each in examples} == set(task.labels)


@pytest.mark.parametrize(("name", "number"), [("qqp", 32), ("mnli", 48)])
@pytest.mark.parametrize("sample", ["16-13", "16-21"])
def test_tsv_with_all_columns(real_data, name, number, sample):
    folder = real_data / "glue_official_tsv_kshot" / name.upper() / sample
    for split in ("train", "validation"):
        examples = load_split(TASKS[name], split, folder=folder)
        counts = Counter(each.label for each in examples)
        assert counts == dict.fromkeys(TASKS[name].labels, 16)
        assert sum(counts.values()) == number


def test_labels_of_glue_are_those_of_the_golden_metrics(real_data):
    expected = json.loads((real_data / "golden_metrics/expected_glue.json").read_text())
    for name in ("cola", "sst2", "rte"):
        task = TASKS[name]
        examples = load_split(task, "validation", folder=real_data / "glue")
        golden = expected[task.title]["label_counts"]
        spelling = {label: task.submission_labels.get(label, label) for label in task.labels}
        assert Counter(spelling[each.label] for each in examples) == golden
    numbers = [e.label for e in load_split(TASKS["stsb"], "validation", folder=real_data / "glue")]
    assert len(numbers) == expected["STS-B"]["n"]
    assert (min(numbers), max(numbers)) == (0, 5)


def test_quotes_of_mrpc_stay_in_their_lines(real_data):
    with lzma.open(real_data / "glue/MRPC/train.tsv.xz", "rt", encoding="utf-8") as file:
        quotes = file.read().count('"')
    examples = load_split(TASKS["mrpc"], "train", folder=real_data / "glue")
    assert quotes == sum(e.text_a.count('"') + e.text_b.count('"') for e in examples) > 1000


@pytest.mark.parametrize(
    ("name", "file", "questions", "answers", "unanswerable"),
    [
        ("squad1", "squad_v1_xquad_en.json.xz", 239, 239, 0),
        ("squad2", "squad_v2.json.xz", 4033, 6536, 2086),
    ],
)
def test_squad(real_data, caplog, name, file, questions, answers, unanswerable):
    examples = load_split(TASKS[name], "validation", folder=None, file=real_data / "squad" / file)
    assert len(examples) == questions
    assert sum(len(each.answers) for each in examples) == answers
    assert sum(not each.answers for each in examples) == unanswerable
    for each in examples:
        for text, start in zip(each.answers, each.starts or (), strict=True):
            assert each.context[start : start + len(text)] == text
    assert not caplog.text


def test_race_and_swag(real_data):
    folder = real_data / "multiple_choice"
    lines = load_split(
        TASKS["race"], "train", folder=None, file=folder / "race_sample.train.jsonl.xz"
    )
    assert Counter(each.group for each in lines) == {"middle": 358, "high": 343}
    assert Counter(each.label for each in lines) == {0: 132, 1: 214, 2: 187, 3: 168}
    swag = load_split(TASKS["swag"], "train", folder=None, file=folder / "swag_sample.csv")
    assert len(swag) == 11
    assert all(len(each.choices) == 4 for each in swag)


def test_entities_of_conll(real_data):
    expected = json.loads((real_data / "golden_metrics/expected_ner_seqeval.json").read_text())
    for task, folder, golden in (
        ("conll2003", "conll2003", expected["conll_testa"]),
        ("wikiann", "wikiann_en", expected["wikiann_en_dev"]),
    ):
        examples = load_split(TASKS[task], "validation", folder=real_data / "ner" / folder)
        assert len(examples) == golden["sentences"]
        assert sum(len(each.words) for each in examples) == golden["tokens"]
        types = {tag[2:] for tag in golden["tags"]} - {""}
        assert {tag for each in examples for tag in each.tags} == {"O"} | {
            f"{begin}-{kind}" for begin in "BI" for kind in types
        }
        assert not any(word.startswith("en:") for each in examples for word in each.words)
        if task == "conll2003":
            begins = sum(tag[0] == "B" for each in examples for tag in each.tags)
            assert begins == 5942  # the entities of eng.testa
