import itertools

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import flops
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.loop import Cadence, Diverged, evaluate, fit, make_eval_step, stream_key
from roberta_jax.training.metrics import MetricsWriter, read_metrics
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.state import abstract_state
from tests.support import toy

BATCH = 8


def values(tree):
    return jax.tree.map(np.array, tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, values(a), values(b))


def train(folder, until=10, *, data=None, cadence=None, stop=None, evaluation=None, **setting):
    """One command's worth of training in `folder`: (state, whether it was stopped)."""
    mesh, state, step = toy.setting(**setting)
    with Checkpoints(folder / "checkpoints", keep=3) as checkpoints:
        tx = toy.adamw(lambda _: 0.0)
        restored = checkpoints.restore(abstract_state(toy.init_params, tx, mesh))
        if restored:
            state = restored[0]
        with MetricsWriter(folder, step=int(state.step), steps=until) as writer:
            return fit(
                state,
                step,
                data or toy.batches(mesh, BATCH),
                steps=until,
                cadence=cadence or Cadence(log=2, checkpoint=3),
                checkpoints=checkpoints,
                writer=writer,
                tokens_per_step=BATCH * toy.TARGETS,
                evaluation=evaluation,
                should_stop=stop or (lambda: False),
            )


def after(polls):
    """A `should_stop` that says yes at the given poll."""
    counter = itertools.count(1)
    return lambda: next(counter) >= polls


# One step.


def test_loss_is_the_sum_of_global_means():
    mesh, state, step = toy.setting(rate=0.0)
    batch = toy.host_batch(0, range(BATCH))
    params = values(state.params)
    hidden = np.tanh(batch["x"] @ params["kernel"] + params["bias"])
    y = hidden @ params["out"] * params["scale"]
    squares = (((y - batch["y"]) ** 2).sum(-1) * batch["weights"]).sum() / batch["weights"].sum()
    size = 0.1 * np.abs(y).sum() / BATCH
    _, metrics = step(state, next(toy.batches(mesh, BATCH)(0)))
    assert float(metrics["loss"]) == pytest.approx(squares + size, rel=1e-5)


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_equals_one_go(accumulation):
    """The rows have very different weights, so a mean of the microbatches' means would not do."""
    whole, parts = (run_steps(*toy.setting(accumulation=a)) for a in (1, accumulation))
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), whole[0], parts[0]
    )


def run_steps(mesh, state, step, steps=4):
    data, metrics = toy.batches(mesh, BATCH)(0), []
    for _ in range(steps):
        state, found = step(state, next(data))
        metrics.append([float(found[name]) for name in ("loss", "gradient_norm")])
    return values(state.params), metrics


def test_an_objective_without_targets_adds_nothing():
    mesh, state, step = toy.setting()
    batch = dict(next(toy.batches(mesh, BATCH)(0)))
    batch["weights"] = batch["weights"] * 0
    _, metrics = step(state, batch)
    assert np.isfinite(float(metrics["loss"]))


def test_metrics_name_the_rate_of_this_update():
    mesh, state, step = toy.setting(rate=0.5, steps=10)
    data, rates = toy.batches(mesh, BATCH)(0), []
    for _ in range(4):
        state, metrics = step(state, next(data))
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.5 * 7 / 8])
    assert int(state.step) == 4


def test_dropout_differs_by_step_and_microbatch_and_by_nothing_else():
    a, b = (run_steps(*toy.setting(dropout=0.5)) for _ in range(2))
    assert_equal(a[0], b[0])
    keys = {
        bytes(np.asarray(jax.random.key_data(stream_key(seed, name, step))))
        for seed in (0, 1)
        for name in ("dropout", "other")
        for step in (0, 1)
    }
    assert len(keys) == 8
    halves = run_steps(*toy.setting(dropout=0.5, accumulation=2))
    assert not np.allclose(halves[1], a[1])


def test_deterministic_compiles_and_changes_no_bit_on_cpu():
    mesh, state, _ = toy.setting()
    schedule = toy.polynomial_schedule(1e-2, warmup_steps=2, decay_steps=10)
    step = toy.make_train_step(
        *toy.loss_and_count(), toy.adamw(schedule), schedule, mesh, seed=0, deterministic=True
    )
    assert_equal(run_steps(mesh, state, step)[0], run_steps(*toy.setting())[0])


