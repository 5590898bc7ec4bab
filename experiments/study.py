"""What a study is: settings that are compared, each trained with several seeds.

A study is a file in `experiments/studies/` with a function `get_study(form)` and the forms that it
takes, `FORMS`, of which the first is the default:

    FORMS = ("tiny", "paper")

    def get_study(form: str) -> Study:
        return Study(
            name="masking",
            question="Does masking anew in each epoch help?",
            base=get_config("tiny"),
            settings={
                "static": {"masking.dupe_factor": 10},
                "dynamic": {"masking.dupe_factor": None},
            },
            columns={"perplexity": "eval_perplexity"},
            paper={"static": {"perplexity": 4.0}},
            source="Liu et al. 2019, Table 1",
        )

`experiments.sweep` trains its points, a setting with a seed each; `experiments.report` compares
what came out.
"""

import copy
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from roberta_jax.cli import flatten, nearest
from roberta_jax.errors import UsageError
from roberta_jax.pretrain import MAY_CHANGE, finished_metrics
from roberta_jax.training.metrics import read_metrics
from roberta_jax.training.workdir import covered

Changes = Mapping[str, Any]  # dotted config key -> value

# Of what a run may change when it goes on, what gives other results.
_DECIDING = ("train.steps", "schedule.decay_steps")

FINISHED = "finished"  # how the state of a point begins whose pretraining is
EVALUATIONS = "evaluations"  # the folder in a workdir with what later commands measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Settings to compare, and how to compare them.

    Attributes:
      name: of the study, and of its files.
      question: that it answers, in a sentence.
      base: the config that all points share.
      settings: the name that a table shows -> what it changes in `base`.
      seeds: each setting is trained with each; they are `config.seed`.
      columns: heading in the table -> metric: of a run's final record ("eval_perplexity"), or of
        one of the evaluations that follow it ("mnli.accuracy": "accuracy" in
        `evaluations/mnli.json` of the workdir).
      evaluations: name -> command to run after the pretraining of a point. In its arguments
        "{workdir}" stands for the point's folder, "{seed}" for its seed, "{python}" for the
        interpreter, and "{output}" for the file that it has to write, a JSON object of numbers.
      paper: setting -> heading -> the figure that the paper gives.
      source: where the paper gives them: "Liu et al. 2019, Table 2".
      notes: what a reader of the report should know.
      origin: how the command line names the study, "table2:tiny"; `load_study` says it.
      changes: what was changed in the base for all points, see `changed`.

    Raises:
      UsageError: the parts do not fit each other.
    """

    name: str
    question: str
    base: ConfigDict
    settings: Mapping[str, Changes]
    columns: Mapping[str, str]
    seeds: Sequence[int] = (0, 1, 2)
    evaluations: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, Mapping[str, float | str]] = dataclasses.field(default_factory=dict)
    source: str = ""
    notes: str = ""
    origin: str = ""
    changes: Changes = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.settings or not self.columns:
            raise UsageError(f"{self.name}: a study has at least one setting and one column.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"{self.name}: seeds={tuple(self.seeds)}: at least one, each once.")
        self._check_known("a setting", self.paper, self.settings)
        for figures in self.paper.values():
            self._check_known("a column", figures, self.columns)
        slugs = [_slug(setting) for setting in self.settings]
        if len(set(slugs)) < len(slugs):
            raise UsageError(f"{self.name}: settings with the same folder's name among {slugs}.")
        for name, command in self.evaluations.items():
            if not any("{output}" in argument for argument in command):
                raise UsageError(
                    f"{self.name}: the evaluation {name!r} has no argument with {{output}}, the "
                    "file that it has to write."
                )

    def _check_known(self, what: str, names: Mapping, known: Mapping) -> None:
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{self.name}: the paper's figures name {name!r}, which is not {what} of the "
                    f"study. There are: {', '.join(known)}."
                )

    def points(self) -> list["Point"]:
        """Every setting with every seed; the first seed of all settings comes first."""
        return [Point(self, setting, seed) for seed in self.seeds for setting in self.settings]

    def changed(self, changes: Changes) -> "Study":
        """The study with the changes in its base.

        Raises:
          UsageError: a key or a value is wrong, or the key is one that the study compares.
        """
        for key in changes:
            compared = [name for name, own in self.settings.items() if key in own]
            if compared:
                raise UsageError(
                    f"{key} is what the study {self.name} compares (in {', '.join(compared)}), so "
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
        """The locked config of the run.

        Raises:
          UsageError: the setting names an unknown key, or a value of the wrong type.
        """
        changes = {**self.study.settings[self.setting], "seed": self.seed}
        return changed_config(self.study.base, changes, f"study {self.study.name}, {self}")

    @property
    def name(self) -> str:
        """A name of the workdir: another one wherever the config gives other results."""
        deciding = {key: value for key, value in flatten(self.config()).items() if decides(key)}
        text = json.dumps(deciding, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return f"{_slug(self.setting)}-seed{self.seed}-{digest}"

    def workdir(self, root: epath.PathLike) -> epath.Path:
        """The folder of the run below `root`."""
        return epath.Path(root) / self.name

    def progress(self, root: epath.PathLike) -> "Progress":
        """How far the run below `root` is."""
        steps, workdir = self.config().train.steps, self.workdir(root)
        metrics = finished_metrics(workdir, steps)
        if metrics is None:
            records = read_metrics(workdir)
            step = records[-1]["step"] if records else None
            return Progress(step=step, steps=steps)
        found = read_evaluations(workdir)
        missing = tuple(name for name in self.study.evaluations if name not in found)
        for name, values in found.items():
            metrics |= {f"{name}.{key}": value for key, value in values.items()}
        return Progress(step=steps, steps=steps, metrics=metrics, missing=missing)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a point is.

    Attributes:
      step: the last one that it reported, or None if it has not begun.
      steps: of the whole run.
      metrics: of the finished run, with those of its evaluations.
      missing: the evaluations that it still has to do.
    """

    step: int | None
    steps: int
    metrics: Mapping[str, float] | None = None
    missing: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return self.metrics is not None and not self.missing

    def __str__(self) -> str:
        if self.finished:
            return FINISHED
        if self.missing:
            return f"{FINISHED}, but without the evaluations {', '.join(self.missing)}"
        return "not begun" if self.step is None else f"step {self.step}/{self.steps}"


