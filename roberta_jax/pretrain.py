"""Pretrains RoBERTa: text in, a masked language model out.

    python -m roberta_jax.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny

The same command again continues where the run was; on a finished one it says so. From Python:

    from configs.pretrain import get_config
    from roberta_jax.pretrain import pretrain
    pretrain(get_config("tiny"), "runs/tiny")
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from roberta_jax import command
from roberta_jax.data.batches import BatchMaker
from roberta_jax.data.ngrams import ngram_perplexities
from roberta_jax.data.packing import load_or_pack
from roberta_jax.data.pipeline import eval_batches, train_batches
from roberta_jax.data.token_store import TokenStore
from roberta_jax.errors import UsageError
from roberta_jax.interchange import hf
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.modeling.objectives import masked_lm_objective, training_flops
from roberta_jax.plan import Plan
from roberta_jax.prepare import Prepared, prepare
from roberta_jax.training import loop
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.host_memory import keep_freed_memory, restart_with_huge_pages
from roberta_jax.training.metrics import MetricsWriter, read_metrics
from roberta_jax.training.partitioning import (
    join_processes,
    local_batch_rows,
    to_global,
)
from roberta_jax.training.state import TrainState, abstract_state, count_parameters, create_state
from roberta_jax.training.workdir import open_workdir

# What a run may change when it goes on: how long, how often, where and in what portions. None of it
# changes what a step computes, beyond the rounding of another mesh or accumulation.
MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.rows_per_device",
    "eval.batch_size",
    "mesh.",
    "data.cache_dir",
    "data.workers",
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
    settings = config.to_dict()
    with open_workdir(workdir, settings, MAY_CHANGE, primary) as folder:
        done = _finished(folder, config.train.steps)
        if done is not None:
            _say(
                f"{folder} is finished: {config.train.steps} steps. {_summary(done)}\n"
                "For more, raise --config.train.steps."
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
        self.model = RobertaForMaskedLM(model_config, plan.execution)
        self.train_maker = self._maker(prepared.train)
        self.eval_maker = None
        if prepared.heldout.num_tokens:
            self.eval_maker = self._maker(prepared.heldout)
        elif config.data.heldout_share:
            raise UsageError(
                f"data.heldout_share={config.data.heldout_share} holds out none of the "
                f"{prepared.train.num_documents} documents, so there is nothing to evaluate on. "
                "Raise it, or set it to 0 to train without evaluation."
            )
        self._check_batch_fits()
        # What the run was made from; a checkpoint of other text would go on with other rows.
        self.identity = {
            "tokenizer": self.tokenizer.fingerprint(),
            "text": prepared.train.index["text_blake2b"],
            "rows": self.train_maker.num_rows,
        }
        self.loss_fn, self.count_fn = masked_lm_objective(self.model)

    def _maker(self, store: TokenStore) -> BatchMaker:
        config, tokenizer = self.config, self.tokenizer
        return BatchMaker(
            store,
            load_or_pack(store, config.data.format, config.seq_len),
            self.plan.masking,
            config.seed,
            vocab_size=len(tokenizer),
            bos_id=tokenizer.bos_token_id,
            pad_id=tokenizer.pad_token_id,
            mask_id=tokenizer.mask_token_id,
            special_ids=tokenizer.all_special_ids,
            word_starts=tokenizer.word_start_table() if config.masking.whole_word else None,
        )

    def _check_batch_fits(self) -> None:
        rows, batch_size = self.train_maker.num_rows, self.config.train.batch_size
        if rows < batch_size:
            raise UsageError(
                f"the corpus fills {rows} rows of {self.config.seq_len} tokens, fewer than one "
                f"batch (train.batch_size={batch_size}). Give it more text, or lower "
                f"train.batch_size to {rows} or less."
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
        eval_step = loop.make_eval_step(self.loss_fn, self.count_fn, plan.mesh)
        with (
            loop.stop_requests() as should_stop,
            MetricsWriter(
                self.folder, step=start, steps=steps, primary=jax.process_index() == 0
            ) as writer,
        ):

            def evaluation(params: Any) -> dict[str, float] | None:
                found = loop.evaluate(eval_step, params, self._eval_batches(), should_stop)
                if found is None:
                    return None
                loss = found["masked_lm"]
                writer.say(f"held-out loss {loss:.4f}, perplexity {math.exp(loss):.2f}")
                return {"eval_loss": loss, "eval_perplexity": math.exp(loss)}

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
                    self.train_maker.num_slots,
                ),
                evaluation=evaluation if self.eval_maker else None,
                should_stop=should_stop,
                extra=self.identity,
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
            params = None if plan.initial is None else plan.initial[1]
            state = create_state(init_params, plan.optimizer, plan.mesh, params)
        else:
            state, identity = restored
            self._check_identity(identity)
        plan.initial = None  # the host's copy of the weights has done its work
        return state

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
        heldout = self.eval_maker.num_rows if self.eval_maker else 0
        _say(
            f"{count_parameters(state.params):,} parameters, vocabulary of {len(self.tokenizer)}, "
            f"{jnp.dtype(plan.execution.dtype).name}\n"
            f"{jax.device_count()} x {jax.devices()[0].device_kind} ({split})\n"
            f"{config.train.batch_size} rows of {config.seq_len} tokens a step, {plan.rows} on a "
            f"device at once: {plan.accumulation} microbatch(es)\n"
            f"{self.train_maker.num_rows:,} rows to train on, {heldout:,} held out\n"
            f"Step {start} of {config.train.steps}"
        )

    def _train_batches(self, step: int) -> Iterator[dict[str, jax.Array]]:
        config = self.config
        return _placed(
            train_batches(
                self.train_maker,
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

    def _eval_batches(self) -> Iterator[dict[str, jax.Array]]:
        config = self.config
        return _placed(
            eval_batches(
                self.eval_maker,
                batch_size=config.eval.batch_size,
                seed=config.eval.seed,
                max_rows=config.eval.max_rows,
                local_rows=local_batch_rows(self.plan.mesh, config.eval.batch_size),
                engine=config.data.engine,
            ),
            self.plan.mesh,
            config.eval.batch_size,
        )

    def _finish(
        self,
        params: Any,
        evaluation: Callable[[Any], dict[str, float] | None],
        writer: MetricsWriter,
    ) -> dict[str, float] | None:
        """Exports the model and evaluates it, unless that was done; None if told to stop."""
        self.tokenizer.model_max_length = self.model.config.max_length
        hf.save_pretrained(self.folder / "hf", self.model, params, self.tokenizer)
        metrics = _final_record(self.folder, self.config.train.steps)
        if metrics is not None:
            return metrics
        metrics = evaluation(params) if self.eval_maker else {}
        if metrics is None:
            return None
        if self.eval_maker and self.config.eval.ngram_baselines:
            found = ngram_perplexities(
                self.train_maker,
                self.eval_maker,
                seed=self.config.eval.seed,
                max_rows=self.config.eval.max_rows,
            )
            metrics |= {f"{name}_perplexity": value for name, value in found.items()}
        writer.write(self.config.train.steps, {**metrics, "finished": 1.0})
        return metrics


def _placed(
    batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, batch_size: int
) -> Iterator[dict[str, jax.Array]]:
    rows = local_batch_rows(mesh, batch_size)
    for batch in batches:
        yield to_global(batch, mesh, batch_size, rows)


def _final_record(folder: epath.Path, steps: int) -> dict[str, float] | None:
    """What a run of so many steps recorded when it had finished, or None if it had not."""
    for record in reversed(read_metrics(folder)):
        if record["step"] == steps and record.get("finished"):
            return {key: value for key, value in record.items() if key not in ("step", "finished")}
    return None


def _finished(folder: epath.Path, steps: int) -> dict[str, float] | None:
    return _final_record(folder, steps) if (folder / "hf" / hf.CONFIG).exists() else None


def _check_not_beyond(step: int | None, steps: int) -> None:
    if step is not None and step > steps:
        raise UsageError(
            f"the run is at step {step} already, beyond train.steps={steps}. Use at least {step} "
            "steps, or another --workdir."
        )


def _summary(metrics: Mapping[str, float]) -> str:
    if "eval_perplexity" not in metrics:
        return "No documents were held out to evaluate on."
    text = f"Held-out perplexity {metrics['eval_perplexity']:.2f}"
    others = [
        f"{name} {metrics[f'{name}_perplexity']:.2f}"
        for name in ("unigram", "bigram")
        if f"{name}_perplexity" in metrics
    ]
    return text + (f" ({', '.join(others)})." if others else ".")


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
    command.run_config_job(main, _flags)
