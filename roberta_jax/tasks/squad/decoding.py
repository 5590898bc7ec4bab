"""From the logits of windows to the best spans of passages.

The rule is that of Hugging Face's `run_qa.py` (`postprocess_qa_predictions`), which follows BERT's
`run_squad.py`: in each window, the `n_best` positions with the largest start logits and those with
the largest end logits are combined; a combination is a candidate if both are tokens of the
passage, the end is not before the start, and it has at most `max_answer_length` tokens. Its score
is the sum of both logits. The candidates of all windows of a question compete.

Three things differ. A span that several windows hold, or several tokens of one character, counts
once, with its best score. No span begins or ends with a token that is white space. And where a
question has no candidate, because the best positions are all outside the passage, all positions of
the passage are combined; Hugging Face's script answers "empty".

Array names carry their shape: R rows (windows), L length, T tokens, N best positions, K candidates,
Q questions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.tasks.features import Features

_ROWS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Spans:
    """The best spans of all questions, sorted by question and then by score, the best one first.

    Attributes:
      question: int64 [K], number of the question.
      start, end: int64 [K], characters [start, end) of its passage.
      start_logit, end_logit: float64 [K].
      first: int64 [Q + 1], question q has the spans [first[q], first[q + 1]).
      null_start_logit, null_end_logit: float64 [Q], the logits of the first token, which stands for
        no answer, in the window where their sum is least.
    """

    question: np.ndarray
    start: np.ndarray
    end: np.ndarray
    start_logit: np.ndarray
    end_logit: np.ndarray
    first: np.ndarray
    null_start_logit: np.ndarray
    null_end_logit: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """float64 [K], the sum of both logits."""
        return self.start_logit + self.end_logit

    @property
    def null_score(self) -> np.ndarray:
        """float64 [Q], the score of no answer."""
        return self.null_start_logit + self.null_end_logit


def best_spans(
    features: Features,
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    *,
    num_questions: int,
    n_best: int,
    max_answer_length: int,
) -> Spans:
    """The `n_best` best spans of each question.

    Args:
      features: rows with the `host_arrays` of `kinds.question_answering`.
      start_logits, end_logits: float [length of the row], of each row.
      num_questions: Q; each has at least one row, and its rows are consecutive.
      n_best: spans per question at most, and positions per window that are combined.
      max_answer_length: tokens per span at most.

    Raises:
      UsageError: a logit is not a finite number.
    """
    start_T = _joined(start_logits, features)
    end_T = _joined(end_logits, features)
    usable_T, token_T = _passage_tokens(features)
    parts = [
        _candidates(features, rows, start_T, end_T, usable_T, n_best, max_answer_length)
        for rows in np.array_split(
            np.arange(features.num_rows), -(-features.num_rows // _ROWS_AT_ONCE) or 1
        )
    ]
    row_K, start_K, end_K = np.concatenate(parts, axis=1)
    answered = np.zeros(num_questions, bool)
    answered[features.example[row_K]] = True
    if not answered.all():
        rest = [
            _all_candidates(features, row, start_T, end_T, usable_T, n_best, max_answer_length)
            for row in np.flatnonzero(~answered[features.example])
        ]
        row_K, start_K, end_K = np.concatenate([[row_K, start_K, end_K], *rest], axis=1)

    # Positions in the flat arrays of tokens.
    start_K, end_K = (features.starts[row_K] + each for each in (start_K, end_K))
    offsets = features.host_arrays["passage_offsets"]
    question_K = features.example[row_K].astype(np.int64)
    begin_K = offsets[token_T[start_K], 0].astype(np.int64)
    stop_K = offsets[token_T[end_K], 1].astype(np.int64)
    score_K = start_T[start_K] + end_T[end_K]
    kept = _best_distinct(question_K, begin_K, stop_K, score_K, n_best)
    cls_R = features.starts[:-1]
    null_R = start_T[cls_R] + end_T[cls_R]
    order = np.lexsort((np.arange(len(null_R)), null_R, features.example))
    _, at = np.unique(features.example[order], return_index=True)
    null_Q = cls_R[order[at]]
    return Spans(
        question_K[kept],
        begin_K[kept],
        stop_K[kept],
        start_T[start_K[kept]],
        end_T[end_K[kept]],
        np.searchsorted(question_K[kept], np.arange(num_questions + 1)),
        start_T[null_Q],
        end_T[null_Q],
    )


def _joined(logits: Sequence[np.ndarray], features: Features) -> np.ndarray:
    """The logits of all rows, one row after the other, float64 [T]."""
    lengths = [len(each) for each in logits]
    if not np.array_equal(lengths, features.row_lengths):
        raise ValueError("the logits have other lengths than the rows")
    flat = np.concatenate([*logits, np.zeros(0)]).astype(np.float64)
    if not np.isfinite(flat).all():
        raise UsageError(
            "the model's logits are not all finite numbers, so there are no predictions. Check "
            "its weights: has its training diverged?"
        )
    return flat


def _passage_tokens(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens can begin or end a span, bool [T], and their index in `passage_offsets`."""
    arrays = features.host_arrays
    lengths = features.row_lengths
    at_T = np.arange(len(features.tokens)) - np.repeat(features.starts[:-1], lengths)
    relative_T = at_T - np.repeat(arrays["passage_at"], lengths)
    inside_T = (relative_T >= 0) & (relative_T < np.repeat(arrays["passage_length"], lengths))
    token_T = np.where(inside_T, np.repeat(arrays["passage_first"], lengths) + relative_T, 0)
    offsets = arrays["passage_offsets"]
    if len(offsets):
        inside_T &= (offsets[:, 1] > offsets[:, 0])[token_T]
    return inside_T, token_T


