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


@pytest.mark.usefixtures("small")
def test_a_microbatch_that_is_lost_is_a_problem(monkeypatch):
    scan = devices.jax.lax.scan
    lost = lambda body, total, xs: scan(body, total, tuple(x[1:] for x in xs))  # noqa: E731
    monkeypatch.setattr(devices.jax.lax, "scan", lost)
    (result,) = devices.embedding()
    assert result.level is Level.PROBLEM
    assert "added up over 2 microbatches on 1 device, differs from the reference" in result.text


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("scattered", [1e-3, float("nan")])
def test_what_training_does_not_use_is_a_warning(monkeypatch, scattered):
    right = devices._accumulated_differences
    monkeypatch.setattr(
        devices, "_accumulated_differences", lambda *arrays: (right(*arrays)[0], scattered)
    )
    first, second = devices.embedding()
    assert first.text.startswith("the gradient equals the reference to ")
    assert second.level is Level.WARNING
    assert second.text.startswith("`sum.at[ids].add(gradient)` within jax.lax.scan")


def add_up_over_devices():
    devices.ROWS, devices.FEATURES, devices.IDS = 300, 8, 200
    (result,) = devices.embedding()
    print(result.level.name, result.text)


def test_gradients_are_added_up_over_all_devices():
    # 200 ids are no multiple of 3.
    text = processes.run(__name__, "add_up_over_devices", devices=3)
    assert "OK the gradient equals the reference to " in text
    assert ", added up over 2 microbatches on 3 devices to " in text


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