# Evaluation.


def test_evaluation_is_one_sum_over_one_count():
    mesh, state, _ = toy.setting(dropout=0.5)
    eval_step = make_eval_step(*toy.loss_and_count(0.5), mesh)
    data = toy.batches(mesh, BATCH)
    parts = evaluate(eval_step, state.params, itertools.islice(data(0), 3), lambda: False)
    whole = {
        name: np.concatenate([np.asarray(batch[name]) for batch in itertools.islice(data(0), 3)])
        for name in ("x", "y", "weights")
    }
    sums, counts = eval_step(state.params, whole)
    expected = {name: float(sums[name] / counts[name]) for name in sums}
    assert parts == pytest.approx(expected, rel=1e-5)
    assert evaluate(eval_step, state.params, data(0), after(2)) is None


# The loop.


def test_interrupted_equals_straight_bit_by_bit(tmp_path):
    setting = {"dropout": 0.3, "accumulation": 2}
    straight, stopped = train(tmp_path / "straight", **setting)
    assert not stopped
    for polls in (1, 4, 3, 1):  # stopped after step 1, 5, 8, 9
        _, stopped = train(tmp_path / "pieces", stop=after(polls), **setting)
        assert stopped
    pieces, stopped = train(tmp_path / "pieces", **setting)
    assert not stopped
    assert_equal(straight, pieces)
    steps = [record["step"] for record in read_metrics(tmp_path / "pieces")]
    assert steps == [2, 4, 6, 8, 10]
    rates = [
        [r["learning_rate"] for r in read_metrics(tmp_path / name)]
        for name in ("straight", "pieces")
    ]
    assert rates[0] == rates[1]


def test_steps_are_saved_at_the_cadence_and_at_the_end(tmp_path):
    train(tmp_path, 10)
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        assert checkpoints.steps() == [6, 9, 10]


def test_a_longer_run_goes_on_and_a_finished_one_does_nothing(tmp_path):
    first, _ = train(tmp_path, 4)
    again, stopped = train(tmp_path, 4)
    assert not stopped
    assert_equal(first, again)
    longer, _ = train(tmp_path, 10)
    straight, _ = train(tmp_path / "straight", 10)
    assert_equal(longer, straight)


def test_records(tmp_path):
    train(tmp_path, 5, cadence=Cadence(log=2, evaluate=2), evaluation=lambda _: {"eval_loss": 1.0})
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [2, 2, 4, 4, 5]
    assert [sorted(r) for r in records if "eval_loss" in r] == [["eval_loss", "step"]] * 2
    logged = [r for r in records if "loss" in r]
    assert all({"step", "loss", "gradient_norm", "learning_rate"} <= set(r) for r in logged)
    assert "tokens_per_second" in logged[1]
    # The mean over the two steps, not the last one's loss.
    single, _ = tmp_path / "single", train(tmp_path / "single", 5, cadence=Cadence(log=1))
    losses = [r["loss"] for r in read_metrics(single)]
    assert logged[1]["loss"] == pytest.approx((losses[2] + losses[3]) / 2)


def test_mfu_where_the_peak_is_known(tmp_path, monkeypatch):
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


def spoiled(mesh, at, value):
    """The toy's data with one number spoiled from step `at` on (the first step is 0)."""

    def from_step(step):
        for batch in toy.batches(mesh, BATCH)(step):
            if step >= at:
                batch = {**batch, "y": batch["y"].at[0, 0, 0].set(value)}
            yield batch
            step += 1

    return from_step


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("at", [3, 5, 6])
def test_a_loss_that_is_no_number_stops_and_is_never_saved(tmp_path, at, value):
    mesh = create_mesh()
    with pytest.raises(Diverged, match=rf"step {at + 1} the (loss|gradient norm)") as told:
        train(tmp_path, data=spoiled(mesh, at, value), mesh=mesh)
    last = at // 3 * 3
    assert f"The checkpoint of step {last} is from before it" in str(told.value)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == last
    assert all(np.isfinite(record["loss"]) for record in read_metrics(tmp_path))
    healthy, _ = train(tmp_path)  # goes on from the good one
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values(healthy.params)))


def test_stopped_in_an_evaluation_the_step_is_saved(tmp_path):
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
