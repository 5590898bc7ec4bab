"""From files to rows: reads the examples of a task, names the labels, and encodes the examples.

Encoded examples are kept in `data.cache_dir/features`, named by a hash of everything that they
follow from: the examples, the labels, the tokenizer and the format. A damaged file there is made
again.
"""

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from roberta_jax.config_groups import check_tokenizer
from roberta_jax.data import hashing
from roberta_jax.errors import UsageError
from roberta_jax.finetuning.spec import FinetuningSpec
from roberta_jax.storage.atomic import replace_file
from roberta_jax.tasks import loading
from roberta_jax.tasks.examples import Example
from roberta_jax.tasks.features import Features
from roberta_jax.tasks.kinds import Kind, kind_class
from roberta_jax.tasks.task import Task
from roberta_jax.weights import tokenizer_folder

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

# Part of the names of cached features; another number where they would differ for the same input.
_FORMAT = 1


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
      notes: what the user should know about the data, a sentence each.
    """

    task: Task
    kind: Kind
    tokenizer: "RobertaTokenizer"
    train: Split
    validation: Split
    notes: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What the run is made from, as values that JSON can hold."""
        return {
            "tokenizer": self.tokenizer.fingerprint(),
            "training examples": digest(self.train.features),
            "validation examples": digest(self.validation.features),
        }


def prepare(spec: FinetuningSpec) -> Prepared:
    """Reads and encodes the training and the validation examples.

    Raises:
      UsageError: a file is missing or wrong, or examples, labels, tokenizer and model do not fit.
    """
    task, data = spec.task, spec.data
    tokenizer = load_tokenizer(spec)
    train = loading.load_split(
        task, "train", folder=data.folder, file=data.train, tfds_data_dir=data.tfds_data_dir
    )
    validation = loading.load_split(
        task,
        "validation",
        folder=data.folder,
        file=data.validation,
        tfds_data_dir=data.tfds_data_dir,
    )
    train = _sample(train, data.max_train_examples)
    kind = kind_class(task.kind)(task, task.labels, spec.formatting)
    splits = [
        Split(name, examples, encoded(kind, examples, tokenizer, data.cache_dir))
        for name, examples in (("train", train), ("validation", validation))
    ]
    return Prepared(task, kind, tokenizer, *splits)


def load_tokenizer(spec: FinetuningSpec) -> "RobertaTokenizer":
    """The tokenizer of the run.

    Raises:
      UsageError: it cannot be loaded, or is not one for the model.
    """
    from roberta_jax.tokenizer import RobertaTokenizer

    try:
        tokenizer = RobertaTokenizer.from_pretrained(
            spec.tokenizer or tokenizer_folder(spec.init_from)
        )
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model's tokenizer: {error}") from error
    check_tokenizer(tokenizer, spec.model)
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
        "tokenizer": tokenizer.fingerprint(),
    }
    hasher = hashlib.blake2b(json.dumps(made_from, sort_keys=True).encode(), digest_size=16)
    for example in examples:
        hasher.update(repr(dataclasses.astuple(example)).encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()


_OWN = ("tokens", "starts", "example")
_GROUPS = ("columns", "token_columns", "host_arrays")


def _arrays(features: Features) -> dict[str, np.ndarray]:
    arrays = {name: getattr(features, name) for name in _OWN}
    arrays["choices"] = np.int64(features.choices)
    arrays["skipped"] = np.frombuffer(json.dumps(dict(features.skipped)).encode(), np.uint8)
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
        skipped = json.loads(arrays["skipped"].tobytes())
        return Features(choices=int(arrays["choices"]), skipped=skipped, **own, **groups)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _sample(examples: list[Example], most: int | None) -> list[Example]:
    """So many examples at random, in their order; the same ones for every seed of the run."""
    if most is None or most >= len(examples):
        return examples
    chosen = np.sort(hashing.permute(np.arange(most), len(examples), 0, 0))
    return [examples[index] for index in chosen]
