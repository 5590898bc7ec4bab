"""The Winograd Schema Challenge in SuperGLUE's JSON lines, for fairseq's recipe.

The recipe compares how well the model expects the noun phrase in question in place of the pronoun
with how well it expects other noun phrases of the sentence. fairseq finds these with a parser
(spaCy). `noun_phrases` finds them with rules, from the sentence alone, as there.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from roberta_jax.errors import UsageError, shortened
from roberta_jax.tasks.examples import PronounExample
from roberta_jax.tasks.readers.opening import read_json_lines, value_at
from roberta_jax.tasks.task import Task

_WORD = re.compile(r"[^\W_](?:[\w'’-]*\w)?")
_MAX_WORDS = 4


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this these those my your his her its our their some any each every no another "
    "both all several many few most one two three"
)
_PRONOUNS = _words(
    "i me mine you yours he him she hers it we us ours they them theirs myself yourself himself "
    "herself itself ourselves themselves who whom whose which what that this these those someone "
    "somebody something anyone anybody anything everyone everybody everything nobody nothing"
)
# Words that end a noun phrase: prepositions, conjunctions, auxiliaries and common adverbs.
_ENDS = _words(
    "about above across after against along although among and around as at away back because "
    "before behind below beneath beside besides between beyond but by despite down during even "
    "except for from if in inside into like near nor not of off on onto or out outside over past "
    "since so than then there though through throughout till to toward towards under underneath "
    "until unless up upon when whenever where while with within without yet how why "
    "am is are was were be been being do does did done has have had having can could may might "
    "must shall should will would cannot "
    "again ago almost already also always ever here just never now often once only quite rather "
    "really soon still too very well however instead said says say went goes go came come got get "
    "gave give took take made make saw see knew know told tell asked ask felt feel thought think "
    "kept keep left leave let put ran run sat sit stood stand won win lost lose met meet paid pay "
    "sent send sold sell threw throw wore wear wrote write ate eat drove drive fell fall held hold "
    "hid hide beat bought buy brought bring built build caught catch chose choose cut drank drink "
    "found find forgot forget grew grow heard hear hit hurt laid lay led lent lend lit read rode "
    "rose sang sank shot shut slept spent stole stuck swam taught tore woke"
)


def read_wsc(path: pathlib.Path, task: Task, split: str) -> Iterator[PronounExample]:
    """The examples of a file, whose `target` counts words that single spaces separate.

    Where the words' numbers do not fit the texts, the pronoun and the noun phrase are those next to
    them. A noun phrase has no line end, and no full stop or comma at its end, as in fairseq.

    Args:
      path: SuperGLUE's train.jsonl, val.jsonl or test.jsonl.
      task: not used.
      split: not used.

    Raises:
      UsageError: a line has another form, or its sentence does not have the pronoun.
    """
    for number, (where, record) in enumerate(read_json_lines(path)):
        target = value_at(record, "target", dict, where)
        yield wsc_example({**record, **target}, where, str(record.get("idx", number)))


def wsc_example(record: Any, where: str, identity: str) -> PronounExample:
    """The example of a record with text, span1_text, span1_index, span2_text, span2_index, label.

    Args:
      record: the keys above; span1 is the noun phrase, span2 the pronoun.
      where: "FILE:LINE", for messages.
      identity: the id.

    Raises:
      UsageError: the record has another form, or its sentence does not have the pronoun.
    """
    text = value_at(record, "text", str, where)
    pronoun = value_at(record, "span2_text", str, where).strip().strip('.,;:!?"')
    starts = [match.start() for match in re.finditer(r"(?:^| )(?=[^ ])", text)]
    starts = [start + (text[start] == " ") for start in starts]
    near = _start_of(starts, value_at(record, "span2_index", int, where))
    begin = _nearest(text, pronoun, near)
    if begin is None:
        raise UsageError(
            f"{where}: the sentence does not have the pronoun {shortened(pronoun, 40)!r}. Correct "
            "span2_text."
        )
    query = " ".join(value_at(record, "span1_text", str, where).split()).rstrip(".,")
    if not query:
        raise UsageError(f"{where}: span1_text is empty. Correct the line.")
    near = _start_of(starts, value_at(record, "span1_index", int, where))
    query_start = _nearest(text, query, near)
    span = (begin, begin + len(pronoun))
    return PronounExample(
        identity,
        text,
        span,
        query,
        -1 if query_start is None else query_start,
        tuple(noun_phrases(text, excluding=query)),
        _truth(record.get("label"), where),
    )


def noun_phrases(text: str, excluding: str = "") -> list[str]:
    """Noun phrases of an English text by rules, in their order, each once.

    A phrase is a run of capitalised words that is not only the beginning of a sentence, or a
    determiner with the words after it, up to a punctuation mark or a word of a list of function
    words and common verbs, or one that ends in "ed" or "ing".

    Args:
      text: the text.
      excluding: a phrase; those that contain it, or that it contains, are left out.
    """
    words = list(_WORD.finditer(text))
    phrases: dict[str, str] = {}
    position = 0
    while position < len(words):
        last = _phrase_end(text, words, position)
        if last is None:
            position += 1
            continue
        phrase = text[words[position].start() : words[last].end()]
        phrase = phrase.removesuffix("'s").removesuffix("’s")
        phrases.setdefault(phrase.lower(), phrase)
        position = last + 1
    other = excluding.lower()
    return [
        phrase
        for lower, phrase in phrases.items()
        if not other or (lower not in other and other not in lower)
    ]


def _phrase_end(text: str, words: list[re.Match], first: int) -> int | None:
    """The number of the last word of the phrase that begins at a word, if there is one."""
    lower = words[first].group().lower()
    if lower in _DETERMINERS:
        last = _run(text, words, first, lambda word: not _ends_phrase(word))
        return last if last > first else None
    if not _is_name(words[first].group()):
        return None
    last = _run(text, words, first, _is_name)  # "Uncle Vernon"
    # A single word at the beginning of a sentence is a name ("Jane knocked"), or an adverb.
    alone = last == first and _begins_sentence(text, words[first])
    return None if alone and lower.endswith(("ly", "ing")) else last


def _run(text: str, words: list[re.Match], first: int, belongs) -> int:
    last = first
    while (
        last + 1 < len(words)
        and last + 1 - first < _MAX_WORDS
        and text[words[last].end() : words[last + 1].start()].isspace()
        and belongs(words[last + 1].group())
    ):
        last += 1
    return last


def _ends_phrase(word: str) -> bool:
    lower = word.lower()
    return (
        lower in _ENDS
        or lower in _PRONOUNS
        or lower in _DETERMINERS
        or lower.endswith(("n't", "n’t", "'ll", "'d", "'ve", "'re"))
        or (lower.endswith(("ed", "ing")) and len(lower) > 4)
    )


def _is_name(word: str) -> bool:
    lower = word.lower()
    function_word = lower in _ENDS or lower in _PRONOUNS or lower.startswith(("i'", "i’"))
    return word[0].isupper() and not function_word


def _begins_sentence(text: str, word: re.Match) -> bool:
    before = text[: word.start()].rstrip(" \"'“‘(")
    return not before or before[-1] in ".!?:\n"


def _start_of(starts: list[int], index: int) -> int:
    return starts[min(max(index, 0), len(starts) - 1)] if starts else 0


def _nearest(text: str, phrase: str, near: int) -> int | None:
    """Where a phrase occurs as whole words, nearest to a position; as it is, or in another case."""
    if not phrase:
        return None
    pattern = r"\s+".join(map(re.escape, phrase.split()))
    for flags in (0, re.IGNORECASE):
        matches = re.finditer(rf"(?<!\w){pattern}(?!\w)", text, flags)
        found = [m.start() for m in matches if m.end() - m.start() == len(phrase)]
        if found:
            return min(found, key=lambda start: abs(start - near))
    return None


def _truth(label: Any, where: str) -> bool | None:
    if label is None or isinstance(label, bool):
        return label
    text = str(label).strip().lower()
    if text in ("true", "1", "false", "0"):
        return text in ("true", "1")
    if text in ("", "-1", "hidden"):
        return None
    raise UsageError(
        f"{where}: the label must be true or false, and is {shortened(text, 40)!r}. Correct it."
    )
