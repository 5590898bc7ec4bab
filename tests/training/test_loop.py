"""Training and evaluation steps, and the training loop, on the toy model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import flops
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.divergence import Diverged
from roberta_jax.training.loop import Cadence, evaluate, fit
from roberta_jax.training.metrics import MetricsWriter, read_metrics
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.state import abstract_state, create_state
from roberta_jax.training.steps import make_eval_step, stream_key
from tests.support import toy

BATCH = 8


def values(tree):
    return jax.tree.map(np.array, tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, values(a), values(b))


def train(folder, steps=10, *, data=None, cadence=None, stop=None, evaluation=None, **setting):
    """Trains up to a step, from the newest checkpoint: (state, whether it was stopped)."""
    mesh, state, step = toy.setting(**setting)
    with Checkpoints(folder / "checkpoints", keep=3) as checkpoints:
        tx = toy.adamw(lambda _: 0.0)
        restored = checkpoints.restore(abstract_state(toy.init_params, tx, mesh))
        if restored:
            state = restored[0]
        with MetricsWriter(folder, step=int(state.step), steps=steps) as writer:
            return fit(
                state,
                step,
                data or toy.batches(mesh, BATCH),
                steps=steps,
                cadence=cadence or Cadence(log=2, checkpoint=3),
                checkpoints=checkpoints,
                writer=writer,
                tokens_per_step=BATCH * toy.TARGETS,
                evaluation=evaluation,
                should_stop=stop or (lambda: False),
            )


def at_call(number):
    """Returns a `should_stop` that returns True from the given call on."""
    counter = itertools.count(1)
    return lambda: next(counter) >= number


# Training steps.


def test_loss_is_the_sum_of_global_means():
    mesh, state, step = toy.setting(rate=0.0)
    batch = toy.host_batch(0, range(BATCH))
    params = values(state.params)
    hidden = np.tanh(batch["x"] @ params["kernel"] + params["bias"])
    y = hidden @ params["out"] * params["scale"]
    errors = ((y - batch["y"]) ** 2).sum(-1)
    squares = (errors * batch["weights"]).sum() / batch["weights"].sum()
    size = 0.1 * np.abs(y).sum() / BATCH
    _, metrics = step(state, next(toy.batches(mesh, BATCH)(0)))
    assert float(metrics["loss"]) == pytest.approx(squares + size, rel=1e-5)


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_equals_one_batch(accumulation):
    """The rows have very different weights, so the mean over microbatches is not their batch's."""
    expected_params, expected_metrics = run_steps(*toy.setting())
    params, metrics = run_steps(*toy.setting(accumulation=accumulation))
    np.testing.assert_allclose(expected_metrics, metrics, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), expected_params, params
    )


def run_steps(mesh, state, step, steps=4):
    """Returns the parameters after some steps, and [loss, gradient norm] of each step."""
    data, records = toy.batches(mesh, BATCH)(0), []
    for _ in range(steps):
        state, metrics = step(state, next(data))
        records.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
    return values(state.params), records


def test_an_objective_without_targets_adds_no_loss():
    mesh, state, step = toy.setting()
    batch = dict(next(toy.batches(mesh, BATCH)(0)))
    batch["weights"] = batch["weights"] * 0
    _, metrics = step(state, batch)
    assert np.isfinite(float(metrics["loss"]))


def test_the_recorded_learning_rate_is_that_of_the_update():
    mesh, state, step = toy.setting(rate=0.5, steps=10)
    data, rates = toy.batches(mesh, BATCH)(0), []
    for _ in range(4):
        state, metrics = step(state, next(data))
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.5 * 7 / 8])
    assert int(state.step) == 4


def test_dropout_depends_on_the_seed_the_step_and_the_microbatch_alone():
    first, second = (run_steps(*toy.setting(dropout=0.5)) for _ in range(2))
    assert_equal(first[0], second[0])
    keys = {
        bytes(np.asarray(jax.random.key_data(stream_key(seed, name, step))))
        for seed in (0, 1)
        for name in ("dropout", "other")
        for step in (0, 1)
    }
    assert len(keys) == 8
    halves = run_steps(*toy.setting(dropout=0.5, accumulation=2))
    assert not np.allclose(halves[1], first[1])


