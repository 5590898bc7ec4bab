"""Opens a fine-tuned model to predict and to evaluate with it."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_jax.config_groups import check_bfloat16
from roberta_jax.data.pipeline import ENGINES
from roberta_jax.errors import UsageError, listed, shortened
from roberta_jax.finetuning.evaluation import Evaluated, Evaluator
from roberta_jax.finetuning.prepare import TASK_FILE, Split, digest
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution, for_inference
from roberta_jax.tasks import loading
from roberta_jax.tasks.examples import Example
from roberta_jax.tasks.kinds import Kind, kind_class
from roberta_jax.tasks.kinds.base import Prediction
from roberta_jax.tasks.readers.user_columns import Columns
from roberta_jax.tasks.table import TASKS
from roberta_jax.tasks.task import Formatting, Task
from roberta_jax.tasks.user_task import user_task
from roberta_jax.training.mesh import create_mesh
from roberta_jax.training.partitioning import RULES
from roberta_jax.training.workdir import read_config as read_run_config
from roberta_jax.weights import tokenizer_folder
from roberta_jax.weights.config_file import config_path, read_config_dict
from roberta_jax.weights.files import weights_in
from roberta_jax.weights.load import model_folder, read_config, read_pretrained

_BATCH_ROWS = 32  # per device

# Architecture in `config.json` -> kind of task, for models that are not a workdir's.
_KINDS = {
    "RobertaForSequenceClassification": "classification",
    "RobertaForTokenClassification": "tokens",
    "RobertaForMultipleChoice": "choice",
    "RobertaForQuestionAnswering": "question_answering",
}
_WITH_LABELS = ("classification", "multi_label", "tokens")
_KINDS_OF_PROBLEMS = {
    "regression": "regression",
    "multi_label_classification": "multi_label",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedTask:
    """What a fine-tuned model was trained for: all but its weights.

    Attributes:
      path: what it was opened from.
      folder: the folder of the model.
      config: the config of the model.
      kind: the kind of its task, with the labels in the order of the model's ids.
      dtype: the dtype that its run computed in; float32 for a model that is not a workdir's.
      baseline: what the simplest baseline predicts, see `Kind.baseline`; None if it is not known.
      validation: the digest of the rows of the run's validation examples, if the workdir says so.
    """

    path: str
    folder: epath.Path
    config: RobertaConfig
    kind: Kind
    dtype: Any
    baseline: Any = None
    validation: str | None = None

    @property
    def task(self) -> Task:
        """Its task."""
        return self.kind.task

    def execution(self, dtype: str | None = None) -> Execution:
        """How the model is computed.

        Args:
          dtype: "float32" or "bfloat16"; None takes that of the run.

        Raises:
          UsageError: the devices cannot compute in the dtype.
        """
        chosen = jnp.dtype(self.dtype if dtype is None else dtype)
        if chosen == jnp.bfloat16 and jax.default_backend() == "cpu":
            check_bfloat16("--dtype")
        return for_inference(chosen)

    def fingerprint(self, execution: Execution) -> dict[str, Any]:
        """What predictions depend on beside the examples, as values that JSON can hold."""
        stat = (self.folder / weights_in(self.folder)[0]).stat()
        return {
            "model": str(self.folder),
            "bytes": stat.length,
            "modified": stat.mtime,
            "task": self.task.name,
            "label_scale": self.task.label_scale,
            "labels": list(self.kind.labels),
            "formatting": dataclasses.asdict(self.kind.formatting),
            "dtype": jnp.dtype(execution.dtype).name,
        }

    def load(self, mesh: Mesh | None = None, execution: Execution | None = None) -> "FinishedModel":
        """Loads the tokenizer and the weights; see `open_finished`."""
        from roberta_jax.tokenizer.auto import load_tokenizer

        execution = self.execution() if execution is None else execution
        tokenizer = load_tokenizer(tokenizer_folder(self.folder))
        model, params = read_pretrained(self.folder, self.kind.model_class, execution)
        mesh = create_mesh() if mesh is None else mesh
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        evaluator = Evaluator(
            model,
            self.kind,
            mesh,
            RULES,
            batch_size=_BATCH_ROWS * mesh.size,
            lengths=_lengths(self.config.max_length),
            pad_id=tokenizer.pad_token_id,
            engine=ENGINES[-1],
        )
        trained_for = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return FinishedModel(**trained_for, tokenizer=tokenizer, params=params, evaluator=evaluator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedModel(FinishedTask):
    """A fine-tuned model with its weights.

    Attributes:
      tokenizer: its tokenizer.
      params: its parameters, on all devices.
      evaluator: computes its outputs.
    """

    tokenizer: Any
    params: Any
    evaluator: Evaluator

    def predictions(self, examples: Sequence[Example]) -> list[Prediction]:
        """Predictions for examples, in their order."""
        features = self.kind.encode(examples, self.tokenizer)
        outputs, _ = self.evaluator.outputs(features, self.params)
        return self.kind.predictions(examples, features, outputs)

    def evaluate(
        self, split: str, examples: Sequence[Example], *, is_validation: bool = False
    ) -> Evaluated:
        """Predictions and scores.

        Args:
          split: the name of the split.
          examples: its examples.
          is_validation: whether they are meant to be the run's validation examples.

        Raises:
          UsageError: they are meant to be, and are others.
        """
        features = self.kind.encode(examples, self.tokenizer)
        if is_validation and self.validation not in (None, digest(features)):
            raise UsageError(
                f"the validation examples of {self.path} are no longer those of the run, or are "
                "divided otherwise by this version. To evaluate on them all the same, give them as "
                "--file."
            )
        return self.evaluator(Split(split, examples, features), self.params)


def open_finished(
    path: str | os.PathLike,
    task: str | None = None,
    mesh: Mesh | None = None,
    execution: Execution | None = None,
) -> FinishedModel:
    """Loads a fine-tuned model.

    Args:
      path: the workdir of a finished fine-tuning run; or a folder in Hugging Face's format or a
        hub id of a model with a classification head.
      task: the name of its task in the table, for a model that is not a workdir's. None takes what
        its `config.json` says about head and labels.
      mesh: the devices; all by default.
      execution: how it is computed. None takes the dtype of the run, or float32 for a model that is
        not a workdir's.

    Raises:
      UsageError: there is no such model or task, or the model has no head for the task.
    """
    return read_finished(path, task).load(mesh, execution)


def read_finished(path: str | os.PathLike, task: str | None = None) -> FinishedTask:
    """Reads what a model was fine-tuned for, without its weights; see `open_finished`."""
    folder = model_folder(path)
    config = read_config(folder)
    recorded = epath.Path(path) / TASK_FILE
    if recorded.exists():
        known = _read_task_file(recorded, config)
        name = known["kind"].task.name
        if task not in (None, name):
            raise UsageError(
                f"{path} was fine-tuned on the task {name}, not on {task}. Leave --task out."
            )
    else:
        row = _named_task(path, task, folder, config)
        labels = loading.match_labels(row.labels, config.id2label, where=str(path))
        longest = min(row.recipe.max_length, config.max_length)
        formatting = dataclasses.replace(row.formatting, max_length=longest)
        known = {"kind": kind_class(row.kind)(row, labels, formatting)}
    return FinishedTask(
        path=str(path), folder=folder, config=config, dtype=_run_dtype(path), **known
    )


def _run_dtype(path: str | os.PathLike) -> Any:
    """The dtype that a run computed in; float32 where its config is not there or damaged."""
    try:
        execution = (read_run_config(path) or {}).get("execution")
    except (OSError, UsageError):
        execution = None
    recorded = execution.get("dtype") if isinstance(execution, dict) else None
    if recorded == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.bfloat16 if recorded == "bfloat16" else jnp.float32


def _lengths(longest: int) -> np.ndarray:
    """16, 32, 64, ..., and the longest: whatever the examples are, few programs are compiled."""
    powers = [2**n for n in range(4, 16) if 2**n < longest]
    return np.array([*powers, longest])


def _read_task_file(path: epath.Path, config: RobertaConfig) -> dict[str, Any]:
    """The fields of a `FinishedTask` that `prepare.write_task` has written."""
    try:
        values = json.loads(path.read_text())
        if values["task"] not in TASKS:
            raise ValueError(f"it has the task {values['task']!r:.60}")
        row, formatting = _recorded_task(values), Formatting(**values["formatting"])
        _check_formatting(formatting, config)
        labels = tuple(values["model_labels"])
        names = tuple((config.id2label or {}).values())
        known = {"baseline": values["baseline"], "validation": str(values["validation"])}
        if row.kind in _WITH_LABELS and sorted(values["labels"]) != sorted(labels):
            raise ValueError("its labels are not those of the task")
        if row.kind in _WITH_LABELS and labels != names:
            raise ValueError("its labels are not those of the model")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise UsageError(
            f"{path} is damaged, or of another version ({shortened(str(reason), 200)}). Use the "
            "folder hf/ of the run with --task, or delete hf/ and run the training command again."
        ) from None
    return {"kind": kind_class(row.kind)(row, labels, formatting), **known}


def _check_formatting(formatting: Formatting, config: RobertaConfig) -> None:
    """Raises a ValueError if a value has another type than the default, or does not suit."""
    for field in dataclasses.fields(Formatting):
        value = getattr(formatting, field.name)
        types = (int, float, type(None)) if field.default is None else type(field.default)
        if not isinstance(value, types):
            raise ValueError(f"{field.name} is {value!r:.60}")
    if not 0 < formatting.max_length <= config.max_length:
        raise ValueError(f"max_length is {formatting.max_length}")


def _recorded_task(values: dict[str, Any]) -> Task:
    row, labels = TASKS[values["task"]], tuple(values["labels"])
    if values["columns"] is None:
        return row if row.labels else dataclasses.replace(row, labels=labels)
    columns = Columns.from_json(values["columns"])
    if not columns.text and not columns.choices:
        raise ValueError("it has no column of texts")
    return user_task(row.name, columns, labels, label_scale=float(values["label_scale"]))


def _named_task(
    path: os.PathLike | str, task: str | None, folder: epath.Path, config: RobertaConfig
) -> Task:
    if task is not None:
        if task not in TASKS or TASKS[task].reader is None:
            named = [name for name, row in TASKS.items() if row.reader is not None]
            raise UsageError(f"--task={task} is unknown: use one of {', '.join(named)}.")
        # A model of others predicts numbers on their own scale.
        row = dataclasses.replace(TASKS[task], label_scale=1.0)
        if row.labels or row.kind == "regression":
            return row
        return dataclasses.replace(row, labels=tuple(config.id2label.values()))
    architectures = read_config_dict(config_path(folder)).get("architectures") or ["none"]
    if architectures[0] not in _KINDS:
        raise UsageError(
            f"{path} has no head for a task (its architecture is {architectures[0]}). Give a model "
            f"that was fine-tuned, one of {listed(list(_KINDS))}, such as the workdir of "
            "python -m roberta_jax.finetune."
        )
    kind = _KINDS[architectures[0]]
    if kind == "classification":
        kind = _KINDS_OF_PROBLEMS.get(config.problem_type, kind)
        if config.problem_type is None and config.num_labels == 1:
            kind = "regression"
    labels = tuple(config.id2label.values()) if kind in _WITH_LABELS else ()
    return Task(name=kind, title=str(path), kind=kind, reader=None, labels=labels)
