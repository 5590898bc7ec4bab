"""Pretrains RoBERTa: text in, a masked language model out.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny

The same command again continues where the run was; on a finished one it says so. From Python:

    from configs.pretrain import get_config
    from roberta_jax.pretrain import pretrain
    pretrain(get_config("tiny"), "runs/tiny")
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from roberta_jax import cli, weights
from roberta_jax.data.pipeline import train_batches
from roberta_jax.errors import UsageError
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.modeling.objectives import (
    masked_lm_objective,
    pretraining_objective,
    training_flops,
)
from roberta_jax.modeling.pretraining import (
    NextSentenceHead,
    RobertaForPreTraining,
    split_next_sentence,
)
from roberta_jax.pretraining.config_keys import RENAMED
from roberta_jax.pretraining.datasets import held_out_rows, training_rows
from roberta_jax.pretraining.evaluation import HeldOut, placed
from roberta_jax.pretraining.spec import Plan, check_schedule_is_stated
from roberta_jax.pretraining.text import Prepared, prepare
from roberta_jax.training import loop, preemption
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.distributed import join_processes
from roberta_jax.training.host_memory import keep_freed_memory, restart_with_huge_pages
from roberta_jax.training.metrics import MetricsWriter, read_metrics
from roberta_jax.training.partitioning import local_batch_rows
from roberta_jax.training.state import TrainState, abstract_state, count_parameters, create_state
from roberta_jax.training.workdir import open_workdir, read_config

# What a run may change when it goes on: how long (and with it the schedule from there on), how
# often, where and in what portions. None of it changes the steps that were made, beyond the
# rounding of another mesh or accumulation.
MAY_CHANGE = (
    "train.steps",
    "schedule.decay_steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.per_device_batch_size",
    "eval.batch_size",
    "mesh.",
    "data.cache_dir",
    "data.num_workers",
    "data.engine",
)


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """How a run stands.

    Attributes:
      workdir: its folder.
      step: updates made.
      finished: False if it was told to stop before its end; the same call continues it.
      metrics: of the final evaluation, if finished: eval_loss (nats), eval_perplexity, and with
        `eval.ngram_baselines` unigram_perplexity and bigram_perplexity.
    """

    workdir: epath.Path
    step: int
    finished: bool
    metrics: dict[str, float]


def pretrain(config: ConfigDict, workdir: epath.PathLike) -> PretrainResult:
    """Runs, or continues, the pretraining that `config` describes.

    Args:
      config: as `configs/pretrain.py` returns it.
      workdir: the folder of the run, local or on an object store (gs://...); made if need be.

    Raises:
      UsageError: something in the config, the text or the workdir is wrong; nearly all of it before
        any long work. Checkpoints written before are intact.
    """
    # Before the input pipeline imports TensorFlow, which reports on itself at length.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    primary = jax.process_index() == 0
    plan = Plan(config)
    check_schedule_is_stated(config, read_config(workdir))
    with open_workdir(workdir, config.to_dict(), MAY_CHANGE, primary) as folder:
        done = finished_metrics(folder, config.train.steps)
        if done is not None:
            _say(
                f"{folder} is finished: {config.train.steps} steps. {_summary(done)}\n"
                "For more, raise --config.train.steps and say how the learning rate goes on, with "
                "--config.schedule.decay_steps."
            )
            return PretrainResult(folder, config.train.steps, True, done)
        with Checkpoints(folder / "checkpoints", config.train.keep_checkpoints) as checkpoints:
            _check_not_beyond(checkpoints.latest_step(), config.train.steps)
            prepared = prepare(config, progress=primary)
            return _Run(config, plan, folder, checkpoints, prepared).train()


class _Run:
    """The parts of a run, put together; `train` does it."""

    def __init__(
        self,
        config: ConfigDict,
        plan: Plan,
        folder: epath.Path,
        checkpoints: Checkpoints,
        prepared: Prepared,
    ):
        self.config, self.plan, self.folder, self.checkpoints = config, plan, folder, checkpoints
        self.tokenizer = prepared.tokenizer
        model_config = plan.model_config(config, self.tokenizer)
        self.masked_lm = RobertaForMaskedLM(model_config, plan.execution)
        self.model = self.masked_lm
        if config.objective.next_sentence:
            self.model = RobertaForPreTraining(model_config, plan.execution)
        token_types = model_config.type_vocab_size > 1
        self.train_dataset = training_rows(
            config, prepared, plan.masking, plan.pairs, token_types=token_types
        )
        held_out = held_out_rows(config, prepared, plan.pairs, token_types=token_types)
        self.held_out = HeldOut(config, plan.mesh, self.masked_lm, self.model, held_out)
        # What the run was made from; a checkpoint of other text would go on with other rows.
        self.identity = {
            "tokenizer": self.tokenizer.fingerprint(),
            "text": " ".join(s.index["text_blake2b"] for s in (prepared.train, *prepared.more)),
            "rows": self.train_dataset.num_rows,
        }
        self.evaluation_due = False  # what a checkpoint may say otherwise
        objective = masked_lm_objective
        if config.objective.next_sentence:
            objective = pretraining_objective
        self.loss_fn, self.count_fn = objective(
            self.model, shared_rows=self.train_dataset.max_inputs > 1
        )

    def train(self) -> PretrainResult:
        config, plan = self.config, self.plan
        state = self._state()
        start = int(state.step)
        self._describe(state, start)
        steps = config.train.steps
        train_step = loop.make_train_step(
            self.loss_fn,
            self.count_fn,
            plan.optimizer,
            plan.schedule,
            plan.mesh,
            seed=config.seed,
            accumulation=plan.accumulation,
            deterministic=config.train.deterministic,
        )
        with (
            preemption.stop_requests() as should_stop,
            MetricsWriter(
                self.folder, step=start, steps=steps, primary=jax.process_index() == 0
            ) as writer,
        ):

            def evaluation(params: Any) -> dict[str, float] | None:
                found = self.held_out.score(params, should_stop)
                if found is not None:
                    writer.say(f"held-out {_scores(found)}")
                return found

            state, stopped = loop.fit(
                state,
                train_step,
                self._train_batches,
                steps=steps,
                cadence=plan.cadence,
                checkpoints=self.checkpoints,
                writer=writer,
                tokens_per_step=config.train.batch_size * config.seq_len,
                flops_per_step=training_flops(
                    self.model.config,
                    config.train.batch_size,
                    config.seq_len,
                    self.train_dataset.num_slots,
                ),
                evaluation=evaluation if self.held_out else None,
                should_stop=should_stop,
                extra=self.identity,
                evaluation_due=self.evaluation_due,
            )
            metrics = None if stopped else self._finish(state.params, evaluation, writer)
        step = int(state.step)
        if metrics is None:
            _say(f"Stopped at step {step} of {steps}; saved. The same command continues from here.")
            return PretrainResult(self.folder, step, False, {})
        _say(f"Finished: {steps} steps. {_summary(metrics)}\nThe model is in {self.folder / 'hf'}.")
        return PretrainResult(self.folder, step, True, metrics)

    def _state(self) -> TrainState:
        """The newest checkpoint's state, or a new one."""
        plan = self.plan

        def init_params():
            key = loop.stream_key(self.config.seed, "params", jnp.int32(0))
            return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

        restored = self.checkpoints.restore(abstract_state(init_params, plan.optimizer, plan.mesh))
        if restored is None:
            params = None if plan.initial is None else self._with_head(plan.initial[1])
            state = create_state(init_params, plan.optimizer, plan.mesh, params)
        else:
            state, saved = restored
            self._check_identity(saved)
            self.evaluation_due = saved.get(loop.EVALUATION_DUE, False)
        plan.initial = None  # the host's copy of the weights has done its work
        return state

    def _with_head(self, params: Any) -> Any:
        """The weights to start from, with a new head for next sentences if they lack it."""
        if not self.config.objective.next_sentence or "next_sentence" in params:
            return params
        head = NextSentenceHead(self.model.config, self.plan.execution)
        key = loop.stream_key(self.config.seed, "next_sentence", jnp.int32(0))
        first = jnp.zeros((1, 1, self.model.config.hidden_size))
        return {**params, "next_sentence": nn.unbox(head.init(key, first)["params"])}

    def _check_identity(self, saved: Mapping[str, Any]) -> None:
        changed = [name for name in self.identity if saved.get(name) != self.identity[name]]
        if changed:
            raise UsageError(
                f"the checkpoints in {self.folder} were trained on other data: the "
                f"{' and the '.join(changed)} changed since. Bring back what config.data and "
                "config.tokenizer pointed to, or choose another --workdir."
            )

    def _describe(self, state: TrainState, start: int) -> None:
        config, plan, mesh = self.config, self.plan, self.plan.mesh
        split = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
        dataset = self.train_dataset
        times = len(dataset.epoch_ends)
        sampled = f"; pairs sampled {times} times" if times > 1 else ""
        _say(
            f"{count_parameters(state.params):,} parameters, vocabulary of {len(self.tokenizer)}, "
            f"{jnp.dtype(plan.execution.dtype).name}\n"
            f"{jax.device_count()} x {jax.devices()[0].device_kind} ({split})\n"
            f"{config.train.batch_size} rows of {config.seq_len} tokens a step, {plan.rows} on a "
            f"device at once: {plan.accumulation} microbatch(es)\n"
            f"{config.data.format}: {dataset.num_rows:,} rows to train on, "
            f"{self.held_out.num_rows:,} held out; {dataset.padding_share:.1%} padding{sampled}\n"
            f"Step {start} of {config.train.steps}, learning rate {_rates(plan, start, config)}"
        )

    def _epochs(self) -> float:
        """How often the run sees its text."""
        dataset, train = self.train_dataset, self.config.train
        return train.steps * train.batch_size * len(dataset.epoch_ends) / dataset.num_rows

    def _train_batches(self, step: int) -> Iterator[dict[str, jax.Array]]:
        config = self.config
        return placed(
            train_batches(
                self.train_dataset,
                batch_size=config.train.batch_size,
                seed=config.seed,
                start_step=step,
                stop_step=config.train.steps,
                local_rows=local_batch_rows(self.plan.mesh, config.train.batch_size),
                engine=config.data.engine,
            ),
            self.plan.mesh,
            config.train.batch_size,
        )

    def _finish(
        self,
        params: Any,
        evaluation: Callable[[Any], dict[str, float] | None],
        writer: MetricsWriter,
    ) -> dict[str, float] | None:
        """Exports the model and evaluates it, unless that was done; None if told to stop."""
        self.tokenizer.model_max_length = self.model.config.max_length
        head = None
        masked_lm_params = params
        if self.config.objective.next_sentence:
            masked_lm_params, head = split_next_sentence(params)
        weights.save_pretrained(
            self.folder / "hf",
            self.masked_lm,
            masked_lm_params,
            self.tokenizer,
            next_sentence=head,
        )
        metrics = _final_record(self.folder, self.config.train.steps)
        if metrics is not None:
            return metrics
        metrics = evaluation(params) if self.held_out else {}
        if metrics is None:
            return None
        metrics |= {"padding_share": self.train_dataset.padding_share, "epochs": self._epochs()}
        if self.held_out and self.config.eval.ngram_baselines:
            metrics |= self.held_out.ngram_perplexities(self.train_dataset)
        writer.write(self.config.train.steps, {**metrics, "finished": 1.0})
        return metrics


def finished_metrics(folder: epath.PathLike, steps: int) -> dict[str, float] | None:
    """What a run of so many steps recorded at its end, or None if it has not come to its end."""
    folder = epath.Path(folder)
    return _final_record(folder, steps) if (folder / "hf" / "config.json").exists() else None


def _final_record(folder: epath.Path, steps: int) -> dict[str, float] | None:
    for record in reversed(read_metrics(folder)):
        if record["step"] == steps and record.get("finished"):
            return {key: value for key, value in record.items() if key not in ("step", "finished")}
    return None


def _check_not_beyond(step: int | None, steps: int) -> None:
    if step is not None and step > steps:
        raise UsageError(
            f"the run is at step {step} already, beyond train.steps={steps}. Use at least {step} "
            "steps, or another --workdir."
        )


def _summary(metrics: Mapping[str, float]) -> str:
    if "eval_perplexity" not in metrics:
        return "No documents were held out to evaluate on."
    text = f"Held-out {_scores(metrics)}"
    others = [
        f"{name} {metrics[f'{name}_perplexity']:.2f}"
        for name in ("unigram", "bigram")
        if f"{name}_perplexity" in metrics
    ]
    return text + (f" ({', '.join(others)})." if others else ".")


def _scores(metrics: Mapping[str, float]) -> str:
    """The scores of held-out text, in words."""
    text = f"perplexity {metrics['eval_perplexity']:.2f}"
    if "eval_short_perplexity" in metrics:
        text += f", of single sentences {metrics['eval_short_perplexity']:.2f}"
    if "next_sentence_accuracy" in metrics:
        text += f", pairs told right {metrics['next_sentence_accuracy']:.1%}"
    return text


def _rates(plan: Plan, start: int, config: ConfigDict) -> str:
    """The schedule from here on: the rates of the next update, of the peak if it is to come, and
    of the last update."""
    steps = config.train.steps
    ahead = [
        start,
        *([config.schedule.warmup_steps] if start < config.schedule.warmup_steps < steps else []),
        steps - 1,
    ]
    return " -> ".join(f"{float(plan.schedule(step)):.3g}" for step in ahead)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def main(config: ConfigDict, values: flags.FlagValues) -> None:
    """Pretrains RoBERTa, or continues the run that --workdir holds.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny
    """
    if not values.workdir:
        raise UsageError("no folder for the run: pass one, such as --workdir=runs/tiny")
    if values.distributed:
        join_processes()
    pretrain(config, values.workdir)


def _flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the folder of the run", flag_values=values)
    flags.DEFINE_bool(
        "distributed", False, "one of several processes of the run", flag_values=values
    )


if __name__ == "__main__":
    restart_with_huge_pages()
    cli.run_config_job(main, _flags, renamed=RENAMED)
