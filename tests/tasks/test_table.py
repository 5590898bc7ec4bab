"""The rows of the table of tasks."""

import pathlib
import subprocess
import sys

import pytest

from roberta_jax.tasks.table import TASKS
from roberta_jax.tasks.task import KINDS

OFFICIAL = [task for task in TASKS.values() if task.reader is not None]

# Metrics of the official evaluations; the first one selects.
METRICS = {
    "cola": ("matthews_correlation", "accuracy"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "squad1": ("f1", "exact_match"),
    "squad2": ("f1", "exact_match"),
    "conll2003": ("f1", "precision", "recall"),
    "wnut17": ("f1", "precision", "recall"),
    "wikiann": ("f1", "precision", "recall"),
}

# fairseq's README.glue.md: rate, batch size, updates, updates of warmup.
FAIRSEQ = {
    "mnli": (1e-5, 32, 123873, 7432),
    "qnli": (1e-5, 32, 33112, 1986),
    "qqp": (1e-5, 32, 113272, 28318),
    "rte": (2e-5, 16, 2036, 122),
    "sst2": (1e-5, 32, 20935, 1256),
    "mrpc": (1e-5, 16, 2296, 137),
    "cola": (1e-5, 16, 5336, 320),
    "stsb": (2e-5, 16, 3598, 214),
}


def test_table_has_the_tasks_of_the_paper():
    glue = ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
    others = ["squad1", "squad2", "race", "swag", "hellaswag", "commonsenseqa", "dream"]
    assert {*glue, *others, "conll2003", "wnut17", "wsc"} <= set(TASKS)
    assert all(name == task.name for name, task in TASKS.items())


def test_importing_the_table_is_cheap():
    program = (
        "import sys, roberta_jax.tasks.table\n"
        "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'tokenizers', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("task", OFFICIAL, ids=lambda task: task.name)
def test_rows_are_complete(task):
    assert task.kind in KINDS
    assert {"train", "validation"} <= set(task.files)
    assert all([task.title, task.download, task.source])
    assert task.metrics == METRICS.get(task.name, ("accuracy",))
    assert len(set(task.labels)) == len(task.labels)
    assert bool(task.labels) == (task.kind in ("classification", "tokens"))
    assert set(task.submission) <= set(task.files)
    assert set(task.tfds_splits) <= set(task.files)
    assert set(task.submission_labels) in (set(), set(task.labels))
    assert all(not pathlib.PurePath(name).is_absolute() for n in task.files.values() for name in n)


@pytest.mark.parametrize("task", OFFICIAL, ids=lambda task: task.name)
def test_recipes_are_possible(task):
    recipe = task.recipe
    assert (recipe.epochs is None) != (recipe.steps is None)
    assert 0 < recipe.learning_rate <= 5e-5
    assert 0 < recipe.warmup_ratio < 1
    assert recipe.max_length == task.formatting.max_length


@pytest.mark.parametrize("name", FAIRSEQ)
def test_recipes_of_glue_are_those_of_fairseq(name):
    rate, batch_size, steps, warmup = FAIRSEQ[name]
    recipe = TASKS[name].recipe
    assert (recipe.learning_rate, recipe.batch_size) == (rate, batch_size)
    assert (recipe.epochs, recipe.weight_decay) == (10, 0.1)
    assert round(recipe.warmup_ratio * steps) == warmup


def test_recipes_of_table_10():
    squad, race = TASKS["squad2"].recipe, TASKS["race"].recipe
    assert (squad.learning_rate, squad.batch_size, squad.epochs) == (1.5e-5, 48, 2)
    assert (squad.weight_decay, squad.warmup_ratio) == (0.01, 0.06)
    assert (race.learning_rate, race.batch_size, race.epochs) == (1e-5, 16, 4)
    assert (race.weight_decay, race.warmup_ratio) == (0.1, 0.06)


def test_label_orders():
    assert TASKS["mnli"].labels == ("contradiction", "neutral", "entailment")
    assert TASKS["rte"].labels == TASKS["qnli"].labels == ("entailment", "not_entailment")
    # F1 of two classes counts the last one as positive.
    assert TASKS["mrpc"].labels[-1] == "equivalent"
    assert TASKS["qqp"].labels[-1] == "duplicate"
    assert TASKS["conll2003"].labels[0] == TASKS["wnut17"].labels[0] == "O"
    assert len(TASKS["conll2003"].labels) == 9
    assert len(TASKS["wnut17"].labels) == 13


def test_submission_files():
    names = {file for task in OFFICIAL for file in task.submission.values()}
    assert names == {
        *("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "QQP.tsv", "STS-B.tsv", "MNLI-m.tsv"),
        *("MNLI-mm.tsv", "QNLI.tsv", "RTE.tsv", "WNLI.tsv", "AX.tsv", "WSC.jsonl"),
    }
    # The server takes 0 and 1 for these tasks, and the names for the others.
    numbered = {task.name for task in OFFICIAL if task.submission_labels}
    assert numbered == {"cola", "sst2", "mrpc", "qqp", "wnli"}
    for name in numbered:
        assert tuple(TASKS[name].submission_labels.items()) == tuple(
            (label, str(number)) for number, label in enumerate(TASKS[name].labels)
        )


def test_formats():
    assert TASKS["commonsenseqa"].formatting.separators == 1
    assert TASKS["commonsenseqa"].formatting.prefix_a == "Q: "
    assert TASKS["commonsenseqa"].formatting.prefix_b == "A: "
    assert TASKS["race"].formatting.max_option_length == 128
    assert TASKS["swag"].formatting.context_first
    squad = TASKS["squad2"].formatting
    assert (squad.max_length, squad.doc_stride, squad.max_query_length) == (384, 128, 64)
    assert (squad.max_answer_length, squad.n_best) == (30, 20)
    assert (TASKS["squad1"].answerable, TASKS["squad2"].answerable) == (True, False)
    assert TASKS["stsb"].label_scale == 5
