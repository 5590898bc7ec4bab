"""From files to rows: reads the examples of a task, names the labels, and encodes the examples.

Encoded examples are kept in `data.cache_dir/features`, named by a hash of everything that they
follow from: the examples, the labels, the tokenizer and the format. A damaged file there is made
again.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from roberta_jax.config_groups import check_tokenizer
from roberta_jax.errors import UsageError, counted
from roberta_jax.finetuning.spec import FinetuningSpec, check_keys_of_kind
from roberta_jax.finetuning.splits import TRAIN
from roberta_jax.storage.atomic import replace_file, write_json
from roberta_jax.tasks import loading, metrics
from roberta_jax.tasks.examples import Example
from roberta_jax.tasks.features import Features
from roberta_jax.tasks.kinds import Kind, kind_class
from roberta_jax.tasks.readers.user_columns import Columns
from roberta_jax.tasks.task import Task
from roberta_jax.tasks.user_task import open_user_data
from roberta_jax.weights import tokenizer_folder

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

# Part of the names of cached features; another number where they would differ for the same input.
_FORMAT = 1

TASK_FILE = "task.json"


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split and their rows.

    Attributes:
      name: "train", "validation", "test", or another split of the task.
      examples: the examples.
      features: their rows.
    """

    name: str
    examples: Sequence[Example]
    features: Features


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run trains on and is evaluated on.

    Attributes:
      task: the task; that of the user's own files has their columns and labels.
      kind: its kind, with the labels in the order of the model's ids.
      tokenizer: the tokenizer.
      train: the training split.
      validation: the split that selects the best checkpoint.
      more: further splits, which are evaluated and predicted after the training.
      columns: those of the user's own files; None for the other tasks.
      notes: what the user should know about the data, a sentence each.
    """

    task: Task
    kind: Kind
    tokenizer: "RobertaTokenizer"
    train: Split
    validation: Split
    more: tuple[Split, ...] = ()
    columns: Columns | None = None
    notes: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What the run is made from, as values that JSON can hold."""
        return {
            "tokenizer": self.tokenizer.fingerprint(),
            "training examples": digest(self.train.features),
            "validation examples": digest(self.validation.features),
        }


def prepare(spec: FinetuningSpec) -> Prepared:
    """Reads and encodes the examples of all splits.

    Raises:
      UsageError: a file is missing or wrong, or examples, labels, tokenizer and model do not fit.
    """
    data, notes = spec.data, []
    task, columns = spec.task, None
    if task.reader is None:
        user_task = open_user_data(
            task.name,
            data.sources.train,
            data.sources.validation_share or data.sources.validation,
            data.sources.test,
            labels=data.labels,
            **data.options,
        )
        task, columns = user_task.task, user_task.columns
        check_keys_of_kind(spec.config, task)
        notes.append(user_task.description)
    tokenizer = _tokenizer(spec)
    splits = data.sources.load_to_train(task)
    further, missing = data.sources.load_further(task)
    splits |= further
    notes += missing
    labels = _labels(spec, task, splits[TRAIN])
    metrics.check(task.metrics, labels, task.kind)
    context_first = spec.formatting.context_first or task.formatting.context_first
    formatting = dataclasses.replace(spec.formatting, context_first=context_first)
    kind = kind_class(task.kind)(task, labels, formatting)
    encoded_splits = [
        Split(name, examples, encoded(kind, examples, tokenizer, data.cache_dir))
        for name, examples in splits.items()
    ]
    notes += [note for split in encoded_splits for note in _remarks(split)]
    train, validation, *more = encoded_splits
    return Prepared(task, kind, tokenizer, train, validation, tuple(more), columns, tuple(notes))


def _labels(spec: FinetuningSpec, task: Task, train: Sequence[Example]) -> tuple[str, ...]:
    """The names of the labels in the order of the model's ids."""
    return loading.match_labels(
        spec.data.labels or loading.label_names(task, train),
        spec.model.id2label,
        new_head=True,
        where=str(spec.config["init_from"]),
    )


def _remarks(split: Split) -> list[str]:
    """What became of examples that could not be used as they are."""
    features = split.features
    return [
        *(
            f"{split.name}: {counted(number, 'example')} left out {reason}"
            for reason, number in features.skipped.items()
        ),
        *(f"{split.name}: {note}: {number:,}" for note, number in features.notes.items()),
    ]


