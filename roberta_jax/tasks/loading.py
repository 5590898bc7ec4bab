"""Finds and reads the examples of a task's splits, and puts the labels in order.

For the tasks of the table that have a reader: their official files, or TensorFlow Datasets.
"""

import dataclasses
import logging
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from roberta_jax.errors import NotFoundError, UsageError, counted, listed, shortened
from roberta_jax.tasks.examples import Example, TokenExample
from roberta_jax.tasks.task import Task

_COMPRESSIONS = ("", ".gz", ".xz", ".bz2", ".zst")
_LABELLED = ("train", "validation")
_KEYS = {split: f"--config.data.{split}" for split in ("train", "validation", "test")}
# Names that say nothing of a label: those of transformers for models without names, and numbers.
_NO_NAME = re.compile(r"(label_)?\d+", re.IGNORECASE)


def load_split(
    task: Task,
    split: str,
    *,
    folder: str | pathlib.Path | None,
    file: str | pathlib.Path | None = None,
    tfds_data_dir: str | None = None,
) -> list[Example]:
    """Reads the examples of a split.

    Args:
      task: a task with a reader.
      split: a key of `task.files`.
      folder: where the task's official files are; None for TensorFlow Datasets.
      file: a file, or a folder if the task has folders, in place of the one in `folder`.
      tfds_data_dir: the folder of TFDS's datasets; None for its default.

    Returns:
      The examples in the order of the file, with different ids: one that occurs again is followed
      by "#2". Those of "train" that have no label are left out. Warnings count both.

    Raises:
      UsageError: there is no such split, folder or file, it cannot be read, it has no examples or
        no labels where they are needed, or all examples of "train" have the same label.
    """
    if file is not None:
        path = pathlib.Path(file).expanduser()
        if not path.exists():
            raise NotFoundError(f"{_key(split)}={file}: there is no such file.")
    elif folder is not None:
        path = find(task, split, folder)
    else:
        path = None
    if path is None:
        from roberta_jax.tasks.readers.tfds import read_tfds

        source = f"TFDS {task.tfds}, {split}"
        examples = list(read_tfds(task, split, tfds_data_dir))
    else:
        source = str(path)
        examples = list(task.reader(path, task, split))
    return checked(examples, task, split, source)


def find(task: Task, split: str, folder: str | pathlib.Path) -> pathlib.Path:
    """The path of a split's official file or folder.

    Raises:
      UsageError: the task has no such split, or there is no such folder or file.
    """
    if split not in task.files:
        raise UsageError(f"{task.title} has no split {split!r}; it has {', '.join(task.files)}.")
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        problem = "is a file; give the folder that it is in" if root.exists() else "does not exist"
        raise NotFoundError(f"--config.data.folder={folder}: {problem}. {_what_it_needs(task)}")
    path = _existing(root, task.files[split])
    if path is None:
        names = listed(task.files[split])
        raise NotFoundError(
            f"--config.data.folder={folder} has no file of {task.title}'s split {split!r}; tried "
            f"{names}, each also with {', '.join(_COMPRESSIONS[1:])}. {_what_it_needs(task)}"
        )
    return path


def available_splits(task: Task, folder: str | pathlib.Path) -> tuple[str, ...]:
    """The splits of a task whose file or folder is in a folder, in the order of `task.files`."""
    root = pathlib.Path(folder).expanduser()
    return tuple(split for split, names in task.files.items() if _existing(root, names) is not None)


def checked(examples: list[Example], task: Task, split: str, source: str) -> list[Example]:
    """Examples that can be used for a split; see `load_split`.

    Args:
      examples: those that were read.
      task: the task.
      split: what they are used for; "train" and "validation" need labels.
      source: the file or dataset, for messages.

    Raises:
      UsageError: see `load_split`.
    """
    if not examples:
        raise UsageError(f"{source} has no examples: the split {split!r} of {task.title} is empty.")
    labels = [_label(example) for example in examples]
    unlabelled = sum(label is None for label in labels)
    if split in _LABELLED and unlabelled == len(examples):
        raise UsageError(
            f"{source} has no labels, which the split {split!r} of {task.title} needs. Labels of "
            "test files are not published: check that this is not one."
        )
    if split == "train":
        if unlabelled:
            logging.warning(
                "%s: %s without a label left out.", source, counted(unlabelled, "example")
            )
            examples = [example for example in examples if _label(example) is not None]
        check_differ(examples, task, source)
    return _with_different_ids(examples, source)


def label_names(task: Task, examples: Iterable[Example]) -> tuple[str, ...]:
    """The names of the labels: those of the task, or in alphabetical order those of examples.

    Questions about a passage have none. Tags of entities are "O", and then the types in
    alphabetical order, each "B-" before "I-".

    Args:
      task: the task.
      examples: the training examples.
    """
    if task.labels or task.kind == "question_answering":
        return task.labels
    names: set[str] = set()
    for example in examples:
        label = _label(example)
        if isinstance(label, str):
            names.add(label)
        elif isinstance(label, tuple) and all(isinstance(each, str) for each in label):
            names.update(label)
    if task.kind == "tokens":
        return tuple(sorted(names, key=lambda tag: (tag != "O", tag.partition("-")[2], tag)))
    return tuple(sorted(names))


