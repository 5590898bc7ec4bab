"""The examples of tasks, as readers yield them: text and gold labels, not yet encoded.

Each kind of task has a class of example. `id` identifies an example within its split and is what
files of predictions name it by. What is unknown, because a split has no labels, is None.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class TextExample:
    """A text or a pair of texts, with a label, several labels or a number.

    Attributes:
      id: identifies it within its split.
      text_a: the text, or the first of the pair.
      text_b: the second text of a pair; None for a single text.
      label: the name of its label; a tuple of names where there may be several; a number for
        regression; None where it is unknown.
    """

    id: str
    text_a: str
    text_b: str | None = None
    label: str | tuple[str, ...] | float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TokenExample:
    """A sentence, split into words, with a tag for each.

    Attributes:
      id: identifies it within its split.
      words: the words.
      tags: the tag of each word, as the file has it ("B-PER"); None where they are unknown.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A question with several choices, of which one is correct.

    `tasks.kinds.choice` says how context, question and choice become an input.

    Attributes:
      id: identifies it within its split.
      context: the text that all choices share, such as a passage; may be empty.
      question: the question, which may have a gap `_` for the choice, or the beginning of a
        sentence that each choice ends; may be empty.
      choices: the options.
      label: the index of the correct choice; None where it is unknown.
      group: the part of the split it belongs to, such as "middle" or "high" in RACE, which is
        scored by itself as well; None for no part.
    """

    id: str
    context: str
    question: str
    choices: tuple[str, ...]
    label: int | None = None
    group: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question about a passage that contains the answer, or none.

    Attributes:
      id: identifies it within its split.
      question: the question.
      context: the passage.
      answers: the texts of the correct answers; empty where there is none; None where unknown.
      starts: where each answer begins in the passage, in characters; as long as `answers`; -1 for
        one that the passage does not have.
      title: of the document.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] | None = None
    starts: tuple[int, ...] | None = None
    title: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class PronounExample:
    """A sentence with a pronoun, and a noun phrase that it may refer to (WSC).

    Attributes:
      id: identifies it within its split.
      text: the sentence.
      pronoun: (start, end) of the pronoun in the text, in characters.
      query: the noun phrase in question.
      query_start: where it begins in the text, in characters; -1 where it does not occur as it is.
      candidates: other noun phrases of the sentence.
      label: whether the pronoun refers to `query`; None where it is unknown.
    """

    id: str
    text: str
    pronoun: tuple[int, int]
    query: str
    query_start: int
    candidates: tuple[str, ...] = ()
    label: bool | None = None


Example = TextExample | TokenExample | ChoiceExample | QuestionExample | PronounExample