def _candidates(features, rows, start_T, end_T, usable_T, n_best, max_answer_length) -> np.ndarray:
    """(row, start, end) of the candidates of some rows, int64 [3, K]; positions in the row."""
    if not len(rows):
        return np.zeros((3, 0), np.int64)
    lengths = features.row_lengths[rows, None]
    position = np.arange(lengths.max())
    inside_RL = position < lengths
    index_RL = np.where(inside_RL, features.starts[rows, None] + position, 0)
    best = []
    for logits_T in (start_T, end_T):
        logits_RL = np.where(inside_RL, logits_T[index_RL], -np.inf)
        best.append(np.argsort(-logits_RL, axis=1, kind="stable")[:, :n_best])
    usable_RL = inside_RL & usable_T[index_RL]
    start_RN, end_RN = best
    valid_RNN = np.take_along_axis(usable_RL, start_RN, 1)[:, :, None]
    valid_RNN = valid_RNN & np.take_along_axis(usable_RL, end_RN, 1)[:, None, :]
    distance_RNN = end_RN[:, None, :] - start_RN[:, :, None]
    valid_RNN &= (distance_RNN >= 0) & (distance_RNN < max_answer_length)
    row, i, j = np.nonzero(valid_RNN)
    return np.stack([rows[row], start_RN[row, i], end_RN[row, j]])


def _all_candidates(
    features, row, start_T, end_T, usable_T, n_best, max_answer_length
) -> np.ndarray:
    """(row, start, end) of the `n_best` best spans of a row's passage, int64 [3, K]."""
    tokens = slice(features.starts[row], features.starts[row + 1])
    usable = np.flatnonzero(usable_T[tokens])
    starts, ends = [], []
    for distance in range(max_answer_length):
        begin = usable[np.isin(usable + distance, usable, assume_unique=True)]
        starts.append(begin)
        ends.append(begin + distance)
    start, end = np.concatenate(starts), np.concatenate(ends)
    score = start_T[tokens][start] + end_T[tokens][end]
    kept = np.argsort(-score, kind="stable")[:n_best]
    return np.stack([np.full(len(kept), row), start[kept], end[kept]])


def _best_distinct(question_K, begin_K, stop_K, score_K, n_best) -> np.ndarray:
    """The candidates that are kept, by question and score: distinct spans, `n_best` of each."""
    order = np.lexsort((-score_K, stop_K, begin_K, question_K))
    same = np.ones(len(order), bool)
    same[:1] = False
    for each in (question_K, begin_K, stop_K):
        same[1:] &= np.diff(each[order]) == 0
    order = np.sort(order[~same])
    order = order[np.lexsort((-score_K[order], question_K[order]))]
    question = question_K[order]
    rank = np.arange(len(order)) - np.searchsorted(question, question)
    return order[rank < n_best]
