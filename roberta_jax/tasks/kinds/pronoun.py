"""Whether a pronoun refers to a noun phrase (`PronounExample`): WSC, after fairseq's recipe.

A row has a sequence for the noun phrase in question and one for each other phrase of the sentence.
It is the sentence with the phrase in place of the pronoun, and the tokens of the phrase masked. The
score of a phrase is the mean log-probability of its tokens. Training raises the score of the phrase
in question over those of the others where the pronoun refers to it; other examples have no loss.
Prediction: the pronoun refers to the phrase if no other phrase has a higher score.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import PronounExample
from roberta_jax.tasks.features import Features, flattened
from roberta_jax.tasks.kinds.base import Kind, Prediction
from roberta_jax.tasks.kinds.text import check_not_empty, cut_note, labelled
from roberta_jax.tasks.sequences import Frame, frame_of

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

_NO_SCORE = -1e30  # scores of phrases without tokens are lower


class Pronoun(Kind):
    """Whether a pronoun refers to a noun phrase. Labels and predictions are booleans."""

    new_head = ("lm_head",)

    @property
    def model_class(self):
        from roberta_jax.modeling.pronoun import RobertaForPronouns

        return RobertaForPronouns

    def config_changes(self) -> dict[str, Any]:
        return {}

    def encode(self, examples: Sequence[PronounExample], tokenizer: "RobertaTokenizer") -> Features:
        check_not_empty(examples)
        phrases = [(each.query, *each.candidates) for each in examples]
        texts = [
            each.text[: each.pronoun[0]] + phrase + each.text[each.pronoun[1] :]
            for each, own in zip(examples, phrases, strict=True)
            for phrase in own
        ]
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        frame = frame_of(tokenizer, self.formatting.separators)
        rows = iter(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        most = max(2, *map(len, phrases))  # with one sequence a row would have no axis of phrases
        sequences, masked, labels, cut = [], [], [], set()
        for number, (each, own) in enumerate(zip(examples, phrases, strict=True)):
            for phrase in own:
                start = each.pronoun[0]
                tokens, offsets = next(rows)
                sequence, places = self._masked(
                    frame, tokens, offsets, start, start + len(phrase), tokenizer.mask_token_id
                )
                sequences.append(sequence)
                masked.append(places)
                if len(tokens) > frame.room(self.formatting.max_length):
                    cut.add(number)
            missing = most - len(own)
            sequences += [frame.one([])] * missing
            masked += [[]] * missing
            # Alone, a phrase has no others to be told from.
            labels.append(0 if each.label and len(own) > 1 else -100)
        tokens, starts = flattened(sequences)
        columns = {"labels": np.array(labels, np.int32)} | _slots(masked, len(examples), most)
        return Features(
            tokens,
            starts,
            most,
            np.arange(len(examples), dtype=np.int32),
            columns,
            notes=cut_note(len(cut), self.formatting),
        )

    def fill(self) -> Mapping[str, Any]:
        return {"labels": -100, "masked_positions": 0, "masked_labels": 0, "masked_weights": 0.0}

    def outputs(self, output: Any) -> dict[str, Any]:
        return {"scores": output.logits}

    def predictions(self, examples, features, outputs) -> list[Prediction]:
        """See `Kind.predictions`; "scores" has each phrase's mean log-probability, in nats."""
        results = []
        for example, row in zip(examples, outputs["scores"], strict=True):
            phrases = (example.query, *example.candidates)
            scores = np.asarray(row, np.float64)[: len(phrases)]
            results.append(
                {
                    "id": example.id,
                    "prediction": bool((scores[0] >= scores).all()),
                    "label": example.label,
                    "scores": {
                        phrase: float(score) if score > _NO_SCORE else None
                        for phrase, score in zip(phrases, scores, strict=True)
                    },
                }
            )
        return results

    def scores(self, examples, predictions) -> dict[str, float]:
        pairs = labelled(examples, predictions)
        if not pairs:
            return {}
        gold, predicted = zip(*pairs, strict=True)
        return metrics.compute(self.task.metrics, gold, predicted, labels=(False, True))

    def baseline(self, train) -> bool | None:
        counts = Counter(each.label for each in train if each.label is not None)
        return counts[True] > counts[False] if counts else None

    def _masked(
        self,
        frame: Frame,
        tokens: list[int],
        offsets: list[tuple[int, int]],
        start: int,
        stop: int,
        mask_id: int,
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The sequence with a phrase masked, and (position, token) of what is masked.

        Of a text that is too long, the part around the phrase is kept.

        Args:
          frame: the special tokens around the text.
          tokens, offsets: the tokens of the text, and the characters that each covers.
          start, stop: the characters of the phrase.
          mask_id: the token `<mask>`.
        """
        within = [i for i, (begin, end) in enumerate(offsets) if begin < stop and end > start]
        room = frame.room(self.formatting.max_length)
        first = 0
        if len(tokens) > room and within:
            first = within[0] - max(room - len(within), 0) // 2
            first = min(max(first, 0), len(tokens) - room)
        within = [i for i in within if first <= i < first + room]
        sequence = frame.one(tokens[first : first + room])
        places = [(i - first + len(frame.start), tokens[i]) for i in within]
        for position, _ in places:
            sequence[position] = mask_id
        return sequence, places


def _slots(masked: list[list[tuple[int, int]]], rows: int, choices: int) -> dict[str, np.ndarray]:
    """The columns [rows, choices, K] of what is masked in each sequence, K at most."""
    shape = (rows * choices, max(1, *map(len, masked)))
    positions, tokens = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    for sequence, places in enumerate(masked):
        for slot, (position, token) in enumerate(places):
            positions[sequence, slot], tokens[sequence, slot] = position, token
            weights[sequence, slot] = 1
    named = {"masked_positions": positions, "masked_labels": tokens, "masked_weights": weights}
    return {name: values.reshape(rows, choices, -1) for name, values in named.items()}
