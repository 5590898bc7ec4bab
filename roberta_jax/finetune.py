"""Fine-tunes a model on a task: labelled examples in, a classifier and its scores out.

    python -m roberta_jax.finetune --config=configs/finetune.py:rte --workdir=runs/rte \\
        --config.init_from=FacebookAI/roberta-base --config.data.folder=glue/RTE

The same command again continues the run; for a finished run it prints the result. From Python:

    from configs.finetune import get_config
    from roberta_jax.finetune import finetune
    config = get_config("rte")
    config.init_from, config.data.folder = "runs/tiny", "glue/RTE"
    finetune(config, "runs/rte")
"""

import os
import shlex
import signal
import sys

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from roberta_jax import cli
from roberta_jax.config_groups import read_timeouts
from roberta_jax.errors import UsageError
from roberta_jax.finetuning.config_values import MAY_CHANGE, MAY_DIFFER
from roberta_jax.finetuning.spec import FILE, check_config, read_spec
from roberta_jax.run_flags import define_run_flags
from roberta_jax.training.agreement import together
from roberta_jax.training.compilation_cache import use_compilation_cache
from roberta_jax.training.distributed import join_processes, watched
from roberta_jax.training.run import (
    EXPORT,
    RunResult,
    TrainingSpec,
    finished_metrics,
    run,
    say,
)
from roberta_jax.training.same_start import require_same_program
from roberta_jax.training.workdir import remove_unused


def finetune(
    config: ConfigDict,
    workdir: epath.PathLike,
    on_damage: str = "stop",
    command: str | None = None,
) -> RunResult:
    """Runs, or continues, the fine-tuning that `config` describes.

    With several processes, all of them call this with the same config, as for `pretrain`.

    Args:
      config: as `configs/finetune.py` returns it.
      workdir: folder of the run, on a file system that all hosts share; created if needed.
      on_damage: what to do if the newest checkpoint is damaged, see `pretrain`.
      command: the command line, which the model card states.

    Returns:
      The result. Its metrics are eval_loss and the task's metrics with the prefix eval_, such as
      eval_accuracy, of the best evaluation.

    Raises:
      UsageError: something in the config, the examples, the model or the workdir is wrong. Nearly
        all such errors are raised before any long work. Checkpoints written before are intact.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with watched(read_timeouts(config, FILE)):
        require_same_program(config.to_dict(), MAY_DIFFER)
        with together("reading the config"):
            check_config(config)
            # A finished run needs neither the model that it started from nor the examples.
            spec = None if finished_metrics(workdir, None) is not None else read_spec(config)
        finetuning = None

        def prepare_run() -> TrainingSpec:
            nonlocal finetuning
            # Imported here, so that a mistake in the config is reported without waiting for it.
            from roberta_jax.finetuning.job import Finetuning
            from roberta_jax.finetuning.prepare import prepare

            of_config = spec or read_spec(config)
            prepared = prepare(of_config)
            training = of_config.training(prepared.train.features.num_rows)
            folder = epath.Path(workdir)
            finetuning = Finetuning(of_config, training, prepared, folder, command)
            return finetuning.training

        existed = epath.Path(workdir).exists()
        try:
            result = run(
                workdir,
                prepare_run,
                lambda folder: finetuning.job(),
                config=config.to_dict(),
                may_change=MAY_CHANGE,
                on_damage=on_damage,
            )
        except UsageError:
            if not existed and jax.process_index() == 0:
                remove_unused(workdir)
            raise
        say(_describe_result(result))
        return result


def _describe_result(result: RunResult) -> str:
    if not result.finished:
        return f"Stopped at step {result.step}; saved. The same command continues the run."
    folder = shlex.quote(str(result.workdir))
    return (
        f"The model is in {result.workdir / EXPORT}, its scores in {result.workdir}/results.md.\n"
        f"  python -m roberta_jax.predict {folder} --input=FILE --output=FILE"
    )


def main(config: ConfigDict, values: flags.FlagValues) -> None:
    """Fine-tunes a model on a task, or continues the run in --workdir.

    python -m roberta_jax.finetune --config=configs/finetune.py:rte --workdir=runs/rte \\
        --config.init_from=FacebookAI/roberta-base --config.data.folder=glue/RTE

    The exit status is 0 if the run is finished, and 2 after a mistake that the message explains. A
    run that was told to stop has saved a checkpoint, and the same command continues it; the status
    is then 130 after Ctrl-C, 143 after SIGTERM, and 141 if its output cannot be written.
    """
    if not values.workdir:
        raise UsageError("no folder for the run: give one, such as --workdir=runs/rte")
    use_compilation_cache()
    join_processes(values.distributed, read_timeouts(config, FILE))
    command = shlex.join(["python", "-m", "roberta_jax.finetune", *sys.argv[1:]])
    result = finetune(config, values.workdir, values.on_damage, command)
    if not result.finished:
        sys.exit(128 + (result.signal or signal.SIGTERM))


if __name__ == "__main__":
    cli.run_config_job(main, define_run_flags, example="configs/finetune.py:rte")
