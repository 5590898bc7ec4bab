"""Collects the results of a study from the workdirs of its runs."""

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from experiments.reporting.paired_bootstrap import paired_intervals
from experiments.reporting.results import CURVE_FIELDS, Results, Row
from experiments.study.arguments import sweep_command, without_folders
from experiments.study.comparability import have_one_tokenizer, mask_warnings, warnings
from experiments.study.definition import Point, Study
from experiments.study.progress import Progress
from experiments.study.records import read_records
from roberta_jax.errors import UsageError
from roberta_jax.tasks.table import TASKS

MAX_RECORDS = 200  # of a run's training losses, and of its evaluations, in the curves


def collect(study: Study, root: epath.PathLike) -> Results:
    """Reads the workdirs of a study below `root`; works while they are being written.

    Raises:
      UsageError: no point has started, or a workdir is damaged.
    """
    points, curves, started = [], [], False
    for setting in study.settings:
        for seed in study.seeds:
            point = Point(study, setting, seed)
            progress = point.progress(root)
            started = started or progress.step is not None
            points.append(_point_row(point, progress))
            curves += _curve_rows(point, read_records(point.workdir(root)))
    if not started:
        command = sweep_command(study.origin, study.seeds, study.changes, str(root), study.data)
        raise UsageError(
            f"no point of {study.name} has started in {root}. First run\n  {command}\n"
            "If the sweep did run, pass its --set and --seeds to this command too."
        )
    epochs = {row["setting"]: row["epochs"] for row in points if "epochs" in row}
    cautions = [*warnings(study), *mask_warnings(study, epochs)]
    description = _description(study, str(root), cautions)
    if study.data and study.downstream:
        description["downstream"] = {
            task: shlex.join([task, *arguments])
            for task, arguments in study.downstream.items()
            if task in study.evaluations
        }
    if study.finetunes:
        description |= {"groups": study.groups(), "references": study.references}
        if not study.references:
            description["intervals"], problems = paired_intervals(study, root)
            cautions += problems
            description["warnings"] = cautions
    return Results(description, points, curves)


def _description(study: Study, root: str, cautions: Sequence[str]) -> dict[str, Any]:
    """Returns what a report tells about the study. ELSEWHERE replaces folders of the machine."""
    names = ("name", "origin", "question", "columns", "paper", "source", "notes")
    return {
        **{name: getattr(study, name) for name in names},
        "settings": list(study.settings),
        "seeds": list(study.seeds),
        "changes": {key: without_folders(value) for key, value in study.changes.items()},
        "out": without_folders(root),
        "data": without_folders(study.data),
        "runs": {setting: _run_facts(study, setting) for setting in study.settings},
        "warnings": list(cautions),
        "one_tokenizer": have_one_tokenizer(study),
    }


def _run_facts(study: Study, setting: str) -> dict[str, int | str]:
    """Returns what a run of the setting trains, and for how long."""
    config = Point(study, setting, study.seeds[0]).config()
    if study.finetunes:
        return _finetuning_facts(config)
    rows, length, steps = config.train.batch_size, config.seq_len, config.train.steps
    facts = {"steps": steps, "rows per batch": rows, "tokens per row": length}
    facts["positions"] = steps * rows * length
    if config.init_from:
        return {**facts, "starts from": without_folders(config.init_from)}
    return {
        **facts,
        "layers": config.model.num_hidden_layers,
        "width": config.model.hidden_size,
    }


def _finetuning_facts(config: ConfigDict) -> dict[str, int | str]:
    train = config.train
    source = without_folders(config.init_from or "")
    most = config.data.max_train_examples
    return {
        "task": TASKS[config.task].title,
        "starts from": "random values" if config.random_init else source,
        "learning rate": f"{config.optimizer.learning_rate:g}",
        "examples per batch": train.batch_size,
        "length": f"{train.epochs:g} epochs" if train.steps is None else f"{train.steps:,} steps",
        "training examples": "all" if most is None else f"at most {most:,}",
    }


def _point_row(point: Point, progress: Progress) -> dict[str, Any]:
    return {
        "setting": point.setting,
        "seed": point.seed,
        "workdir": point.name,
        "state": str(progress),
        "step": progress.step or 0,
        "steps": progress.steps,
        **(progress.metrics or {}),
    }


def _curve_rows(point: Point, records: Sequence[Row]) -> list[dict[str, Any]]:
    if not records:
        return []
    tokens, steps, seconds = 0, records[-1]["step"], {}
    if not point.study.finetunes:  # its batches differ in their number of tokens
        config = point.config()
        tokens, steps = config.train.batch_size * config.seq_len, config.train.steps
        seconds = training_seconds(records, tokens)
    rows = []
    for kind in ("loss", "eval_loss"):
        for record in _thinned([record for record in records if kind in record], steps):
            row = {"setting": point.setting, "seed": point.seed, "step": record["step"]}
            row |= {"tokens": record["step"] * tokens if tokens else None}
            row |= {"seconds": seconds.get(record["step"])}
            if kind == "loss":
                row["loss"] = record.get("masked_lm_loss", record["loss"])
            else:
                row |= {key: record.get(key) for key in ("eval_loss", "eval_perplexity")}
            rows.append(dict.fromkeys(CURVE_FIELDS) | row)
    return rows


def training_seconds(records: Sequence[Row], tokens_per_step: int) -> dict[int, float]:
    """Returns the seconds that training took up to each record, computed from recorded speeds.

    Args:
      records: the records of a run. Those with a loss have "tokens_per_second" in general; where it
        is missing, the median of the run is used.
      tokens_per_step: the tokens in a batch.

    Returns:
      {step: seconds}; empty if no record has a speed.
    """
    losses = [record for record in records if "loss" in record]
    speeds = [record["tokens_per_second"] for record in losses if "tokens_per_second" in record]
    if not speeds:
        return {}
    median = statistics.median(speeds)
    steps, seconds = [0], [0.0]
    for record in losses:
        tokens = (record["step"] - steps[-1]) * tokens_per_step
        seconds.append(seconds[-1] + tokens / record.get("tokens_per_second", median))
        steps.append(record["step"])
    record_steps = [record["step"] for record in records]
    values = np.interp(record_steps, steps, seconds).tolist()
    return dict(zip(record_steps, values, strict=True))


def _thinned(records: Sequence[Row], steps: int) -> list[Row]:
    """Divides the run into MAX_RECORDS equal parts and returns the last record of each.

    The steps that remain are the same for all seeds.
    """
    return list({record["step"] * MAX_RECORDS // steps: record for record in records}.values())
