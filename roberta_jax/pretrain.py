"""Pretrains RoBERTa: text in, a masked language model out.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny

The same command again continues the run; for a finished run it prints the result. From Python:

    from configs.pretrain import get_config
    from roberta_jax.pretrain import pretrain
    pretrain(get_config("tiny"), "runs/tiny")
"""

import dataclasses
import os
import shlex
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
from roberta_jax.errors import UsageError
from roberta_jax.modeling.flops import training_flops
from roberta_jax.pretraining.config_keys import (
    ADDED,
    MAY_CHANGE,
    MAY_DIFFER,
    RENAMED,
    REVALUED,
)
from roberta_jax.pretraining.spec import (
    NEW_HEADS,
    PretrainingSpec,
    check_schedule_is_stated,
    read_spec,
)
from roberta_jax.run_flags import define_run_flags
from roberta_jax.training.agreement import together
from roberta_jax.training.compilation_cache import use_compilation_cache
from roberta_jax.training.distributed import join_processes, watched
from roberta_jax.training.run import EXPORT, Job, RunResult, finished_metrics, run, say
from roberta_jax.training.same_start import require_same_program
from roberta_jax.training.state import TrainState, count_parameters
from roberta_jax.training.steps import stream_key
from roberta_jax.training.workdir import trained_config


def pretrain(config: ConfigDict, workdir: epath.PathLike, on_damage: str = "stop") -> RunResult:
    """Runs, or continues, the pretraining that `config` describes.

    With several processes (see `distributed.join_processes`), all of them call this with the same
    config. They must share the workdir, and hold the same text files and tokenizer; the folder
    `data.cache_dir` may be shared or each host's own. What differs is reported on every host before
    the first step. If one process fails or is lost, the others end as well, with a message and
    status 2.

    Args:
      config: as `configs/pretrain.py` returns it.
      workdir: folder of the run, on a file system that all hosts share; created if needed.
      on_damage: what to do if the newest checkpoint is damaged: "stop" raises an error, "older"
        continues from the newest intact one and keeps the damaged ones aside.

    Returns:
      The result. Its metrics are eval_loss (nats per masked token) and eval_perplexity, and with
      `eval.ngram_baselines` unigram_perplexity and bigram_perplexity; see also
      `evaluation.Evaluation`.

    Raises:
      UsageError: something in the config, the text or the workdir is wrong. Nearly all such errors
        are raised before any long work. Checkpoints written before are intact.
    """
    # Before the input pipeline imports TensorFlow, which logs at length.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with watched(read_timeouts(config)):
        require_same_program(config.to_dict(), MAY_DIFFER)
        with together("reading the config"):
            spec = read_spec(config)
            # Imported here, so that a mistake in the config is reported without waiting for them.
            from roberta_jax.pretraining.memory import check_memory
            from roberta_jax.pretraining.text import check_sources

            check_schedule_is_stated(config, trained_config(workdir))
            if finished_metrics(workdir, spec.training.steps) is None:
                check_memory(spec)
                check_sources(spec.text)  # before anything is written to the workdir
        result = run(
            workdir,
            spec.training,
            lambda folder: make_job(spec, folder),
            config=spec.config,
            may_change=MAY_CHANGE,
            on_damage=on_damage,
            renamed=RENAMED,
            added=ADDED,
            revalued=REVALUED,
        )
        say(_describe_result(spec, result))
        return result


def make_job(spec: PretrainingSpec, folder: epath.Path) -> Job:
    """Prepares the text and describes the pretraining on it.

    Args:
      spec: what the config says.
      folder: the workdir, where the finished model is exported.

    Raises:
      UsageError: the text or the tokenizer does not suit the config.
    """
    # Imported here, as in `pretrain`.
    from roberta_jax.pretraining import datasets
    from roberta_jax.pretraining.batch_digest import batch_digest
    from roberta_jax.pretraining.evaluation import Evaluation, summary
    from roberta_jax.pretraining.text import prepare
    from roberta_jax.weights.description import describe_start
    from roberta_jax.weights.load import load_pretrained
    from roberta_jax.weights.save import save_pretrained

    prepared = prepare(spec.text, progress=jax.process_index() == 0)
    tokenizer = prepared.tokenizer
    spec = dataclasses.replace(spec, model=spec.model_config(tokenizer))
    if spec.left_to_memory:
        from roberta_jax.planning.fitting import fitted

        spec = fitted(spec, folder, say)
    training = spec.training
    model = spec.model_class(spec.model, spec.execution)
    token_types = model.config.type_vocab_size > 1
    train_set = datasets.training_dataset(spec, prepared, token_types=token_types)
    validation_sets = datasets.validation_datasets(spec, prepared, token_types=token_types)
    evaluate = Evaluation(spec, model, validation_sets) if validation_sets else None

    def init_params() -> Any:
        key = stream_key(training.seed, "params", jnp.int32(0))
        return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def pretrained_params() -> Any:
        loaded = load_pretrained(
            spec.init_from,
            spec.model_class,
            spec.execution,
            new_head=NEW_HEADS,
            seed=training.seed,
        )
        say(describe_start(spec.init_from, loaded))
        return loaded.params

    def export(params: Any) -> None:
        tokenizer.model_max_length = model.config.max_length
        save_pretrained(folder / EXPORT, model, params, tokenizer)

    def final_metrics() -> dict[str, float]:
        sampled = len(train_set.epoch_ends)  # how many times the pairs were sampled
        rows_seen = training.steps * training.batch_size
        metrics = {
            "padding_share": train_set.padding_share,
            "epochs": rows_seen * sampled / train_set.num_rows,
        }
        if evaluate is not None and spec.evaluation.ngram_baselines:
            metrics |= evaluate.ngram_perplexities(train_set)
        return metrics

    def describe(state: TrainState) -> str:
        return _describe_run(spec, model, state, train_set, validation_sets)

    return Job(
        train_step=training.train_step(model),
        init_params=init_params,
        pretrained_params=pretrained_params if spec.init_from else None,
        batches=lambda position: datasets.device_train_batches(
            spec, train_set, position, endless=True
        ),
        identity={
            "tokenizer": tokenizer.fingerprint(),
            "text": " ".join(
                store.index["text_blake2b"] for store in (prepared.train, *prepared.more)
            ),
            "rows": train_set.num_rows,
        },
        evaluate=evaluate,
        final_metrics=final_metrics,
        export=export,
        describe=describe,
        summarize=summary,
        tokens_per_step=training.batch_size * spec.seq_len,
        flops_per_step=training_flops(
            model.config, training.batch_size, spec.seq_len, train_set.num_slots
        ),
        sample=lambda step: batch_digest(spec, train_set, step),
    )


