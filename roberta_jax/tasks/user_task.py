"""The tasks of the user's own files: `csv`, `tsv` and `jsonl`."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

from roberta_jax.errors import UsageError, listed, shortened
from roberta_jax.tasks.readers.user_columns import Columns, FileProfile, profile
from roberta_jax.tasks.readers.user_examples import read_user_file
from roberta_jax.tasks.readers.user_files import (
    FORMATS,
    Table,
    check_header,
    missing_column_message,
    open_table,
)
from roberta_jax.tasks.readers.user_guess import KINDS, Options, guess_columns, is_ending, is_id
from roberta_jax.tasks.task import Formatting, Task
from roberta_jax.tasks.user_survey import Survey, describe

# Kind -> metrics, the selecting one first. Those of tags are of entities, where there are any.
_METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1", "exact_match"),
    "regression": ("pearson", "spearman", "mean_squared_error"),
    "tokens": ("f1", "precision", "recall"),
    "choice": ("accuracy",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserTask:
    """A task that was made for the user's files.

    Attributes:
      task: the task; its `files` are absolute paths.
      format: one of `FORMATS`.
      columns: those of the files that are used.
      validation_share: the share of the training examples that is held out for validation; see
        `validation_split.split_validation`. None where there is a file, or no validation.
      description: several lines that say what was recognized, and how to change it.
    """

    task: Task
    format: str
    columns: Columns
    validation_share: float | None
    description: str


def open_user_data(
    format: str,
    train: str | pathlib.Path,
    validation: str | float | pathlib.Path | None = None,
    test: str | pathlib.Path | None = None,
    *,
    kind: str | None = None,
    labels: str | Sequence[str] = (),
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    id_column: str | None = None,
    choice_columns: str | Sequence[str] = (),
) -> UserTask:
    """Finds out what task the user's files are, and checks all of them.

    The formats are described in `readers.user_files`, and how columns and kind are guessed where
    they are not given in `readers.user_guess.guess_columns`. The arguments are those of
    `--config.data`. Lists may also be strings that are divided by commas.

    How labels are written:

    - classification: their names. If `labels` is given, also the numbers of labels in it, from 0.
    - multi_label: a JSON list; or a cell "one|two" or "one,two", which may be empty; numbers as for
      classification; or one column for each label, given as `label_column="toxic,insult"`, with 0
      and 1.
    - regression: numbers.
    - tokens: a list with as many tags as words; numbers of tags if `labels` is given.
    - choice: the number of the correct choice, its letter (A, B, ...), or its text. Numbers count
      from 0; if none is 0, from 1 where the largest number or the names of the columns demand it.
      The last choices of a row may be empty, if it has fewer. The question is `pair_column`, the
      context `text_column`.

    Rows without a label are left out of training and validation, and counted. Empty texts are kept,
    and counted. Without an id column, the id of a row is its number from 0.

    Args:
      format: one of `FORMATS`.
      train: the file of training examples.
      validation: a file, a share of the training examples such as 0.1, or None.
      test: a file whose labels may be missing, or None.
      kind: one of `user_guess.KINDS`.
      labels: the names of all labels, in the order of their ids. Otherwise they are those of the
        training examples, sorted: numbers by size, other names by code point, the tag "O" first.
      text_column: the text; of pairs the first one.
      pair_column: the second text of pairs.
      label_column: the label.
      id_column: what identifies an example; it has to be different in each row of a file.
      choice_columns: the options of multiple choice: columns, or one that holds lists.

    Raises:
      UsageError: a file is missing, damaged or empty, or lacks a column; it is not clear which
        columns are meant; or labels, targets or ids cannot be used. The message names file and
        line, or the option to set.
    """
    if format not in FORMATS:
        raise UsageError(f"the format of files is one of {listed(FORMATS)}, not {format!r}.")
    if not train:
        raise UsageError(f"--config.data.train: name the {format} file of training examples.")
    share = _share(validation)
    paths = {"train": train, "validation": None if share else validation, "test": test}
    tables = {
        split: open_table(path, format, f"--config.data.{split}")
        for split, path in paths.items()
        if path
    }
    profiles = {
        split: profile(
            table.rows(), lambda name: is_id(name) or (id_column is not None and name == id_column)
        )
        for split, table in tables.items()
    }
    options = _options(
        profiles["train"].columns,
        kind=kind,
        labels=labels,
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        id_column=id_column,
        choice_columns=choice_columns,
    )
    _check_rows(tables, profiles)
    _check_options(options, tables["train"], profiles["train"])
    if not options.named:
        check_header(tables["train"])
    unique = _unique_columns(tables, profiles, id_column)
    try:
        columns = guess_columns(profiles["train"].columns, options, unique)
    except UsageError as error:
        check_header(tables["train"])
        raise UsageError(f"{tables['train'].path}: {error}") from None
    _check_columns(columns, tables, profiles)
    _check_numbered_tags(columns, options)
    survey_of = functools.partial(_survey, columns=columns, with_digests=len(tables) > 1)
    train_survey = survey_of(tables["train"], "train", labels=options.labels)
    train_survey.check()
    names = _all_labels(columns, options, train_survey)
    surveys = {"train": train_survey}
    for split in tables.keys() - {"train"}:
        surveys[split] = survey_of(tables[split], split, labels=names)
        surveys[split].check()
    files = {split: (str(table.path.absolute()),) for split, table in tables.items()}
    task = user_task(format, columns, names, files=files, label_scale=train_survey.scale)
    return UserTask(
        task=task,
        format=format,
        columns=columns,
        validation_share=share,
        description=describe(tables, profiles, columns, names, surveys, share, options),
    )


def user_task(
    format: str,
    columns: Columns,
    labels: Sequence[str],
    *,
    files: Mapping[str, tuple[str, ...]] | None = None,
    label_scale: float = 1.0,
) -> Task:
    """The task of files whose columns are known; for prediction also without any file.

    Args:
      format: one of `FORMATS`.
      columns: those of the files that are used.
      labels: the names of the labels.
      files: as in `Task`.
      label_scale: as in `Task`.
    """
    metrics = _METRICS[columns.kind]
    if columns.kind == "tokens" and not any(name.startswith(("B-", "I-")) for name in labels):
        metrics = ("accuracy",)
    return Task(
        name=format,
        title=pathlib.Path(files["train"][0]).name if files else format,
        kind=columns.kind,
        reader=functools.partial(read_user_file, format=format, columns=columns),
        files=files or {},
        fields=columns.texts,
        label_field=",".join(columns.label),
        labels=tuple(labels),
        metrics=metrics,
        # Endings continue the text, as in SWAG.
        formatting=Formatting(context_first=any(map(is_ending, columns.choices))),
        label_scale=label_scale,
        source="the user's own files",
    )


def _share(validation: str | float | pathlib.Path | None) -> float | None:
    """The share that `validation` is; None where it is a file or nothing."""
    if validation is None or isinstance(validation, pathlib.Path):
        return None
    try:
        share = float(validation)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UsageError(
            f"--config.data.validation={validation}: give a file, or a share of the training "
            "examples between 0 and 1, such as 0.1."
        )
    return share


def _options(columns: Mapping, *, kind, labels, label_column, choice_columns, **names) -> Options:
    """The options as they are given, with lists divided."""

    def divided(value, known: Mapping = columns) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            parts = [value] if value in known else value.split(",")
            return tuple(part.strip() for part in parts if part.strip())
        return tuple(map(str, value))

    return Options(
        kind=kind,
        labels=divided(labels, {}),
        label_column=divided(label_column),
        choice_columns=divided(choice_columns),
        **{key: None if name is None else str(name) for key, name in names.items()},
    )


def _check_rows(tables: Mapping[str, Table], profiles: Mapping[str, FileProfile]) -> None:
    for split, table in tables.items():
        if not profiles[split].rows:
            what = "holds a header and no rows" if table.columns else "is empty"
            raise UsageError(f"--config.data.{split}: {table.path} {what}.")


def _check_options(options: Options, table: Table, profile: FileProfile) -> None:
    if options.kind is not None and options.kind not in KINDS:
        hint = ""
        if "pair" in options.kind:
            hint = " A pair of texts needs no kind: name its second text with "
            hint += "--config.data.pair_column."
        raise UsageError(
            f"--config.data.kind={options.kind} is none of the kinds {listed(KINDS)}.{hint}"
        )
    for name, key in options.named.items():
        if name not in profile.columns:
            missing = missing_column_message(
                table.path, name, list(profile.columns), f"--config.data.{key}"
            )
            check_header(table)
            raise UsageError(missing)
    singles = [options.text_column, options.pair_column, options.id_column]
    given = [*filter(None, singles), *options.label_column, *options.choice_columns]
    if twice := sorted({name for name in given if given.count(name) > 1}):
        raise UsageError(
            f"--config.data names the column {twice[0]!r} twice. A column has one purpose: text, "
            "pair, label, id, or choice."
        )
    if twice := sorted({name for name in options.labels if options.labels.count(name) > 1}):
        raise UsageError(f"--config.data.labels names {twice[0]!r} twice.")
    if len(options.labels) == 1 and options.kind != "multi_label":
        raise UsageError("--config.data.labels: name at least two labels, divided by commas.")
    if options.choice_columns and options.kind not in (None, "choice"):
        raise UsageError(
            f"--config.data.choice_columns belongs to kind=choice, not to kind={options.kind}."
        )
    if options.pair_column and options.kind == "tokens":
        raise UsageError("--config.data.pair_column: kind=tokens takes one text, not pairs.")


def _unique_columns(
    tables: Mapping[str, Table], profiles: Mapping[str, FileProfile], id_column: str | None
) -> list[str]:
    """The columns that identify the examples in every file."""
    for split, table in tables.items():
        if id_column is None or id_column not in profiles[split].repeated:
            continue
        value, first, second = profiles[split].repeated[id_column]
        problem = (
            f"the value {shortened(value, 40)!r} is in lines {first} and {second}"
            if second
            else f"line {first} has none"
        )
        raise UsageError(
            f"--config.data.id_column={id_column}: {table.path} does not have a different value in "
            f"each row: {problem}. Correct that, or leave the option out to number the rows."
        )
    return [
        name
        for name in profiles["train"].columns
        if is_id(name)
        and all(
            name in each.columns
            and name not in each.repeated
            and each.columns[name].filled == each.rows
            for each in profiles.values()
        )
    ]


def _check_columns(
    columns: Columns, tables: Mapping[str, Table], profiles: Mapping[str, FileProfile]
) -> None:
    """Checks that the other files have the columns, too; a test file may lack the label."""
    for split, table in tables.items():
        for name in columns.named:
            if name in profiles[split].columns or (split == "test" and name in columns.label):
                continue
            raise UsageError(
                f"--config.data.{split}: "
                + missing_column_message(table.path, name, list(profiles[split].columns))
                + " The files have to have the same columns."
            )


def _check_numbered_tags(columns: Columns, options: Options) -> None:
    if columns.kind == "tokens" and columns.label_ids and not options.labels:
        raise UsageError(
            f"the tags in {columns.label[0]!r} are numbers. Name the tags in the order of their "
            "numbers with --config.data.labels=O,B-PER,I-PER,..."
        )


def _survey(
    table: Table, split: str, *, columns: Columns, labels: Sequence[str], with_digests: bool
) -> Survey:
    counts: collections.Counter = collections.Counter()
    task = user_task(table.format, columns, labels)
    examples = read_user_file(
        table.path, task, split, format=table.format, columns=columns, counts=counts
    )
    return Survey(table, split, columns.kind, examples, counts, with_digests)


def _all_labels(columns: Columns, options: Options, survey: Survey) -> tuple[str, ...]:
    """The names of the labels, in the order of their ids."""
    if columns.kind in ("regression", "choice"):
        if options.labels:
            raise UsageError(
                f"--config.data.labels: kind={columns.kind} has no labels. Leave them out, or set "
                "--config.data.kind=classification."
            )
        return ()
    if columns.kind == "multi_label" and len(columns.label) > 1:
        if options.labels and set(options.labels) != set(columns.label):
            raise UsageError(
                f"--config.data.labels={','.join(options.labels)} are not the names of the columns "
                f"--config.data.label_column={','.join(columns.label)}. Leave one of them out."
            )
        return options.labels or columns.label
    if options.labels:
        return options.labels
    names = survey.labels
    if all(name.lstrip("-").isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names, key=lambda name: (columns.kind == "tokens" and name != "O", name)))