def product(values: Mapping[str, Sequence[Any]]) -> dict[str, Changes]:
    """Settings for all combinations: {"masking.scheme": ["token", "span"], "seq_len": [16, 32]}."""
    return _named(
        [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    )


def zipped(values: Mapping[str, Sequence[Any]]) -> dict[str, Changes]:
    """Settings of values side by side: the first ones together, the second ones together..."""
    lengths = {key: len(each) for key, each in values.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"zipped needs as many values for each key; there are {lengths}.")
    return _named(
        [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    )


def _named(settings: Sequence[Changes]) -> dict[str, Changes]:
    """Settings named by the last parts of their keys: "unit=word, seq_len=16"."""
    keys = list(settings[0]) if settings else []
    short = {key: key.rsplit(".", 1)[-1] for key in keys}
    if len(set(short.values())) < len(keys):
        short = {key: key for key in keys}
    named = {
        ", ".join(f"{short[key]}={value}" for key, value in changes.items()): changes
        for changes in settings
    }
    if len(named) < len(settings):
        raise UsageError(f"two settings are the same; there are {', '.join(named)}.")
    return named


def changed_config(base: ConfigDict, changes: Changes, where: str) -> ConfigDict:
    """A locked copy of `base` with the changes; errors begin with `where`.

    Raises:
      UsageError: an unknown key, or a value of another type than the one there.
    """
    config = copy.deepcopy(base)
    keys = flatten(config)
    for key, value in changes.items():
        if key not in keys:
            raise UsageError(f"{where}: {unknown_key(key, list(keys))}")
        *groups, last = key.split(".")
        group = config
        for name in groups:
            group = group[name]
        kind = group.get_type(last)
        try:
            if isinstance(value, bool) and kind in (int, float):  # Python's bools are numbers
                raise TypeError
            group[last] = value
        except TypeError:
            raise UsageError(
                f"{where}: {key} takes a value like {keys[key]!r} ({kind.__name__}), not {value!r}."
            ) from None
    config.lock()
    return config


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Says that a config has no such key, and which one may have been meant."""
    hint = nearest(key, known)
    below = [each for each in known if each.startswith(f"{key}.")]
    if hint and not below:
        return f"unknown config key {key!r}: did you mean {hint}?"
    return f"unknown config key {key!r}: the keys are {', '.join(below or known)}."


def read_evaluations(workdir: epath.Path) -> dict[str, dict[str, float]]:
    """What the commands after a pretraining measured: {name: {metric: value}}.

    Raises:
      UsageError: a file there does not hold a JSON object of numbers.
    """
    folder = workdir / EVALUATIONS
    found = {}
    for path in sorted(folder.glob("*.json")) if folder.exists() else []:
        try:
            found[path.stem] = numbers_in(path.read_text())
        except ValueError as error:
            raise UsageError(f"{path}: {error}. Delete it to measure again.") from None
    return found


def numbers_in(text: str) -> dict[str, float]:
    """The numbers of a JSON object; ValueError if it is none or has no numbers."""
    values = json.loads(text)
    numbers = {
        key: float(value)
        for key, value in (values.items() if isinstance(values, dict) else ())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if not numbers:
        raise ValueError("not a JSON object with numbers")
    return numbers


def decides(key: str) -> bool:
    """Whether a config key has a say in a run's results; a place or a cadence has none."""
    return key in _DECIDING or not covered(key, MAY_CHANGE)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "setting"