def _describe_run(spec, model, state, train_set, validation_sets) -> str:
    training = spec.training
    mesh = ", ".join(f"{name} {size}" for name, size in training.mesh.shape.items())
    sampled = len(train_set.epoch_ends)
    validation_rows = validation_sets["full"].num_rows if validation_sets else 0
    return (
        f"{count_parameters(state.params):,} parameters, vocabulary of "
        f"{model.config.vocab_size}, {jnp.dtype(spec.execution.dtype).name}\n"
        f"{jax.device_count()} x {jax.devices()[0].device_kind} ({mesh})\n"
        f"Batches of {training.batch_size} rows of {spec.seq_len} tokens in "
        f"{training.accumulation} microbatch(es) of {training.rows_per_microbatch} rows per "
        f"device\n"
        f"{spec.format}: {train_set.num_rows:,} rows to train on, {validation_rows:,} held out; "
        f"{train_set.padding_share:.1%} padding"
        + (f"; pairs sampled {sampled} times" if sampled > 1 else "")
        + f"\nStep {int(state.step)} of {training.steps}, learning rate "
        + " -> ".join(f"{rate:.3g}" for rate in _rates_ahead(spec, int(state.step)))
    )


def _rates_ahead(spec: PretrainingSpec, step: int) -> list[float]:
    """The learning rates of the next update, of the peak if it lies ahead, and of the last one."""
    steps, warmup_steps = spec.training.steps, spec.training.warmup_steps
    peak = [warmup_steps] if step < warmup_steps < steps else []
    return [float(spec.training.schedule(s)) for s in (step, *peak, steps - 1)]


def _describe_result(spec: PretrainingSpec, result: RunResult) -> str:
    steps = spec.training.steps
    if not result.finished:
        return (
            f"Stopped at step {result.step} of {steps}; saved. The same command continues the run."
        )
    from roberta_jax.pretraining.evaluation import summary

    scores = "No documents were held out to evaluate on."
    if "eval_perplexity" in result.metrics:
        scores = f"Held-out {summary(result.metrics)}."
    finished = "Finished" if result.start < steps else f"{result.workdir} is finished"
    prompt = shlex.quote("Some text with a <mask>.")
    return (
        f"{finished}: {steps} steps. {scores}\nThe model is in {result.workdir / EXPORT}. Try it:\n"
        f"  python -m roberta_jax.fill_mask {shlex.quote(str(result.workdir))} {prompt}"
    )


def main(config: ConfigDict, values: flags.FlagValues) -> None:
    """Pretrains RoBERTa, or continues the run in --workdir.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny

    The exit status is 0 if the run is finished, and 2 after a mistake that the message explains. A
    run that was told to stop has saved a checkpoint, and the same command continues it. The status
    is then 130 after Ctrl-C, 143 after SIGTERM, and 141 if its output cannot be written. So
    `pretrain ... && ...` goes on only with a finished model.

    On several hosts, start the same command on each. TPU pods (VMs and GKE), Slurm with one task
    per node or per GPU, Open MPI, and GPU nodes of xpk are detected; elsewhere set
    JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID. The hosts must share
    the workdir and hold the same text files. SIGTERM or Ctrl-C to one process stops all of them at
    the same step. If one is lost, the others say which, and end with status 2; start all again to
    continue.
    """
    if values.print:
        from roberta_jax.pretraining.sharding_table import describe_sharding

        print(describe_sharding(read_spec(config)))
        return
    if not values.workdir:
        raise UsageError("no folder for the run: give one, such as --workdir=runs/tiny")
    use_compilation_cache()
    join_processes(values.distributed, read_timeouts(config))
    result = pretrain(config, values.workdir, values.on_damage)
    if not result.finished:
        sys.exit(128 + (result.signal or signal.SIGTERM))


def _flags(values: flags.FlagValues) -> None:
    define_run_flags(values)
    flags.DEFINE_enum(
        "print",
        None,
        ["sharding"],
        "Train nothing, and print instead how the parameters and the optimizer state are split "
        "over the devices: `sharding`.",
        flag_values=values,
    )


if __name__ == "__main__":
    cli.run_config_job(main, _flags, renamed=RENAMED)
