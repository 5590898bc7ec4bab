"""What is in the examples of the user's own files, and the text that says what was recognized."""

import collections
from collections.abc import Iterable, Mapping, Sequence

from roberta_jax.errors import UsageError, counted, listed, shortened
from roberta_jax.tasks.examples import Example, TokenExample
from roberta_jax.tasks.readers.user_columns import Columns, FileProfile
from roberta_jax.tasks.readers.user_files import Table
from roberta_jax.tasks.readers.user_guess import Options
from roberta_jax.tasks.validation_split import content_digest

_MAX_LABELS_SHOWN = 12


class Survey:
    """What is in the examples of a split. Making it reads all of them.

    Args:
      table: the file.
      split: the split that it is.
      kind: of the task.
      examples: those of the file.
      counts: what the reader left out or found remarkable, complete once `examples` has ended.
      with_digests: whether to compute `digests`.

    Attributes:
      number: of examples.
      unlabelled: examples whose label is unknown.
      counts: what was left out or is remarkable.
      labels: label -> in how many examples it is (tokens: how many words have it).
      targets: (smallest, largest) target of a regression.
      digests: of the contents.
    """

    def __init__(
        self,
        table: Table,
        split: str,
        kind: str,
        examples: Iterable[Example],
        counts: collections.Counter,
        with_digests: bool,
    ):
        self._path, self._split, self._kind = table.path, split, kind
        self._with_digests = with_digests
        self.counts = counts
        self.number = 0
        self.unlabelled = 0
        self.labels: collections.Counter = collections.Counter()
        self.targets: tuple[float, float] | None = None
        self.digests: set[bytes] = set()
        self._combinations: set = set()
        for example in examples:
            self._add(example)

    @property
    def scale(self) -> float:
        """What the targets of a regression are divided by: the largest absolute value."""
        return max(map(abs, self.targets)) if self.targets else 1.0

    def _add(self, example: Example) -> None:
        self.number += 1
        if self._with_digests:
            self.digests.add(content_digest(example))
        label = example.tags if isinstance(example, TokenExample) else example.label
        if label is None:
            self.unlabelled += 1
            return
        if isinstance(label, float):
            low, high = self.targets or (label, label)
            self.targets = min(low, label), max(high, label)
            return
        if len(self._combinations) < 2:
            self._combinations.add(label)
        if isinstance(label, tuple):
            self.labels.update(label)
        else:
            self.labels[str(label)] += 1

    def check(self) -> None:
        """Checks that there are examples, and in training that they differ in their label.

        Raises:
          UsageError: they do not.
        """
        if not self.number:
            raise UsageError(
                f"--config.data.{self._split}: no row of {self._path} has a label; name its column "
                "with --config.data.label_column."
            )
        if self._split != "train" or self._kind == "choice":
            return
        if self._kind == "regression":
            is_one = self.targets is not None and self.targets[0] == self.targets[1]
            only = f"the target {self.targets[0]:g}" if is_one else ""
        elif self._kind == "multi_label":
            is_one = len(self._combinations) < 2
            only = f"the labels {listed(sorted(self.labels)) or '(none)'}"
        else:
            is_one = len(self.labels) < 2
            only = f"the label {', '.join(map(repr, self.labels))}"
        if is_one:
            raise UsageError(
                f"--config.data.train: all {self.number:,} examples of {self._path} have {only}, "
                "so there is nothing to learn. Add examples of another one, or name another column "
                "with --config.data.label_column."
            )


def describe(
    tables: Mapping[str, Table],
    profiles: Mapping[str, FileProfile],
    columns: Columns,
    labels: Sequence[str],
    surveys: Mapping[str, Survey],
    share: float | None,
    options: Options,
) -> str:
    """Says in several lines what was recognized, what is remarkable, and how to change it.

    Args:
      tables: split -> its file.
      profiles: split -> what is in the file.
      columns: those that are used.
      labels: the names of the labels.
      surveys: split -> what is in its examples.
      share: the share of the training examples that is held out for validation.
      options: what the user has set.
    """
    lines = []
    for split in tables:
        survey, name = surveys[split], tables[split].path.name
        parts = [f"{split}: {counted(survey.number, 'example')} of {name}"]
        parts += [f"{what}: {number:,}" for what, number in sorted(survey.counts.items())]
        if survey.unlabelled:
            parts.append(f"rows without a label: {survey.unlabelled:,}")
        if split != "train" and (both := len(survey.digests & surveys["train"].digests)):
            parts.append(f"texts that are also in train: {both:,}")
        lines.append("; ".join(parts))
    if share is not None:
        lines.append(f"validation: {share:.4g} of the training examples, chosen by their content")
    roles = {"text": columns.text, "second text": columns.pair}
    if columns.kind == "tokens":
        roles = {"words": columns.text}
    elif columns.kind == "choice":
        roles = {"context": columns.text, "question": columns.pair}
        roles["choices"] = ", ".join(columns.choices)
    shown = [f"{role}: {name}" for role, name in roles.items() if name]
    shown.append(f"label: {_shown_label(columns, labels, surveys['train'])}")
    shown.append(f"id: {_shown_id(columns.id)}")
    lines.append(f"kind: {columns.kind}; " + "; ".join(shown))
    if unused := [name for name in profiles["train"].columns if name not in columns.named]:
        names = listed([shortened(name, 40) or repr("") for name in unused], 20)
        lines.append(f"columns that are not used: {names}")
    if rare := [name for name in labels if not surveys["train"].labels[name]]:
        lines.append(f"labels without a training example: {listed(rare)}")
    lines.append(f"to change this: {_shown_options(columns, options)}")
    return "\n".join(lines)


def _shown_id(name: str | None) -> str:
    if name is None:
        return "the number of the row"
    return name or "the column without a name"


def _shown_options(columns: Columns, options: Options) -> str:
    """The options that are not set: the first with its whole key, to show how it is typed."""
    keys = ["text_column", "pair_column", "label_column", "id_column", "kind", "labels"]
    if columns.kind == "choice":
        keys[-1] = "choice_columns"
    elif columns.kind == "tokens":
        keys.remove("pair_column")
    elif columns.kind == "regression":
        keys.remove("labels")
    unset = [key for key in keys if not getattr(options, key)]
    if not unset:
        return "change the values of --config.data"
    first = f"--config.data.{unset[0]}=..."
    return first + (f"; likewise {', '.join(unset[1:])}" if unset[1:] else "")


def _shown_label(columns: Columns, labels: Sequence[str], survey: Survey) -> str:
    name = ", ".join(columns.label)
    if columns.kind == "regression":
        low, high = survey.targets
        return f"{name} (numbers from {low:g} to {high:g}, divided by {survey.scale:g})"
    if columns.kind == "choice":
        return f"{name} (counted from {columns.first_choice})"
    counts = [f"{each} ({survey.labels[each]:,})" for each in labels]
    what = "tag" if columns.kind == "tokens" else "label"
    divided = f", divided by {columns.separator!r}" if columns.kind == "multi_label" else ""
    if len(columns.label) > 1:
        name, divided = counted(len(columns.label), "column"), ""
    return f"{name} ({counted(len(labels), what)}{divided}: {listed(counts, _MAX_LABELS_SHOWN)})"
