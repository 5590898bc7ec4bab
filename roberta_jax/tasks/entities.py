"""Entities in sequences of tags, and their precision, recall and F1, as seqeval counts them.

An entity is a run of words whose tags have one type. A tag is `O` (outside of any entity) or a
prefix and a type, such as `B-PER`. The prefixes of all common schemes are understood at once, as in
seqeval's default mode (https://github.com/chakki-works/seqeval), so that files in IOB1, IOB2 (BIO),
IOE and IOBES, and predictions that follow no scheme, can be scored:

- `B` and `S` begin an entity, `E` and `S` end one;
- `I` continues an entity of the same type, and begins one where there is none.

`L` and `U` of BILOU, which seqeval does not distinguish from `I`, are read as `E` and `S`. A tag
without a prefix (`PER`) is a type by itself and is read like `I-PER`; a prefix without a type has
the type `_`.
"""

import dataclasses
from collections.abc import Sequence

OUTSIDE = "O"
_BEGIN, _END = "BSU", "ESLU"
_PREFIXES = frozenset("BIESLU")


def split_tag(tag: str) -> tuple[str, str]:
    """(prefix, type) of a tag: `B-PER` is ("B", "PER"), `O` is ("O", "_")."""
    if tag == OUTSIDE:
        return OUTSIDE, "_"
    if tag[:1] in _PREFIXES and tag[1:2] in ("", "-"):
        return tag[:1], tag[2:] or "_"
    return "I", tag or "_"


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of one sentence: (type, first word, word after the last), in their order."""
    found: list[tuple[str, int, int]] = []
    previous, previous_type, start = OUTSIDE, "_", 0
    for word, tag in enumerate([*tags, OUTSIDE]):
        prefix, type_ = split_tag(tag)
        continues = (
            OUTSIDE not in (prefix, previous)
            and type_ == previous_type
            and prefix not in _BEGIN
            and previous not in _END
        )
        if not continues:
            if previous != OUTSIDE:
                found.append((previous_type, start, word))
            start = word
        previous, previous_type = prefix, type_
    return found


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of entities.

    Attributes:
      correct: predicted with the right type, first and last word.
      predicted: predicted in all.
      gold: in the labels.
    """

    correct: int = 0
    predicted: int = 0
    gold: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.correct + other.correct,
            self.predicted + other.predicted,
            self.gold + other.gold,
        )

    @property
    def precision(self) -> float:
        """The share of the predicted entities that are correct; 0 without any."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """The share of the entities of the labels that are predicted; 0 without any."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where both are."""
        total = self.predicted + self.gold
        return 2 * self.correct / total if total else 0.0


def sentence_counts(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, Counts]:
    """Type -> the counts of one sentence.

    Raises:
      ValueError: the two do not have the same number of tags.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"a sentence has {len(gold)} tags, but {len(predicted)} were predicted")
    wanted, proposed = set(entities(gold)), set(entities(predicted))
    counts: dict[str, Counts] = {}
    for chosen, one in (
        (wanted & proposed, Counts(correct=1)),
        (proposed, Counts(predicted=1)),
        (wanted, Counts(gold=1)),
    ):
        for type_, _, _ in chosen:
            counts[type_] = counts.get(type_, Counts()) + one
    return counts


def counts_by_type(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, Counts]:
    """Type -> the counts of all sentences, in the order of the types' names."""
    total: dict[str, Counts] = {}
    for wanted, proposed in zip(gold, predicted, strict=True):
        for type_, counts in sentence_counts(wanted, proposed).items():
            total[type_] = total.get(type_, Counts()) + counts
    return dict(sorted(total.items()))


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The "precision", "recall" and "f1" over the entities of all types (micro-averaged)."""
    total = sum(counts_by_type(gold, predicted).values(), Counts())
    return {"precision": total.precision, "recall": total.recall, "f1": total.f1}
