"""Where the splits of a run are, to train on them and to evaluate on them again later."""

import dataclasses
import json
import os
from typing import Any

import numpy as np
from etils import epath

from roberta_jax.data import hashing
from roberta_jax.errors import UsageError
from roberta_jax.tasks import loading
from roberta_jax.tasks.examples import Example
from roberta_jax.tasks.task import Task
from roberta_jax.tasks.validation_split import split_validation

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the examples of a task are; see `config.data`.

    Attributes:
      folder: the folder of the task's official files; None reads it from TFDS.
      tfds_data_dir: the folder of TFDS's datasets; None is TFDS's default.
      train, validation, test: files in place of the official ones, or None.
      validation_share: the share of the training examples that is held out to validate on; None
        where there is a validation split.
      max_train_examples: examples to train on at most, or None.
    """

    folder: str | None = None
    tfds_data_dir: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    validation_share: float | None = None
    max_train_examples: int | None = None

    def load(self, task: Task, split: str) -> list[Example]:
        """Reads the examples of a split.

        Raises:
          UsageError: there are none, or a file is wrong; see `loading.load_split`.
        """
        if split == TRAIN or (split == VALIDATION and self.validation_share is not None):
            return self.load_to_train(task)[split]
        return self._read(task, split)

    def load_to_train(self, task: Task) -> dict[str, list[Example]]:
        """The training and the validation examples.

        Raises:
          UsageError: see `load`.
        """
        train = self._read(task, TRAIN)
        if self.validation_share is None:
            validation = self._read(task, VALIDATION)
        else:
            train, validation = split_validation(train, self.validation_share)
        if self.max_train_examples is not None and self.max_train_examples < len(train):
            train = _sample(train, self.max_train_examples)
            source = f"--config.data.max_train_examples={self.max_train_examples}"
            loading.check_differ(train, task, source)
        return {TRAIN: train, VALIDATION: validation}

    def load_further(self, task: Task) -> tuple[dict[str, list[Example]], list[str]]:
        """The splits besides those two, which are evaluated and predicted after the training.

        Returns:
          ({name: examples}, a note for each split of TFDS that cannot be read).

        Raises:
          UsageError: see `load`, for splits that are given or have a file in the folder.
        """
        names = [name for name in task.files if name not in (TRAIN, VALIDATION)]
        if self.test is not None and TEST not in names:
            names.insert(0, TEST)
        is_optional = self.folder is None and self.train is None
        splits, notes = {}, []
        for name in names:
            given = name == TEST and self.test is not None
            if not given and not is_optional and not self._has(task, name):
                continue
            try:
                splits[name] = self._read(task, name)
            except UsageError as error:
                if given or not is_optional:
                    raise
                notes.append(f"{name}: not evaluated, since it cannot be read ({error})")
        return splits, notes

    def _has(self, task: Task, split: str) -> bool:
        if self.folder is None:
            return False
        return split in loading.available_splits(task, self.folder)

    def _read(self, task: Task, split: str) -> list[Example]:
        given = {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}
        return loading.load_split(
            task,
            split,
            folder=self.folder,
            file=given.get(split),
            tfds_data_dir=self.tfds_data_dir,
        )


def _sample(examples: list[Example], number: int) -> list[Example]:
    """So many examples at random, in their order; the same ones for every seed of the run."""
    chosen = np.sort(hashing.permute(np.arange(number), len(examples), 0, 0))
    return [examples[index] for index in chosen]


def recorded_sources(workdir: os.PathLike | str) -> Sources | None:
    """The sources that a run was started with, by its `config.json`; None where there is none."""
    try:
        data = json.loads((epath.Path(workdir) / "config.json").read_text())["data"]
        keys = ("folder", "tfds_data_dir", TRAIN, VALIDATION, TEST, "max_train_examples")
        return sources_of(**{key: data[key] for key in keys})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sources_of(validation: str | None, **sources: Any) -> Sources:
    """The sources, with `validation` as `config.data.validation` has it: a file or a share."""
    share = validation_share(validation)
    return Sources(
        **sources, validation=None if share is not None else validation, validation_share=share
    )


def validation_share(text: str | None) -> float | None:
    """The share of the training examples that `data.validation` is; None if it is a file.

    Raises:
      UsageError: it is a number that is no share.
    """
    try:
        share = float(text)
    except (TypeError, ValueError):
        return None
    if os.path.exists(text):
        return None
    if not 0 < share < 1:
        raise UsageError(
            f"--config.data.validation={text}: give a share between 0 and 1, such as 0.1, or a "
            "file."
        )
    return share
