"""Finding and checking the examples of splits, and the order of labels."""

import dataclasses
import gzip
import json
import logging

import pytest

from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.tasks.examples import TextExample, TokenExample
from roberta_jax.tasks.loading import available_splits, label_names, load_split, match_labels
from roberta_jax.tasks.readers.glue import read_glue
from roberta_jax.tasks.table import TASKS
from roberta_jax.tasks.task import Recipe, Task
from tests.support.messages import one_screen

HEADER = "index\tsentence1\tsentence2\tlabel\n"
RTE = HEADER + "0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
MNLI = ("contradiction", "neutral", "entailment")


def load(task, split="train", **options):
    return load_split(TASKS[task], split, **{"folder": None, **options})


@pytest.mark.parametrize(
    "name", ["train.tsv", "RTE/train.tsv", "train.tsv.gz", "RTE.train.jsonl", "RTE/train.tsv.gz"]
)
def test_where_files_may_be(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    text = RTE
    if "jsonl" in name:
        rows = [("a", "b", "entailment"), ("c", "d", "not_entailment")]
        keys = ("sentence1", "sentence2", "label")
        text = "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    examples = load("rte", folder=tmp_path)
    assert [each.label for each in examples] == ["entailment", "not_entailment"]
    assert available_splits(TASKS["rte"], tmp_path) == ("train",)


def test_the_diagnostic_set_is_found_beside_mnli(tmp_path):
    for name in ("MNLI/dev_matched.tsv", "MNLI/dev_mismatched.tsv", "diagnostic/diagnostic.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("index\tsentence1\tsentence2\n0\ta\tb\n")
    expected = ("validation", "validation_mismatched", "diagnostic")
    for folder in (tmp_path, tmp_path / "MNLI"):
        assert available_splits(TASKS["mnli"], folder) == expected
    assert load("mnli", "diagnostic", folder=tmp_path)[0].label is None


def test_missing_folders_and_files(tmp_path):
    with pytest.raises(NotFoundError, match=r"--config.data.folder=.*none: does not exist"):
        load("rte", folder=tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match=r"is a file; give the folder"):
        load("rte", folder=tmp_path / "file")
    with pytest.raises(NotFoundError) as error:
        load("rte", folder=tmp_path)
    message = one_screen(error.value)
    assert "tried train.tsv, RTE/train.tsv" in message
    assert "RTE.zip of GLUE" in message
    with pytest.raises(NotFoundError, match=r"--config.data.train=\S*x.tsv: there is no such file"):
        load("rte", file=tmp_path / "x.tsv")
    with pytest.raises(UsageError, match=r"RTE has no split 'dev'; it has train, validation, test"):
        load("rte", "dev", folder=tmp_path)
    assert available_splits(TASKS["rte"], tmp_path / "none") == ()


def test_a_task_that_is_not_in_tfds_needs_a_folder():
    with pytest.raises(UsageError, match=r"SWAG is not in TensorFlow Datasets: give --config.data"):
        load("swag")


def written(tmp_path, text, name="train.tsv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_empty_splits(tmp_path):
    for text in ("", HEADER):
        with pytest.raises(UsageError, match=r"no examples: the split 'train' of RTE is empty"):
            load("rte", file=written(tmp_path, text))


def test_splits_that_need_labels(tmp_path):
    path = written(tmp_path, "index\tsentence1\tsentence2\n0\ta\tb\n")
    for split in ("train", "validation"):
        with pytest.raises(UsageError, match=f"has no labels, which the split '{split}' of RTE"):
            load("rte", split, file=path)
    assert load("rte", "test", file=path)[0].label is None


def test_examples_of_train_without_a_label_are_left_out(tmp_path, caplog):
    path = written(tmp_path, RTE + "2\te\tf\t-1\n")
    with caplog.at_level(logging.WARNING):
        assert len(load("rte", file=path)) == 2
    assert "1 example without a label left out" in caplog.text
    assert len(load("rte", "validation", file=path)) == 3


def test_one_class_only(tmp_path):
    path = written(tmp_path, HEADER + "0\ta\tb\tentailment\n1\tc\td\tentailment\n")
    with pytest.raises(UsageError, match=r"2 examples, and all have the same label 'entailment'"):
        load("rte", file=path)
    assert len(load("rte", "validation", file=path)) == 2
    scores = "index\tsentence1\tsentence2\tscore\n0\ta\tb\t2.5\n1\tc\td\t2.5\n"
    with pytest.raises(UsageError, match=r"the same label 2.5"):
        load("stsb", file=written(tmp_path, scores))
    tags = written(tmp_path, "a NN I-NP O\nb NN I-NP O\n", "eng.train")
    with pytest.raises(UsageError, match=r"the same label 'O'"):
        load("conll2003", file=tags)


def test_ids_become_different(tmp_path, caplog):
    rows = ["7\ta\tb\tentailment", "7\tc\td\tnot_entailment", "7#2\te\tf\tentailment"]
    path = written(tmp_path, HEADER + "\n".join([*rows, rows[0]]))
    with caplog.at_level(logging.WARNING):
        ids = [each.id for each in load("rte", file=path)]
    assert len(set(ids)) == 4
    assert (ids[0], ids[2]) == ("7", "7#2")
    assert "2 examples with the id of another one, such as 7" in caplog.text


def test_label_names():
    assert label_names(TASKS["mnli"], []) == MNLI
    task = dataclasses.replace(TASKS["conll2003"], labels=())
    tags = ("I-PER", "O", "B-LOC", "B-PER", "I-LOC")
    assert label_names(task, [TokenExample("0", tags, tags)]) == (
        *("O", "B-LOC", "I-LOC", "B-PER", "I-PER"),
    )
    task = dataclasses.replace(TASKS["rte"], labels=())
    examples = [TextExample("0", "a", None, label) for label in ("b", "a", None, "b")]
    assert label_names(task, examples) == ("a", "b")
    examples = [TextExample("0", "a", None, label) for label in (("b", "a"), (), ("c",))]
    assert label_names(dataclasses.replace(task, kind="multi_label"), examples) == ("a", "b", "c")
    assert label_names(TASKS["stsb"], [TextExample("0", "a", None, 1.5)]) == ()


def test_labels_follow_the_order_of_the_model(caplog):
    glue_order = {"0": "ENTAILMENT", "1": "NEUTRAL", "2": "CONTRADICTION"}
    with caplog.at_level(logging.WARNING):
        assert match_labels(MNLI, glue_order) == ("entailment", "neutral", "contradiction")
    assert "numbers the labels in another order (ENTAILMENT, NEUTRAL, CONTRADICTION)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        same = {2: "ENTAILMENT", 0: "CONTRADICTION", 1: "NEUTRAL"}  # roberta-large-mnli
        assert match_labels(MNLI, same) == MNLI
        rte = TASKS["rte"].labels
        assert match_labels(rte, {0: "Entailment", 1: "not entailment"}) == rte
        assert match_labels(rte, {0: "Not-Entailment", 1: "Entailment"}) == rte[::-1]
    assert caplog.text.count("another order") == 1


@pytest.mark.parametrize(
    "id2label", [None, {}, {0: "LABEL_0", 1: "LABEL_1"}, {0: "0", 1: "1", 2: "2"}, {0: "label_0"}]
)
def test_models_that_name_no_labels(id2label, caplog):
    with caplog.at_level(logging.WARNING):
        assert match_labels(MNLI, id2label) == MNLI
    assert not caplog.text


def test_another_number_of_labels():
    rte = TASKS["rte"].labels
    with pytest.raises(UsageError, match=r"runs/x has 3 labels \(contradiction, .*task has 2"):
        match_labels(rte, dict(enumerate(MNLI)), where="runs/x")
    # MNLI's model is where RTE starts from, with a new head.
    assert match_labels(rte, dict(enumerate(MNLI)), new_head=True) == rte


def test_other_names_are_said(caplog):
    with caplog.at_level(logging.WARNING):
        order = match_labels(("bad", "good"), {0: "positive", 1: "negative"})
    assert order == ("bad", "good")
    assert "other labels (positive, negative) than the task (bad, good)" in caplog.text


def test_names_that_differ_only_in_spelling_are_not_confused():
    names = ("a-b", "a_b")
    assert match_labels(names, {0: "a_b", 1: "a-b"}) == ("a_b", "a-b")


def test_a_new_task_is_one_row(tmp_path):
    paws = Task(
        name="paws",
        title="PAWS",
        kind="classification",
        reader=read_glue,
        files={"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)},
        fields=("sentence1", "sentence2"),
        labels=("different", "paraphrase"),
        metrics=("accuracy", "f1"),
        recipe=Recipe(learning_rate=2e-5, batch_size=32, epochs=3),
        submission_labels={"different": "0", "paraphrase": "1"},
        download="paws_wiki_labeled_final.tar.gz (github.com/google-research-datasets/paws)",
        source="Zhang et al. 2019",
    )
    text = "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n2\tc\td\t1\n"
    written(tmp_path, text, "dev.tsv")
    examples = load_split(paws, "validation", folder=tmp_path)
    assert [(each.id, each.label) for each in examples] == [("1", "different"), ("2", "paraphrase")]
