"""Intervals of the differences between fine-tuned models, over seeds and examples."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from experiments.study.definition import Point, Study
from experiments.study.finetuned import per_cent
from roberta_jax.errors import UsageError

SAMPLES = 1000
_PREDICTIONS = "predictions/validation.jsonl"  # in a workdir


def paired_intervals(study: Study, root: epath.PathLike) -> tuple[list[dict[str, Any]], list[str]]:
    """Compares the settings of each task on the validation examples.

    Args:
      study: a study of fine-tuning.
      root: the folder of the workdirs. The examples are read again from where the runs read them.

    Returns:
      For each two settings of a task that have finished with the same seed: "task", "metric",
      "one", "other", the "mean" difference of the score in per cent and its 95% interval from "low"
      to "high", and the numbers of "seeds" and "examples". And a sentence for each task whose
      examples or predictions cannot be read.
    """
    rows, problems = [], []
    for title, settings in study.groups().items():
        finished = {
            setting: [
                seed
                for seed in study.seeds
                if Point(study, setting, seed).progress(root).metrics is not None
            ]
            for setting in settings
        }
        pairs = [
            (one, other, [seed for seed in finished[one] if seed in finished[other]])
            for one, other in itertools.combinations(settings, 2)
        ]
        pairs = [pair for pair in pairs if pair[2]]
        if pairs:
            try:
                rows += _of_task(study, root, title, pairs)
            except UsageError as error:
                problems.append(f"There is no interval over examples for {title}: {error}")
    return rows, problems


def two_way_interval(differences: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The 95% interval of a mean difference over seeds.

    Args:
      differences: [samples, seeds], the difference for each resampled set of examples and seed.
      rng: draws the seeds, as many as there are, with replacement.
    """
    samples, seeds = differences.shape
    chosen = rng.integers(seeds, size=(samples, seeds))
    means = np.take_along_axis(differences, chosen, axis=1).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _of_task(
    study: Study, root: epath.PathLike, title: str, pairs: list[tuple[str, str, list[int]]]
) -> list[dict[str, Any]]:
    from roberta_jax.finetuning.prepare import prepare
    from roberta_jax.finetuning.results import SplitResult, labelled, resampled_scores
    from roberta_jax.finetuning.spec import read_spec

    prepared = prepare(read_spec(Point(study, pairs[0][0], pairs[0][2][0]).config()))
    task, labels = prepared.task, prepared.kind.labels
    rng = np.random.default_rng(0)
    drawn, of_run = None, {}
    for setting, seed in sorted(
        {(name, seed) for *two, seeds in pairs for name in two for seed in seeds}
    ):
        workdir = Point(study, setting, seed).workdir(root)
        predictions = _read_predictions(workdir)
        try:
            result = SplitResult("validation", prepared.validation.examples, predictions, {})
        except ValueError as error:
            raise UsageError(f"{workdir} was evaluated on other examples: {error}.") from None
        if drawn is None:
            number = len(labelled(task, result))
            drawn = rng.multinomial(number, np.full(number, 1 / number), size=SAMPLES)
            drawn = np.concatenate([np.ones((1, number), drawn.dtype), drawn])  # first: each once
        scores = resampled_scores(task, labels, result, drawn)
        of_run[setting, seed] = np.array(
            [per_cent(float(each), task.metrics[0], task.kind) for each in scores]
        )
    rows = []
    for one, other, seeds in pairs:
        differences = np.stack([of_run[one, seed] - of_run[other, seed] for seed in seeds], axis=1)
        low, high = two_way_interval(differences[1:], rng)
        rows.append(
            {
                "task": title,
                "metric": task.metrics[0],
                "one": one,
                "other": other,
                "mean": float(differences[0].mean()),
                "low": low,
                "high": high,
                "seeds": len(seeds),
                "examples": drawn.shape[1],
            }
        )
    return rows


def _read_predictions(workdir: epath.Path) -> list[Mapping[str, Any]]:
    path = workdir / _PREDICTIONS
    try:
        return [json.loads(line) for line in path.read_text().split("\n") if line]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
