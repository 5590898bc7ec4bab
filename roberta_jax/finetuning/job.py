"""What a fine-tuning run trains, evaluates and writes."""

import dataclasses
import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from roberta_jax.data.row_lengths import choose_lengths
from roberta_jax.errors import counted
from roberta_jax.finetuning.adapt import (
    adapted_model,
    adapted_optimizer,
    adapted_params,
    describe,
    plain_params,
)
from roberta_jax.finetuning.batches import TrainingRows, training_batches
from roberta_jax.finetuning.evaluation import Evaluator
from roberta_jax.finetuning.model_card import model_card
from roberta_jax.finetuning.outputs import summary_line, write_outputs
from roberta_jax.finetuning.prepare import Prepared, write_task
from roberta_jax.finetuning.spec import FinetuningSpec
from roberta_jax.modeling.classifiers import FIRST_TOKEN_HEADS
from roberta_jax.modeling.flops import training_flops
from roberta_jax.storage.atomic import write_text
from roberta_jax.storage.hub import is_hub_id
from roberta_jax.tasks import metrics
from roberta_jax.tasks.loading import has_same_labels
from roberta_jax.training.job import Job, TrainingSpec
from roberta_jax.training.run import EXPORT, say
from roberta_jax.training.state import TrainState, count_parameters
from roberta_jax.training.steps import stream_key
from roberta_jax.weights.adapters import save_adapter
from roberta_jax.weights.description import describe_start
from roberta_jax.weights.load import Loaded, load_pretrained
from roberta_jax.weights.save import save_pretrained

ADAPTER = "adapter"  # the folder of the workdir with the LoRA adapter in peft's format
_CARD = "README.md"


