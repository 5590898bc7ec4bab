"""What the columns of the user's own files are used for, and what is in them."""

import collections
import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from roberta_jax.tasks.readers.user_files import Row, is_number

# A column with more different values than this has no labels.
MAX_LABELS = 1000
_SAMPLE = 1000  # rows of which the words are counted
_MAX_LABEL_LENGTH = 200  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a file that a task takes.

    Attributes:
      kind: "classification", "multi_label", "regression", "tokens" or "choice"; for prediction also
        "question_answering".
      text: the column of the text; of the words (tokens); of the context (choice, where it may be
        None, and question_answering).
      pair: the column of the second text of a pair; of the question (choice, question_answering);
        or None.
      label: the columns of the label: one, or with `multi_label` also one for each label, with 0
        and 1. () where there are none, as for prediction.
      id: the column that identifies an example; None numbers the rows from 0.
      choices: choice: the columns of the options, or the one that has lists of them.
      separator: multi_label: what divides the labels of a cell, "|" or ",".
      label_ids: whether the label column has the positions of labels in the list of labels.
      first_choice: choice: the number that stands for the first option, 0 or 1.
    """

    kind: str
    text: str | None
    pair: str | None = None
    label: tuple[str, ...] = ()
    id: str | None = None
    choices: tuple[str, ...] = ()
    separator: str = "|"
    label_ids: bool = False
    first_choice: int = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of the input."""
        return (*filter(None, (self.text, self.pair)), *self.choices)

    @property
    def named(self) -> tuple[str, ...]:
        """All columns that are used."""
        return (*self.texts, *self.label, *((self.id,) if self.id is not None else ()))

    def to_json(self) -> dict[str, Any]:
        """The values as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Columns":
        """The inverse of `to_json`."""
        lists = {name: tuple(values[name]) for name in ("label", "choices")}
        return cls(**{**values, **lists})


@dataclasses.dataclass
class Profile:
    """What the cells of a column are.

    Attributes:
      filled: number of cells that are neither empty nor null.
      strings, numbers, whole, flags, lists: number of cells that are strings; numbers or strings
        that spell one; numbers without a fraction; true or false; lists.
      word_lists: number of lists that consist of strings alone.
      longest_list: number of elements of the longest list.
      words: mean number of words of the strings among the first rows; two Chinese, Japanese or
        Korean characters count as a word.
      values: the different values, or elements of lists, as strings, and how often each occurs; no
        more of them once there are over `MAX_LABELS`.
      many_values: whether there are over `MAX_LABELS`.
    """

    filled: int = 0
    strings: int = 0
    numbers: int = 0
    whole: int = 0
    flags: int = 0
    lists: int = 0
    word_lists: int = 0
    longest_list: int = 0
    words: float = 0.0
    values: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    many_values: bool = False

    @property
    def is_numeric(self) -> bool:
        return 0 < self.filled == self.numbers

    @property
    def is_binary(self) -> bool:
        """Whether there is nothing but 0 and 1, or false and true."""
        return self.filled > 0 and not self.many_values and set(self.values) <= _BINARY

    @property
    def is_string(self) -> bool:
        """Whether the cells are strings, and not all of them numbers."""
        return 0 < self.filled == self.strings and not self.is_numeric

    @property
    def is_prose(self) -> bool:
        """Whether the cells look like texts: strings of 3 words or more that differ."""
        differ = self.many_values or len(self.values) > self.filled / 50
        return self.is_string and self.words >= 3 and differ

    def add(self, value: Any, with_words: bool) -> None:
        """Counts the value of one more row."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return
        self.filled += 1
        if isinstance(value, list):
            self.lists += 1
            self.longest_list = max(self.longest_list, len(value))
            self.word_lists += all(isinstance(each, str) for each in value)
            for each in value:
                self._add_value(spelled_label(each))
            return
        if isinstance(value, bool):
            self.flags += 1
        elif isinstance(value, str):
            self.strings += 1
            if with_words:
                wide = sum(character >= "\u2e80" for character in value)
                self.words += (len(value.split()) + wide // 2 - self.words) / self.strings
        spelled = spelled_label(value)
        if not isinstance(value, bool) and len(spelled) < 50 and is_number(spelled):
            self.numbers += 1
            self.whole += float(spelled).is_integer()
        self._add_value(spelled)

    def _add_value(self, spelled: str) -> None:
        if self.many_values:
            return
        if len(spelled) > _MAX_LABEL_LENGTH:
            # Enough to tell texts apart.
            spelled = f"{spelled[:_MAX_LABEL_LENGTH]} {zlib.crc32(spelled.encode())}"
        self.values[spelled] += 1
        self.many_values = len(self.values) > MAX_LABELS


_BINARY = {"0", "1", "false", "true", "False", "True", "0.0", "1.0"}


def spelled_label(value: Any) -> str:
    """The name of the label that a cell holds: without white space around it, true as "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip()


@dataclasses.dataclass(frozen=True)
class FileProfile:
    """What is in a file.

    Attributes:
      rows: number of rows.
      columns: column -> what is in it, in the order of their appearance.
      repeated: column of `ids` -> (value, first line, second line) of its first repeated value; the
        second line is 0 where the value is missing in the first.
    """

    rows: int
    columns: dict[str, Profile]
    repeated: dict[str, tuple[str, int, int]]


def profile(rows: Iterable[Row], is_id: Callable[[str], bool]) -> FileProfile:
    """Reads a file and describes it.

    Args:
      rows: of the file.
      is_id: says of a column whether it is to be searched for repeated values.
    """
    profiles: dict[str, Profile] = {}
    seen: dict[str, dict[str, int]] = {}
    repeated: dict[str, tuple[str, int, int]] = {}
    number = 0
    for number, row in enumerate(rows, 1):
        for name, value in row.values.items():
            column = profiles.get(name)
            if column is None:
                column = profiles[name] = Profile()
                if is_id(name):
                    seen[name] = {}
            column.add(value, number <= _SAMPLE)
        for name, lines in seen.items():
            value = row.values.get(name)
            spelled = "" if value is None else spelled_label(value)
            first = lines.setdefault(spelled, row.line)
            if name not in repeated and (first != row.line or not spelled):
                repeated[name] = (spelled, first, row.line if spelled else 0)
    return FileProfile(number, profiles, repeated)


def label_parts(profile: Profile, separator: str) -> collections.Counter:
    """The parts of all cells, divided by a separator, and in how many different cells each is."""
    cells = ({part.strip() for part in value.split(separator)} for value in profile.values)
    return collections.Counter(itertools.chain.from_iterable(cells))
