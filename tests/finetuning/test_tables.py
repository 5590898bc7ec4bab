import dataclasses
import math

import pytest

from roberta_jax.finetuning import tables
from roberta_jax.finetuning.results import SplitResult
from tests.support import split_results

TASK = split_results.task(title="RTE", name="rte")
RESULT = SplitResult(
    "validation",
    [],
    [],
    {"accuracy": 0.6679},
    {"accuracy": 0.527},
    0.61,
    "always 'entailment'",
    intervals={"accuracy": (0.61, 0.7215)},
)


def changed(**fields):
    return dataclasses.replace(RESULT, **fields)


def test_the_line_has_score_interval_baseline_and_verdict():
    assert tables.summary_line(TASK, RESULT) == (
        "accuracy 66.8 (95% 61.0 to 72.2); always 'entailment': 52.7; better than the baseline"
    )


@pytest.mark.parametrize(
    ("baseline", "verdict"),
    [
        (0.609, "better than the baseline"),
        (0.61, "not better than the baseline, within the interval"),
        (0.70, "not better than the baseline, within the interval"),
        (0.73, "worse than the baseline"),
    ],
)
def test_the_verdict_is_by_the_interval(baseline, verdict):
    result = changed(baseline={"accuracy": baseline})
    assert tables.compared_with_baseline(TASK, result) == verdict
    assert tables.summary_line(TASK, result).endswith(f"; {verdict}")


def test_smaller_errors_are_better():
    task = split_results.task("regression", metrics=("mean_squared_error", "pearson"))
    result = SplitResult(
        "validation",
        [],
        [],
        {"mean_squared_error": 0.512345, "pearson": -0.0001},
        {"mean_squared_error": 2.25, "pearson": 0.0},
        baseline_name="always 2.7, the mean",
        intervals={"mean_squared_error": (0.41, 0.613), "pearson": (-0.02, 0.02)},
    )
    assert tables.summary_line(task, result) == (
        "mean squared error 0.512 (95% 0.41 to 0.613), Pearson correlation 0.0 (95% -2.0 to 2.0); "
        "always 2.7, the mean: 2.25, 0.0; better than the baseline by its mean squared error"
    )
    worse = dataclasses.replace(result, baseline={"mean_squared_error": 0.2})
    assert tables.compared_with_baseline(task, worse).startswith("worse")


@pytest.mark.parametrize(
    "fields",
    [
        {"intervals": None},
        {"baseline": None},
        {"intervals": {"accuracy": (math.nan, math.nan)}},
        {"baseline": {"accuracy": math.nan}},
    ],
)
def test_there_is_no_verdict_without_numbers(fields):
    result = changed(**fields)
    assert tables.compared_with_baseline(TASK, result) is None
    assert "than the baseline" not in tables.summary_line(TASK, result)


def test_a_split_without_labels_has_no_score():
    task = split_results.task()
    result = split_results.result(task, [None, None], ["a", "b"])
    assert tables.summary_line(task, result) == "2 predictions; no example has a label to score"


def test_scores_that_are_not_finite_are_shown_as_such():
    assert tables.shown(TASK, "accuracy", math.nan) == "nan"


def test_scores_of_questions_are_per_cent_already():
    task = split_results.task("question_answering", metrics=("f1", "exact_match"))
    result = SplitResult("validation", [], [], {"f1": 90.25, "exact_match": 83.0, "HasAns_f1": 1})
    assert tables.summary_line(task, result) == "F1 90.2, EM 83.0"


def test_scores_of_groups_and_tags_have_names():
    choice = split_results.task("choice")
    assert tables.title(choice, "accuracy_high") == "accuracy (high)"
    assert tables.title(split_results.task("tokens"), "f1") == "entity F1"
    assert tables.title(choice, "f1") == "F1"
    assert tables.title(choice, "something_else") == "something else"
    result = SplitResult("test", [], [], {"accuracy": 0.5, "accuracy_high": 0.4, "other": 1.0})
    assert tables.main_scores(choice, result) == ["accuracy", "accuracy_high"]


def test_the_table_has_a_row_per_split():
    unlabelled = SplitResult("test", [], [], {})
    assert tables.score_table(TASK, [RESULT, unlabelled]) == (
        "| task | split | examples | accuracy | baseline |\n"
        "| --- | --- | ---: | ---: | --- |\n"
        "| RTE | validation | 0 | 66.8 (61.0 to 72.2) | 52.7 (always 'entailment') |\n"
        "| RTE | test | 0 |  |  |"
    )


def test_names_cannot_break_a_table_or_a_line():
    task = split_results.task(title="a|b\n<b>*x*\t`c`")
    result = changed(baseline_name="always 'a\nb|c'")
    rows = tables.score_table(task, [result]).split("\n")
    assert len(rows) == 3
    assert rows[2].startswith(r"| a\|b\\n\<b\>\*x\*\\t\`c\` | validation | 0 |")
    assert rows[2].replace("\\|", "").count("|") == 6
    assert "\n" not in tables.summary_line(task, result)


def test_fences_are_longer_than_those_inside():
    assert tables.fenced("a") == "```\na\n```"
    assert tables.fenced("a ```` b") == "`````\na ```` b\n`````"
