"""The checks of steps, of embeddings and of the whole model notice what is wrong."""

import jax
import numpy as np
import pytest

from experiments.benchmarks.accelerator import jax_step, model_checks, step_checks
from roberta_jax.kernels import attention


def records_of(check, **arguments):
    records = []
    check(records.append, small=True, **arguments)
    return records


def test_embeddings_pass():
    records = records_of(step_checks.check_embeddings)
    assert [record["status"] for record in records] == ["passed"] * 4
    assert all(record["error"] <= 1e-6 for record in records)


@pytest.mark.parametrize("wrong", ["lost token", "rounded"])
def test_wrong_gradients_of_embeddings_fail(monkeypatch, wrong):
    lookup = step_checks.lookup

    def other(table, ids, padding, dtype):
        if wrong == "lost token":
            return lookup(table, ids.at[5].set(0), padding, dtype)
        return lookup(table.astype(np.float16), ids, padding, dtype)

    monkeypatch.setattr(step_checks, "lookup", other)
    records = records_of(step_checks.check_embeddings)
    assert {record["status"] for record in records if "float32" in record["name"]} == {"failed"}


@pytest.mark.slow
def test_steps_repeat_and_notice_when_they_do_not(monkeypatch):
    [record] = records_of(step_checks.check_bits, attention="xla")
    assert (record["status"], record["reason"]) == ("passed", None)
    assert record["arrays"] > 50

    new_state = jax_step.TrainingStep.new_state
    states = []

    def other_state(step):
        states.append(new_state(step))
        bias = states[-1].params["lm_head"]["bias"]
        states[-1].params["lm_head"]["bias"] = bias + len(states) * 1e-3
        return states[-1]

    monkeypatch.setattr(jax_step.TrainingStep, "new_state", other_state)
    [record] = records_of(step_checks.check_bits, attention="xla")
    assert record["status"] == "failed"
    assert "run again" in record["reason"]
    assert "lm_head" in record["reason"]


@pytest.mark.slow
def test_the_whole_model_is_compared_with_the_cpu(monkeypatch):
    [record] = records_of(model_checks.check, attention="xla")
    assert record["status"] == "passed"
    assert record["error_of_gradients"] < 1e-5

    xla = attention.IMPLEMENTATIONS["xla"]

    def without_dropout(q, k, v, mask, bits, rate):
        return xla(q, k, v, mask, None, 0.0)

    monkeypatch.setitem(attention.IMPLEMENTATIONS, "xla", without_dropout)
    jax.clear_caches()
    [record] = records_of(model_checks.check, attention="xla")
    assert record["status"] == "failed"


def test_without_a_cpu_the_comparison_is_refused(monkeypatch):
    def devices(platform=None):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "devices", devices)
    [record] = records_of(model_checks.check, attention="xla")
    assert record["status"] == "refused"
    assert "Unknown backend cpu" in record["reason"]
