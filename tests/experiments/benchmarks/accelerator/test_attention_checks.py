"""The checks of attention: they pass for what is right, and notice what is wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.accelerator import attention_checks as checks
from roberta_jax.kernels import attention

reference = attention.IMPLEMENTATIONS["reference"]


@pytest.fixture
def run(monkeypatch):
    """Checks a function as if it were an implementation; returns the record of float32."""
    monkeypatch.setattr(checks, "RATES", (0.0, 0.1))
    monkeypatch.setattr(checks, "TOLERANCES", {"float32": 1e-5})

    def run(function, name):
        checks._function.cache_clear()
        monkeypatch.setitem(attention.IMPLEMENTATIONS, name, function)
        records = []
        checks.check(records.append, attentions=[name], small=True)
        [record] = records
        return record

    return run


@pytest.mark.slow
def test_the_implementations_of_this_platform_pass():
    records = []
    names = ["xla", "pallas_tpu", "reference"]
    checks.check(records.append, attentions=names, small=True)
    status = {record["name"]: record["status"] for record in records}
    assert status == {
        "attention xla float32": "passed",
        "attention xla bfloat16": "passed",
        "attention pallas_tpu": "refused",
        "attention reference bfloat16": "passed",  # float32 is the standard
    }
    first = records[0]
    assert first["cases"] == 12
    assert max(first["errors"].values()) < 1e-6
    assert first["dropped"]["0.0"] == 0
    assert 0.05 < first["dropped"]["0.1"] < 0.15
    assert "TPU" in records[2]["reason"]


def wrong_values(q, k, v, mask, bits, rate):
    return reference(q, k, v, mask, bits, rate) * (1 + 1e-3)


def without_padding(q, k, v, mask, bits, rate):
    return reference(q, k, v, mask if isinstance(mask, np.ndarray) else None, bits, rate)


def not_finite(q, k, v, mask, bits, rate):
    return reference(q, k, v, mask, bits, rate).at[0, 0, 0, 0].set(jnp.nan)


def raising(q, k, v, mask, bits, rate):
    raise ZeroDivisionError("nothing is computed")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (wrong_values, "context: error 1.0e-03"),
        (without_padding, "(padding, rate 0.0)"),
        (not_finite, "context: not finite"),
        (raising, "ZeroDivisionError: nothing is computed"),
    ],
)
def test_what_is_wrong_fails(run, function, reason):
    record = run(function, function.__name__)
    assert record["status"] == "failed"
    assert reason in record["reason"]


def test_other_dropped_elements_fail(run):
    def other_seed(q, k, v, mask, bits, rate):
        bits = bits and bits._replace(seed=bits.seed + np.uint32(1))
        return reference(q, k, v, mask, bits, rate)

    record = run(other_seed, "other_seed")
    assert record["status"] == "failed"
    for text in ("(forward, rate 0.1)", "(backward, rate 0.1)", "gradient of v"):
        assert text in record["reason"]


def test_kept_elements_are_those_of_the_bits():
    from roberta_jax.kernels.dropout import attention_bits, attention_keep_mask

    q = np.random.default_rng(0).standard_normal((2, 24, 3, 8)).astype(np.float32)
    k = np.random.default_rng(1).standard_normal((2, 20, 3, 8)).astype(np.float32)
    bits = attention_bits(jnp.asarray(checks.SEED), q)
    expected = np.asarray(attention_keep_mask(bits, 24, 20, 0.3))
    for kept in checks.kept_elements("xla", q, k, 0.3):
        np.testing.assert_array_equal(kept, expected)
