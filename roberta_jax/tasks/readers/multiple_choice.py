"""Multiple choice: RACE, DREAM, SWAG, HellaSwag and CommonsenseQA in their official files."""

import csv
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from roberta_jax.errors import UsageError, counted, listed, shortened
from roberta_jax.tasks.examples import ChoiceExample
from roberta_jax.tasks.readers.labels import HIDDEN
from roberta_jax.tasks.readers.opening import (
    read_json,
    read_json_lines,
    read_lines,
    texts_at,
    value_at,
)
from roberta_jax.tasks.task import Task

_LEVELS = ("middle", "high")


def read_race(path: pathlib.Path, task: Task, split: str) -> Iterator[ChoiceExample]:
    """The questions of a folder of passages, or of a file of JSON lines with a question each.

    A folder has the passages in `middle` and `high`, as RACE's `train`, `dev` and `test` do, or is
    one of these two. The level is the example's group. As in fairseq, line ends of a passage become
    spaces.

    Args:
      path: the folder, or a file with the keys example_id, article, question, options and answer.
      task: not used.
      split: not used.

    Raises:
      UsageError: there are no passages, or one has another form.
    """
    if path.is_dir():
        for file in _passages(path):
            yield from race_passage(read_json(file), file.parent.name, str(file))
        return
    for where, record in read_json_lines(path):
        name = str(value_at(record, "example_id", (str, int), where))
        question = value_at(record, "question", str, where)
        options = texts_at(record, "options", where)
        yield ChoiceExample(
            f"{name}-{record.get('question_id', 0)}",
            _one_line(value_at(record, "article", str, where)),
            question,
            tuple(options),
            _letter(record.get("answer"), options, where),
            _level(name),
        )


def race_passage(record: Any, level: str, where: str) -> Iterator[ChoiceExample]:
    """The questions of one passage of RACE.

    Args:
      record: has article, questions, options, and answers (letters) where they are known.
      level: "middle" or "high".
      where: the file or the data set, for messages.

    Raises:
      UsageError: the record has another form.
    """
    context = _one_line(value_at(record, "article", str, where))
    questions = texts_at(record, "questions", where)
    all_options = value_at(record, "options", list, where)
    answers = texts_at(record, "answers", where) if "answers" in record else [None] * len(questions)
    if not len(questions) == len(all_options) == len(answers):
        raise UsageError(
            f"{where}: {counted(len(questions), 'question')}, {len(all_options)} lists of options "
            f"and {counted(len(answers), 'answer')}; these must be as many. Download it again."
        )
    name = str(record.get("id") or record.get("example_id") or where)
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        options = texts_at({"options": all_options[number]}, "options", where)
        yield ChoiceExample(
            f"{name}-{number}",
            context,
            question,
            tuple(options),
            _letter(answer, options, where),
            _level(level) or _level(name),
        )


def read_dream(path: pathlib.Path, task: Task, split: str) -> Iterator[ChoiceExample]:
    """The questions of a file: a list of [turns of the dialogue, questions, id].

    The turns are joined with spaces to the context.

    Raises:
      UsageError: the file has another form, or an answer that is not one of the choices.
    """
    dialogues = read_json(path)
    if not isinstance(dialogues, list):
        raise UsageError(f"{path}: not a list of dialogues, as DREAM's train.json is.")
    for position, dialogue in enumerate(dialogues):
        where = f"{path}: dialogue {position}"
        if not isinstance(dialogue, list) or len(dialogue) != 3:
            raise UsageError(f"{where}: not a list of turns, questions and an id.")
        parts = dict(zip(("turns", "questions", "id"), dialogue, strict=True))
        context = " ".join(texts_at(parts, "turns", where))
        for number, record in enumerate(value_at(parts, "questions", list, where)):
            choices = texts_at(record, "choice", where)
            answer = record.get("answer")
            if answer is not None and answer not in choices:
                raise UsageError(
                    f"{where}: the answer {shortened(str(answer))!r} is not one of the choices "
                    f"{listed([repr(shortened(each, 40)) for each in choices])}. Correct the file."
                )
            yield ChoiceExample(
                f"{parts['id']}-{number}",
                context,
                value_at(record, "question", str, where),
                tuple(choices),
                None if answer is None else choices.index(answer),
            )