class Finetuning:
    """A fine-tuning run; `job` describes it to the training loop.

    Args:
      spec: what the config says.
      training: how the model is trained, without the adaptation.
      prepared: the examples.
      folder: the workdir.
      command: the command line, for the model card; None where there is none.
    """

    def __init__(
        self,
        spec: FinetuningSpec,
        training: TrainingSpec,
        prepared: Prepared,
        folder: epath.Path,
        command: str | None = None,
    ):
        self._spec, self._prepared, self._folder = spec, prepared, folder
        self._command, self._results = command, []
        kind, features = prepared.kind, prepared.train.features
        self._model = kind.model_class(spec.model.replace(**kind.config_changes()), spec.execution)
        self._adapted = adapted_model(self._model, spec.adaptation)
        optimizer = adapted_optimizer(training.optimizer, spec.adaptation, self._model.config)
        self._training = dataclasses.replace(training, optimizer=optimizer)
        self._lengths = choose_lengths(
            features.row_lengths, spec.data.num_lengths, self._model.config.max_length
        )
        self._rows = TrainingRows(features, self._lengths, training.batch_size, training.seed)
        self._mean_tokens = self._rows.mean_tokens()
        self._evaluator = Evaluator(
            self._model,
            kind,
            training.mesh,
            training.rules,
            batch_size=spec.eval_batch_size,
            lengths=self._evaluation_lengths(),
            pad_id=prepared.tokenizer.pad_token_id,
            engine=spec.data.engine,
        )
        self._shapes = jax.eval_shape(self._init_params)
        self._plain = jax.jit(functools.partial(plain_params, adaptation=spec.adaptation))

    @property
    def training(self) -> TrainingSpec:
        """How the model is trained."""
        return self._training

    def job(self) -> Job:
        """What is trained, for `training.run.run`."""
        prepared, training, choices = self._prepared, self._training, self._choices
        tokens = round(self._mean_tokens) * choices
        length = round(tokens / (training.batch_size * choices))
        return Job(
            train_step=training.train_step(self._adapted),
            init_params=self._init_params,
            pretrained_params=None if self._spec.random_init else self._pretrained_params,
            batches=self._batches,
            identity=prepared.identity(),
            evaluate=self._evaluate,
            final_metrics=self._final_metrics,
            export=self._export,
            select=f"eval_{prepared.task.metrics[0]}",
            finish=self._finish,
            add_card=self._add_card,
            describe=self._describe,
            summarize=_summarize,
            tokens_per_step=tokens,
            flops_per_step=training_flops(
                self._model.config,
                training.batch_size * choices,
                length,
                0,
                isinstance(self._model, FIRST_TOKEN_HEADS),
            ),
            sample=lambda step: [int(row) for row in self._rows(step)[0]],
        )

    def _evaluation_lengths(self) -> np.ndarray:
        """The lengths that suit all splits together, so that each is compiled once."""
        splits = (self._prepared.validation, *self._prepared.more)
        rows = np.concatenate([split.features.row_lengths for split in splits])
        return choose_lengths(rows, self._spec.data.num_lengths, self._model.config.max_length)

    @property
    def _choices(self) -> int:
        return self._prepared.train.features.choices

    def _init_params(self) -> Any:
        key = stream_key(self._training.seed, "params", jnp.int32(0))
        shape = (1, self._choices, 1) if self._choices > 1 else (1, 1)
        return self._adapted.init(key, jnp.zeros(shape, jnp.int32))["params"]

    def _pretrained_params(self) -> Any:
        spec, kind, seed = self._spec, self._prepared.kind, self._training.seed
        loaded = load_pretrained(
            spec.init_from,
            kind.model_class,
            spec.execution,
            new_head=kind.new_head,
            seed=seed,
            **kind.config_changes(),
        )
        say(describe_start(str(spec.config["init_from"]), loaded))
        params = self._with_suitable_head(loaded)
        return adapted_params(params, spec.adaptation, self._model, seed)

    def _with_suitable_head(self, loaded: Loaded) -> dict[str, Any]:
        """The loaded parameters, with a new head where the model's is for other labels.

        As in fairseq, which drops a head of another name or size: that of RTE knows nothing of the
        labels of MRPC, and the larger part of it would be taken where their number differs.
        """
        kind, labels = self._prepared.kind, self._prepared.kind.labels
        params, source = loaded.params, self._spec.config["init_from"]
        if not labels and kind.task.kind != "regression":
            return params
        of_head = len(jax.tree.leaves(params["classifier"]))
        if sum(name.startswith("classifier") for name in loaded.new) == of_head:
            return params
        same = has_same_labels(labels, self._spec.model.id2label)
        if same is None and labels:
            names = ", ".join(f"{number} is {name}" for number, name in enumerate(labels))
            say(
                f"The head of {source} does not name its labels: it is taken that {names}. "
                "--config.data.labels gives another order."
            )
        if same is not False:
            return params
        say(f"The head of {source} is for other labels: it starts from random values instead.")
        key = stream_key(self._training.seed, "head", jnp.int32(0))
        new = nn.unbox(self._model.init(key, jnp.zeros((1, 1), jnp.int32)))["params"]
        return {**params, "classifier": jax.device_get(new["classifier"])}

    def _batches(self, step: int) -> Any:
        prepared, training = self._prepared, self._training
        return training_batches(
            prepared.train.features,
            self._rows,
            prepared.kind.fill(),
            prepared.tokenizer.pad_token_id,
            training.mesh,
            training.batch_size,
            step,
            self._spec.data.engine,
        )

    def _evaluate(self, params: Any, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        result = self._evaluator(self._prepared.validation, self._plain(params), should_stop)
        if result is None:
            return None
        loss = {} if result.loss is None else {"eval_loss": result.loss}
        return loss | {f"eval_{name}": value for name, value in result.scores.items()}

    def _final_metrics(self) -> dict[str, float]:
        rows = self._prepared.train.features.num_rows
        return {"epochs": self._training.steps * self._training.batch_size / rows}

    def _finish(
        self, params: Any, recorded: Mapping[str, float], should_stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Evaluates all splits with the best parameters, and writes results and predictions."""
        prepared, plain = self._prepared, self._plain(params)
        self._results, extra, kind = [], {}, prepared.kind
        baseline = kind.baseline(prepared.train.examples)
        for split in (prepared.validation, *prepared.more):
            evaluated = self._evaluator(split, plain, should_stop, kind)
            if evaluated is None:
                return None
            result = evaluated.result(kind, split.name, split.examples, baseline)
            if split is prepared.validation:
                kind = kind.with_choices(result.scores)
            self._results.append(result)
            prefix = "" if split is prepared.validation else f"{split.name}/"
            files = kind.files(result.predictions)
            extra |= {f"predictions/{prefix}{name}": value for name, value in files.items()}
        if jax.process_index() == 0:
            write_outputs(
                self._folder,
                prepared.task,
                prepared.kind.labels,
                self._results,
                self._about(recorded),
                extra,
            )
            write_task(self._folder, prepared, kind)
        for result in self._results:
            if result.scores:
                say(f"{result.split}: {summary_line(prepared.task, result)}")
        return {}

    def _export(self, params: Any) -> None:
        adaptation, tokenizer = self._spec.adaptation, self._prepared.tokenizer
        plain = self._plain(params)
        if adaptation.lora_rank:
            save_adapter(
                self._folder / ADAPTER,
                self._model,
                params,
                alpha=adaptation.lora_alpha,
                targets=adaptation.lora_targets,
                base_model=self._base_model(),
            )
        if jax.process_index() == 0:  # `save_pretrained` replaces no folder with other files
            (self._folder / EXPORT / _CARD).unlink(missing_ok=True)
        save_pretrained(self._folder / EXPORT, self._model, plain, tokenizer)

    def _base_model(self) -> str:
        """What peft loads the base model from: the hub id, or the folder, of a workdir `hf/`."""
        source = self._spec.config["init_from"]
        return source if is_hub_id(source) else os.fspath(self._spec.init_from)

    def _add_card(self, recorded: Mapping[str, float]) -> None:
        prepared = self._prepared
        splits = (prepared.train, prepared.validation, *prepared.more)
        card = model_card(
            prepared.task,
            prepared.kind.labels,
            [each for each in self._results if each.scores],
            self._about(recorded),
            folder=self._folder / EXPORT,
            examples={split.name: len(split.examples) for split in splits},
        )
        write_text(self._folder / EXPORT / _CARD, card)

    def _about(self, recorded: Mapping[str, float]) -> dict[str, Any]:
        training = self._training
        about = {
            "init_from": _start(self._spec),
            "seed": training.seed,
            "steps": training.steps,
            "best step": int(recorded.get("best_step", training.steps)),
            "batch size": training.batch_size,
            "learning rate": self._spec.config["optimizer"]["learning_rate"],
            "trained": describe(self._spec.adaptation, self._shapes, self._model.config),
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")},
            },
        }
        return about if self._command is None else about | {"command": self._command}

    def _describe(self, state: TrainState) -> str:
        spec, training, prepared = self._spec, self._training, self._prepared
        mesh = ", ".join(f"{name} {size}" for name, size in training.mesh.shape.items())
        splits = (prepared.train, prepared.validation, *prepared.more)
        counts = ", ".join(f"{len(split.examples):,} {split.name}" for split in splits)
        lengths = ", ".join(map(str, self._lengths))
        padding = 1 - np.mean(prepared.train.features.row_lengths) * training.batch_size / (
            self._mean_tokens
        )
        return "\n".join(
            [
                f"{prepared.task.title}: {counts} examples",
                *prepared.notes,
                *([f"Starting from {_start(spec)}."] if spec.random_init else []),
                f"{count_parameters(state.params):,} parameters, "
                f"{jnp.dtype(spec.execution.dtype).name}, {jax.device_count()} x "
                f"{jax.devices()[0].device_kind} ({mesh}); "
                f"{describe(spec.adaptation, state.params, self._model.config)}",
                f"Batches of {training.batch_size} in {training.accumulation} microbatch(es), "
                f"padded to {lengths} tokens; {padding:.1%} padding",
                f"Step {int(state.step)} of {training.steps}, learning rate up to "
                f"{spec.config['optimizer']['learning_rate']:.3g} after "
                f"{counted(training.warmup_steps, 'step')}",
            ]
        )


def _start(spec: FinetuningSpec) -> str:
    """What the run started from, for the model card and the results."""
    source = str(spec.config["init_from"])
    return f"random values, with the config of {source}" if spec.random_init else source


def _summarize(recorded: Mapping[str, float]) -> str:
    """The loss and the scores of an evaluation, such as "loss 0.61, accuracy 0.683"."""
    names = {
        name.removeprefix("eval_"): value
        for name, value in recorded.items()
        if name.startswith("eval_")
    }
    known = [name for name in names if name == "loss" or name in metrics.METRICS]
    return ", ".join(f"{name} {names[name]:.4g}" for name in (known or names))
