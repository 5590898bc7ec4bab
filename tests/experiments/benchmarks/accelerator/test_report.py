"""The table: goals, shares, ratios, and one row for each record."""

import pytest

from experiments.benchmarks.accelerator import report
from experiments.benchmarks.accelerator.workload import flops_per_token

FLOPS = flops_per_token("large", 512)
MACHINE = {
    "part": "machine", "name": "machine", "status": "measured", "platform": "gpu",
    "device": "NVIDIA H200", "chip": "h200", "peak_flops": 989e12, "product_flops": 790e12,
    "product_width": 8192, "python": "3.12", "versions": {"jax": "0.11.2", "torch": None},
}  # fmt: skip


def step(side, rate, name=None, **changes):
    return {
        "part": "step", "name": name or f"large 512 {side}", "side": side, "model": "large",
        "length": 512, "status": "measured", "rows": 64, "tokens_per_second": rate,
        "tokens_per_second_of_rounds": [0.9 * rate, rate], "peak_bytes": 3 * 2**30,
        "compile_seconds": 30.4,
    } | changes  # fmt: skip


def lines(records):
    header, _, *rows = report.table(records).splitlines()
    return header, rows


def test_shares_and_goal():
    shared = report.with_shares(step("jax", 118_000), MACHINE)
    assert shared["share_of_goal"] == pytest.approx(0.5)
    assert shared["share_of_peak"] == pytest.approx(118_000 * FLOPS / 989e12)
    assert shared["share_of_product"] == pytest.approx(118_000 * FLOPS / 790e12)
    [row] = lines([shared])[1]
    assert "118,000" in row
    assert "236,000 (255,000)" in row
    assert "50.0%" in row
    assert "3.0 GiB" in row
    assert "30 s" in row
    assert "64 rows; rounds 106,200 to 118,000" in row


def test_no_goal_and_no_peak_on_other_machines():
    machine = MACHINE | {"chip": None, "peak_flops": None}
    shared = report.with_shares(step("jax", 10), machine)
    assert (shared["goal"], shared["share_of_peak"]) == (None, None)
    assert shared["share_of_product"] == pytest.approx(10 * FLOPS / 790e12)


def test_a_step_that_was_not_measured_has_no_shares():
    record = step("torch", 10, status="refused", reason="torch is not installed")
    assert report.with_shares(record, MACHINE) == record
    assert "torch is not installed" in lines([record])[1][0]


def test_the_fastest_of_each_side_are_compared():
    records = [
        step("jax", 100, "slow"),
        step("jax", 300, "fast"),
        step("jax", 900, "broken", status="failed", reason="the loss is not finite"),
        step("torch", 150, "theirs"),
        step("torch", 400, "alone", model="base"),
    ]
    [comparison] = report.comparisons(records)
    assert comparison == {
        "model": "large", "length": 512, "jax": "fast", "torch": "theirs", "ratio": 2.0,
    }  # fmt: skip
    assert "2.00 times" in lines(records)[1][-1]


def test_profiles_of_the_fastest_steps_alone():
    operations = [
        {"operation": f"fusion.{i}", "kind": "fusion", "place": "layer", "seconds": 1e-3,
         "calls": 24, "share": 0.1}
        for i in range(9)
    ]  # fmt: skip
    records = [step("jax", 100, "slow"), step("jax", 300, "fast")]
    records += [
        {"part": "profile", "name": f"profile of {name}", "step": name, "status": "measured",
         "busy_seconds": 0.1, "operations": operations}
        for name in ("slow", "fast")
    ]  # fmt: skip
    text = report.table(records)
    assert "profile of fast" in text
    assert "profile of slow" not in text
    assert text.count("fusion.") == 6


def test_every_other_record_has_a_row_with_its_reason():
    records = [
        MACHINE,
        {"part": "attention", "name": "attention a", "status": "refused", "reason": "why\nnot"},
        {"part": "attention", "name": "attention b", "status": "passed", "reason": None,
         "errors": {"context": 1e-7}, "tolerance": 1e-5, "cases": 12, "dropped": {"0.1": 0.1},
         "refused": {"bias": "no bias"}},
        {"part": "embedding", "name": "embedding", "status": "passed", "reason": None,
         "error": 1e-8, "seconds": 0.002},
        {"part": "job", "name": "tests", "status": "skipped", "reason": "no time"},
    ]  # fmt: skip
    _, rows = lines(records)
    for row, texts in zip(
        rows,
        (
            ["NVIDIA H200", "790.0 TFLOP/s of 989", "jax 0.11.2"],
            ["refused", "why not"],
            ["12 cases", "1.0e-07 of 1e-05", "0.1000 at 0.1", "bias: refused, no bias"],
            ["error 1.0e-08, 2.00 ms"],
            ["skipped", "no time"],
        ),
        strict=True,
    ):
        for text in texts:
            assert text in row
    assert "torch" not in rows[0]
