"""The specification of a fine-tuning run: the config, checked and made concrete.

The config is read here, before any example is read. What the examples decide (the labels of the
user's own files, the number of steps) is filled in later.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from roberta_jax.config_groups import check_one_of, check_sharding, read_execution, read_training
from roberta_jax.config_ranges import check_values
from roberta_jax.data.pipeline import ENGINES
from roberta_jax.dotted_keys import flatten
from roberta_jax.errors import UsageError, listed
from roberta_jax.finetuning.adapt import Adaptation
from roberta_jax.finetuning.config_values import VALUES
from roberta_jax.finetuning.splits import Sources, sources_of
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.model import RobertaModel
from roberta_jax.storage import cache_folder
from roberta_jax.tasks.kinds import kind_class
from roberta_jax.tasks.table import TASKS
from roberta_jax.tasks.task import Formatting, Task
from roberta_jax.training.partitioning import rows_and_accumulation
from roberta_jax.training.run import TrainingSpec
from roberta_jax.training.schedules import make_schedule
from roberta_jax.weights.load import check_pretrained, model_folder, read_config

FILE = "configs/finetune.py"
# By default: many epochs of few examples have not an evaluation and a checkpoint each.
_MOST_EVALUATIONS = 25
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")

# Key -> the kinds of tasks that read it; all kinds read the other keys.
_TEXTS = ("classification", "multi_label", "regression")
_QUESTIONS = ("question_answering",)
_KINDS_OF_KEYS = {
    "format.separators": (*_TEXTS, "choice", *_QUESTIONS),
    "format.max_option_length": ("choice",),
    "format.doc_stride": _QUESTIONS,
    "format.max_query_length": _QUESTIONS,
    "format.max_answer_length": _QUESTIONS,
    "format.n_best": _QUESTIONS,
    "format.null_threshold": _QUESTIONS,
    "model.classifier_dropout": (*_TEXTS, "tokens"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the examples are; see `config.data`.

    Attributes:
      sources: where the splits are.
      options: what the readers of the user's own files take: kind, labels and columns.
      labels: names of the labels, or () for the task's.
      num_lengths: lengths that batches are padded to.
      cache_dir: where encoded examples are kept.
      engine: what builds batches ahead.
    """

    sources: Sources
    options: Mapping[str, Any]
    labels: tuple[str, ...]
    num_lengths: int
    cache_dir: pathlib.Path
    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningSpec:
    """A fine-tuning run, as far as the config decides it.

    Attributes:
      config: the config as nested dictionaries, as it is written to the workdir.
      task: the row of the table.
      data: where the examples are.
      formatting: how an example becomes an input.
      model: the config of the model to start from, with the dropout rates of the run.
      init_from: the folder of the model to start from.
      random_init: whether the model starts from random values, and not from the weights there.
      tokenizer: folder or hub id of the tokenizer, or None for the model's.
      execution: how the model computes.
      adaptation: which parameters are trained, and at which rates.
      eval_batch_size: rows per evaluation step.
    """

    config: Mapping[str, Any]
    task: Task
    data: DataSpec
    formatting: Formatting
    model: RobertaConfig
    init_from: os.PathLike
    random_init: bool
    tokenizer: str | None
    execution: Execution
    adaptation: Adaptation
    eval_batch_size: int

    def training(self, num_rows: int) -> TrainingSpec:
        """How the model is trained on so many rows.

        Raises:
          UsageError: a value is out of its range, or values do not fit each other or the devices.
        """
        config, train = self.config, self.config["train"]
        per_epoch = math.ceil(num_rows / train["batch_size"])
        steps = train["steps"] or max(1, round(num_rows * train["epochs"] / train["batch_size"]))
        every = train["eval_every"] or max(per_epoch, steps // _MOST_EVALUATIONS)
        schedule = config["schedule"]
        warmup_steps = round(schedule["warmup_ratio"] * steps)
        cadence = {"eval_every": every, "checkpoint_every": train["checkpoint_every"] or every}
        return read_training(
            {**config, "train": {**train, **cadence}},
            jax.devices(),
            steps=steps,
            warmup_steps=warmup_steps,
            patience=train["patience"],
            schedule=make_schedule(
                schedule["name"],
                config["optimizer"]["learning_rate"],
                warmup_steps=warmup_steps,
                decay_steps=steps,
                end=schedule["end_learning_rate"],
                power=schedule["power"],
            ),
        )


def read_spec(config: ConfigDict) -> FinetuningSpec:
    """Reads and checks the config.

    Args:
      config: as `configs/finetune.py` returns it.

    Raises:
      UsageError: a value is out of its range, values do not fit each other, the model or the
        devices, or there is no such model.
    """
    check_config(config)
    task = TASKS[config.task]
    if task.reader is not None:
        check_keys_of_kind(config, task)
    data = _read_data(config.data, task)
    execution = read_execution(config.execution, jax.devices())
    folder = model_folder(config.init_from)  # once: it may ask the hub
    model = read_config(folder)
    # The head is new where the model has none for the task; the rest must be there.
    check_pretrained(folder, RobertaModel, new_head=("pooler",))
    if model.is_decoder:
        raise UsageError(
            f"{config.init_from} is a decoder, whose tokens see only those before them. Choose an "
            "encoder as --config.init_from, such as FacebookAI/roberta-base."
        )
    rates = {key: config.model[key] for key in _DROPOUTS if config.model[key] is not None}
    model = model.replace(**rates)
    adaptation = Adaptation(**{**config.adapt, "lora_targets": tuple(config.adapt.lora_targets)})
    adaptation.check_model(model)
    spec = FinetuningSpec(
        config=config.to_dict(),
        task=task,
        data=data,
        formatting=_read_formatting(config, task, model),
        model=model,
        init_from=folder,
        random_init=config.random_init,
        tokenizer=config.tokenizer,
        execution=execution,
        adaptation=adaptation,
        eval_batch_size=config.eval.batch_size,
    )
    # With any number of rows, so that mistakes are reported before the examples are read.
    training = spec.training(10**6)
    head = kind_class(task.kind)(task, task.labels, spec.formatting).model_class
    check_sharding(head(model, execution), training, True)
    rows_and_accumulation(training.mesh, spec.eval_batch_size, key="eval.batch_size")
    return spec


def check_config(config: ConfigDict) -> None:
    """Checks what needs neither the model nor the devices of this machine.

    Raises:
      UsageError: a value is out of its range, the task is unknown, or there is no `init_from`.
    """
    check_values(flatten(config), VALUES, VALUES, FILE)
    check_one_of("task", config.task, TASKS)
    check_one_of("data.engine", config.data.engine, ENGINES)
    if (config.train.epochs is None) == (config.train.steps is None):
        raise UsageError(
            "give either --config.train.epochs or --config.train.steps, and set the other one to "
            "none."
        )
    if not config.init_from:
        raise UsageError(
            "no model to fine-tune: give one, such as --config.init_from=runs/tiny (a workdir or a "
            "folder in Hugging Face's format) or --config.init_from=FacebookAI/roberta-base."
        )
    if config.random_init:
        _check_random_init(config)


def check_keys_of_kind(config: Mapping[str, Any], task: Task) -> None:
    """Checks that the task reads every key that is set.

    Args:
      config: the config.
      task: the task; that of the user's own files with the kind that they have.

    Raises:
      UsageError: a key is set that no task of this kind reads.
    """
    for key, kinds in _KINDS_OF_KEYS.items():
        group, name = key.split(".")
        value = config[group][name]
        reads = task.kind in kinds and not (name == "null_threshold" and task.answerable)
        if value is None or reads:
            continue
        readers = [row for row in TASKS.values() if row.reader is not None and row.kind in kinds]
        if name == "null_threshold":
            readers = [row for row in readers if not row.answerable]
            kinds = ("questions without an answer",)
        examples = listed([row.name for row in readers], 3)
        raise UsageError(
            f"--config.{key}={value} has no effect on {task.name}, whose examples are of the kind "
            f"{task.kind}. It is for {listed(kinds)}, as in {examples}. Leave it out."
        )


def _check_random_init(config: ConfigDict) -> None:
    """Random values can only be trained: nothing of them is worth keeping."""
    for key in ("reinit_layers", "frozen_layers", "freeze_embeddings", "lora_rank"):
        value = config.adapt[key]
        if value:
            raise UsageError(
                f"--config.adapt.{key}={str(value).lower()} cannot be combined with "
                "--config.random_init=true, which gives all parameters random values and trains "
                "all of them. Leave one of them out."
            )


def _read_formatting(config: ConfigDict, task: Task, model: RobertaConfig) -> Formatting:
    given = {key: value for key, value in config.format.items() if value is not None}
    longest = given.get("max_length")
    if longest is None:
        given["max_length"] = min(task.recipe.max_length, model.max_length)
    elif longest > model.max_length:
        raise UsageError(
            f"--config.format.max_length={longest} is longer than the {model.max_length} positions "
            f"of the model in {config.init_from}. Use --config.format.max_length="
            f"{model.max_length} or less."
        )
    return dataclasses.replace(task.formatting, **given)


def _read_data(data: ConfigDict, task: Task) -> DataSpec:
    sources = sources_of(
        folder=data.folder,
        tfds_data_dir=data.tfds_data_dir,
        train=data.train,
        validation=data.validation,
        test=data.test,
        max_train_examples=data.max_train_examples,
    )
    labels = tuple(data.labels)
    if not all(isinstance(name, str) and name for name in labels) or len(set(labels)) < len(labels):
        raise UsageError(
            f"--config.data.labels={labels}: give different names, such as "
            '--config.data.labels=\'("negative","positive")\'.'
        )
    if labels and task.reader is not None and sorted(labels) != sorted(task.labels):
        expected = (
            f"the labels of {task.title} are {listed(task.labels, 20)}: give all of them, or leave "
            "it out."
            if task.labels
            else f"{task.title} has no labels. Leave it out."
        )
        raise UsageError(f"--config.data.labels={labels}: {expected}")
    options = {
        key: data[key]
        for key in ("kind", "text_column", "pair_column", "label_column", "id_column")
    } | {"choice_columns": tuple(data.choice_columns)}
    if task.reader is not None:
        given = [key for key, value in options.items() if value]
        if given:
            raise UsageError(
                f"--config.data.{given[0]} describes a file of your own, and the task "
                f"{task.name} has files of a known form. Leave it out, or use "
                f"--config={FILE}:csv, :tsv or :jsonl."
            )
    elif unread := [key for key in ("folder", "tfds_data_dir") if data[key] is not None]:
        raise UsageError(
            f"--config.data.{unread[0]}={data[unread[0]]} says where the official files of a task "
            f"are, such as rte, and {task.name} takes files of your own. Leave it out, and give "
            "their paths as --config.data.train, --config.data.validation and --config.data.test."
        )
    elif data.train is None:
        raise UsageError(
            f"--config={FILE}:{task.name} needs the file of training examples: give "
            f"--config.data.train=FILE.{task.name}."
        )
    elif data.validation is None:
        raise UsageError(
            "no examples to validate on: give --config.data.validation=FILE, or the share of the "
            "training examples to hold out, such as --config.data.validation=0.1."
        )
    return DataSpec(
        sources=sources,
        options=options,
        labels=labels,
        num_lengths=data.num_lengths,
        cache_dir=cache_folder(data.cache_dir),
        engine=data.engine,
    )
