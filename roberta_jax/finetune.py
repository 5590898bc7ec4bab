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
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from roberta_jax import cli
from roberta_jax.config_groups import read_timeouts
from roberta_jax.errors import UsageError, counted, listed
from roberta_jax.finetuning.config_values import MAY_CHANGE, MAY_DIFFER
from roberta_jax.finetuning.spec import FinetuningSpec, read_spec
from roberta_jax.run_flags import define_run_flags
from roberta_jax.training.agreement import together
from roberta_jax.training.distributed import join_processes, watched
from roberta_jax.training.run import EXPORT, Job, RunResult, TrainingSpec, run, say
from roberta_jax.training.same_start import require_same_program
from roberta_jax.training.state import TrainState, count_parameters
from roberta_jax.training.steps import stream_key


def finetune(config: ConfigDict, workdir: epath.PathLike, on_damage: str = "stop") -> RunResult:
    """Runs, or continues, the fine-tuning that `config` describes.

    With several processes, all of them call this with the same config, as for `pretrain`.

    Args:
      config: as `configs/finetune.py` returns it.
      workdir: folder of the run, on a file system that all hosts share; created if needed.
      on_damage: what to do if the newest checkpoint is damaged, see `pretrain`.

    Returns:
      The result. Its metrics are eval_loss and the task's metrics with the prefix eval_, such as
      eval_accuracy, of the best evaluation.

    Raises:
      UsageError: something in the config, the examples, the model or the workdir is wrong. Nearly
        all such errors are raised before any long work. Checkpoints written before are intact.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with watched(read_timeouts(config)):
        require_same_program(config.to_dict(), MAY_DIFFER)
        with together("reading the config"):
            spec = read_spec(config)
        with together("reading the examples"):
            # Imported here, so that a mistake in the config is reported without waiting for it.
            from roberta_jax.finetuning.prepare import prepare

            prepared = prepare(spec)
            training = spec.training(prepared.train.features.num_rows)
        return run(
            workdir,
            training,
            lambda folder: make_job(spec, training, prepared, folder),
            config=spec.config,
            may_change=MAY_CHANGE,
            on_damage=on_damage,
        )


def make_job(
    spec: FinetuningSpec, training: TrainingSpec, prepared: Any, folder: epath.Path
) -> Job:
    """Describes the fine-tuning.

    Args:
      spec: what the config says.
      training: how the model is trained.
      prepared: the examples, see `finetuning.prepare.Prepared`.
      folder: the workdir.
    """
    from roberta_jax.finetuning.batches import TrainingRows, choose_lengths, training_batches
    from roberta_jax.finetuning.evaluation import Evaluator
    from roberta_jax.modeling.flops import training_flops
    from roberta_jax.weights.load import load_pretrained
    from roberta_jax.weights.save import save_pretrained

    kind, tokenizer = prepared.kind, prepared.tokenizer
    features = prepared.train.features
    changes = kind.config_changes()
    model = kind.model_class(spec.model.replace(**changes), spec.execution)
    lengths = choose_lengths(features.row_lengths, spec.data.num_lengths, spec.model.max_length)
    rows = TrainingRows(features, lengths, training.batch_size, training.seed)
    tokens_per_step = rows.mean_tokens() * features.choices
    evaluator = Evaluator(
        model,
        kind,
        training.mesh,
        training.rules,
        batch_size=spec.eval_batch_size,
        num_lengths=spec.data.num_lengths,
        pad_id=tokenizer.pad_token_id,
        engine=spec.data.engine,
    )

    def init_params() -> Any:
        key = stream_key(training.seed, "params", jnp.int32(0))
        shape = (1, features.choices, 1) if features.choices > 1 else (1, 1)
        return model.init(key, jnp.zeros(shape, jnp.int32))["params"]

    def pretrained_params() -> Any:
        loaded = load_pretrained(
            spec.init_from,
            kind.model_class,
            spec.execution,
            new_head=kind.new_head,
            seed=training.seed,
            **changes,
        )
        say(_describe_start(spec, loaded))
        return loaded.params

    def evaluate(params: Any, should_stop) -> dict[str, float] | None:
        result = evaluator(prepared.validation, params, should_stop)
        if result is None:
            return None
        loss = {} if result.loss is None else {"eval_loss": result.loss}
        return loss | {f"eval_{name}": value for name, value in result.scores.items()}

    def export(params: Any) -> None:
        save_pretrained(folder / EXPORT, model, params, tokenizer)

    return Job(
        train_step=training.train_step(model),
        init_params=init_params,
        pretrained_params=pretrained_params,
        batches=lambda step: training_batches(
            features,
            rows,
            kind.fill(),
            tokenizer.pad_token_id,
            training.mesh,
            training.batch_size,
            step,
            spec.data.engine,
        ),
        identity=prepared.identity(),
        evaluate=evaluate,
        final_metrics=dict,
        export=export,
        describe=lambda state: _describe_run(spec, training, prepared, state, lengths),
        summarize=lambda metrics: ", ".join(
            f"{name.removeprefix('eval_')} {value:.4g}" for name, value in metrics.items()
        ),
        tokens_per_step=round(tokens_per_step),
        flops_per_step=training_flops(
            model.config, 1, round(tokens_per_step / training.batch_size), 0
        )
        * training.batch_size,
        sample=lambda step: [int(row) for row in rows(step)[0]],
    )


def _describe_start(spec: FinetuningSpec, loaded: Any) -> str:
    taken = len(loaded.weights.tensors) - len(loaded.unused)
    parts = [f"Starting from the weights in {spec.init_from}: {taken} tensors taken"]
    if loaded.new:
        parts.append(f"new, with random values: {listed(loaded.new)}")
    if loaded.unused:
        parts.append(f"not used: {listed(loaded.unused)}")
    return "; ".join(parts) + "."


def _describe_run(spec, training, prepared, state: TrainState, lengths) -> str:
    mesh = ", ".join(f"{name} {size}" for name, size in training.mesh.shape.items())
    train, validation = prepared.train, prepared.validation
    return "\n".join(
        [
            f"{prepared.task.title}: {counted(len(train.examples), 'training example')}, "
            f"{counted(len(validation.examples), 'validation example')}",
            *prepared.notes,
            f"{count_parameters(state.params):,} parameters, {jnp.dtype(spec.execution.dtype).name}"
            f", {jax.device_count()} x {jax.devices()[0].device_kind} ({mesh})",
            f"Batches of {training.batch_size} examples in {training.accumulation} microbatch(es), "
            f"padded to {', '.join(map(str, lengths))} tokens",
            f"Step {int(state.step)} of {training.steps}, learning rate up to "
            f"{spec.config['optimizer']['learning_rate']:.3g} after {training.warmup_steps} steps",
        ]
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
    join_processes(values.distributed, read_timeouts(config))
    result = finetune(config, values.workdir, values.on_damage)
    if not result.finished:
        sys.exit(128 + (result.signal or signal.SIGTERM))


if __name__ == "__main__":
    cli.run_config_job(main, define_run_flags, example="configs/finetune.py:rte")