def test_deterministic_kernels_change_no_bit_on_cpu():
    mesh, state, _ = toy.setting()
    schedule = toy.polynomial_schedule(1e-2, warmup_steps=2, decay_steps=10)
    step = toy.make_train_step(
        toy.Toy(), toy.adamw(schedule), schedule, mesh, seed=0, deterministic=True
    )
    assert_equal(run_steps(mesh, state, step)[0], run_steps(*toy.setting())[0])


# Evaluation.


def test_evaluation_divides_the_sum_over_all_batches_by_their_count():
    mesh, state, _ = toy.setting(dropout=0.5)
    eval_step = make_eval_step(toy.Toy(0.5), mesh)
    data = toy.batches(mesh, BATCH)
    means = evaluate(eval_step, state.params, itertools.islice(data(0), 3), lambda: False)
    all_rows = {
        name: np.concatenate([np.asarray(batch[name]) for batch in itertools.islice(data(0), 3)])
        for name in ("x", "y", "weights")
    }
    sums, counts = eval_step(state.params, all_rows)
    expected = {name: float(sums[name] / counts[name]) for name in sums}
    assert means == pytest.approx(expected, rel=1e-5)
    assert evaluate(eval_step, state.params, data(0), at_call(2)) is None


# The loop.


def test_an_interrupted_run_equals_an_uninterrupted_one_bit_by_bit(tmp_path):
    setting = {"dropout": 0.3, "accumulation": 2}
    expected, stopped = train(tmp_path / "uninterrupted", **setting)
    assert not stopped
    for call in (1, 4, 3, 1):  # stopped after step 1, 5, 8, 9
        _, stopped = train(tmp_path / "parts", stop=at_call(call), **setting)
        assert stopped
    state, stopped = train(tmp_path / "parts", **setting)
    assert not stopped
    assert_equal(expected, state)
    steps = [record["step"] for record in read_metrics(tmp_path / "parts")]
    assert steps == [2, 4, 6, 8, 10]
    rates = [
        [r["learning_rate"] for r in read_metrics(tmp_path / name)]
        for name in ("uninterrupted", "parts")
    ]
    assert rates[0] == rates[1]


def test_checkpoints_are_saved_at_the_cadence_and_at_the_end(tmp_path):
    train(tmp_path, 10)
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        assert checkpoints.steps() == [6, 9, 10]


def test_a_longer_run_continues_and_a_finished_one_makes_no_step(tmp_path):
    first, _ = train(tmp_path, 4)
    again, stopped = train(tmp_path, 4)
    assert not stopped
    assert_equal(first, again)
    longer, _ = train(tmp_path, 10)
    uninterrupted, _ = train(tmp_path / "uninterrupted", 10)
    assert_equal(longer, uninterrupted)


def test_records(tmp_path):
    train(tmp_path, 5, cadence=Cadence(log=2, evaluate=2), evaluation=lambda _: {"eval_loss": 1.0})
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [2, 2, 4, 4, 5]
    assert [sorted(r) for r in records if "eval_loss" in r] == [["eval_loss", "step"]] * 2
    logged = [r for r in records if "loss" in r]
    assert all({"step", "loss", "gradient_norm", "learning_rate"} <= set(r) for r in logged)
    assert "tokens_per_second" in logged[1]
    # The logged loss is the mean over the steps since the last record.
    train(tmp_path / "every_step", 5, cadence=Cadence(log=1))
    losses = [r["loss"] for r in read_metrics(tmp_path / "every_step")]
    assert logged[1]["loss"] == pytest.approx((losses[2] + losses[3]) / 2)


