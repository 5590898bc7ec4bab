"""A training run in a workdir, from its first step or newest checkpoint to the exported model.

This is the part that pretraining and fine-tuning share. The caller describes what is trained as a
`Job`; `run` opens the workdir, restores or creates the state, trains, evaluates and exports. A run
that is killed or told to stop continues when it is started again with the same workdir.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.training import loop, preemption
from roberta_jax.training.agreement import together
from roberta_jax.training.checkpoints import ON_DAMAGE, Checkpoints, checkpoint_steps
from roberta_jax.training.distributed import failing_together, watched
from roberta_jax.training.job import (
    BEST_STEP,
    FINISHED,
    STOPPED_EARLY,
    Job,
    Metrics,
    RunResult,
    TrainingSpec,
)
from roberta_jax.training.metrics import MetricsWriter, read_metrics
from roberta_jax.training.partners import current
from roberta_jax.training.same_start import check_shared, require_same_data
from roberta_jax.training.selection import Selection, selecting
from roberta_jax.training.state import TrainState, abstract_state, create_state
from roberta_jax.training.stop_notices import StopNotices
from roberta_jax.training.workdir import (
    CHECKPOINTS,
    EXPORT,
    check_export,
    open_workdir,
    record_export,
    write_config,
)


def run(
    workdir: epath.PathLike,
    spec: TrainingSpec | Callable[[], TrainingSpec],
    make_job: Callable[[epath.Path], Job],
    *,
    config: Mapping[str, Any],
    may_change: Collection[str],
    on_damage: str = "stop",
    **changed: Mapping[str, Any],
) -> RunResult:
    """Starts or continues a training run.

    With several processes, all of them call this alike. Before the state is made they agree on the
    workdir, its newest checkpoint and the data; an error of one ends all, each with a message.

    Args:
      workdir: folder of the run, on a file system that all hosts share; created if needed.
      spec: how to train; or () -> how to train, where it follows from data that take long to
        prepare. It is then called as `make_job` is, just before it, and any run in the workdir that
        has finished counts as this one.
      make_job: (folder) -> what to train. It may take long (preparing data), so it is called after
        the checks of the workdir, and not at all for a finished run.
      config: the run's config as nested dictionaries, written to the workdir; a run continues only
        with an equal one.
      may_change: the keys in which it may differ, see `workdir.open_workdir`.
      on_damage: what to do if the newest checkpoint is damaged, see `Checkpoints.restore`.
      **changed: what changed since the version that started the run: `renamed`, `added` and
        `revalued` of `workdir.open_workdir`.

    Raises:
      UsageError: the workdir is of another run, is in use, is damaged, or cannot be written; or
        `make_job`'s, before which only the folder itself is created; or the hosts do not share the
        workdir, or differ in their data.
    """
    if on_damage not in ON_DAMAGE:
        raise UsageError(f"on_damage={on_damage!r} is not one of {', '.join(ON_DAMAGE)}.")
    primary = jax.process_index() == 0
    with watched(), contextlib.ExitStack() as stack:
        with together("opening the workdir"):
            folder = stack.enter_context(
                open_workdir(workdir, config, may_change, primary, **changed)
            )
        check_shared(folder)
        with together("reading the workdir"):
            latest_step = max(checkpoint_steps(folder / CHECKPOINTS), default=None)
            steps = None if callable(spec) else spec.steps
            _check_not_beyond(latest_step, steps)
            finished = _finished(folder, steps)
            if finished is not None:
                check_export(folder)
        if finished is not None:
            step, metrics = finished
            return RunResult(folder, step, step, True, metrics)
        with together("preparing the data"):
            if callable(spec):
                spec = spec()
                _check_not_beyond(latest_step, spec.steps)
            job = make_job(folder)
            sample = job.sample(latest_step or 0) if jax.process_count() > 1 else None
        require_same_data({**job.identity, "batch": sample, "newest checkpoint": latest_step})
        with together("writing the config"):
            if primary:
                write_config(folder, config)
        keep = (spec.keep_checkpoints, spec.keep_every)
        with Checkpoints(folder / CHECKPOINTS, *keep) as checkpoints, failing_together():
            return _train(folder, spec, job, checkpoints, on_damage)


def finished_metrics(folder: epath.PathLike, steps: int | None) -> Metrics | None:
    """The final metrics of a run of at most so many steps, or None if it has not finished.

    `steps` is None for a run whose last step is not known, as that of epochs of fine-tuning.
    """
    finished = _finished(epath.Path(folder), steps)
    return None if finished is None else finished[1]


def _finished(folder: epath.Path, steps: int | None) -> tuple[int, Metrics] | None:
    """The last step and the final metrics of a run, or None if it has not finished."""
    exported = (folder / EXPORT / "config.json").exists()
    return _final_record(folder, steps) if exported else None


def say(text: str) -> None:
    """Prints a line, on the first of several processes."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _train(
    folder: epath.Path, spec: TrainingSpec, job: Job, checkpoints: Checkpoints, on_damage: str
) -> RunResult:
    _check_selection(spec, job)
    state, saved = _restore_or_create(folder, spec, job, checkpoints, on_damage)
    start = int(state.step)
    # That of a run whose export was deleted.
    final = _final_record(folder, spec.steps, at=start)
    recorded = final[1] if final and (start == spec.steps or job.select) else None
    ended = start == spec.steps or recorded is not None
    evaluation_due = saved.get(loop.EVALUATION_DUE, False) and not ended
    say(job.describe(state))
    if start:
        say(f"Continuing from the checkpoint of step {start}.")
    primary = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        selection = stack.enter_context(
            selecting(
                folder,
                checkpoints,
                job.select,
                patience=spec.patience,
                step=start,
                saved=saved.get(loop.SELECTION),
                ended=recorded is not None,
            )
        )
        # With a selection the last evaluation has a record besides the final one. The checkpoint
        # knows of neither.
        evaluated = selection is None or selection.evaluated == start or recorded is not None
        writer = stack.enter_context(
            MetricsWriter(
                folder,
                step=start,
                steps=spec.steps,
                evaluation_due=evaluation_due or not evaluated,
                records=saved.get(loop.RECORDS, 0),
                primary=primary,
            )
        )
        notices = StopNotices(writer, checkpoints)
        should_stop = stack.enter_context(
            preemption.stop_requests(notices.stopping, notices.quitting, current())
        )
        if current() is not None:
            current().doing = lambda: f"step {writer.step}"
        writer.on_closed_output = lambda: should_stop.request(preemption.SIGPIPE)

        def evaluate(params: Any) -> Metrics | None:
            with notices.doing("the evaluation is broken off, and made by the next run"):
                metrics = job.evaluate(params, should_stop)
            if metrics is not None:
                writer.say(f"held-out {job.summarize(metrics)}")
            return metrics

        state, stopped = loop.fit(
            state,
            job.train_step,
            job.batches,
            steps=spec.steps,
            cadence=spec.cadence,
            checkpoints=checkpoints,
            writer=writer,
            tokens_per_step=job.tokens_per_step,
            flops_per_step=job.flops_per_step,
            evaluation=evaluate if job.evaluate else None,
            should_stop=should_stop,
            extra=job.identity,
            evaluation_due=evaluation_due,
            losses=saved.get(loop.LOSSES, ()),
            spikes=spec.spikes,
            spikes_before=saved.get(loop.SPIKES),
            selection=selection,
        )
        step, params = int(state.step), state.params
        del state  # frees the optimizer's state, whose place the best parameters may need
        metrics = recorded
        if recorded is None and not stopped:
            metrics = evaluate(params) if _evaluates(job, selection, step) else {}
            if metrics is not None:
                loop.check_evaluation(step, metrics, checkpoints)
            if metrics is not None and selection is not None:
                metrics = _select(selection, step, metrics, spec, writer)
        best_step = step if selection is None else (metrics or {}).get(BEST_STEP, step)
        if best_step != step:
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
            )
            del params
            params = selection.restore(best_step, like)
        if metrics is not None and job.finish is not None:
            with notices.doing("what remains to be done is done by the next run"):
                more = job.finish(params, metrics, should_stop)
            metrics = None if more is None else {**more, **metrics}
        if metrics is not None:
            with notices.doing("the model is exported first"):
                job.export(params)
                if primary:
                    if job.add_card is not None:
                        job.add_card(metrics)
                    record_export(folder)
            if recorded is None:
                metrics |= job.final_metrics()
                writer.write(step, {**metrics, FINISHED: 1.0})
    if metrics is None:
        return RunResult(folder, start, step, False, {}, should_stop.signal)
    return RunResult(folder, start, step, True, metrics, should_stop.signal)