def match_labels(
    labels: Sequence[str],
    id2label: Mapping[int, str] | None,
    *,
    new_head: bool = False,
    where: str = "the model",
) -> tuple[str, ...]:
    """The task's labels in the order of a model's ids.

    The order is the model's where it names the same labels, whatever the case and spelling
    ("NOT_ENTAILMENT" is "not_entailment"). If it differs from the task's, which would exchange
    labels, a line is logged. Otherwise the order is the task's: where the model names none
    ("LABEL_0", "0"), and where its names are others, which is logged too.

    Args:
      labels: names of the task's labels, in the order of the task's ids.
      id2label: id -> name of the model's label; None for a model without labels.
      new_head: whether the head may be a new one, so that another number of labels is no mistake.
      where: the model, for messages.

    Returns:
      The names as the task has them.

    Raises:
      UsageError: the model has another number of labels, with names, and `new_head` is False.
    """
    labels = tuple(labels)
    if not id2label or not labels:
        return labels
    names = [str(name) for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    if all(_NO_NAME.fullmatch(name.strip()) for name in names):
        return labels
    if len(names) != len(labels):
        if new_head:
            return labels
        raise UsageError(
            f"{where} has {counted(len(names), 'label')} ({_shown(names)}), and the task has "
            f"{len(labels)} ({_shown(labels)}). Choose a model that was fine-tuned on this task, "
            "or fine-tune this one first."
        )
    plain = str if set(names) == set(labels) else _plain
    ours = {plain(name): name for name in labels}
    theirs = [plain(name) for name in names]
    same = len(ours) == len(labels) and set(theirs) == set(ours)
    order = tuple(ours[name] for name in theirs) if same else labels
    if not same:
        logging.warning(
            "%s has other labels (%s) than the task (%s): the names and the order are the task's.",
            *(where, _shown(names), _shown(labels)),
        )
    elif order != labels:
        logging.warning(
            "%s numbers the labels in another order (%s) than the task (%s): the model's is used.",
            *(where, _shown(names), _shown(labels)),
        )
    return order


def has_same_labels(labels: Sequence[str], id2label: Mapping[int, str] | None) -> bool | None:
    """Whether a model's labels are those of the task, in any order and spelling.

    None if the model does not name its labels but has as many: they may be the same.
    """
    names = [str(name) for name in (id2label or {}).values()]
    if len(names) != max(len(labels), 1):
        return False
    if all(_NO_NAME.fullmatch(name.strip()) for name in names):
        return None
    return {_plain(name) for name in names} == {_plain(name) for name in labels}


def _existing(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    for name in names:
        for suffix in _COMPRESSIONS:
            path = root / (name + suffix)
            if path.exists():
                return path
    return None


def _what_it_needs(task: Task) -> str:
    other = " Without --config.data.folder it is read from TensorFlow Datasets." * bool(task.tfds)
    return f"{task.title} is read from {task.download}.{other}"


def _key(split: str) -> str:
    return _KEYS.get(split, f"the file of split {split!r}")


def _label(example: Example):
    """What an example's label is, whatever its kind; None where it is unknown."""
    if isinstance(example, TokenExample):
        return example.tags
    return example.answers if hasattr(example, "answers") else example.label


def check_differ(examples: Sequence[Example], task: Task, source: str) -> None:
    """Raises a UsageError if nothing can be learned, because all labels are the same one."""
    labels = [label for label in map(_label, examples) if label is not None]
    if task.kind in ("choice", "question_answering"):
        return
    if task.kind in ("tokens", "multi_label"):
        different = {name for each in labels for name in each}
        nothing = len(different) == 0 or (task.kind == "tokens" and len(different) == 1)
    elif task.kind == "pronoun":
        different = set(labels)
        nothing = True not in different  # the recipe trains on the true ones alone
    else:
        different = set(labels)
        nothing = len(different) == 1
    if nothing:
        value = f" {next(iter(different))!r}" if different else ", none"
        raise UsageError(
            f"{source}: {counted(len(labels), 'example')}, and all have the same label{value}, so "
            f"there is nothing to learn. Training {task.title} needs examples of several labels."
        )


def _with_different_ids(examples: list[Example], source: str) -> list[Example]:
    """Appends "#2", "#3" to ids that occur again."""
    counts = Counter(example.id for example in examples)
    if len(counts) == len(examples):
        return examples
    repeated = next(identity for identity, number in counts.items() if number > 1)
    logging.warning(
        "%s: %s with the id of another one, such as %s; their ids are made different.",
        *(source, counted(len(examples) - len(counts), "example"), shortened(repeated)),
    )
    taken, seen, result = set(counts), Counter(), []
    for example in examples:
        seen[example.id] += 1
        identity = example.id
        if seen[identity] > 1:
            number = seen[identity]
            while (identity := f"{example.id}#{number}") in taken:
                number += 1
            taken.add(identity)
            example = dataclasses.replace(example, id=identity)
        result.append(example)
    return result


def _plain(name: str) -> str:
    """A name without case, spaces and the marks that spellings differ in."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _shown(names: Sequence[str]) -> str:
    return listed([shortened(name, 40) for name in names])
