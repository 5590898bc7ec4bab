"""Runs that select the best parameters or end early, on the toy model, with scripted scores."""

import contextlib
import dataclasses
import itertools
import math
import shutil

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import loop, preemption, run
from roberta_jax.training.checkpoints import checkpoint_steps
from roberta_jax.training.divergence import Diverged
from roberta_jax.training.metrics import read_metrics
from roberta_jax.training.spikes import LossSpike, SpikePolicy, SpikeWatch
from tests.support.toy_runs import (
    CONFIG,
    STEPS,
    Killed,
    assert_same_export,
    exported,
    reproducible,
    start,
)

RISING = {1: 0.1, 2: 0.5, 3: 0.2, 4: 0.5, 5: 0.3, 6: 0.4}  # the best is that of step 2


@pytest.fixture(scope="module")
def every(spec):
    """Evaluates after each step."""
    return dataclasses.replace(spec, cadence=loop.Cadence(log=3, evaluate=1, checkpoint=4))


@pytest.fixture(scope="module")
def parameters(every, tmp_path_factory):
    """The parameters after each step: {step: kernel}, filled by the first run."""
    return {}


@pytest.fixture
def selecting_job(parameters, every, job_factory, tmp_path_factory):
    """Returns a function from {step: score} to a `make_job` that selects by these scores.

    Parameters that the run has after no step, as after other batches, have the score at None.
    """
    if not parameters:

        def remember(params, should_stop):
            kernel = np.array(params["kernel"])
            parameters[len(parameters) + 1] = kernel
            return {"eval_loss": 1.0}

        start(tmp_path_factory.mktemp("plain"), every, job_factory(evaluate=remember))
        assert sorted(parameters) == list(range(1, STEPS + 1))

    def selecting_job(scores=RISING, calls=None, **changes):
        def evaluate(params, should_stop):
            kernel = np.array(params["kernel"])
            steps = [step for step, each in parameters.items() if (each == kernel).all()]
            step = steps[0] if steps else None
            return {"eval_loss": float(np.abs(kernel).sum()), "score": scores[step]}

        defaults = {"evaluate": evaluate, "select": "score"}
        return job_factory(calls, **{**defaults, **changes})

    return selecting_job


def kept(workdir):
    return checkpoint_steps(workdir / "best")


def delete_export(workdir):
    shutil.rmtree(workdir / run.EXPORT)


# What is selected.


def test_the_first_of_the_best_evaluations_is_exported(
    tmp_path, every, selecting_job, parameters, capsys
):
    result = start(tmp_path / "run", every, selecting_job())
    assert (result.step, result.finished) == (STEPS, True)
    assert result.metrics["score"] == 0.5
    assert result.metrics["best_step"] == 2
    assert "stopped_early" not in result.metrics
    assert result.metrics["epochs"] == 1.5
    np.testing.assert_array_equal(exported(tmp_path / "run")["kernel"], parameters[2])
    assert run.finished_metrics(tmp_path / "run", STEPS) == result.metrics
    scores = [(r["step"], r["score"]) for r in read_metrics(tmp_path / "run") if "score" in r]
    assert scores == [*RISING.items(), (STEPS, 0.5)]  # the last one is the final record
    printed = capsys.readouterr().out
    assert "Best so far: score 0.1 at step 1.\n" in printed
    assert printed.count("Best so far: score 0.5 at step 2.\n") == 5
    assert kept(tmp_path / "run") == [2]


def test_the_last_parameters_may_be_the_best(tmp_path, every, selecting_job, parameters):
    result = start(tmp_path / "run", every, selecting_job(RISING | {6: 0.7}))
    assert (result.metrics["best_step"], result.metrics["score"]) == (6, 0.7)
    np.testing.assert_array_equal(exported(tmp_path / "run")["kernel"], parameters[6])


def test_without_selection_nothing_is_kept_and_the_records_are_those_of_before(
    tmp_path, every, selecting_job, parameters
):
    result = start(tmp_path / "run", every, selecting_job(select=None))
    assert result.metrics.keys() == {"eval_loss", "score", "epochs"}
    assert not (tmp_path / "run" / "best").exists()
    np.testing.assert_array_equal(exported(tmp_path / "run")["kernel"], parameters[6])
    with_score = [r["step"] for r in read_metrics(tmp_path / "run") if "score" in r]
    assert with_score == [1, 2, 3, 4, 5, 6]