def _restore_or_create(
    folder: epath.Path, spec: TrainingSpec, job: Job, checkpoints: Checkpoints, on_damage: str
) -> tuple[TrainState, Mapping[str, Any]]:
    """The newest checkpoint's state, and what was saved with it; or a new state, and nothing."""
    abstract = abstract_state(job.init_params, spec.optimizer, spec.mesh, rules=spec.rules)
    restored = checkpoints.restore(abstract, on_damage)
    if restored is None:
        with together("reading the pretrained weights"):
            params = None if job.pretrained_params is None else job.pretrained_params()
        state = create_state(job.init_params, spec.optimizer, spec.mesh, params, rules=spec.rules)
        return state, {}
    state, saved = restored
    changed = [name for name in job.identity if saved.get(name) != job.identity[name]]
    if changed:
        raise UsageError(
            f"the checkpoints in {folder} were trained on other data: the "
            f"{' and the '.join(changed)} changed since. Restore the data and the tokenizer that "
            "the run was started with, or choose another --workdir."
        )
    return state, saved


def _check_selection(spec: TrainingSpec, job: Job) -> None:
    selects = job.select is not None
    if selects and job.evaluate is None:
        raise UsageError(
            f"the best parameters are to be selected by {job.select}, but there is nothing to "
            "evaluate on."
        )
    if spec.patience and not selects:
        raise UsageError(
            f"--config.train.patience={spec.patience} ends a run whose evaluations no longer "
            "improve, but there is no metric that says which is better. Use --config.train."
            "patience=0."
        )