def write_task(folder: epath.Path, prepared: Prepared, kind: Kind) -> None:
    """Writes to a workdir what `predict` and `evaluate` need besides the exported model.

    Args:
      folder: the workdir.
      prepared: what the run was trained on.
      kind: the kind, with what was chosen on the validation examples.
    """
    columns = prepared.columns
    values = {
        "task": prepared.task.name,
        "labels": prepared.task.labels or kind.labels,
        "model_labels": kind.labels,
        "label_scale": prepared.task.label_scale,
        "formatting": dataclasses.asdict(kind.formatting),
        "columns": None if columns is None else dataclasses.asdict(columns),
        "validation": digest(prepared.validation.features),
        "baseline": kind.baseline(prepared.train.examples),
    }
    write_json(folder / TASK_FILE, values)


def _tokenizer(spec: FinetuningSpec) -> "RobertaTokenizer":
    from roberta_jax.tokenizer.auto import load_tokenizer

    tokenizer = load_tokenizer(spec.tokenizer or tokenizer_folder(spec.init_from))
    check_tokenizer(tokenizer, spec.model)
    if spec.tokenizer is not None:
        try:
            own = load_tokenizer(tokenizer_folder(spec.init_from))
        except UsageError:
            return tokenizer
        if own.fingerprint() != tokenizer.fingerprint():
            logging.warning(
                "--config.tokenizer=%s has other tokens than the tokenizer in %s, which the model "
                "was trained with. Leave it unset to use that one.",
                *(spec.tokenizer, spec.config["init_from"]),
            )
    return tokenizer


def encoded(
    kind: Kind,
    examples: Sequence[Example],
    tokenizer: "RobertaTokenizer",
    cache_dir: pathlib.Path | None,
) -> Features:
    """The rows of examples, from the cache or encoded now.

    Args:
      kind: the kind of task.
      examples: the examples.
      tokenizer: the tokenizer.
      cache_dir: where rows are kept; None keeps none.
    """
    if cache_dir is None:
        return kind.encode(examples, tokenizer)
    path = cache_dir / "features" / f"{_key(kind, examples, tokenizer)}.npz"
    cached = _read(path)
    if cached is not None:
        return cached
    features = kind.encode(examples, tokenizer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **_arrays(features))
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}. Make room there, or choose another folder "
            "with --config.data.cache_dir."
        ) from error
    return features


def digest(features: Features) -> str:
    """A digest of rows."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, array in sorted(_arrays(features).items()):
        hasher.update(f"{name} {array.dtype} {array.shape}".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


def _key(kind: Kind, examples: Sequence[Example], tokenizer: "RobertaTokenizer") -> str:
    made_from = {
        "format": _FORMAT,
        "kind": type(kind).__name__,
        "labels": kind.labels,
        "formatting": dataclasses.asdict(kind.formatting),
        "scale": kind.task.label_scale,
        "answerable": kind.task.answerable,
        "tokenizer": tokenizer.fingerprint(),
    }
    hasher = hashlib.blake2b(json.dumps(made_from, sort_keys=True).encode(), digest_size=16)
    for example in examples:
        hasher.update(repr(dataclasses.astuple(example)).encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()


_OWN = ("tokens", "starts", "example")
_GROUPS = ("columns", "token_columns", "host_arrays")
_COUNTS = ("skipped", "notes")


def _arrays(features: Features) -> dict[str, np.ndarray]:
    arrays = {name: getattr(features, name) for name in _OWN}
    arrays["choices"] = np.int64(features.choices)
    for name in _COUNTS:
        counts = json.dumps(dict(getattr(features, name)))
        arrays[name] = np.frombuffer(counts.encode(), np.uint8)
    for group in _GROUPS:
        arrays |= {f"{group}.{name}": each for name, each in getattr(features, group).items()}
    return arrays


def _read(path: pathlib.Path) -> Features | None:
    """The rows in a file; None where there is none or it is damaged (the format has a CRC)."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
        groups: dict[str, dict[str, np.ndarray]] = {name: {} for name in _GROUPS}
        for name, array in arrays.items():
            group, dot, column = name.partition(".")
            if dot:
                groups[group][column] = array
        own = {name: arrays[name] for name in _OWN}
        counts = {name: json.loads(arrays[name].tobytes()) for name in _COUNTS}
        return Features(choices=int(arrays["choices"]), **counts, **own, **groups)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
