"""Questions about a passage, whose answer is a span of it, or none (SQuAD; `QuestionExample`).

A question and its passage become one row or several: `<s> question </s></s> window </s>`, where the
windows of the passage overlap. The rows keep, in `Features.host_arrays`:

  passage_offsets: int32 [P, 2], the characters [start, end) of the tokens of all distinct passages.
  passage_first: int64 [R], where in `passage_offsets` the window of a row begins.
  passage_at: int32 [R], where in the row its window begins.
  passage_length: int32 [R], tokens of its window.

A window that does not hold the whole answer is trained to choose the first token, `<s>`, in both
positions, like a question without an answer. BERT's `run_squad.py` and Hugging Face's `run_qa.py`
do so for SQuAD 1.1 as well as for 2.0.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from roberta_jax.errors import UsageError, counted
from roberta_jax.tasks.examples import QuestionExample
from roberta_jax.tasks.features import Features, flattened
from roberta_jax.tasks.kinds.base import Kind, Prediction
from roberta_jax.tasks.kinds.text import softmax
from roberta_jax.tasks.squad import decoding, prediction_files, scoring, windows
from roberta_jax.tasks.task import Formatting

if TYPE_CHECKING:
    from roberta_jax.tokenizer import RobertaTokenizer

# A position past every input: the head's loss ignores it.
NO_TARGET = np.iinfo(np.int32).max

# Why an example is no target of training. It is predicted and scored all the same.
_AS_TARGET = "of the loss, but not of the predictions: "
_MISPLACED = _AS_TARGET + "the answer is not at its position in the passage"
_UNPLACED = _AS_TARGET + "the position of the answer is not given"
_UNCOVERED = _AS_TARGET + "the answer has no characters but white space"
_UNANSWERED = _AS_TARGET + "the question has no answer and the task has one to each"
_TOO_LONG = _AS_TARGET + "the answer is longer than a window of the passage"


class QuestionAnswering(Kind):
    """A span of a passage; or, if the task is not `answerable`, no answer."""

    new_head: ClassVar[tuple[str, ...]] = ("qa_outputs",)
    per_token: ClassVar[bool] = True

    @property
    def model_class(self):
        from roberta_jax.modeling.classifiers import RobertaForQuestionAnswering

        return RobertaForQuestionAnswering

    def config_changes(self) -> dict[str, Any]:
        # transformers' class makes as many outputs as there are labels, and fails unless it is two.
        return {"num_labels": 2, "id2label": None, "label2id": None, "problem_type": None}

    def encode(
        self, examples: Sequence[QuestionExample], tokenizer: "RobertaTokenizer"
    ) -> Features:
        """The windows of all passages; see the module's docstring.

        Every example has at least one row, also those counted in `skipped`: they are predicted, but
        are no targets of training. The answer that is trained on is the first one that is at its
        position in the passage.

        Raises:
          UsageError: the settings leave no room for the passage, or no example has a target
            although all are labelled.
        """
        formatting = self.formatting
        head, middle, tail = _special_tokens(tokenizer, formatting.separators)
        self._check_room(len(head + middle + tail))
        passages = windows.encode_passages(
            [each.context for each in examples], tokenizer, formatting.prefix_b
        )
        questions = _questions(examples, tokenizer, formatting)

        skipped: Counter[str] = Counter()
        rows, numbers, firsts, ats, lengths = [], [], [], [], []
        start_positions, end_positions = [], []
        for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
            passage = passages.number[example.context]
            first, end = passages.starts[passage : passage + 2]
            before = head + question + middle
            room = formatting.max_length - len(before) - len(tail)
            target = self._target(example, passages.offsets[first:end])
            begins = windows.window_starts(end - first, room, formatting.doc_stride)
            starts, ends = _positions(target, begins, int(end - first), room, len(before))
            if target and isinstance(target, tuple) and not starts.any():
                starts[:] = ends[:] = NO_TARGET
                target = _TOO_LONG
            if isinstance(target, str):
                skipped[target] += 1
            for begin in begins:
                window = passages.tokens[first + begin : min(first + begin + room, end)]
                rows.append(np.concatenate([before, window, tail]))
                firsts.append(first + begin)
                lengths.append(len(window))
            numbers.append(np.full(len(begins), number))
            ats.append(np.full(len(begins), len(before)))
            start_positions.append(starts)
            end_positions.append(ends)

        if skipped and skipped.total() == len(examples):
            reasons = [reason.removeprefix(_AS_TARGET) for reason in skipped]
            raise UsageError(
                f"none of the {counted(len(examples), 'question')} can be a target of training: "
                f"{'; or '.join(reasons)}. Positions count characters of the passage from 0."
            )
        tokens, token_starts = flattened(rows)
        return Features(
            tokens,
            token_starts,
            1,
            _column(numbers, np.int32),
            {
                "start_positions": _column(start_positions, np.int32),
                "end_positions": _column(end_positions, np.int32),
            },
            skipped=dict(skipped),
            host_arrays={
                "passage_offsets": passages.offsets,
                "passage_first": np.array(firsts, np.int64),
                "passage_at": _column(ats, np.int32),
                "passage_length": np.array(lengths, np.int32),
            },
        )

    def fill(self) -> Mapping[str, Any]:
        return {"start_positions": NO_TARGET, "end_positions": NO_TARGET}

    def outputs(self, output: Any) -> dict[str, Any]:
        return {"start_logits": output.start_logits, "end_logits": output.end_logits}

    def predictions(self, examples, features, outputs) -> list[Prediction]:
        """The answer to each question; see `tasks.squad.decoding` for the rule.

        Each has "id"; "prediction", the text, which is "" for no answer; "label", the texts of the
        correct answers or None; "start" and "end", the characters of the passage, None for no
        answer; "score", the probability of the prediction among "n_best"; "n_best", the best
        answers as dictionaries of "text", "start", "end", "probability", "start_logit" and
        "end_logit", the best first; and, if the task is not answerable, "null_odds": the score of
        no answer less that of the best span, both sums of two logits. No answer is predicted where
        it exceeds `null_threshold`. Without a threshold, the one with the best F1 on those of these
        examples that have labels is used; 0, as in BERT, if none has.
        """
        spans = decoding.best_spans(
            features,
            outputs["start_logits"],
            outputs["end_logits"],
            num_questions=len(examples),
            n_best=self.formatting.n_best,
            max_answer_length=self.formatting.max_answer_length,
        )
        predictions = [self._prediction(spans, i, each) for i, each in enumerate(examples)]
        if not self.task.answerable:
            threshold = self._threshold(examples, predictions)
            for prediction in predictions:
                if prediction["null_odds"] > threshold:
                    _choose(prediction, _no_answer(prediction))
        return predictions

    def scores(self, examples, predictions) -> dict[str, float]:
        """Per cent: "f1" and "exact_match".

        For a task that is not answerable, also "HasAns_exact", "HasAns_f1", "NoAns_exact" and
        "NoAns_f1", and what thresholds on the null odds can reach: "best_f1", "best_exact" and
        their "best_f1_thresh" and "best_exact_thresh" as in the official script; and
        "null_threshold", the one that the predictions are made with. These need predictions with
        null odds.
        """
        pairs = _labelled(examples, predictions)
        if not pairs:
            return {}
        known, made = zip(*pairs, strict=True)
        texts = [each["prediction"] for each in made]
        if self.task.answerable:
            scores = scoring.evaluate_v1(known, texts)
            return {"f1": scores["f1"], "exact_match": scores["exact_match"]}
        scores = scoring.evaluate_v2(known, texts)
        scores = {key: value for key, value in scores.items() if not key.endswith("total")}
        scores = {"f1": scores.pop("f1"), "exact_match": scores.pop("exact"), **scores}
        if all("null_odds" in each for each in made):
            odds = [each["null_odds"] for each in made]
            scores |= scoring.evaluate_thresholds(known, list(map(_best_text, made)), odds)
            scores["null_threshold"] = self._threshold(known, made)
        return scores

    def baseline(self, train) -> str | None:
        """No answer to every question; None if the task has an answer to each."""
        return None if self.task.answerable else ""

    def files(self, predictions) -> dict[str, Any]:
        """`predictions.json`, `nbest_predictions.json`, and `null_odds.json` for SQuAD 2.0.

        The official script of 2.0 finds the best threshold for the texts in `predictions.json`, to
        which a threshold has been applied; "best_f1" of `scores` knows the texts before that.
        """
        return prediction_files.official_files(predictions, null_odds=not self.task.answerable)

    def with_choices(self, scores: Mapping[str, float]) -> "QuestionAnswering":
        """With the threshold of the null odds that was found on another split, if there is none."""
        if self.formatting.null_threshold is not None or "null_threshold" not in scores:
            return self
        threshold = scores["null_threshold"]
        formatting = dataclasses.replace(self.formatting, null_threshold=threshold)
        return QuestionAnswering(self.task, self.labels, formatting)

    def _check_room(self, num_special: int) -> None:
        formatting = self.formatting
        if formatting.max_length <= formatting.max_query_length + num_special:
            raise UsageError(
                f"--config.format.max_length={formatting.max_length} has no room for a passage "
                f"beside a question of --config.format.max_query_length="
                f"{formatting.max_query_length} tokens and {num_special} special tokens. Raise "
                "the first or lower the second."
            )
        for name in ("doc_stride", "max_query_length", "max_answer_length", "n_best"):
            if getattr(formatting, name) < 1:
                raise UsageError(
                    f"--config.format.{name}={getattr(formatting, name)} must be at least 1."
                )

    def _target(
        self, example: QuestionExample, offsets: np.ndarray
    ) -> tuple[int, ...] | str | None:
        """The tokens of the passage that an example's answer begins and ends with.

        Returns:
          Their positions in the passage; () for no answer; None where it is unknown; or why the
          example cannot be trained on.
        """
        if example.answers is None:
            return None
        if not example.answers:
            return _UNANSWERED if self.task.answerable else ()
        if example.starts is None:
            return _UNPLACED
        problem = _MISPLACED
        for text, start in zip(example.answers, example.starts, strict=True):
            if start >= 0 and text and example.context[start : start + len(text)] == text:
                found = windows.covering(offsets, start, start + len(text))
                if found is not None:
                    return found
                problem = _UNCOVERED
        return problem

    def _prediction(
        self, spans: decoding.Spans, question: int, example: QuestionExample
    ) -> Prediction:
        """The prediction of the best span, whatever the null odds."""
        kept = range(spans.first[question], spans.first[question + 1])
        entries = [
            _entry(example, spans.start[k], spans.end[k], spans.start_logit[k], spans.end_logit[k])
            for k in kept
        ]
        best = entries[0] if entries else None
        prediction: Prediction = {"id": example.id, "prediction": ""}
        prediction["label"] = None if example.answers is None else list(example.answers)
        if not self.task.answerable:
            null = _entry(
                example,
                None,
                None,
                spans.null_start_logit[question],
                spans.null_end_logit[question],
            )
            entries = _with_no_answer(entries, null, self.formatting.n_best)
            # As in run_qa.py, a passage without any span counts as one with a score of 0.
            prediction["null_odds"] = _score(null) - (_score(best) if best else 0.0)
        probabilities = softmax(np.array([_score(each) for each in entries])) if entries else ()
        for entry, probability in zip(entries, probabilities, strict=True):
            entry["probability"] = float(probability)
        _choose(prediction, best)
        prediction["n_best"] = entries
        return prediction

    def _threshold(
        self, examples: Sequence[QuestionExample], predictions: Sequence[Prediction]
    ) -> float:
        if self.formatting.null_threshold is not None:
            return self.formatting.null_threshold
        pairs = _labelled(examples, predictions)
        if not pairs:
            return 0.0
        known, made = zip(*pairs, strict=True)
        texts = list(map(_best_text, made))
        return scoring.applied_threshold(
            scoring.question_scores(known, texts)[1],
            np.array([each["null_odds"] for each in made]),
            np.array([bool(each.answers) for each in known]),
            np.array([bool(text) for text in texts]),
        )


def _labelled(examples, predictions) -> list[tuple[QuestionExample, Prediction]]:
    """The examples whose answers are known, with their predictions."""
    pairs = zip(examples, predictions, strict=True)
    return [(example, made) for example, made in pairs if example.answers is not None]


def _special_tokens(
    tokenizer: "RobertaTokenizer", separators: int
) -> tuple[list[int], list[int], list[int]]:
    """The tokens before the question, between it and the passage, and at the end."""
    pair = tokenizer.build_inputs_with_special_tokens([-1], [-2])
    first, second = pair.index(-1), pair.index(-2)
    return pair[:first], pair[first + 1 : second][:separators], pair[second + 1 :]


def _questions(
    examples, tokenizer: "RobertaTokenizer", formatting: "Formatting"
) -> list[list[int]]:
    """The tokens of each question, truncated to `max_query_length`."""
    if not examples:
        return []
    # As in run_qa.py: questions of SQuAD may begin with much white space.
    texts = [formatting.prefix_a + each.question.lstrip() for each in examples]
    rows = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    return [row[: formatting.max_query_length] for row in rows]


def _positions(
    target: tuple[int, ...] | str | None, begins: np.ndarray, length: int, room: int, at: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where a target begins and ends in each row of an example, int64 [windows] each.

    Args:
      target: from `QuestionAnswering._target`.
      begins: where the windows begin in the passage.
      length: tokens of the passage.
      room: tokens of a window at most.
      at: where in the row the window begins.
    """
    if target is None or isinstance(target, str):
        return np.full(len(begins), NO_TARGET), np.full(len(begins), NO_TARGET)
    if not target:
        return np.zeros(len(begins), np.int64), np.zeros(len(begins), np.int64)
    first, last = target
    inside = (first >= begins) & (last < np.minimum(begins + room, length))
    return np.where(inside, at + first - begins, 0), np.where(inside, at + last - begins, 0)


