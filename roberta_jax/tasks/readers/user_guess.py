"""Guesses which columns of the user's own files a task needs, and of which kind it is.

The rules are those of `guess_columns`. Where more than one column would do, it is an error that
lists the columns and the options to set, rather than a choice.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from roberta_jax.errors import UsageError, listed, shortened
from roberta_jax.tasks.readers.user_columns import MAX_LABELS, Columns, Profile, label_parts

KINDS = ("classification", "multi_label", "regression", "tokens", "choice")

# Lower-case names of columns. In groups: a name of an earlier group is preferred, and two names of
# one group in one file are ambiguous.
_LABELS = (
    ("label", "labels"),
    (
        *("target", "class", "category", "sentiment", "score", "rating", "stars", "topic"),
        *("intent", "emotion", "gold", "gold_label", "y", "tag"),
    ),
)
_ANSWERS = (("label", "answer", "answerkey", "answer_key", "gold", "correct", "target"),)
_TAGS = (("ner_tags",), ("tags", "labels", "ner"))
_WORDS = (("tokens", "words"),)
_TEXTS = (
    ("text", "texts"),
    ("sentence", "review", "content", "body", "comment", "tweet", "document", "message"),
)
_PAIRS = (
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("text", "text2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "document"),
    ("sent1", "sent2"),
)
_CONTEXTS = (("context", "passage", "article", "premise", "story", "dialogue", "sent1"), ("text",))
_QUESTIONS = (("question", "query", "stem", "question.stem", "sent2"),)
_CHOICE_LISTS = (("choices", "options", "endings", "choices.text", "question.choices.text"),)
_CHOICE = re.compile(r"(choice|option|ending|answer|alternative|sol|hypothesis|opt)[_ ]?(\d|[a-h])")
_IDS = ("id", "guid", "uid", "uuid", "idx", "index", "example_id", "sample_id", "row_id", "")
_TEXT = "the text"
_MAX_CLASSES = 20  # more different whole numbers than this are the targets of a regression


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the user has set: the keys of `--config.data`. None or () leaves it to the guess."""

    kind: str | None = None
    labels: tuple[str, ...] = ()
    text_column: str | None = None
    pair_column: str | None = None
    label_column: tuple[str, ...] = ()
    id_column: str | None = None
    choice_columns: tuple[str, ...] = ()

    @property
    def named(self) -> dict[str, str]:
        """Column -> the key that names it."""
        single = ("text_column", "pair_column", "id_column")
        names = {getattr(self, key): key for key in single if getattr(self, key) is not None}
        for key in ("label_column", "choice_columns"):
            names |= dict.fromkeys(getattr(self, key), key)
        return names


def guess_columns(
    profiles: Mapping[str, Profile], options: Options, unique: Sequence[str]
) -> Columns:
    """Decides which columns are used for what.

    What the options name is taken. For the rest, in this order; names are compared without case:

    1. kind "tokens": a column of lists named tokens or words, and one named ner_tags, tags, labels
       or ner. Kind "choice": a column of lists named choices, options or endings, or columns named
       ending0, ending1, ...; choice_a, choice_b, ...; and the like; and a column named label,
       answer or the like.
    2. The label: a column named label or labels; else the only one named target, class, category,
       sentiment, score, rating, stars, topic, intent, emotion, gold, gold_label, y or tag; else the
       only column that holds no prose. Prose is different strings of 3 words or more on average.
    3. The texts: two columns named as a pair (sentence1 and sentence2, premise and hypothesis,
       question and sentence, ...); else the only column named text; else the only one named
       sentence, review, content, body, comment, tweet, document or message; else the one or two
       columns of prose; else the only column of strings that is left. Where `text_column` is given
       and `pair_column` is not, there is no second text.
    4. The kind: lists of labels, or cells with "|", or with "," where a part occurs in different
       cells, are several labels. Up to 20 different whole numbers, each twice or more on average,
       are the names of labels; other numbers are the targets of a regression. Strings are labels.
    5. The id: a column named id, guid, uid, uuid, idx, index or the like, or without a name, whose
       values are all different.

    Args:
      profiles: what is in the columns of the training file.
      options: what the user has set.
      unique: the columns without empty or repeated values in any file.

    Raises:
      UsageError: there is no column, or more than one, that would do.
    """
    guess = _Guess(profiles, options)
    kind = options.kind or guess.special_kind()
    if kind == "tokens":
        columns = guess.tokens()
    elif kind == "choice":
        columns = guess.choice()
    else:
        columns = guess.texts()
    return dataclasses.replace(columns, id=options.id_column or _id_column(columns, unique))


