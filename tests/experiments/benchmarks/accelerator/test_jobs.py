"""The order of the measurements, and what is measured at all."""

import dataclasses
import json

import pytest

from experiments.benchmarks.accelerator import jobs
from roberta_jax.errors import UsageError

CHOICES = jobs.Choices(
    models=["base", "large"],
    lengths=[128, 512],
    attentions=None,
    remats=None,
    tokens=[16384, 1024],
    unrolls=[1, -1],
    rounds=3,
    steps=None,
    backend="inductor",
    small=False,
    width=8192,
    parts=["exactness", "jax", "torch", "tests"],
)
MACHINE = {
    "platform": "gpu",
    "memory_bytes": 130 * 2**30,
    "attentions": {"xla": None, "reference": None, "fast_tpu": "tpu", "fast_gpu": "gpu"},
}


def titles(choices=CHOICES, machine=MACHINE, failed=frozenset()):
    return [job.title for job in jobs.measuring_jobs(choices, machine, set(failed))]


def test_the_most_important_come_first():
    assert titles()[:9] == [
        "whole model fast_gpu",
        "same bits fast_gpu",
        "large 512 jax fast_gpu/none",
        "base 512 jax fast_gpu/none",
        "large 512 torch masked_only",
        "base 512 torch masked_only",
        "large 512 jax fast_gpu/none/unrolled",
        "base 512 jax fast_gpu/none/unrolled",
        "tests marked accelerator",
    ]


def test_everything_is_measured_once():
    found = titles()
    assert len(set(found)) == len(found)
    steps = {title for title in found if " jax " in title}
    assert steps == {
        f"{model} {length} jax {attention}/{remat}"
        for model in ("base", "large")
        for length in (128, 512)
        for attention in ("fast_gpu", "xla", "reference")
        for remat in ("none", "dots", "full")
    } | {f"{model} 512 jax fast_gpu/none/unrolled" for model in ("base", "large")}
    assert sum(" torch " in title for title in found) == 8
    assert sum(title.startswith("same bits") for title in found) == 3


def test_another_implementation_comes_before_another_remat():
    found = titles()
    assert found.index("large 512 jax xla/none") < found.index("large 512 jax fast_gpu/dots")


def test_an_implementation_that_failed_is_measured_last():
    assert titles(failed={"fast_gpu"})[2] == "large 512 jax xla/none"
    assert "large 512 jax fast_gpu/none" in titles(failed={"fast_gpu"})


def test_little_memory_stores_less():
    small = MACHINE | {"platform": "tpu", "memory_bytes": 15 * 2**30}
    assert titles(machine=small)[2] == "large 512 jax fast_tpu/dots"


def test_parts_and_choices():
    choices = dataclasses.replace(
        CHOICES, parts=["jax"], attentions=["xla"], remats=["full"], unrolls=[1]
    )
    assert titles(choices) == [
        "large 512 jax xla/full",
        "base 512 jax xla/full",
        "large 128 jax xla/full",
        "base 128 jax xla/full",
    ]
    assert jobs.exactness_jobs(choices, MACHINE) == []


def test_other_unrollings_are_those_of_the_fastest_step():
    choices = dataclasses.replace(CHOICES, unrolls=[-1, 4])
    steps = [title for title in titles(choices) if " jax " in title]
    assert [title for title in steps if not title.endswith("/unrolled")] == [
        "large 512 jax fast_gpu/none/unroll 4",
        "base 512 jax fast_gpu/none/unroll 4",
    ]


def test_an_attention_of_another_platform_is_an_error():
    choices = dataclasses.replace(CHOICES, attentions=["fast_tpu"])
    with pytest.raises(UsageError, match="fast_tpu: none of these runs on a gpu.*fast_gpu, xla"):
        titles(choices)


def test_all_implementations_are_checked_also_those_of_other_platforms():
    attention, *_ = jobs.exactness_jobs(CHOICES, MACHINE)
    assert json.loads(attention.command[-1])["attentions"] == list(MACHINE["attentions"])


def test_the_arguments_of_a_step():
    job = next(job for job in jobs.measuring_jobs(CHOICES, MACHINE, set()) if job.kind == "jax")
    arguments = json.loads(job.command[-1])
    assert arguments["rows"] == [32, 2]
    assert arguments["trace"]
    assert arguments["name"] == job.title


def test_marked_tests_are_found():
    names = {path.name for path in jobs.marked_files()}
    assert "test_dropout.py" in names
    job = jobs.tests_job()
    assert job.env["JAX_PLATFORMS"] == ""
    assert any(part.endswith("test_dropout.py") for part in job.command)


def test_without_pytest_the_tests_are_refused(monkeypatch):
    monkeypatch.setattr(jobs.importlib.util, "find_spec", lambda name: None)
    assert jobs.tests_job().refusal == "pytest is not installed"


@pytest.mark.parametrize(("code", "status"), [(0, "passed"), (1, "failed")])
def test_the_record_of_the_tests(code, status):
    job = jobs.tests_job()
    record = job.summarize(code, ["....", "FAILED tests/a.py::b - no", "1 failed"])
    assert record["status"] == status
    assert record["reason"] == "FAILED tests/a.py::b - no; 1 failed"
