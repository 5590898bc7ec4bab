"""The rows of the table for GLUE: its nine tasks, of which MNLI has the diagnostic set.

Recipes: Liu et al. 2019, Table 10, and fairseq's `examples/roberta/README.glue.md`, whose warmup in
updates is here the same share of all updates.
"""

import functools

from roberta_jax.tasks.readers.glue import read_glue
from roberta_jax.tasks.task import Recipe, Task

_GLUE = "Wang et al. 2019; Liu et al. 2019, Table 10; fairseq's README.glue.md"


def _files(folder: str, **splits: str) -> dict[str, tuple[str, ...]]:
    """Where a file may be: in the task's folder, or in that of all tasks."""
    return {split: (name, f"{folder}/{name}") for split, name in splits.items()}


def _glue_files(folder: str, dev: str = "dev", test: str = "test") -> dict[str, tuple[str, ...]]:
    """GLUE's files, and the same data as JSON lines: "RTE.train.jsonl", or "train.jsonl"."""
    tsv = _files(folder, train="train.tsv", validation=f"{dev}.tsv", test=f"{test}.tsv")
    json = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
    return {split: (*names, f"{folder}.{json[split]}", json[split]) for split, names in tsv.items()}


_MNLI_FILES = _glue_files("MNLI", "dev_matched", "test_matched") | {
    **_files(
        "MNLI",
        validation_mismatched="dev_mismatched.tsv",
        test_mismatched="test_mismatched.tsv",
    ),
    "diagnostic": (
        "diagnostic.tsv",
        "diagnostic/diagnostic.tsv",
        "../diagnostic/diagnostic.tsv",
        "AX.tsv",
    ),
}


GLUE_ROWS = (
    Task(
        name="cola",
        title="CoLA",
        kind="classification",
        reader=functools.partial(read_glue, columns=("source", "label", "mark", "sentence")),
        files=_glue_files("CoLA"),
        fields=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews_correlation", "accuracy"),
        recipe=Recipe(learning_rate=1e-5, batch_size=16, epochs=10, warmup_ratio=320 / 5336),
        tfds="glue/cola",
        submission={"test": "CoLA.tsv"},
        submission_labels={"unacceptable": "0", "acceptable": "1"},
        download="CoLA.zip of GLUE (gluebenchmark.com/tasks)",
        source=f"Warstadt et al. 2018; {_GLUE}",
    ),
    Task(
        name="sst2",
        title="SST-2",
        kind="classification",
        reader=read_glue,
        files=_glue_files("SST-2"),
        fields=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        recipe=Recipe(learning_rate=1e-5, batch_size=32, epochs=10, warmup_ratio=1256 / 20935),
        tfds="glue/sst2",
        submission={"test": "SST-2.tsv"},
        submission_labels={"negative": "0", "positive": "1"},
        download="SST-2.zip of GLUE (gluebenchmark.com/tasks)",
        source=f"Socher et al. 2013; {_GLUE}",
    ),
    Task(
        name="mrpc",
        title="MRPC",
        kind="classification",
        reader=read_glue,
        files=_glue_files("MRPC"),
        fields=("#1 String", "#2 String"),
        label_field="Quality",
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        recipe=Recipe(learning_rate=1e-5, batch_size=16, epochs=10, warmup_ratio=137 / 2296),
        tfds="glue/mrpc",
        submission={"test": "MRPC.tsv"},
        submission_labels={"not_equivalent": "0", "equivalent": "1"},
        download="MRPC as GLUE's download script divides it (gluebenchmark.com/tasks)",
        source=f"Dolan and Brockett 2005; {_GLUE}",
    ),
    Task(
        name="qqp",
        title="QQP",
        kind="classification",
        reader=functools.partial(read_glue, skip_malformed=True),
        files=_glue_files("QQP"),
        fields=("question1", "question2"),
        label_field="is_duplicate",
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        recipe=Recipe(learning_rate=1e-5, batch_size=32, epochs=10, warmup_ratio=28318 / 113272),
        tfds="glue/qqp",
        submission={"test": "QQP.tsv"},
        submission_labels={"not_duplicate": "0", "duplicate": "1"},
        download="QQP-clean.zip of GLUE (gluebenchmark.com/tasks)",
        source=f"Iyer et al. 2017; {_GLUE}",
    ),
    Task(
        name="stsb",
        title="STS-B",
        kind="regression",
        reader=read_glue,
        files=_glue_files("STS-B"),
        fields=("sentence1", "sentence2"),
        label_field="score",
        metrics=("pearson", "spearman"),
        recipe=Recipe(learning_rate=2e-5, batch_size=16, epochs=10, warmup_ratio=214 / 3598),
        tfds="glue/stsb",
        submission={"test": "STS-B.tsv"},
        label_scale=5.0,
        download="STS-B.zip of GLUE (gluebenchmark.com/tasks)",
        source=f"Cer et al. 2017; {_GLUE}",
    ),
    Task(
        name="mnli",
        title="MNLI",
        kind="classification",
        reader=read_glue,
        files=_MNLI_FILES,
        fields=("sentence1", "sentence2"),
        label_field="gold_label",
        # The order of fairseq's models and of roberta-large-mnli. TFDS and GLUE have another one.
        labels=("contradiction", "neutral", "entailment"),
        metrics=("accuracy",),
        recipe=Recipe(learning_rate=1e-5, batch_size=32, epochs=10, warmup_ratio=7432 / 123873),
        tfds="glue/mnli",
        tfds_splits={
            "validation": "validation_matched",
            "test": "test_matched",
            "diagnostic": "glue/ax:test",
        },
        submission={
            "test": "MNLI-m.tsv",
            "test_mismatched": "MNLI-mm.tsv",
            "diagnostic": "AX.tsv",
        },
        download="MNLI.zip, and for the diagnostic set AX.tsv, of GLUE (gluebenchmark.com/tasks)",
        source=f"Williams et al. 2018; {_GLUE}",
    ),
    Task(
        name="qnli",
        title="QNLI",
        kind="classification",
        reader=read_glue,
        files=_glue_files("QNLI"),
        fields=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        recipe=Recipe(learning_rate=1e-5, batch_size=32, epochs=10, warmup_ratio=1986 / 33112),
        tfds="glue/qnli",
        submission={"test": "QNLI.tsv"},
        download="QNLIv2.zip of GLUE (gluebenchmark.com/tasks)",
        source=f"Rajpurkar et al. 2016; {_GLUE}",
    ),
    Task(
        name="rte",
        title="RTE",
        kind="classification",
        reader=read_glue,
        files=_glue_files("RTE"),
        fields=("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        recipe=Recipe(learning_rate=2e-5, batch_size=16, epochs=10, warmup_ratio=122 / 2036),
        tfds="glue/rte",
        submission={"test": "RTE.tsv"},
        download="RTE.zip of GLUE (gluebenchmark.com/tasks)",
        source=f"Bentivogli et al. 2009; {_GLUE}",
    ),
    Task(
        name="wnli",
        title="WNLI",
        kind="classification",
        reader=read_glue,
        files=_glue_files("WNLI"),
        fields=("sentence1", "sentence2"),
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        # The paper trains WNLI as WSC; these are values of Table 10's range for GLUE.
        recipe=Recipe(learning_rate=2e-5, batch_size=16, epochs=10),
        tfds="glue/wnli",
        submission={"test": "WNLI.tsv"},
        submission_labels={"not_entailment": "0", "entailment": "1"},
        download="WNLI.zip of GLUE (gluebenchmark.com/tasks)",
        source="Levesque et al. 2012; Wang et al. 2019; Liu et al. 2019, Table 10",
    ),
)
