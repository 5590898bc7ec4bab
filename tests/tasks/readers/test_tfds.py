"""Examples of tasks from TensorFlow Datasets."""

import pytest

from roberta_jax.data import tfds_examples
from roberta_jax.errors import UsageError
from roberta_jax.tasks.loading import load_split
from roberta_jax.tasks.readers.tfds import read_tfds
from roberta_jax.tasks.table import TASKS


@pytest.fixture
def dataset(monkeypatch):
    """A function that sets the records that TFDS has; it returns what was asked of TFDS."""
    asked = []

    def set_records(*records):
        def read_examples(name, split, data_dir):
            asked.append((name, split, data_dir))
            yield from records

        monkeypatch.setattr(tfds_examples, "read_examples", read_examples)
        return asked

    return set_records


def read(task, split="train"):
    return list(read_tfds(TASKS[task], split, "folder"))


def test_texts_are_in_the_order_of_their_numbers(dataset):
    asked = dataset(
        {"premise": "c", "hypothesis": " d ", "idx": 10, "label": "neutral"},
        {"premise": "a", "hypothesis": "b", "idx": 9, "label": None},
    )
    first, second = read("mnli", "diagnostic")
    assert asked == [("glue/mnli", "glue/ax:test", "folder")]
    assert (first.id, first.text_a, first.text_b, first.label) == ("9", "a", "b", None)
    assert (second.id, second.text_b, second.label) == ("10", "d", "neutral")
    dataset({"sentence1": "a", "sentence2": "b", "idx": 0, "label": -1.0})
    assert read("stsb")[0].label is None


def test_tokens(dataset):
    words = ["EU", "rejects"]
    dataset(
        {"tokens": ["-DOCSTART-"], "ner": ["O"]},
        {"tokens": words, "ner": ["B-ORG", "O"], "pos": ["NNP", "VBZ"]},
    )
    (example,) = read("conll2003", "validation")
    assert (example.id, example.words, example.tags) == ("0", tuple(words), ("B-ORG", "O"))
    dataset({"tokens": words, "tags": ["B-ORG", "O"]})
    assert read("wikiann")[0].tags == ("B-ORG", "O")
    dataset({"tokens": words})
    with pytest.raises(UsageError, match="no feature ner or tags"):
        read("conll2003")


def test_choices(dataset):
    record = {
        "article": "A.\nB.",
        "questions": ["Q?", "R?"],
        "options": [["a", "b"], ["c", "d"]],
        "answers": ["B", "A"],
        "example_id": "high3.txt",
    }
    asked = dataset(record)
    first, second = read("race")
    assert asked == [("race", "race/middle:train+race/high:train", "folder")]
    assert (first.id, first.context, first.label, first.group) == (
        "high3.txt-0",
        "A. B.",
        1,
        "high",
    )
    assert second.choices == ("c", "d")
    dataset({"context": "A", "endings": ["a", "b"], "label": -1, "split_type": "indomain"})
    (example,) = read("hellaswag")
    assert (example.context, example.label, example.group) == ("A", None, "indomain")


def test_questions(dataset, caplog):
    dataset(
        {
            "id": "q1",
            "title": "T",
            "context": "In Köln.",
            "question": "Where?",
            "answers": {"text": ["Köln", "Rome"], "answer_start": [0, 3]},
        }
    )
    (example,) = read("squad1")
    assert (example.answers, example.starts, example.title) == (("Köln", "Rome"), (3, -1), "T")
    assert "1 answer with another start" in caplog.text


def test_pronouns(dataset):
    dataset(
        {
            "text": "Mark said he slept.",
            "span1_text": "Mark",
            "span1_index": 0,
            "idx": 4,
            "span2_text": "he",
            "span2_index": 2,
            "label": "True",
        }
    )
    (example,) = read("wsc")
    assert (example.id, example.pronoun, example.query_start, example.label) == (
        "4",
        (10, 12),
        0,
        True,
    )


@pytest.mark.parametrize(
    "task",
    [task for task in TASKS.values() if task.tfds and task.kind in ("classification", "tokens")],
    ids=lambda task: task.name,
)
def test_features_have_the_names_that_tfds_gives_them(task):
    """With TFDS's own definitions of the datasets, and random values in place of the data."""
    pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=8, policy=tfds.testing.MockPolicy.USE_CODE):
        for split in task.files:
            examples = load_split(task, split, folder=None)
            assert len(examples) == 8
            names = {e.label for e in examples} if task.kind == "classification" else set()
            names |= {tag for e in examples for tag in getattr(e, "tags", ())}
            assert names <= set(task.labels)