def guess_text_columns(profiles: Mapping[str, Profile]) -> tuple[str, str | None]:
    """The columns (text, second text or None) of a file without labels, by rule 3.

    Raises:
      UsageError: there is no column, or more than one, that would do.
    """
    return _Guess(profiles, Options()).text_and_pair(())


def guess_choice_columns(
    profiles: Mapping[str, Profile],
) -> tuple[str | None, str | None, tuple[str, ...]]:
    """The columns (context, question, choices) of a file without labels, by rules 1 and 3.

    Raises:
      UsageError: there is no column, or more than one, that would do.
    """
    guess = _Guess(profiles, Options())
    return *guess.context_and_question(choices := guess.choice_columns()), choices


class _Guess:
    def __init__(self, profiles: Mapping[str, Profile], options: Options):
        self._profiles, self._options = profiles, options

    def special_kind(self) -> str | None:
        lists = [name for name, each in self._profiles.items() if each.lists]
        if self._named(_WORDS, lists) and self._named(_TAGS, lists):
            return "tokens"
        if self._options.choice_columns:
            return "choice"
        if self._options.label_column or self._named(_ANSWERS, self._profiles):
            return "choice" if self._find_choices() else None
        return None

    def tokens(self) -> Columns:
        options = self._options
        lists = [name for name, each in self._profiles.items() if each.lists]
        words = options.text_column or self._one(_WORDS, lists, "the words", "text_column")
        tags = options.label_column or (self._one(_TAGS, lists, "the tags", "label_column"),)
        if len(tags) > 1:
            raise UsageError("--config.data.label_column has to be one column for kind=tokens.")
        for name in (words, *tags):
            if not self._profiles[name].lists:
                raise UsageError(
                    f"column {name!r} holds no lists. Words and their tags are JSON lists of equal "
                    'length, in a jsonl file: {"tokens": ["Ada", "slept"], "tags": ["B-PER", "O"]}.'
                )
        return Columns(
            kind="tokens", text=words, label=tags, label_ids=not self._profiles[tags[0]].word_lists
        )

    def choice(self) -> Columns:
        options = self._options
        choices = options.choice_columns or self.choice_columns()
        if len(choices) == 1 and not self._profiles[choices[0]].lists:
            raise UsageError(
                f"--config.data.choice_columns={choices[0]}: name at least two columns, or one "
                "that holds JSON lists."
            )
        others = [name for name in self._free() if name not in choices]
        label = options.label_column or (
            self._one(_ANSWERS, others, "the correct choice", "label_column"),
        )
        text, pair = options.text_column, options.pair_column
        if text is None and pair is None:
            text, pair = self.context_and_question((*choices, *label))
        answers = self._profiles[label[0]].values
        count = len(choices) if len(choices) > 1 else self._profiles[choices[0]].longest_list
        from_one = "0" not in answers and (str(count) in answers or _are_numbered_from_one(choices))
        return Columns(
            kind="choice",
            text=text,
            pair=pair,
            label=label,
            choices=choices,
            first_choice=int(from_one),
        )

    def context_and_question(self, taken: Sequence[str]) -> tuple[str | None, str | None]:
        """The columns of what precedes the choices; one of them may be None."""
        others = [n for n in self._free() if n not in taken and self._profiles[n].is_string]
        found = self._pair(others)
        found = found or (self._named(_CONTEXTS, others), self._named(_QUESTIONS, others))
        if found == (None, None):
            prose = [name for name in others if self._profiles[name].is_prose]
            if len(prose) != 1:
                raise self._unclear("the context", "text_column", _found(prose))
            found = prose[0], None
        return found

    def texts(self) -> Columns:
        options = self._options
        label = options.label_column or (self._label_column(),)
        kind, separator = self._label_kind(label)
        text, pair = options.text_column, options.pair_column
        if text is None:
            text, guessed = self.text_and_pair(label, is_single=pair is not None)
            pair = pair or guessed
        return Columns(
            kind=kind,
            text=text,
            pair=pair,
            label=label,
            separator=separator,
            label_ids=len(label) == 1 and self._has_label_ids(label[0], kind, separator),
        )

    def text_and_pair(
        self, label: Sequence[str], is_single: bool = False
    ) -> tuple[str, str | None]:
        """The columns of the texts, or of the only text, by rule 3."""
        others = [
            name for name in self._free() if name not in label and self._profiles[name].is_string
        ]
        if not is_single and (pair := self._pair(others)):
            return pair
        if text := self._named(_TEXTS, others):
            return text, None
        prose = [name for name in others if self._profiles[name].is_prose]
        likely = prose or [name for name in others if name.lower() not in _IDS]
        if len(likely) == 1:
            return likely[0], None
        if len(prose) == 2 and not is_single:
            return prose[0], prose[1]
        raise self._unclear(_TEXT, "text_column", _found(likely))

    def _free(self) -> list[str]:
        """The columns that no option names."""
        return [name for name in self._profiles if name not in self._options.named]

    def _label_column(self) -> str:
        if name := self._named(_LABELS, self._free(), "the label", "label_column"):
            return name
        others = [
            name
            for name in self._free()
            if name.lower() not in _IDS
            and self._profiles[name].filled
            and not self._profiles[name].is_prose
        ]
        if len(others) == 1:
            return others[0]
        flags = [name for name in others if self._profiles[name].is_binary]
        hint = ""
        if len(flags) > 1:
            names = ",".join(flags)
            hint = f" If each 0/1 column is a label: --config.data.label_column={names}."
        raise self._unclear("the label", "label_column", _found(others), hint)

    def _label_kind(self, label: tuple[str, ...]) -> tuple[str, str]:
        """(kind, separator of labels) by rule 4."""
        kind, labels = self._options.kind, self._options.labels
        if len(label) > 1:
            if kind not in (None, "multi_label"):
                raise UsageError(
                    f"--config.data.label_column names {len(label)} columns, which is kind="
                    f"multi_label; --config.data.kind={kind} takes one."
                )
            return "multi_label", "|"
        name, column = label[0], self._profiles[label[0]]
        if kind == "multi_label":
            has_bar = any("|" in value for value in column.values)
            has_comma = any("," in value for value in column.values)
            return kind, "," if has_comma and not has_bar else "|"
        if kind is not None:
            return kind, "|"
        if column.lists:
            return "multi_label", "|"
        if column.is_numeric and not labels:
            few = not column.many_values and len(column.values) <= _MAX_CLASSES
            few = few and len(column.values) <= max(2, column.filled / 2)
            is_class = few and column.whole == column.numbers
            return ("classification" if is_class else "regression"), "|"
        if not column.many_values:
            if any("|" in value for value in column.values):
                return "multi_label", "|"
            parts = label_parts(column, ",")
            if any(count > 1 for count in parts.values()):
                return "multi_label", ","
        if column.many_values or (column.filled >= 20 and 2 * len(column.values) > column.filled):
            number = f"over {MAX_LABELS}" if column.many_values else str(len(column.values))
            raise UsageError(
                f"column {name!r}, taken for the label, has {number} different values in "
                f"{column.filled} rows, such as {shortened(next(iter(column.values)), 40)!r}, "
                "which are too many for labels. Name the label's column with "
                "--config.data.label_column, or set --config.data.kind if it is this one."
            )
        return "classification", "|"

    def _has_label_ids(self, label: str, kind: str, separator: str) -> bool:
        """Whether a column has the positions of given labels, and not their names."""
        column = self._profiles[label]
        if kind == "multi_label" and not column.lists:
            return _are_ids(label_parts(column, separator).keys() - {""}, self._options.labels)
        known = kind in ("classification", "multi_label")
        return known and _are_ids(column.values, self._options.labels)

    def choice_columns(self) -> tuple[str, ...]:
        """The columns of the choices, by rule 1."""
        if choices := self._find_choices():
            return choices
        raise self._unclear("the choices", "choice_columns", "none is named as such")

    def _find_choices(self) -> tuple[str, ...]:
        lists = [name for name, each in self._profiles.items() if each.word_lists]
        if name := self._named(_CHOICE_LISTS, lists):
            return (name,)
        stems: dict[str, list[tuple[str, str]]] = {}
        for name in self._profiles:
            if match := _CHOICE.fullmatch(name.lower()):
                stems.setdefault(match[1], []).append((match[2], name))
        for found in stems.values():
            marks = [mark for mark, _ in sorted(found)]
            series = [list(start[: len(marks)]) for start in ("012345678", "123456789", "abcdefgh")]
            if len(marks) > 1 and marks in series:
                return tuple(name for _, name in sorted(found))
        return ()

    def _pair(self, names: Sequence[str]) -> tuple[str, str] | None:
        lower = {name.lower(): name for name in names}
        for first, second in _PAIRS:
            if first in lower and second in lower:
                return lower[first], lower[second]
        return None

    def _named(self, groups, names, what: str = "", key: str = "") -> str | None:
        """The column that has one of the names; None if there is none, or more without a `key`."""
        for group in groups:
            found = [name for name in names if name.lower() in group]
            if len(found) == 1:
                return found[0]
            if found and key:
                raise self._unclear(what, key, _found(found))
            if found:
                return None
        return None

    def _one(self, groups, names, what: str, key: str) -> str:
        if name := self._named(groups, names, what, key):
            return name
        raise self._unclear(what, key, "none is named as such")

    def _unclear(self, what: str, key: str, reason: str, hint: str = "") -> UsageError:
        pair = ""
        if what == _TEXT:
            pair = " and, for pairs, --config.data.pair_column=COLUMN"
        names = listed([shortened(name, 40) for name in self._profiles], 20)
        return UsageError(
            f"cannot tell which column holds {what}: {reason}. Set --config.data.{key}=COLUMN"
            f"{pair}. Columns: {names}.{hint}"
        )


def _found(names: Sequence[str]) -> str:
    if not names:
        return "none looks like it"
    return f"{listed([repr(shortened(name, 40)) for name in names])} could"


def _are_numbered_from_one(columns: Sequence[str]) -> bool:
    return len(columns) > 1 and columns[0].endswith("1")


def _are_ids(values: Iterable[str], labels: Sequence[str]) -> bool:
    """Whether the values are the positions of labels in a list, and not themselves in it."""
    numbers = {str(number) for number in range(len(labels))}
    return bool(labels) and set(values) <= numbers and not set(values) & set(labels)


def is_id(name: str) -> bool:
    """Whether a column may identify the examples, by its name."""
    return name.lower() in _IDS


def is_ending(name: str) -> bool:
    """Whether a column of choices has continuations of the text, by its name."""
    return name.lower().startswith("ending")


def _id_column(columns: Columns, unique: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in unique if name not in columns.named}
    return next((lower[name] for name in _IDS if name in lower), None)