def test_mfu_is_recorded_if_the_peak_of_the_device_is_known(tmp_path, monkeypatch):
    def records(folder):
        mesh, state, step = toy.setting()
        with (
            Checkpoints(folder / "c") as checkpoints,
            MetricsWriter(folder, step=0, steps=6) as writer,
        ):
            fit(
                state, step, toy.batches(mesh, BATCH), steps=6, cadence=Cadence(log=3),
                checkpoints=checkpoints, writer=writer, tokens_per_step=40, flops_per_step=1e6,
            )  # fmt: skip
        return read_metrics(folder)

    assert all("mfu" not in record for record in records(tmp_path / "unknown"))
    monkeypatch.setitem(flops.PEAK_FLOPS, jax.devices()[0].device_kind, 1e9)
    last = records(tmp_path / "known")[-1]
    assert last["mfu"] == pytest.approx(1e6 * last["tokens_per_second"] / 40 / 1e9)


def with_wrong_number(mesh, at, value):
    """The toy's batches with one number replaced by `value` from step `at` on, counted from 0."""

    def from_step(step):
        for batch in toy.batches(mesh, BATCH)(step):
            if step >= at:
                batch = {**batch, "y": batch["y"].at[0, 0, 0].set(value)}
            yield batch
            step += 1

    return from_step


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("at", [3, 5, 6])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, at, value):
    mesh = create_mesh()
    with pytest.raises(Diverged, match=rf"step {at + 1} the (loss|gradient norm)") as error:
        train(tmp_path, data=with_wrong_number(mesh, at, value), mesh=mesh)
    last = at // 3 * 3
    assert f"The checkpoint of step {last} was written before and is intact" in str(error.value)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == last
    assert all(np.isfinite(record["loss"]) for record in read_metrics(tmp_path))
    state, _ = train(tmp_path)  # continues from the checkpoint, with the right data
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values(state.params)))


def wrong_rate(at, rate):
    """The toy's setting with another learning rate for the update after `at` updates."""
    mesh = create_mesh()
    schedule = lambda step: jnp.where(step == at, rate, 1e-3)  # noqa: E731
    tx = toy.adamw(schedule)
    state = create_state(toy.init_params, tx, mesh)
    return mesh, state, toy.make_train_step(toy.Toy(), tx, schedule, mesh, seed=0)


@pytest.mark.parametrize("rate", [np.nan, np.inf, 1e37, 1e9])
@pytest.mark.parametrize("at", [2, 3])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch, at, rate):
    """The loss and the gradient of a step are those before its update, which is what is wrong."""
    monkeypatch.setattr(toy, "setting", lambda: wrong_rate(at, rate))
    with pytest.raises(Diverged, match=rf"step {at + 1} the update left .* params/bias") as error:
        train(tmp_path, at + 1, cadence=Cadence(log=1, checkpoint=at))
    assert f"The checkpoint of step {at} was written before and is intact" in str(error.value)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [at]


def test_a_large_learning_rate_alone_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "setting", lambda: wrong_rate(3, 1e3))
    train(tmp_path, 4)


@pytest.mark.parametrize("result", [np.nan, np.inf])
def test_an_evaluation_that_is_not_finite_is_an_error_and_not_recorded(tmp_path, result):
    cadence = Cadence(log=1, evaluate=4, checkpoint=3)
    with pytest.raises(
        Diverged, match=r"step 4 the evaluation is not finite \(eval_loss "
    ) as error:
        train(tmp_path, cadence=cadence, evaluation=lambda _: {"eval_loss": result, "share": 0.5})
    assert "The checkpoint of step 3 was written before" in str(error.value)
    assert not any("eval_loss" in record for record in read_metrics(tmp_path))


def test_a_stop_during_an_evaluation_saves_the_step(tmp_path):
    state, stopped = train(tmp_path, cadence=Cadence(log=2, evaluate=4), evaluation=lambda _: None)
    assert stopped
    assert int(state.step) == 4
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [4]


def test_bad_cadence():
    with pytest.raises(UsageError, match="log_every=0"):
        Cadence(log=0)
    with pytest.raises(UsageError, match="checkpoint_every=-1"):
        Cadence(checkpoint=-1)
