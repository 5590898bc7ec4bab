import itertools
import math

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.finetuning.results import SplitResult
from roberta_jax.finetuning.submission import submission_file
from roberta_jax.tasks.loading import load_split
from roberta_jax.tasks.table import TASKS
from tests.support import split_results


def submitted(task, predicted, split="test"):
    predictions = [{"id": str(7 + n), "prediction": value} for n, value in enumerate(predicted)]
    examples = [split_results.example(task.kind, each["id"], None) for each in predictions]
    return submission_file(task, SplitResult(split, examples, predictions, {}))


def test_labels_are_written_in_the_order_of_the_file():
    task = split_results.task(submission={"test": "RTE.tsv"})
    assert submitted(task, ["entailment", "not_entailment"]) == (
        "RTE.tsv",
        "index\tprediction\n0\tentailment\n1\tnot_entailment\n",
    )


def test_labels_have_the_spelling_of_the_server():
    task = split_results.task(
        submission={"test": "SST-2.tsv"}, submission_labels={"negative": "0", "positive": "1"}
    )
    _, text = submitted(task, ["positive", "negative"])
    assert text == "index\tprediction\n0\t1\n1\t0\n"


def test_numbers_have_three_digits_and_stay_in_the_range():
    task = split_results.task("regression", submission={"test": "STS-B.tsv"}, label_scale=5.0)
    name, text = submitted(task, [-0.2, 0.0, 2.34567, 5.0001, 5])
    assert name == "STS-B.tsv"
    answers = [line.split("\t")[1] for line in text.splitlines()[1:]]
    assert answers == ["0.000", "0.000", "2.346", "5.000", "5.000"]
    assert "0\t0.000" in text


def test_each_split_has_its_file():
    files = {"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "diagnostic": "AX.tsv"}
    task = split_results.task(submission=files)
    assert {split: submitted(task, ["neutral"], split)[0] for split in files} == files
    assert submitted(task, ["neutral"], "validation") is None
    assert submitted(task, []) is None


def test_json_lines_have_index_and_label():
    task = split_results.task("pronoun", submission={"test": "WSC.jsonl"})
    name, text = submitted(task, [True, False])
    assert name == "WSC.jsonl"
    assert text == '{"idx": 7, "label": "True"}\n{"idx": 8, "label": "False"}\n'


def test_what_cannot_be_written_is_an_error():
    numbers = split_results.task("regression", submission={"test": "STS-B.tsv"})
    with pytest.raises(UsageError, match=r"STS-B.tsv: a prediction is nan. The model has diverged"):
        submitted(numbers, [1.0, math.nan])
    task = split_results.task(submission={"test": "A.tsv"})
    with pytest.raises(UsageError, match=r"A.tsv: the label 'a\\tb' has characters"):
        submitted(task, ["a\tb"])


# Rows that GLUE's server takes, without the header.
ROWS = {
    "CoLA.tsv": 1063,
    "SST-2.tsv": 1821,
    "MRPC.tsv": 1725,
    "STS-B.tsv": 1379,
    "QNLI.tsv": 5463,
    "RTE.tsv": 3000,
    "WNLI.tsv": 146,
    "AX.tsv": 1104,
}


@pytest.mark.parametrize("name", ROWS)
def test_official_files_of_glue_give_submissions_of_the_servers_size(real_data, name):
    task, split = next(
        (task, split)
        for task in TASKS.values()
        for split, file in task.submission.items()
        if file == name
    )
    examples = load_split(task, split, folder=real_data / "glue")
    answers = itertools.cycle(task.labels or (-1.0, 2.5, 7.0))
    predictions = [{"id": e.id, "prediction": next(answers)} for e in examples]
    result = SplitResult(split, examples, predictions, {})
    header, *rows = submission_file(task, result)[1].splitlines()
    assert header == "index\tprediction"
    assert [row.split("\t")[0] for row in rows] == [str(n) for n in range(ROWS[name])]
    spelled = {row.split("\t")[1] for row in rows}
    if name == "STS-B.tsv":
        assert spelled == {"0.000", "2.500", "5.000"}
    elif name in ("QNLI.tsv", "RTE.tsv"):
        assert spelled == {"entailment", "not_entailment"}
    elif name == "AX.tsv":
        assert spelled == {"entailment", "neutral", "contradiction"}
    else:
        assert spelled == {"0", "1"}
