"""One of several choices (`ChoiceExample`): RACE, DREAM, SWAG, HellaSwag, CommonsenseQA.

A row has a sequence for each choice, of two texts: one that all choices of the example share, and
the choice's own. Question and choice together are the choice's own text where there is a context as
well: a gap `_` in the question is replaced by the choice, and otherwise the choice follows the
question, with a space between. So the example and its format decide:

| example | format | sequence |
| --- | --- | --- |
| context, question | | `<s> question choice </s></s> context </s>` (RACE, DREAM) |
| context, question | `context_first` | `<s> context </s></s> question choice </s>` (SWAG) |
| question alone | | `<s> question </s></s> choice </s>` (CommonsenseQA) |
| context alone | | `<s> choice </s></s> context </s>` |
| context alone | `context_first` | `<s> context </s></s> choice </s>` |

Formats: Liu et al. 2019, section 5.3; fairseq's READMEs for RACE and CommonsenseQA; Zellers et al.
2018 for SWAG, whose question is the beginning of each choice.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from roberta_jax.errors import UsageError, counted, shortened
from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import ChoiceExample
from roberta_jax.tasks.features import Features, flattened
from roberta_jax.tasks.kinds.base import Kind, Prediction
from roberta_jax.tasks.kinds.text import check_not_empty, cut_note, labelled, softmax
from roberta_jax.tasks.sequences import frame_of, tokens_of_texts

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

_GAP = re.compile("_+")  # where RACE's questions leave out a part of a sentence


class Choice(Kind):
    """One of several choices. Labels and predictions are the numbers of choices, from 0.

    All rows of a split have as many sequences as the example with the most choices. Where examples
    have fewer, the others are `<s></s>`, and the column `choice_mask` leaves them out of the loss.
    """

    new_head = ("pooler", "classifier")

    @property
    def model_class(self):
        from roberta_jax.modeling.classifiers import RobertaForMultipleChoice

        return RobertaForMultipleChoice

    def config_changes(self) -> dict[str, Any]:
        return {"problem_type": None, "num_labels": 2}  # as in transformers: the head has no labels

    def encode(self, examples: Sequence[ChoiceExample], tokenizer: "RobertaTokenizer") -> Features:
        """See `Kind.encode`. Raises a UsageError also for an example without choices."""
        _check(examples)
        texts = [self._texts(each) for each in examples]
        tokens_of = tokens_of_texts(
            (text for pairs in texts for pair in pairs for text in pair), tokenizer
        )
        frame = frame_of(tokenizer, self.formatting.separators)
        most = max(len(each.choices) for each in examples)
        room, cut = frame.pair_room(self.formatting.max_length), set()
        sequences = []
        for number, (example, pairs) in enumerate(zip(examples, texts, strict=True)):
            own_is_first = self._own_is_first(example)
            for first, second in pairs:
                both = tokens_of[first], tokens_of[second]
                fitting = self._fitting(*both, own_is_first, room)
                sequences.append(frame.two(*fitting))
                if sum(map(len, fitting)) < sum(map(len, both)):
                    cut.add(number)
            sequences += [frame.one([])] * (most - len(pairs))
        tokens, starts = flattened(sequences)
        labels = [-100 if each.label is None else each.label for each in examples]
        columns = {"labels": np.array(labels, np.int32)}
        counts = np.array([len(each.choices) for each in examples])
        if counts.min() < most:
            columns["choice_mask"] = (np.arange(most) < counts[:, None]).astype(np.int32)
        return Features(
            tokens,
            starts,
            most,
            np.arange(len(examples), dtype=np.int32),
            columns,
            notes=cut_note(len(cut), self.formatting),
        )

    def fill(self) -> Mapping[str, Any]:
        return {"labels": -100, "choice_mask": 1}

    def outputs(self, output: Any) -> dict[str, Any]:
        return {"logits": output.logits}

    def predictions(self, examples, features, outputs) -> list[Prediction]:
        results = []
        for example, logits in zip(examples, outputs["logits"], strict=True):
            logits = np.asarray(logits)[: len(example.choices)]
            results.append(
                {
                    "id": example.id,
                    "prediction": int(np.argmax(logits)),
                    "label": example.label,
                    "scores": softmax(logits).tolist(),
                }
            )
        return results

    def scores(self, examples, predictions) -> dict[str, float]:
        """The task's metrics, and for each group of the examples, such as `accuracy_high`."""
        pairs = labelled(examples, predictions)
        if not pairs:
            return {}
        groups = [each.group for each in examples if each.label is not None]
        scores = self._metrics(pairs)
        for group in sorted({group for group in groups if group is not None}):
            of_group = [pair for pair, name in zip(pairs, groups, strict=True) if name == group]
            scores |= {f"{name}_{group}": v for name, v in self._metrics(of_group).items()}
        return scores

    def baseline(self, train) -> list[int] | None:
        """The numbers of the choices, the commonest first."""
        counts = Counter(each.label for each in train if each.label is not None)
        most = max((len(each.choices) for each in train), default=0)
        return sorted(range(most), key=lambda number: -counts[number]) if counts else None

    def constant(self, value, examples) -> list[Prediction]:
        """The commonest number among those that an example has."""
        return [
            {"id": each.id, "prediction": next(n for n in value if n < len(each.choices))}
            for each in examples
        ]

    def _metrics(self, pairs) -> dict[str, float]:
        gold, predicted = zip(*pairs, strict=True)
        return metrics.compute(self.task.metrics, gold, predicted, labels=self.labels)

    def _own_is_first(self, example: ChoiceExample) -> bool:
        """Whether the choice's own text is the first one of the sequence."""
        return bool(example.context) and not self.formatting.context_first

    def _texts(self, example: ChoiceExample) -> list[tuple[str, str]]:
        """The two texts of each choice, with their prefixes."""
        shared = example.context or example.question
        question = example.question if example.context else ""
        own_is_first = self._own_is_first(example)
        prefix_a, prefix_b = self.formatting.prefix_a, self.formatting.prefix_b
        pairs = []
        for choice in example.choices:
            own = _joined(question, choice)
            first, second = (own, shared) if own_is_first else (shared, own)
            pairs.append((prefix_a + first, prefix_b + second))
        return pairs

    def _fitting(
        self, first: list[int], second: list[int], own_is_first: bool, room: int
    ) -> tuple[list[int], list[int]]:
        """The two texts cut to `room` tokens: first what the choices share, then the rest."""
        own, shared = (first, second) if own_is_first else (second, first)
        limit = self.formatting.max_option_length
        own = own[: room if limit is None else min(limit, room)]
        shared = shared[: room - len(own)]
        return (own, shared) if own_is_first else (shared, own)


def _joined(question: str, choice: str) -> str:
    """Question and choice as one text, the choice in the question's gap if it has one."""
    if not question:
        return choice
    filled, gaps = _GAP.subn(lambda _: choice, question)
    return filled if gaps else f"{question} {choice}"


def _check(examples: Sequence[ChoiceExample]) -> None:
    check_not_empty(examples)
    for each in examples:
        if not each.choices:
            raise UsageError(f"example {shortened(each.id)} has no choices: give it at least one.")
        if each.label is not None and not 0 <= each.label < len(each.choices):
            raise UsageError(
                f"example {shortened(each.id)} has {counted(len(each.choices), 'choice')}, numbered"
                f" from 0, and its label is {each.label}. Correct the label."
            )
    if all(len(each.choices) < 2 for each in examples):
        raise UsageError("no example has more than one choice, so that there is nothing to choose.")
