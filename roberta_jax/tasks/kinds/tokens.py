"""A tag for each word of a sentence (`TokenExample`): named entities, parts of speech.

The label of a word is at its first token. A sentence that does not fit into one input is split at
the borders of words into windows, a row each. Neighbouring windows share words as context, and each
word is a target, and is predicted, in one window alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import TokenExample
from roberta_jax.tasks.features import Features, flattened
from roberta_jax.tasks.kinds.base import Kind, Prediction
from roberta_jax.tasks.kinds.text import check_labels
from roberta_jax.tasks.sequences import frame_of

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

_OUTSIDE = "O"
_SENTENCES_AT_ONCE = 1024  # the tokenizer's results take far more memory than the tokens
_NO_TOKEN = "words without a token, which are in no input"
_CUT_WORDS = "words longer than an input, which are cut"


class Tokens(Kind):
    """A tag for each word.

    `Features.host_arrays` has `words`, int32 [T]: the number of a word in its example at the first
    token of each word that a row predicts, and -1 elsewhere.
    """

    per_token = True

    @property
    def model_class(self):
        from roberta_jax.modeling.classifiers import RobertaForTokenClassification

        return RobertaForTokenClassification

    def config_changes(self) -> dict[str, Any]:
        names = dict(enumerate(self.labels))
        return {
            "problem_type": None,
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
        }

    def encode(self, examples: Sequence[TokenExample], tokenizer: "RobertaTokenizer") -> Features:
        """See `Kind.encode`.

        Words that have no token, such as empty ones, are in no row. They are counted in
        `Features.notes`, as are words of which not all tokens fit into a row.
        """
        self._check(examples)
        ids = {name: number for number, name in enumerate(self.labels)}
        frame = frame_of(tokenizer, self.formatting.separators)
        room = frame.room(self.formatting.max_length)
        sequences, labels, words, example_of = [], [], [], []
        notes = Counter()
        for number, pieces in enumerate(_pieces(examples, tokenizer)):
            notes[_NO_TOKEN] += sum(not each for each in pieces)
            notes[_CUT_WORDS] += sum(len(each) > room for each in pieces)
            present = [index for index, each in enumerate(pieces) if each]
            counts = [min(len(pieces[index]), room) for index in present]
            tags = examples[number].tags
            for first, start, stop, end in windows(counts, room):
                sequence, row_labels, row_words = [], [], []
                for place in range(first, end):
                    word = present[place]
                    tokens = pieces[word][:room]
                    is_target = start <= place < stop
                    known = is_target and tags is not None
                    rest = len(tokens) - 1
                    sequence += tokens
                    row_labels += [ids[tags[word]] if known else -100] + rest * [-100]
                    row_words += [word if is_target else -1] + rest * [-1]
                sequences.append(frame.one(sequence))
                before, after = len(frame.start), len(frame.end)
                labels.append([-100] * before + row_labels + [-100] * after)
                words.append([-1] * before + row_words + [-1] * after)
                example_of.append(number)
        if not sequences:
            raise UsageError("there is no sentence with a word that the tokenizer can encode.")
        tokens, starts = flattened(sequences)
        return Features(
            tokens,
            starts,
            1,
            np.array(example_of, np.int32),
            token_columns={"labels": flattened(labels)[0]},
            host_arrays={"words": flattened(words)[0]},
            notes={note: count for note, count in notes.items() if count},
        )

    def fill(self) -> Mapping[str, Any]:
        return {"labels": -100}

    def outputs(self, output: Any) -> dict[str, Any]:
        import jax
        import jax.numpy as jnp

        probabilities = jax.nn.softmax(output.logits, axis=-1)
        return {
            "tag": jnp.argmax(output.logits, axis=-1).astype(jnp.int32),
            "probability": jnp.max(probabilities, axis=-1),
        }

    def predictions(self, examples, features, outputs) -> list[Prediction]:
        """See `Kind.predictions`; "scores" are the probabilities of the tags, None without one."""
        outside = _OUTSIDE if _OUTSIDE in self.labels else self.labels[0]
        tags = [[outside] * len(each.words) for each in examples]
        scores: list[list[float | None]] = [[None] * len(each.words) for each in examples]
        for row, (found, probabilities) in enumerate(
            zip(outputs["tag"], outputs["probability"], strict=True)
        ):
            example = features.example[row]
            words = features.host_arrays["words"][features.starts[row] : features.starts[row + 1]]
            for place in np.flatnonzero(words >= 0):
                tags[example][words[place]] = self.labels[int(found[place])]
                scores[example][words[place]] = float(probabilities[place])
        return [
            {
                "id": each.id,
                "prediction": tags[number],
                "label": None if each.tags is None else list(each.tags),
                "scores": scores[number],
            }
            for number, each in enumerate(examples)
        ]

    def scores(self, examples, predictions) -> dict[str, float]:
        """The task's metrics, and the accuracy over the words.

        "f1", "precision" and "recall" are those of whole entities.
        """
        pairs = [
            (tuple(example.tags), tuple(prediction["prediction"]))
            for example, prediction in zip(examples, predictions, strict=True)
            if example.tags is not None
        ]
        if not any(gold for gold, _ in pairs):
            return {}
        gold, predicted = zip(*pairs, strict=True)
        of_tags = {name: metrics.of_kind(name, "tokens") for name in self.task.metrics}
        if "token_accuracy" not in of_tags.values():
            of_tags["accuracy"] = "token_accuracy"
        scores = metrics.compute([*of_tags.values()], gold, predicted, labels=self.labels)
        return {name: scores[metric] for name, metric in of_tags.items()}

    def baseline(self, train) -> str | None:
        counts = Counter(tag for each in train for tag in each.tags or ())
        return max(self.labels, key=lambda name: counts[name]) if counts else None

    def constant(self, value, examples) -> list[Prediction]:
        return [{"id": e.id, "prediction": [value] * len(e.words)} for e in examples]

    def _check(self, examples: Sequence[TokenExample]) -> None:
        known = set(self.labels)
        wrong = []
        for each in examples:
            if each.tags is None:
                continue
            if len(each.tags) != len(each.words):
                raise UsageError(
                    f"example {each.id} has {len(each.words)} words and {len(each.tags)} tags: "
                    "each word needs one tag."
                )
            wrong += [(each.id, tag) for tag in each.tags if tag not in known]
        check_labels(wrong)


def windows(counts: Sequence[int], room: int) -> Iterator[tuple[int, int, int, int]]:
    """Splits a sentence into windows at the borders of words.

    A window has the words [first, end), of which [start, stop) are its targets. The targets of all
    windows are each word once, in order. The others are context: on each side at most a quarter of
    the room, and none where a long word leaves no room for it.

    Args:
      counts: tokens of each word, from 1 to `room`.
      room: tokens in a window at most.

    Yields:
      (first, start, stop, end).
    """
    start, number = 0, len(counts)
    if number and sum(counts) <= room:
        yield 0, 0, number, number
        return
    context = room // 4
    while start < number:
        first, total = start, 0
        while first > 0 and total + counts[first - 1] <= context:
            first -= 1
            total += counts[first]
        if total + counts[start] > room:
            first, total = start, 0
        end = start
        while end < number and total + counts[end] <= room:
            total += counts[end]
            end += 1
        stop, after = end, 0
        while end < number and stop - 1 > start and after + counts[stop - 1] <= context:
            stop -= 1
            after += counts[stop]
        yield first, start, stop, end
        start = stop


def _pieces(
    examples: Sequence[TokenExample], tokenizer: "RobertaTokenizer"
) -> Iterator[list[list[int]]]:
    """The tokens of each word of each example."""
    for begin in range(0, len(examples), _SENTENCES_AT_ONCE):
        sentences = [list(each.words) for each in examples[begin : begin + _SENTENCES_AT_ONCE]]
        encoded = tokenizer(
            sentences,
            is_split_into_words=True,
            add_prefix_space=True,
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )
        for number, words in enumerate(sentences):
            pieces: list[list[int]] = [[] for _ in words]
            for token, word in zip(
                encoded["input_ids"][number], encoded.word_ids(number), strict=True
            ):
                pieces[word].append(token)
            yield pieces
