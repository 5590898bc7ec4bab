"""Fine-tunes a model on a task, with several seeds, and writes its scores in per cent.

    python -m experiments.downstream sst2 --model=runs/tiny --data=glue --output=sst2.json

`experiments.sweep` runs it on finished points for the columns of the paper's Tables 1 to 4. With
several rates or batch sizes, the best combination is that with the highest median, over the seeds,
of the metric that selects the best checkpoint. The output is a JSON object: the medians of that
combination for each metric of the validation examples ("accuracy") and of other splits with labels
("validation_mismatched.accuracy"), its "learning_rate" and "batch_size", and the number of "seeds".

The runs are in the folder finetune/TASK of --out, which is --model by default. The same command
continues an interrupted one: runs that are finished are not repeated, and an interrupted run
continues from its checkpoint. A finished run keeps its results and predictions; --keep keeps its
model and checkpoints as well.
"""

import argparse
import itertools
import json
import math
import os
import signal
import statistics
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from experiments.command_line import command
from experiments.study.config_changes import changed_config, parse_change
from experiments.study.finetuned import MAJORITY, SCORE, read_scores
from roberta_jax.errors import UsageError
from roberta_jax.storage import atomic
from roberta_jax.tasks.table import TASKS

FOLDER = "finetune"  # in the workdir of the model: the runs of each task
DONE = ".scores.json"  # in a run: its scores, written when nothing is left to do
_LARGE = ("checkpoints", "best", "hf", "adapter")  # in a run: what is deleted after it


def medians(
    scores: Mapping[tuple[float, int], Sequence[Mapping[str, float]]],
) -> dict[str, float]:
    """The medians over the seeds of the best combination of learning rate and batch size.

    Args:
      scores: (learning rate, batch size) -> the scores of its runs, see `finetuned.read_scores`.
    """

    def median(runs: Sequence[Mapping[str, float]], name: str) -> float:
        values = [each[name] for each in runs]
        return math.nan if any(map(math.isnan, values)) else statistics.median(values)

    def score(item) -> float:
        value = median(item[1], SCORE)
        return -math.inf if math.isnan(value) else value

    (rate, batch_size), runs = max(scores.items(), key=score)
    values = {
        name.removeprefix("validation."): median(runs, name)
        for name in runs[0]
        if name not in (SCORE, MAJORITY)
    }
    values |= {name: median(runs, name) for name in (SCORE, MAJORITY) if name in runs[0]}
    # JSON has no NaN: a score that is not finite is left out, and its column stays empty.
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    return {**values, "learning_rate": rate, "batch_size": batch_size, "seeds": len(runs)}


def run_point(config: ConfigDict, workdir: epath.Path, keep: bool) -> dict[str, float]:
    """Runs or continues a fine-tuning run, and returns its scores.

    If it is told to stop, it saves a checkpoint and this process ends by the same signal, as the
    runner of a sweep expects of an evaluation that is not finished.
    """
    from roberta_jax.finetune import finetune

    done = workdir / DONE
    if done.exists():
        return json.loads(done.read_text())
    result = finetune(config, workdir)
    if not result.finished:
        number = result.signal or signal.SIGTERM
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    scores = read_scores(workdir)
    atomic.write_text(done, json.dumps(scores) + "\n")
    if not keep:
        for name in _LARGE:
            if (workdir / name).exists():
                (workdir / name).rmtree()
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; exits with a message, without a traceback, on wrong input."""
    with command():
        _run_command(argv)


def _run_command(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    base = _base_config(arguments)
    task = arguments.task
    rates = arguments.rates or [base.optimizer.learning_rate]
    batch_sizes = arguments.batch_sizes or [base.train.batch_size]
    folder = epath.Path(arguments.out or arguments.model) / FOLDER / task
    scores: dict[tuple[float, int], list[dict[str, float]]] = {}
    for seed, rate, batch_size in itertools.product(range(arguments.seeds), rates, batch_sizes):
        changes = {
            "seed": seed,
            "optimizer.learning_rate": rate,
            "train.batch_size": batch_size,
        }
        config = changed_config(base, changes, f"experiments.downstream {task}")
        name = f"rate{rate:g}-batch{batch_size}-seed{seed}"
        print(f"{task}, {name}", flush=True)
        run = run_point(config, folder / name, arguments.keep)
        scores.setdefault((rate, batch_size), []).append(run)
    found = medians(scores)
    atomic.write_text(epath.Path(arguments.output), json.dumps(found, indent=2) + "\n")
    print(f"{TASKS[task].title}: {found.get(SCORE, math.nan):.2f}, in {arguments.output}")


def _base_config(arguments: argparse.Namespace) -> ConfigDict:
    from configs.finetune import get_config

    if TASKS[arguments.task].reader is None:
        raise UsageError(
            f"the task {arguments.task} stands for files of your own. Fine-tune on them with "
            "python -m roberta_jax.finetune."
        )
    config = get_config(arguments.task)
    changes = dict(parse_change(config, change) for change in arguments.set)
    changes |= {"init_from": arguments.model}
    if arguments.data is not None:
        changes["data.folder"] = arguments.data
    return changed_config(config, changes, f"experiments.downstream {arguments.task}")


def _numbers(kind: type):
    def parse(text: str) -> list:
        try:
            values = [kind(each) for each in text.split(",")]
            if not all(0 < each < math.inf for each in values):
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"invalid value {text!r}: give numbers above 0, such as "
                f"{'1e-5,2e-5' if kind is float else '16,32'}"
            ) from None
        return values

    return parse


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}: give the number of seeds, such as 5"
        )
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.downstream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=TASKS, metavar="TASK", help="such as sst2 or squad2")
    parser.add_argument("--model", required=True, help="the workdir or the folder of the model")
    parser.add_argument("--output", required=True, help="the file to write the scores to")
    parser.add_argument("--data", metavar="FOLDER", help="the task's files (default: from TFDS)")
    parser.add_argument("--out", metavar="FOLDER", help="where the runs are (default: --model)")
    parser.add_argument(
        "--seeds", type=_count, default=1, metavar="N", help="seeds 0 to N-1 (default: 1)"
    )
    parser.add_argument(
        "--rates", type=_numbers(float), help="learning rates to try (default: the recipe's)"
    )
    parser.add_argument(
        "--batch_sizes", type=_numbers(int), help="batch sizes to try (default: the recipe's)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a config value of all runs (repeatable)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the models and checkpoints")
    return parser


if __name__ == "__main__":
    main()
