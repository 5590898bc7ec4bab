"""Writes workdirs as pretraining leaves them, without training."""

import json
import math

from roberta_jax.training.metrics import FILE


def write_records(workdir, records):
    """Writes the `metrics.jsonl` of a run."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / FILE).write_text("".join(json.dumps(record) + "\n" for record in records))


def records_to(step, steps, *, every=1, start=6.0, speed=1000.0):
    """Returns records up to `step`, with a loss that falls by 1 over `steps` steps.

    Every second record is followed by an evaluation.
    """
    records = []
    for number in range(every, step + 1, every):
        loss = start - number / steps
        records.append({"step": number, "loss": loss, "tokens_per_second": speed})
        if number % (2 * every) == 0:
            values = {"eval_loss": loss + 0.1, "eval_perplexity": math.exp(loss + 0.1)}
            records.append({"step": number, **values})
    return records


def finish(point, root, *, perplexity, **options):
    """Writes the workdir of a finished run with a given perplexity, and returns it.

    `options` are those of `records_to`.
    """
    workdir, steps = point.workdir(root), point.config().train.steps
    final = {"step": steps, "eval_loss": math.log(perplexity), "eval_perplexity": perplexity}
    write_records(workdir, [*records_to(steps, steps, **options), {**final, "finished": 1.0}])
    (workdir / "hf").mkdir(exist_ok=True)
    (workdir / "hf" / "config.json").write_text("{}")
    return workdir


def begin(point, root, step, **options):
    """Writes the workdir of a run that is at `step`. `options` are those of `records_to`."""
    write_records(point.workdir(root), records_to(step, point.config().train.steps, **options))