def _evaluates(job: Job, selection: Selection | None, step: int) -> bool:
    """Whether there is an evaluation to make after the last step."""
    return job.evaluate is not None and (selection is None or selection.evaluated != step)


def _select(
    selection: Selection, step: int, metrics: Metrics, spec: TrainingSpec, writer: MetricsWriter
) -> Metrics:
    """Lets the last evaluation take part, if it was made now, and returns what to record."""
    if selection.evaluated != step:
        writer.write(step, metrics)
        writer.say(selection.take(step, metrics))
    early = {STOPPED_EARLY: 1.0} if step < spec.steps else {}
    return {**selection.best_metrics, BEST_STEP: selection.best_step, **early}


def _final_record(
    folder: epath.Path, steps: int | None, at: int | None = None
) -> tuple[int, Metrics] | None:
    """The last step and the metrics of a run that ended, at step `at` if that is given."""
    for record in reversed(read_metrics(folder)):
        step = record["step"]
        ends = steps in (None, step) or (step < steps and record.get(STOPPED_EARLY))
        if record.get(FINISHED) and ends and at in (None, step):
            return step, {k: v for k, v in record.items() if k not in ("step", FINISHED)}
    return None


def _check_not_beyond(step: int | None, steps: int | None) -> None:
    if None not in (step, steps) and step > steps:
        raise UsageError(
            f"the run is already at step {step}, beyond --config.train.steps={steps}. Use at least "
            f"{step} steps, or another --workdir."
        )
