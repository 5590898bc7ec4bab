"""Losses that jump: when they are noticed, and that going back and skipping is exact."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import loop
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.divergence import Diverged
from roberta_jax.training.metrics import MetricsWriter, read_metrics
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.spikes import LossSpike, SpikePolicy, SpikeWatch
from roberta_jax.training.state import abstract_state, create_state
from tests.support import toy

BATCH, STEPS, EVERY = 8, 16, 4
SKIP = SpikePolicy("skip", window=3, deviations=6.0, min_increase=2.0, skip_batches=2)


def check(watch, losses):
    for step, loss in enumerate(losses, start=1):
        watch.check(step, {"loss": loss, "gradient_norm": 1.0})


# When a loss is a spike.


@pytest.mark.parametrize(
    ("policy", "loss", "is_spike"),
    [
        # The median of the losses is 3.0, and their median absolute deviation 0.1.
        (SpikePolicy("skip", 5, deviations=6.0, min_increase=0.5), 3.85, False),
        (SpikePolicy("skip", 5, deviations=6.0, min_increase=0.5), 3.95, True),
        (SpikePolicy("stop", 5, deviations=6.0, min_increase=0.5), 3.95, True),
        (SpikePolicy("skip", 5, deviations=6.0, min_increase=1.0), 3.95, False),
        (SpikePolicy("skip", 5, deviations=0.0, min_increase=0.25), 3.3, True),
        (SpikePolicy("skip", 6, deviations=0.0, min_increase=0.25), 30.0, False),  # too few losses
        (SpikePolicy("none", 5, deviations=0.0, min_increase=0.25), 30.0, False),
        (SpikePolicy("skip", 6), math.nan, True),
        (SpikePolicy("stop", 6), math.nan, False),  # left to the check of finite losses
    ],
)
def test_when_a_loss_is_a_spike(policy, loss, is_spike):
    watch = SpikeWatch(policy, {})
    check(watch, [3.0, 2.9, 3.1, 2.7, 3.1])
    values = {"loss": loss, "gradient_norm": 1.0}
    if is_spike:
        with pytest.raises(LossSpike) as error:
            watch.check(6, values)
        assert error.value.step == 6
    else:
        watch.check(6, values)


def test_only_the_last_losses_count_and_they_are_saved():
    policy = SpikePolicy("skip", 3, deviations=0.0, min_increase=1.0)
    watch = SpikeWatch(policy, {})
    check(watch, [9.0, 9.0, 9.0, 9.0, 5.0])
    again = SpikeWatch(policy, watch.saved())
    check(again, [8.0])  # the median is still 9
    for each in (watch, again):
        with pytest.raises(LossSpike, match="from a median of 5 over the last 3 steps"):
            check(each, [5.0, 5.0, 5.0, 8.0])


def test_an_unknown_policy_is_refused():
    with pytest.raises(UsageError, match=r"--config\.spikes\.policy=jump is not one of none, stop"):
        SpikePolicy("jump")


# Training.


def train(folder, *, spikes=None, data=None, setting=None, stop=None, steps=STEPS):
    """Trains from the newest checkpoint, as `run` does: (state, whether it was stopped)."""
    mesh, state, step = setting or toy.setting(steps=STEPS)
    with Checkpoints(folder / "checkpoints", keep=3) as checkpoints:
        like = abstract_state(toy.init_params, toy.adamw(lambda _: 0.0), mesh)
        restored = checkpoints.restore(like)
        saved = {}
        if restored:
            state, saved = restored
        with MetricsWriter(
            folder, step=int(state.step), steps=steps, records=saved.get(loop.RECORDS, 0)
        ) as writer:
            return loop.fit(
                state,
                step,
                data or toy.batches(mesh, BATCH),
                steps=steps,
                cadence=loop.Cadence(log=3, checkpoint=EVERY),
                checkpoints=checkpoints,
                writer=writer,
                tokens_per_step=BATCH,
                should_stop=stop or (lambda: False),
                losses=saved.get(loop.LOSSES, ()),
                spikes=spikes,
                spikes_before=saved.get(loop.SPIKES),
            )


def with_broken_labels(*positions, value=30.0):
    """The toy's batches, with other labels at some positions."""

    def from_position(position):
        for number, batch in zip(
            itertools.count(position), toy.batches(create_mesh(), BATCH)(position), strict=False
        ):
            broken = number in positions
            yield {**batch, "y": batch["y"] + value} if broken else batch

    return from_position


def without(first, number):
    """The toy's batches without `number` of them from position `first` on."""

    def from_position(position):
        later = toy.batches(create_mesh(), BATCH)(position + number)
        if position >= first:
            yield from later
        yield from itertools.islice(toy.batches(create_mesh(), BATCH)(position), first - position)
        yield from toy.batches(create_mesh(), BATCH)(first + number)

    return from_position


