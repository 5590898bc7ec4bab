"""Defines studies: settings that are compared, each trained with several seeds.

A study is a Python file, such as those in `experiments/studies/`. It defines `FORMS`, the names of
the study's variants with the default first, and `get_study`, which returns the study in a form:

    FORMS = ("tiny", "paper")

    def get_study(form: str) -> Study:
        return Study(
            name="masking",
            question="Does a new mask in every epoch help?",
            base=get_config("tiny"),
            settings={
                "static": {"masking.dupe_factor": 10},
                "dynamic": {"masking.dupe_factor": None},
            },
            columns={"perplexity": "eval_perplexity"},
            paper={"static": {"perplexity": 4.0}},
            source="Liu et al. 2019, Table 1",
        )

`experiments.sweep` trains the points of a study, one for each setting and seed, and
`experiments.report` compares their results.

If `base` is a config of configs/finetune.py, the points are fine-tuning runs. Their settings may
have different tasks; only settings of one task are compared with each other.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from experiments.study.config_changes import (
    Changes,
    changed_config,
    finetunes,
    values_that_affect_results,
)
from experiments.study.finetuned import find_data, with_data
from experiments.study.progress import Progress, read_progress
from roberta_jax.errors import UsageError, shortened
from roberta_jax.tasks.table import TASKS

LARGEST_SEED = 2**32 - 1

# The command that fine-tunes a finished point; the task and its arguments follow.
DOWNSTREAM = ("{python}", "-m", "experiments.downstream", "--model={workdir}", "--output={output}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Settings to compare, and the metrics to compare them by.

    Attributes:
      name: the name of the study and of its report's folder.
      question: the question that it answers, in one sentence.
      base: the config that all points share.
      settings: maps the name of a setting, as shown in tables, to its changes of `base`.
      seeds: the values of `config.seed`; each setting is trained with each.
      columns: maps a heading of the table to a metric: a key of the run's final record
        ("eval_perplexity"), of an evaluation ("mnli.accuracy" is "accuracy" in the workdir's
        `evaluations/mnli.json`), or of `finetuned.read_scores` ("score", "validation.f1").
      downstream: maps the name of a task to further arguments of `experiments.downstream`, by which
        each finished point is fine-tuned on it where `with_data` finds its examples.
      references: for the best setting of each task in a study of fine-tuning: maps a heading, such
        as "paper", to its value for each task, by the task's title. A study that has them selects
        a setting for each task by the median of "score" over the seeds.
      data: the folder of the tasks' examples; set by `with_data`.
      evaluations: maps a name to a command that runs after the training of a point. In its
        arguments, "{workdir}" is replaced by the point's folder, "{seed}" by its seed, "{python}"
        by the Python interpreter, and "{output}" by the file that the command has to write, a JSON
        object of numbers.
      paper: the paper's values: {setting: {heading: value}}.
      source: where the paper's values are from, such as "Liu et al. 2019, Table 2".
      notes: remarks for the readers of the report.
      origin: the study's name on the command line, such as "table2:tiny"; set by `load_study`.
      changes: the changes of `base` that were made by `changed`.

    Raises:
      UsageError: the attributes contradict each other.
    """

    name: str
    question: str
    base: ConfigDict
    settings: Mapping[str, Changes]
    columns: Mapping[str, str]
    seeds: Sequence[int] = (0, 1, 2)
    evaluations: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    downstream: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, Mapping[str, float | str]] = dataclasses.field(default_factory=dict)
    references: Mapping[str, Mapping[str, float | str]] = dataclasses.field(default_factory=dict)
    source: str = ""
    notes: str = ""
    origin: str = ""
    data: str = ""
    changes: Changes = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._check_types()
        if not self.settings or not self.columns:
            raise UsageError(f"{self.name}: a study has at least one setting and one column.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"{self.name}: seeds={tuple(self.seeds)}: at least one, each once.")
        if not all(0 <= seed <= LARGEST_SEED for seed in self.seeds):
            raise UsageError(
                f"{self.name}: seeds={shortened(str(tuple(self.seeds)))}: give whole numbers "
                f"from 0 to {LARGEST_SEED}."
            )
        for setting, changes in self.settings.items():
            if "seed" in changes:
                raise UsageError(
                    f"{self.name}: the setting {setting!r} changes seed, which is that of the "
                    "point. Give the seeds in `seeds`."
                )
        self._check_paper_names("a setting", self.paper, self.settings)
        for values in self.paper.values():
            self._check_paper_names("a column", values, self.columns)
        slugs = [_slug(setting) for setting in self.settings]
        if len(set(slugs)) < len(slugs):
            raise UsageError(
                f"{self.name}: two settings would use the same folder name; the names are {slugs}."
            )
        for name, command in self.evaluations.items():
            if not any("{output}" in argument for argument in command):
                raise UsageError(
                    f"{self.name}: the evaluation {name!r} has no argument with {{output}}, the "
                    "file that it has to write."
                )

    def _check_types(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UsageError(
                f"a study's name is also a folder's name, but it is {self.name!r}: use letters, "
                "digits, '_', '-' and '.'."
            )
        is_string = {"question": self.question, "source": self.source, "notes": self.notes}
        wrong = [key for key, value in is_string.items() if not isinstance(value, str)]
        wrong += [] if isinstance(self.base, ConfigDict) else ["base"]
        wrong += [] if _is_list_of(self.seeds, int) else ["seeds"]
        wrong += [] if _is_dict_to(self.settings, Mapping) else ["settings"]
        wrong += [] if _is_dict_to(self.columns, str) else ["columns"]
        wrong += [] if _is_dict_to(self.paper, Mapping) else ["paper"]
        wrong += [] if _is_dict_to(self.references, Mapping) else ["references"]
        for key in ("evaluations", "downstream"):
            commands = getattr(self, key)
            if not (
                isinstance(commands, Mapping)
                and all(_is_list_of(command, str) for command in commands.values())
            ):
                wrong.append(key)
        wrong += [] if all(task in TASKS for task in self.downstream) else ["downstream"]
        if wrong:
            raise UsageError(
                f"{self.name}: {wrong[0]} is {shortened(repr(getattr(self, wrong[0])))}, which has "
                "the wrong type; see the docstring of Study in experiments/study/definition.py."
            )

    def _check_paper_names(self, kind: str, names: Mapping, known: Mapping) -> None:
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{self.name}: the paper's values name {name!r}, which is not {kind} of the "
                    f"study. It has: {', '.join(known)}."
                )

    @property
    def finetunes(self) -> bool:
        """Whether the points are fine-tuning runs; otherwise they are pretraining runs."""
        return finetunes(self.base)

    def groups(self) -> dict[str, list[str]]:
        """Returns the settings of each task of a study of fine-tuning, by the task's title."""
        groups: dict[str, list[str]] = {}
        for setting, changes in self.settings.items() if self.finetunes else ():
            task = changes.get("task", self.base.task)
            groups.setdefault(TASKS[task].title if task in TASKS else task, []).append(setting)
        return groups

    def with_data(self, folder: str) -> "Study":
        """Returns the study with the examples of its tasks in a folder; see `find_data`.

        Finished points are fine-tuned on those tasks of `downstream` whose examples are there.

        Raises:
          UsageError: the folder does not exist, or the examples of a point's own task are missing.
        """
        if not pathlib.Path(folder).expanduser().is_dir():
            raise UsageError(f"--data={folder}: there is no such folder.")
        settings, evaluations = dict(self.settings), dict(self.evaluations)
        if self.finetunes:
            settings = {
                name: with_data(changes, self.base, folder) for name, changes in settings.items()
            }
        cache = self.base.data.cache_dir
        shared = [f"--set=data.cache_dir={cache}"] if cache else []
        for task, arguments in self.downstream.items():
            found = find_data(task, folder)
            if found is not None:
                evaluations[task] = (*DOWNSTREAM, task, f"--data={found}", *arguments, *shared)
        if folder and not (self.finetunes or evaluations):
            titles = ", ".join(TASKS[task].title for task in self.downstream)
            tasks = f"none of its tasks ({titles}) are there" if titles else "it names no tasks"
            raise UsageError(f"--data={folder} has no effect on the study {self.name}: {tasks}.")
        return dataclasses.replace(self, settings=settings, evaluations=evaluations, data=folder)

    def points(self) -> list["Point"]:
        """Returns every setting with every seed; all settings with the first seed come first."""
        return [Point(self, setting, seed) for seed in self.seeds for setting in self.settings]

    def changed(self, changes: Changes) -> "Study":
        """Returns the study with changes of its base config.

        Raises:
          UsageError: a key or a value is wrong, or the settings of the study differ in that key.
        """
        if "seed" in changes:
            raise UsageError(
                f"--set=seed={changes['seed']}: each point has its own seed. Use "
                f"--seeds={changes['seed']}."
            )
        for key in changes:
            settings = [name for name, own in self.settings.items() if key in own]
            if settings:
                raise UsageError(
                    f"{key} is what the study {self.name} compares (in {', '.join(settings)}), so "
                    "it cannot be set for all."
                )
        base = changed_config(self.base, changes, f"study {self.name}")
        return dataclasses.replace(self, base=base, changes={**self.changes, **changes})


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a study: a setting with a seed."""

    study: Study
    setting: str
    seed: int

    def __str__(self) -> str:
        return f"{self.setting}, seed {self.seed}"

    def config(self) -> ConfigDict:
        """Returns the locked config of the run.

        Raises:
          UsageError: the setting names an unknown key or a value of the wrong type.
        """
        changes = {**self.study.settings[self.setting], "seed": self.seed}
        return changed_config(self.study.base, changes, f"study {self.study.name}, {self}")

    @property
    def name(self) -> str:
        """The name of the workdir; it changes with every config value that affects the results."""
        text = json.dumps(values_that_affect_results(self.config()), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return f"{_slug(self.setting)}-seed{self.seed}-{digest}"

    def workdir(self, root: epath.PathLike) -> epath.Path:
        """Returns the folder of the run below `root`."""
        return epath.Path(root) / self.name

    def progress(self, root: epath.PathLike) -> Progress:
        """Reads how far the run below `root` is."""
        return read_progress(
            self.workdir(root), self.config().train.steps, tuple(self.study.evaluations)
        )


def _is_list_of(values: object, kind: type) -> bool:
    return (
        isinstance(values, Sequence | range)
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
        and not isinstance(values, str)
    )


def _is_dict_to(values: object, kind: type) -> bool:
    return isinstance(values, Mapping) and all(
        isinstance(key, str) and isinstance(value, kind) for key, value in values.items()
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "setting"
