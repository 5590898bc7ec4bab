"""What `experiments/results/README.md` says in words agrees with the reports beside it."""

import re

import pytest

from experiments.reporting.results import Results
from experiments.study.loading import ROOT

RESULTS = ROOT / "experiments" / "results"
# The names of a report's settings, where a sentence abbreviates them.
TEXT, TRANSFER = " ".join((RESULTS / "README.md").read_text().split()).split(
    "**[Pretrained against"
)


def comparisons(name, heading="perplexity"):
    found = Results.from_folder(RESULTS / name).comparisons()
    return {(each.one, each.other): each for each in found if each.metric == heading}


def test_each_mean_and_error_is_that_of_a_comparison():
    computed = {
        (f"{abs(each.mean):.3f}", f"{each.standard_error:.3f}")
        for name in ("table1_tiny", "table2_tiny", "table3_tiny")
        for each in comparisons(name).values()
    }
    stated = re.findall(r"(\d\.\d+) ± (\d\.\d+)", TEXT)
    assert len(stated) == 5
    assert set(stated) <= computed


def test_the_scores_of_transfer_are_those_of_the_report():
    report = (RESULTS / "transfer_small" / "README.md").read_text()
    rows = re.findall(r"\| ([^|]+), (pretrained|random) \| 3/3 \| ([\d.]+) ± ([\d.]+)", report)
    computed = {(task, start): (float(mean), float(spread)) for task, start, mean, spread in rows}
    number = r"([\d.]+) ± ([\d.]+)"
    stated = re.findall(rf"\| ([^|]+) \| \S+ \| {number} \| {number} \|", TRANSFER)
    assert len(stated) == len(computed) / 2 == 8
    for task, *numbers in stated:
        expected = [*computed[task, "pretrained"], *computed[task, "random"]]
        assert [float(text) for text in numbers] == pytest.approx(expected, abs=0.0501)


def test_what_is_called_decided_is_decided():
    (table1,) = comparisons("table1_tiny").values()
    assert table1.verdict == "decided: dynamic is lower"
    table2 = comparisons("table2_tiny")
    assert {pair for pair, each in table2.items() if each.decided} == {
        ("SEGMENT-PAIR", "FULL-SENTENCES"),
        ("SEGMENT-PAIR", "DOC-SENTENCES"),
        ("SENTENCE-PAIR+NSP", "DOC-SENTENCES"),
    }
    assert len(table2) == 10
    short = comparisons("table2_tiny", "perplexity, single sentences")
    assert [pair for pair, each in short.items() if each.decided] == [
        ("SENTENCE-PAIR+NSP", "DOC-SENTENCES")
    ]
    assert not any(each.decided for each in comparisons("table3_tiny").values())
    pairs = table2["SEGMENT-PAIR+NSP", "SENTENCE-PAIR+NSP"]
    assert f"t = {pairs.t:.1f} with {pairs.degrees_of_freedom} degrees of freedom" in TEXT
    assert pairs.differences[2] > 0 > max(pairs.differences[:2])
    documents = table2["FULL-SENTENCES", "DOC-SENTENCES"]
    assert min(documents.differences) > 0
    assert f"adjusted p-value is {documents.adjusted_p:.2f}" in TEXT


@pytest.mark.parametrize("name", ["table1_tiny", "table2_tiny", "table3_tiny"])
def test_perplexities_are_those_of_the_table(name):
    results = Results.from_folder(RESULTS / name)
    for setting in results.study["settings"]:
        mean = results.summary(setting, "perplexity").mean
        assert re.search(rf"\b{mean:.0f}\b", TEXT), (setting, mean)


def test_static_and_dynamic_runs_are_equal_for_ten_epochs_and_then_overfit_or_not():
    results = Results.from_folder(RESULTS / "table1_tiny")
    values = {}
    for row in results.curves:
        for kind in ("loss", "eval_perplexity"):
            if row[kind] is not None:
                key = kind, row["step"]
                values.setdefault(key, {}).setdefault(row["setting"], []).append(row[kind])
    for (_, step), each in values.items():
        assert (each["static"] == each["dynamic"]) == (step <= 909)
    static = {
        step: sum(each["static"]) / 3
        for (kind, step), each in values.items()
        if kind == "eval_perplexity"
    }
    assert min(static, key=static.get) == 1800
    assert f"{static[1800]:.0f}" == "387"
    final = {name: f"{sum(losses) / 3:.2f}" for name, losses in values["loss", 3600].items()}
    assert final == {"static": "5.03", "dynamic": "5.49"}
    assert all(number in TEXT for number in final.values())


def test_large_batches_differ_widely_by_seed():
    results = Results.from_folder(RESULTS / "table3_tiny")
    values = [
        value
        for setting in ("batch 192", "batch 192 LAMB")
        for value in results.summary(setting, "perplexity").values
    ]
    assert f"from {min(values):.0f} to {max(values):.0f}" in TEXT
    assert sum(600 < value < 700 for value in values) == 3