def records(folder, of_spikes=True):
    return [
        {name: value for name, value in record.items() if name != "tokens_per_second"}
        for record in read_metrics(folder)
        if of_spikes or "spike_step" not in record
    ]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.mark.parametrize("value", [30.0, np.nan])
@pytest.mark.parametrize("position", [EVERY + 1, EVERY + 3, 2 * EVERY])
def test_a_spike_is_skipped_exactly(tmp_path, position, value, capsys):
    """The run equals one that never saw the skipped batches."""
    data = with_broken_labels(position, value=value)
    state, stopped = train(tmp_path / "spike", spikes=SKIP, data=data)
    assert not stopped
    before = position // EVERY * EVERY  # the checkpoint that it goes back to
    skipped = position + 1 - before + SKIP.skip_batches
    straight, _ = train(tmp_path / "straight", data=without(before, skipped))
    assert_equal(state, straight)
    assert records(tmp_path / "spike", of_spikes=False) == records(tmp_path / "straight")
    (record,) = [each for each in records(tmp_path / "spike") if "spike_step" in each]
    assert record["step"] == before + 1
    assert record["spike_step"] == position + 1
    assert record["skipped_batches"] == skipped
    assert record["rewinds"] == 1
    assert ("spike_loss" in record) == math.isfinite(value)
    printed = capsys.readouterr().out
    assert (
        f"Going back to the checkpoint of step {before} and skipping {skipped} batches" in printed
    )


@pytest.mark.parametrize("calls", range(1, 22))
def test_a_run_that_skips_can_be_stopped_anywhere(tmp_path_factory, tmp_path, calls):
    data = with_broken_labels(6, 12)
    folder = tmp_path_factory.getbasetemp() / "uninterrupted"
    if not folder.exists():
        train(folder, spikes=SKIP, data=data)
    expected, _ = train(folder, spikes=SKIP, data=data)  # restores the last checkpoint
    polls = itertools.count(1)
    train(tmp_path, spikes=SKIP, data=data, stop=lambda: next(polls) >= calls)
    state, _ = train(tmp_path, spikes=SKIP, data=data)
    assert_equal(state, expected)
    assert int(state.step) == STEPS
    assert len([each for each in records(folder) if "spike_step" in each]) == 2


def test_without_a_policy_a_spike_changes_nothing(tmp_path):
    data = with_broken_labels(6)
    state, _ = train(tmp_path / "default", data=data)
    assert_equal(state, train(tmp_path / "none", spikes=SpikePolicy("none"), data=data)[0])
    with Checkpoints(tmp_path / "default" / "checkpoints") as checkpoints:
        mesh = create_mesh()
        like = abstract_state(toy.init_params, toy.adamw(lambda _: 0.0), mesh)
        assert checkpoints.restore(like)[1][loop.SPIKES] == {}


def test_what_was_skipped_stays_skipped_without_the_policy(tmp_path):
    data = with_broken_labels(6)
    expected, _ = train(tmp_path / "all", spikes=SKIP, data=data)
    polls = itertools.count(1)
    train(tmp_path / "part", spikes=SKIP, data=data, stop=lambda: next(polls) >= 12)
    state, _ = train(tmp_path / "part", data=data)
    assert_equal(state, expected)


def test_stop_names_the_step_and_the_checkpoint(tmp_path):
    policy = SpikePolicy("stop", window=3, min_increase=2.0)
    with pytest.raises(Diverged, match="at step 7 the loss jumped to") as error:
        train(tmp_path, spikes=policy, data=with_broken_labels(6))
    assert "The checkpoint of step 4 was written before and is intact" in str(error.value)
    assert "--config.spikes.policy=skip" in str(error.value)
    # As the message says.
    state, _ = train(tmp_path, spikes=SKIP, data=with_broken_labels(6))
    assert int(state.step) == STEPS


def huge_rate_at(step):
    mesh = create_mesh()
    schedule = lambda number: jnp.where(number == step, 3.0, 1e-3)  # noqa: E731
    tx = toy.adamw(schedule)
    train_step = toy.make_train_step(toy.Toy(), tx, schedule, mesh, seed=0)
    return mesh, create_state(toy.init_params, tx, mesh), train_step


def test_what_batches_do_not_cause_ends_the_run(tmp_path):
    """A learning rate that is too high at one step, whatever the batch."""
    with pytest.raises(Diverged, match="went back 3 times") as error:
        train(tmp_path, spikes=SKIP, setting=huge_rate_at(6))
    assert "--config.spikes.max_rewinds=3" in str(error.value)
    assert "--config.optimizer.learning_rate" in str(error.value)
    assert read_metrics(tmp_path)[-1]["rewinds"] == 3


def test_a_spike_before_the_first_checkpoint_ends_the_run(tmp_path):
    with pytest.raises(Diverged, match="there is nothing to go back to"):
        train(tmp_path, spikes=SKIP, data=with_broken_labels(3))
