"""The checks of the devices."""

import numpy as np
import pytest

from roberta_jax.diagnostics import devices
from roberta_jax.diagnostics.report import Level
from tests.support import processes


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(devices, "ROWS", 300)
    monkeypatch.setattr(devices, "FEATURES", 8)
    monkeypatch.setattr(devices, "IDS", 200)


@pytest.mark.usefixtures("small")
def test_a_right_gradient_is_ok():
    (result,) = devices.embedding()
    assert result.level is not Level.PROBLEM
    assert result.text.startswith("the gradient equals the reference to ")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_gradient_is_a_problem(monkeypatch, factor):
    right = devices._look_up
    monkeypatch.setattr(devices, "_look_up", lambda *arguments: right(*arguments) * factor)
    (result,) = devices.embedding()
    assert result.level is Level.PROBLEM
    assert "differs from the reference" in result.text


@pytest.mark.usefixtures("small")
def test_a_gradient_that_is_slow_on_repeated_ids_is_a_warning(monkeypatch):
    fastest = devices._fastest
    times = iter([0.001, 0.5])
    monkeypatch.setattr(devices, "_fastest", lambda *call: (next(times), fastest(*call)[1]))
    (result,) = devices.embedding()
    assert result.level is Level.WARNING
    assert result.text.endswith(
        "500.00 ms with repeated ids, 1.00 ms with distinct ones: 500 times."
    )


def reduce_over_devices():
    (result,) = devices.all_reduce()
    print(result.level.name, result.text)
    right, np.repeat = np.repeat, lambda *a, **k: right(*a, **k) + 1
    (result,) = devices.all_reduce()
    print(result.level.name, result.text)


def test_an_all_reduce_is_measured_and_its_sum_checked():
    good, bad = processes.run(__name__, "reduce_over_devices", devices=4).splitlines()
    assert good.startswith("OK 4 MiB over 4 devices in ")
    assert good.endswith(" GB/s a device")
    assert bad == "PROBLEM the sum over 4 devices is 14 instead of 10."


def test_one_device_has_nothing_to_reduce():
    assert devices.all_reduce()[0].level is Level.OK


def test_an_accelerator_that_jax_does_not_use_is_a_problem(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(devices, "_accelerators", lambda: ("TPUs", "tpu"))
    found, unused = devices.devices()
    assert found.level is Level.OK
    assert unused.text == "JAX uses the CPU, although this machine has TPUs."
    assert "pip install 'roberta_jax[tpu]'" in unused.advice
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # as the user wants it
    assert len(devices.devices()) == 1
