import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training.schedules import SCHEDULES, make_schedule, polynomial_schedule

NAN, INF = float("nan"), float("inf")


def rates(schedule, steps):
    return np.array([float(schedule(n)) for n in range(steps)])


def test_polynomial_decay_matches_fairseqs():
    """fairseq's polynomial_decay, called with 0 before training and then after each update."""
    schedule = make_schedule("polynomial", 1.0, warmup_steps=4, decay_steps=12, end=0.2)
    expected = [0, 0.25, 0.5, 0.75, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(rates(schedule, 15), expected, rtol=1e-6)
    quadratic = make_schedule("polynomial", 1.0, warmup_steps=0, decay_steps=4, power=2.0)
    np.testing.assert_allclose(rates(quadratic, 6), [1, 9 / 16, 1 / 4, 1 / 16, 0, 0])


def test_polynomial_decay_has_its_golden_bits():
    """The float32 bits of the first version: a resumed run must see the same rates."""
    schedule = polynomial_schedule(6e-4, warmup_steps=24_000, decay_steps=500_000, end=1e-5)
    bits = np.asarray([schedule(n) for n in (1, 23_999, 24_001, 262_000, 499_999)], np.float32)
    assert bits.view(np.uint32).tolist() == [
        852934550,
        974997413,
        974997821,
        966781032,
        925354741,
    ]


def test_the_papers_schedule():
    schedule = make_schedule("polynomial", 6e-4, warmup_steps=24_000, decay_steps=500_000)
    assert float(schedule(24_000)) == pytest.approx(6e-4)
    assert float(schedule(12_000)) == pytest.approx(3e-4)
    assert float(schedule(262_000)) == pytest.approx(3e-4)
    assert float(schedule(500_000)) == 0


def test_cosine_decay():
    schedule = make_schedule("cosine", 1.0, warmup_steps=4, decay_steps=12, end=0.2)
    expected = 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(9) / 8)) / 2
    np.testing.assert_allclose(rates(schedule, 13), [0, 0.25, 0.5, 0.75, *expected], rtol=1e-6)
    np.testing.assert_allclose([float(schedule(n)) for n in (12, 13, 10**6)], 0.2, rtol=1e-6)


def test_constant_rate_after_the_warmup():
    schedule = make_schedule("constant", 0.5, warmup_steps=4, decay_steps=12)
    expected = [0, 0.125, 0.25, 0.375, *[0.5] * 11]
    np.testing.assert_array_equal(rates(schedule, 15), np.float32(expected))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_at_its_peak_without_warmup(name):
    schedule = make_schedule(name, 0.25, warmup_steps=0, decay_steps=8)
    assert float(schedule(0)) == 0.25
    jitted = jax.jit(schedule)(jnp.int32(3))
    assert (jitted.shape, jitted.dtype) == ((), jnp.float32)
    assert np.isfinite(rates(schedule, 12)).all()


def test_an_added_schedule_is_used_with_its_own_options(monkeypatch):
    def inverse_root(peak, *, warmup_steps, decay_steps, end, timescale=4.0):
        return lambda n: peak * (1 + n / timescale) ** -0.5

    monkeypatch.setitem(SCHEDULES, "inverse_root", inverse_root)
    common = {"warmup_steps": 0, "decay_steps": 8}
    assert make_schedule("inverse_root", 1.0, **common, power=None)(12) == 0.5
    assert make_schedule("inverse_root", 1.0, **common, timescale=1.0)(3) == 0.5
    with pytest.raises(UsageError, match="schedule.timescale=2 .* an option of inverse_root"):
        make_schedule("cosine", 1.0, **common, timescale=2)
    make_schedule("cosine", 1.0, **common, timescale=None)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_steps": -1}, "--config.schedule.warmup_steps=-1 must be at least 0"),
        ({"warmup_steps": 9}, "--config.schedule.warmup_steps=9 must be .* less than 9"),
        ({"warmup_steps": 0.5}, "--config.schedule.warmup_steps=0.5 must be a whole number"),
        ({"decay_steps": "nine"}, "--config.schedule.decay_steps=nine must be a finite number"),
        ({"peak": 1e39}, "learning_rate=1e[+]39 must be a finite number"),
        ({"decay_steps": 0, "warmup_steps": 0}, "--config.schedule.decay_steps"),
        ({"peak": INF}, "--config.optimizer.learning_rate=inf must be a finite number"),
        ({"peak": NAN}, "--config.optimizer.learning_rate=nan"),
        ({"peak": -1.0}, "--config.optimizer.learning_rate=-1.0"),
        ({"end": 2.0}, "--config.schedule.end_learning_rate=2.0"),
        ({"end": -0.1}, "--config.schedule.end_learning_rate=-0.1"),
        ({"end": NAN}, "--config.schedule.end_learning_rate=nan must be a finite number"),
    ],
)
def test_values_out_of_range(name, values, message):
    arguments = {"peak": 1.0, "warmup_steps": 2, "decay_steps": 9, "end": 0.0} | values
    with pytest.raises(UsageError, match=message):
        make_schedule(name, arguments.pop("peak"), **arguments)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {}, "--config.schedule.name='linear' is unknown: use .* polynomial, cosine"),
        ("polynomial", {"power": NAN}, "--config.schedule.power=nan must be a finite number"),
        ("polynomial", {"power": 0.0}, "--config.schedule.power=0.0 must be positive"),
        ("cosine", {"power": 2.0}, r"schedule.power=2.0 .* \(it is an option of polynomial\)"),
        ("constant", {"end": 0.1}, "--config.schedule.end_learning_rate=0.1 has no effect"),
    ],
)
def test_a_wrong_name_or_option(name, options, message):
    with pytest.raises(UsageError, match=message):
        make_schedule(name, 1.0, warmup_steps=0, decay_steps=9, **options)