def _column(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(dtype)


def _entry(example, start, end, start_logit, end_logit) -> dict[str, Any]:
    """An answer of the n-best list; `start` is None for no answer."""
    return {
        "text": "" if start is None else example.context[start:end],
        "start": None if start is None else int(start),
        "end": None if end is None else int(end),
        "probability": 0.0,
        "start_logit": float(start_logit),
        "end_logit": float(end_logit),
    }


def _score(entry: Mapping[str, Any]) -> float:
    return entry["start_logit"] + entry["end_logit"]


def _with_no_answer(entries: list[dict], null: dict, n_best: int) -> list[dict]:
    """The `n_best` best of the answers and no answer; always with it and with the best span."""
    best = sorted([*entries, null], key=_score, reverse=True)[:n_best]
    return best + [each for each in (*entries[:1], null) if not any(each is kept for kept in best)]


def _no_answer(prediction: Prediction) -> dict[str, Any]:
    return next(each for each in prediction["n_best"] if not each["text"])


def _best_text(prediction: Prediction) -> str:
    """The text of the best span, whatever the null odds; "" if the passage has none."""
    return next((each["text"] for each in prediction["n_best"] if each["text"]), "")


def _choose(prediction: Prediction, entry: Mapping[str, Any] | None) -> None:
    """Makes an answer of the n-best list the prediction; None for none at all."""
    prediction["prediction"] = entry["text"] if entry else ""
    prediction["start"] = entry["start"] if entry else None
    prediction["end"] = entry["end"] if entry else None
    prediction["score"] = entry["probability"] if entry else 0.0
