"""Collects the results of a study from the workdirs of its runs."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from experiments.reporting.results import CURVE_FIELDS, Results, Row
from experiments.study.config_changes import affects_results
from experiments.study.definition import Point, Study
from experiments.study.progress import Progress
from roberta_jax.errors import UsageError
from roberta_jax.training.metrics import read_metrics

MAX_RECORDS = 200  # of a run's training losses, and of its evaluations, in the curves


def collect(study: Study, root: epath.PathLike) -> Results:
    """Reads the workdirs of a study below `root`; works while they are being written.

    Raises:
      UsageError: no point has started.
    """
    points, curves, started = [], [], False
    for setting in study.settings:
        for seed in study.seeds:
            point = Point(study, setting, seed)
            progress = point.progress(root)
            started = started or progress.step is not None
            points.append(_point_row(point, progress))
            curves += _curve_rows(point, read_metrics(point.workdir(root)))
    if not started:
        raise UsageError(
            f"no point of {study.name} has started in {root}. First run\n"
            f"  python -m experiments.sweep {study.origin} --out={root}\n"
            "If the sweep did run, pass its --set and --seeds to this command too."
        )
    return Results(_description(study), points, curves)


def _description(study: Study) -> dict[str, Any]:
    """Returns what a report tells about the study. Paths are reduced to the names of the files."""
    names = ("name", "origin", "question", "columns", "paper", "source", "notes")
    changes = {
        key: value.rpartition("/")[2] if isinstance(value, str) else value
        for key, value in study.changes.items()
        if affects_results(key)
    }
    return {
        **{name: getattr(study, name) for name in names},
        "settings": list(study.settings),
        "seeds": list(study.seeds),
        "changes": changes,
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
    config = point.config()
    tokens, steps = config.train.batch_size * config.seq_len, config.train.steps
    seconds = training_seconds(records, tokens)
    rows = []
    for kind in ("loss", "eval_loss"):
        for record in _thinned([record for record in records if kind in record], steps):
            row = {"setting": point.setting, "seed": point.seed, "step": record["step"]}
            row |= {"tokens": record["step"] * tokens, "seconds": seconds.get(record["step"])}
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