def read_swag(path: pathlib.Path, task: Task, split: str) -> Iterator[ChoiceExample]:
    """The rows of SWAG's CSV: the context `sent1`, and `sent2`, which the endings continue.

    Raises:
      UsageError: the file has other columns, or a row has another number of them.
    """
    reader = csv.reader((line for _, line in read_lines(path, keep_ends=True)), strict=True)
    header: list[str] = []
    number = 0
    try:
        for row in reader:
            if not row:
                continue
            if not header:
                header = row
                _check_columns(path, header, ("sent1", "sent2", "ending0", "ending1"))
                continue
            where = f"{path}:{reader.line_num}"
            if len(row) != len(header):
                raise UsageError(
                    f"{where}: {counted(len(row), 'column')}, and the first line has "
                    f"{len(header)}. Correct the row."
                )
            record = dict(zip(header, row, strict=True))
            names = [name for name in header if re.fullmatch(r"ending\d+", name)]
            choices = tuple(record[name] for name in names)
            yield ChoiceExample(
                record.get("") or str(number),  # the first column has no name
                record["sent1"],
                record["sent2"],
                choices,
                _number(record.get("label"), choices, where),
            )
            number += 1
    except csv.Error as error:
        raise UsageError(
            f"{path}:{reader.line_num}: not a row of CSV: {error}. Correct the quotes of the row."
        ) from None


def read_hellaswag(path: pathlib.Path, task: Task, split: str) -> Iterator[ChoiceExample]:
    """The lines of HellaSwag's JSON: the context `ctx`, which the endings continue.

    The group is `split_type`: "indomain", or "zeroshot" for activities that training has not.

    Raises:
      UsageError: a line has another form.
    """
    for number, (where, record) in enumerate(read_json_lines(path)):
        yield hellaswag_example(record, where, str(record.get("ind", number)))


def hellaswag_example(record: Any, where: str, identity: str) -> ChoiceExample:
    """The example of a record with ctx (TFDS: context), endings, and label where it is known."""
    context = value_at(record, "ctx" if "ctx" in record else "context", str, where)
    endings = tuple(texts_at(record, "endings", where))
    label = _number(record.get("label"), endings, where)
    group = value_at(record, "split_type", str, where) if "split_type" in record else ""
    return ChoiceExample(identity, context, "", endings, label, group or None)


def read_commonsenseqa(path: pathlib.Path, task: Task, split: str) -> Iterator[ChoiceExample]:
    """The lines of CommonsenseQA's JSON: a question without a context, and labelled choices.

    Raises:
      UsageError: a line has another form, or an answer that is not one of the choices.
    """
    for number, (where, record) in enumerate(read_json_lines(path)):
        question = value_at(record, "question", dict, where)
        choices = value_at(question, "choices", list, where)
        letters = [value_at(choice, "label", str, where) for choice in choices]
        answer = record.get("answerKey")
        if answer is not None and answer not in letters and str(answer).lower() not in HIDDEN:
            raise UsageError(
                f"{where}: the answer {shortened(str(answer), 40)!r} is not one of the choices "
                f"{', '.join(letters)}. Correct the line."
            )
        yield ChoiceExample(
            str(record.get("id", number)),
            "",
            value_at(question, "stem", str, where),
            tuple(value_at(choice, "text", str, where) for choice in choices),
            letters.index(answer) if answer in letters else None,
        )


def _passages(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of passages, in the order of their level and number."""
    folders = [folder / level for level in _LEVELS if (folder / level).is_dir()]
    files = []
    for each in folders or [folder]:
        names = [file for file in each.iterdir() if re.search(r"\.txt(\.\w+)?$", file.name)]
        files += sorted(names, key=lambda file: (_first_number(file.name), file.name))
    if not files:
        raise UsageError(
            f"{folder} has no passages of RACE: .txt files in the folders middle and high."
        )
    return files


def _first_number(name: str) -> int:
    digits = re.search(r"\d+", name)
    return int(digits.group()) if digits else -1


def _level(name: str) -> str | None:
    return next((level for level in _LEVELS if name.startswith(level)), None)


def _one_line(text: str) -> str:
    return text.replace("\r\n", " ").replace("\n", " ")


def _letter(answer: Any, options: list[str], where: str) -> int | None:
    """The index of the option with a letter, from A."""
    if answer is None or str(answer).lower() in HIDDEN:
        return None
    index = ord(answer) - ord("A") if isinstance(answer, str) and len(answer) == 1 else -1
    if not 0 <= index < len(options):
        raise UsageError(
            f"{where}: the answer {shortened(str(answer), 40)!r} is not the letter of one of the "
            f"{counted(len(options), 'option')}. Correct the file."
        )
    return index


def _number(label: Any, choices: tuple[str, ...], where: str) -> int | None:
    """The index of a choice, from 0, that a file has as a number or its digits."""
    text = "" if label is None else str(label).strip()
    if text.lower() in HIDDEN:
        return None
    if not text.isdecimal() or int(text) >= len(choices):
        raise UsageError(
            f"{where}: the label {shortened(text, 40)!r} is not the number of one of the "
            f"{counted(len(choices), 'ending')}, from 0. Correct the row."
        )
    return int(text)


def _check_columns(path: pathlib.Path, header: list[str], needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in header]
    if missing:
        raise UsageError(
            f"{path}: no columns {', '.join(missing)}; the first line has "
            f"{shortened(', '.join(header), 200)}. Check that the file is SWAG's train.csv, "
            "val.csv or test.csv."
        )