def test_best_parameters_stay_as_long_as_a_checkpoint_counts_on_them(
    tmp_path, every, selecting_job
):
    """The checkpoints are those of the steps 4 and 6; the last evaluation needs no copy."""
    scores = dict(enumerate([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1))
    start(tmp_path / "run", every, selecting_job(scores))
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [4, 6]
    assert kept(tmp_path / "run") == [4, 5]


# The end of a run.


@pytest.fixture
def patient(every):
    return dataclasses.replace(every, patience=2)


def test_a_run_without_improvement_ends(tmp_path, patient, selecting_job, parameters, capsys):
    result = start(tmp_path / "run", patient, selecting_job())
    assert (result.step, result.finished) == (4, True)
    assert result.metrics["best_step"] == 2
    assert result.metrics["stopped_early"] == 1.0
    np.testing.assert_array_equal(exported(tmp_path / "run")["kernel"], parameters[2])
    assert "No improvement in 2 evaluations: ending at step 4." in capsys.readouterr().out
    assert read_metrics(tmp_path / "run")[-1]["step"] == 4
    # An equal evaluation is no improvement; an improvement starts the count again.
    result = start(tmp_path / "better", patient, selecting_job(RISING | {3: 0.5, 4: 0.6}))
    assert (result.step, result.metrics["best_step"]) == (6, 4)
    assert "stopped_early" not in result.metrics


@pytest.mark.parametrize("changes", [{}, {"patience": 5}, {"patience": 0}, {"steps": 9}])
def test_a_run_that_has_ended_early_is_finished(tmp_path, patient, selecting_job, changes):
    first = start(tmp_path / "run", patient, selecting_job())
    spec, calls = dataclasses.replace(patient, **changes), []
    again = start(tmp_path / "run", spec, selecting_job(calls=calls))
    assert not calls
    assert (again.start, again.step, again.metrics) == (4, 4, first.metrics)
    # Also if its export has to be written again.
    expected = exported(tmp_path / "run")
    delete_export(tmp_path / "run")
    assert run.finished_metrics(tmp_path / "run", STEPS) is None
    again = start(tmp_path / "run", spec, selecting_job(calls=calls))
    assert calls == ["make_job", "export"]
    assert (again.start, again.step, again.metrics) == (4, 4, first.metrics)
    jax.tree.map(np.testing.assert_array_equal, exported(tmp_path / "run"), expected)


def test_an_unfinished_run_takes_another_patience(tmp_path, every, selecting_job, killed_at):
    """As if it had had it from the start."""
    longer = dataclasses.replace(every, patience=4)
    start(tmp_path / "straight", longer, selecting_job())
    patient = dataclasses.replace(every, patience=2)

    def killed(*_):
        raise Killed

    with pytest.raises(Killed):  # it ended early, at step 4, but has not exported its model
        start(tmp_path / "run", patient, selecting_job(export=killed))
    result = start(tmp_path / "run", longer, selecting_job())
    assert (result.start, result.step) == (4, 6)
    assert reproducible(tmp_path / "run") == reproducible(tmp_path / "straight")
    assert_same_export(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("evaluate", [1, 2, 3])
def test_a_longer_run_equals_one_that_was_never_shorter(tmp_path, every, selecting_job, evaluate):
    """The evaluation after the former last step is one like the others, if it is due."""
    cadence = dataclasses.replace(every.cadence, log=1, evaluate=evaluate)
    spec = dataclasses.replace(every, cadence=cadence)
    scores = RISING | {4: 0.8}
    start(tmp_path / "straight", spec, selecting_job(scores))
    start(tmp_path / "run", dataclasses.replace(spec, steps=4), selecting_job(scores))
    start(tmp_path / "run", spec, selecting_job(scores))
    assert_same_export(tmp_path / "run", tmp_path / "straight")
    assert reproducible(tmp_path / "run") == reproducible(tmp_path / "straight")


# Interruptions.

KILLED = {
    "selection": (RISING, 0, (3, 1, 4)),
    "patience": (RISING, 2, (3, 1, 3)),
    "the last is the best": (RISING | {6: 0.9}, 3, (3, 2, 4)),
}


@pytest.fixture(params=KILLED)
def killed_case(request, every, selecting_job, tmp_path):
    scores, patience, (log, evaluate, checkpoint) = KILLED[request.param]
    cadence = loop.Cadence(log=log, evaluate=evaluate, checkpoint=checkpoint)
    spec = dataclasses.replace(every, patience=patience, cadence=cadence)

    def make_job():
        def finish(params, metrics, should_stop):
            return {"test_sum": float(np.abs(params["kernel"]).sum())}

        return selecting_job(scores, finish=finish)

    start(tmp_path / "straight", spec, make_job())
    return spec, make_job, tmp_path / "straight"


def assert_equal_runs(workdir, straight, number):
    assert reproducible(workdir) == reproducible(straight), number
    assert_same_export(workdir, straight)
    # Another process may not know which ones the checkpoints from before it count on.
    assert set(kept(straight)) <= set(kept(workdir)), number
    assert kept(workdir)[-1] == kept(straight)[-1], number


@pytest.mark.parametrize("each", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_kill_at_any_moment_changes_nothing(tmp_path, killed_case, killed_at, each):
    spec, make_job, straight = killed_case
    for number in itertools.count(each, each):
        workdir = tmp_path / str(number)
        try:
            start(workdir, spec, killed_at(number, make_job()))
            break  # the run has fewer events than this
        except Killed:
            pass
        result = start(workdir, spec, killed_at(None, make_job()))
        assert result.finished
        assert_equal_runs(workdir, straight, number)
        shutil.rmtree(workdir)
    assert number > 20


def test_repeated_kills_change_nothing(tmp_path, killed_case, killed_at):
    spec, make_job, straight = killed_case
    for number in itertools.count(9):
        try:
            start(tmp_path / "run", spec, killed_at(number, make_job()))
            break
        except Killed:
            pass
    assert number > 12
    assert_equal_runs(tmp_path / "run", straight, number)


@pytest.mark.parametrize("every_poll", [1, 2, 3])
def test_stops_change_nothing(tmp_path, killed_case, monkeypatch, every_poll):
    """Also stops before an evaluation that is due, whose checkpoint does not know of it."""
    spec, make_job, straight = killed_case

    @contextlib.contextmanager
    def stop_requests(*_):
        calls = itertools.count(1)
        yield preemption.StopRequests(lambda: next(calls) >= every_poll)

    with monkeypatch.context() as patch:
        patch.setattr(preemption, "stop_requests", stop_requests)
        for _ in range(40):
            if start(tmp_path / "run", spec, make_job()).finished:
                break
    assert reproducible(tmp_path / "run") == reproducible(straight)
    assert_same_export(tmp_path / "run", straight)


# Going back.


def spike_at(monkeypatch, step):
    """Lets the loss of a step be a spike, once."""

    def check(self, at, values):
        if at == step and not self.rewinds:
            raise LossSpike(at, values["loss"], "the loss jumped")

    monkeypatch.setattr(SpikeWatch, "check", check)


@pytest.mark.parametrize("spike", [pytest.param(5, marks=pytest.mark.slow), 6])
def test_a_best_evaluation_after_the_checkpoint_gone_back_to_is_forgotten(
    tmp_path, every, selecting_job, monkeypatch, killed_at, spike
):
    """Step 5 had the largest score before the batches were others, which score 0.05."""
    cadence = loop.Cadence(log=1, evaluate=1, checkpoint=2)
    policy = SpikePolicy("skip", 3, skip_batches=3)
    spec = dataclasses.replace(every, cadence=cadence, spikes=policy)
    scores = RISING | {4: 0.6, 5: 0.9, None: 0.05}
    spike_at(monkeypatch, spike)
    result = start(tmp_path / "straight", spec, selecting_job(scores))
    assert (result.metrics["best_step"], result.metrics["score"]) == (4, 0.6)
    assert kept(tmp_path / "straight") == [4]
    for number in itertools.count(35, 4):
        workdir = tmp_path / str(number)
        try:
            start(workdir, spec, killed_at(number, selecting_job(scores)))
            break
        except Killed:
            pass
        start(workdir, spec, killed_at(None, selecting_job(scores)))
        assert_equal_runs(workdir, tmp_path / "straight", number)
    assert number > 40


def test_an_evaluation_that_was_due_is_made_again_after_going_back(
    tmp_path, every, selecting_job, monkeypatch
):
    """The checkpoint gone back to was saved before the evaluation of its step: a stop was due."""
    cadence = loop.Cadence(log=1, evaluate=2, checkpoint=2)
    policy = SpikePolicy("skip", 3, skip_batches=3)
    spec = dataclasses.replace(every, cadence=cadence, spikes=policy)
    scores = RISING | {4: 0.6, None: 0.05}
    spike_at(monkeypatch, 5)
    start(tmp_path / "straight", spec, selecting_job(scores))
    polls = iter([False, False, False, True])
    fake = preemption.StopRequests(lambda: next(polls))
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "stop_requests", lambda *_: contextlib.nullcontext(fake))
        assert start(tmp_path / "run", spec, selecting_job(scores)).step == 4
    result = start(tmp_path / "run", spec, selecting_job(scores))
    assert result.metrics["best_step"] == 4
    assert reproducible(tmp_path / "run") == reproducible(tmp_path / "straight")
    assert_same_export(tmp_path / "run", tmp_path / "straight")
    assert kept(tmp_path / "run") == [2, 4]  # the checkpoint of step 4 counts on step 2


def damage(checkpoint):
    for path in (checkpoint / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")


def test_going_back_to_an_older_checkpoint_finds_its_best_parameters(
    tmp_path, every, selecting_job
):
    """The best at step 4 is step 2; at step 6 it is step 5, which is forgotten."""
    scores = RISING | {5: 0.9}
    start(tmp_path / "run", every, selecting_job(scores))
    assert kept(tmp_path / "run") == [2, 5]
    delete_export(tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "6")
    result = run.run(
        tmp_path / "run", every, selecting_job(RISING), config=CONFIG, may_change=(),
        on_damage="older",
    )  # fmt: skip
    assert result.start == 4
    assert result.metrics["best_step"] == 2
    assert kept(tmp_path / "run") == [2]


def test_what_an_interrupted_process_has_left_of_later_steps_is_not_used(
    tmp_path, every, selecting_job
):
    """It may be incomplete, as after a kill while it was being deleted."""
    scores = RISING | {5: 0.9}
    start(tmp_path / "straight", every, selecting_job(scores))
    start(tmp_path / "run", dataclasses.replace(every, steps=4), selecting_job(scores))
    shutil.copytree(tmp_path / "straight" / "best" / "5", tmp_path / "run" / "best" / "5")
    damage(tmp_path / "run" / "best" / "5")
    start(tmp_path / "run", every, selecting_job(scores))
    assert_same_export(tmp_path / "run", tmp_path / "straight")


# Best parameters that are lost.


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_lost_best_parameters_are_made_again_as_the_error_says(tmp_path, every, selecting_job, how):
    """At step 6 the best is step 5; the checkpoint of step 4 is from before it."""
    scores = RISING | {5: 0.9}
    first = start(tmp_path / "run", every, selecting_job(scores))
    before = exported(tmp_path / "run")
    delete_export(tmp_path / "run")
    if how == "missing":
        shutil.rmtree(tmp_path / "run" / "best" / "5")
    else:
        damage(tmp_path / "run" / "best" / "5")
    with pytest.raises(UsageError, match=f"best/5,.* {how}") as error:
        start(tmp_path / "run", every, selecting_job(scores))
    assert not (tmp_path / "run" / run.EXPORT).exists()
    command = str(error.value).splitlines()[-1].split()
    assert command[:2] == ["rm", "-r"]
    for folder in command[2:]:
        shutil.rmtree(folder)
    again = start(tmp_path / "run", every, selecting_job(scores))
    assert (again.start, again.metrics) == (4, first.metrics)
    jax.tree.map(np.testing.assert_array_equal, exported(tmp_path / "run"), before)


def test_best_parameters_from_before_all_checkpoints_cannot_be_made_again(
    tmp_path, every, selecting_job
):
    start(tmp_path / "run", every, selecting_job())
    delete_export(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(UsageError, match=r"best/2,.*\n.*start again in a new --workdir"):
        start(tmp_path / "run", every, selecting_job())


def test_a_deleted_export_is_written_again_with_the_best_parameters(tmp_path, every, selecting_job):
    cards, finishes = [], []

    def finish(params, metrics, should_stop):
        finishes.append(metrics)
        return {"test_score": 0.25}

    calls = []
    make_job = selecting_job(RISING, calls, finish=finish, add_card=cards.append)
    first = start(tmp_path / "run", every, make_job)
    before = exported(tmp_path / "run")
    delete_export(tmp_path / "run")
    calls.clear()
    again = start(tmp_path / "run", every, make_job)
    assert calls == ["make_job", "export"]
    assert again.metrics == first.metrics
    # What it writes, and what the card needs of it, is made again. The record stays as it was.
    assert [each["best_step"] for each in finishes] == [2, 2]
    assert [card["test_score"] for card in cards] == [0.25, 0.25]
    assert [card["best_step"] for card in cards] == [2, 2]
    jax.tree.map(np.testing.assert_array_equal, exported(tmp_path / "run"), before)


# The end.


def test_finish_has_the_best_parameters_and_adds_to_the_final_record(
    tmp_path, every, selecting_job, parameters
):
    seen = []

    def finish(params, metrics, should_stop):
        np.testing.assert_array_equal(params["kernel"], parameters[2])
        assert not (tmp_path / "run" / run.EXPORT).exists()
        seen.append(metrics)
        return {"test_score": 0.25} if len(seen) > 1 else None  # told to stop

    make_job = selecting_job(finish=finish)
    result = start(tmp_path / "run", every, make_job)
    assert (result.finished, result.step, result.metrics) == (False, STEPS, {})
    result = start(tmp_path / "run", every, make_job)
    assert result.finished
    assert result.metrics.items() > {"score": 0.5, "best_step": 2, "test_score": 0.25}.items()
    assert seen[0] == seen[1]
    assert seen[0].items() >= {"score": 0.5, "best_step": 2}.items()
    start(tmp_path / "straight", every, selecting_job(finish=lambda *_: {"test_score": 0.25}))
    assert reproducible(tmp_path / "run") == reproducible(tmp_path / "straight")


def test_finish_without_selection_has_the_last_parameters(
    tmp_path, every, selecting_job, parameters
):
    def finish(params, metrics, should_stop):
        np.testing.assert_array_equal(params["kernel"], parameters[6])
        return {"test_score": metrics["score"] / 2}

    result = start(tmp_path / "run", every, selecting_job(select=None, finish=finish))
    assert result.metrics["test_score"] == 0.2


# What is refused.


def test_an_evaluation_without_the_metric_is_an_error(tmp_path, every, selecting_job):
    make_job = selecting_job(select="f1")
    with pytest.raises(UsageError, match="step 1 has no f1, .* It has: eval_loss, score"):
        start(tmp_path / "run", every, make_job)


def test_a_score_that_is_not_finite_is_an_error(tmp_path, every, selecting_job):
    with pytest.raises(Diverged, match=r"step 3 the evaluation is not finite \(score nan"):
        start(tmp_path / "run", every, selecting_job(RISING | {3: math.nan}))


def test_another_metric_is_refused(tmp_path, every, selecting_job):
    start(tmp_path / "run", dataclasses.replace(every, steps=4), selecting_job())
    with pytest.raises(UsageError, match="are selected by score, not by eval_loss"):
        start(tmp_path / "run", every, selecting_job(select="eval_loss"))


def test_selection_and_patience_need_evaluations(tmp_path, every, selecting_job):
    with pytest.raises(UsageError, match="by score, but there is nothing to evaluate on"):
        start(tmp_path / "run", every, selecting_job(evaluate=None))
    patient = dataclasses.replace(every, patience=2)
    with pytest.raises(UsageError, match=r"--config\.train\.patience=2 .* no metric"):
        start(tmp_path / "run", patient, selecting_job(select=None))
    with pytest.raises(UsageError, match=r"--config\.train\.patience=-1 must be positive"):
        dataclasses.replace(every, patience=-1)
    with pytest.raises(UsageError, match=r"patience=2 .* Set --config\.train\.eval_every"):
        dataclasses.replace(every, patience=2, cadence=loop.Cadence())
