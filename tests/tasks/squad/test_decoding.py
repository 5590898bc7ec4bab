"""The best spans, against a plain program for the rule of transformers' run_qa.py."""

import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.features import Features
from roberta_jax.tasks.squad import decoding

HEAD = 4  # tokens before a window in the features below
TAIL = 1


def make_features(windows, offsets) -> Features:
    """Rows of the windows (question, first token of the passage, number of tokens)."""
    lengths = [HEAD + count + TAIL for _, _, count in windows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Features(
        np.zeros(starts[-1], np.int32),
        starts,
        1,
        np.array([question for question, _, _ in windows], np.int32),
        host_arrays={
            "passage_offsets": np.asarray(offsets, np.int32).reshape(-1, 2),
            "passage_first": np.array([first for _, first, _ in windows], np.int64),
            "passage_at": np.full(len(windows), HEAD, np.int32),
            "passage_length": np.array([count for _, _, count in windows], np.int32),
        },
    )


def random_case(rng, questions=7, tokens=30):
    """Features with windows that overlap, and logits with a margin between any two sums."""
    offsets = np.stack([np.arange(tokens), np.arange(tokens) + 1], -1) * 3
    offsets[rng.integers(0, tokens, 3), 1] -= 3  # white space
    for at in rng.integers(1, tokens, 3):  # a further token of the same character
        offsets[at] = offsets[at - 1]
    windows = []
    for question in range(questions):
        first = int(rng.integers(0, 6))
        for _ in range(rng.integers(1, 4)):
            windows.append((question, first, int(rng.integers(3, 14))))
            first += int(rng.integers(1, 5))
    features = make_features(windows, offsets)
    logits = [
        [rng.normal(0, 3, length).astype(np.float32) for length in features.row_lengths]
        for _ in range(2)
    ]
    return features, *logits


def by_the_rule(features, start_logits, end_logits, n_best, max_answer_length, distinct=True):
    """question -> ([(start, end, score)] best first, null score), one candidate at a time."""
    arrays, found, null = features.host_arrays, {}, {}
    for row, (starts, ends) in enumerate(zip(start_logits, end_logits, strict=True)):
        question = int(features.example[row])
        first, count = (int(arrays[name][row]) for name in ("passage_first", "passage_length"))
        spans = [None] * HEAD
        spans += arrays["passage_offsets"][first : first + count].tolist() + [None] * TAIL
        null[question] = min(null.get(question, np.inf), float(starts[0]) + float(ends[0]))
        for begin in sorted(range(len(spans)), key=lambda i: -starts[i])[:n_best]:
            for end in sorted(range(len(spans)), key=lambda i: -ends[i])[:n_best]:
                inside = spans[begin] is not None and spans[end] is not None
                if not inside or not 0 <= end - begin < max_answer_length:
                    continue
                if spans[begin][0] == spans[begin][1] or spans[end][0] == spans[end][1]:
                    continue
                score = float(starts[begin]) + float(ends[end])
                span = (spans[begin][0], spans[end][1])
                found.setdefault(question, []).append((*span, score))
    results = {}
    for question in null:
        best = sorted(found.get(question, []), key=lambda each: -each[2])
        if distinct:
            seen = set()
            best = [e for e in best if not (e[:2] in seen or seen.add(e[:2]))]
        results[question] = best[:n_best], null[question]
    return results


def decoded(features, start_logits, end_logits, n_best, max_answer_length):
    """The same from `best_spans`."""
    questions = int(features.example.max()) + 1
    spans = decoding.best_spans(
        features,
        start_logits,
        end_logits,
        num_questions=questions,
        n_best=n_best,
        max_answer_length=max_answer_length,
    )
    return {
        question: (
            [
                (int(spans.start[k]), int(spans.end[k]), float(spans.score[k]))
                for k in range(spans.first[question], spans.first[question + 1])
            ],
            float(spans.null_score[question]),
        )
        for question in range(questions)
    }


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("n_best", "longest"), [(20, 30), (5, 4), (12, 1)])
def test_spans_are_those_of_the_rule(seed, n_best, longest, monkeypatch):
    monkeypatch.setattr(decoding, "_ROWS_AT_ONCE", 5)
    features, *logits = random_case(np.random.default_rng(seed))
    expected = by_the_rule(features, *logits, n_best, longest)
    actual = decoded(features, *logits, n_best, longest)
    for question, (spans, null) in expected.items():
        if spans:  # else the rule has no answer
            assert actual[question] == (spans, null)
        else:
            assert actual[question][0]
            assert actual[question][1] == null
    # The best one, and no answer, do not depend on whether equal spans count once.
    for question, (spans, _) in by_the_rule(features, *logits, n_best, longest, False).items():
        assert not spans or actual[question][0][0] == spans[0]


def test_all_positions_are_combined_where_the_best_ones_are_outside_the_passage():
    offsets = [[0, 1], [1, 2], [2, 2], [3, 4]]
    features = make_features([(0, 0, 4)], offsets)
    # The three best positions are the first three tokens, of which none is of the passage.
    start = np.array([9, 8, 7, 0, 1, 5, 6, 2, 0], np.float32)
    end = np.array([9, 8, 7, 0, 1, 3, 6, 4, 0], np.float32)
    spans, null = decoded(features, [start], [end], 3, 30)[0]
    assert spans == [(1, 4, 9), (1, 2, 8), (3, 4, 6)]
    assert null == 18
    assert decoded(features, [start], [end], 3, 2)[0][0] == [(1, 2, 8), (3, 4, 6), (0, 2, 4)]


def test_a_span_in_several_windows_counts_once_with_its_best_score():
    offsets = [[0, 1], [1, 2]]
    features = make_features([(0, 0, 2), (0, 0, 2)], offsets)
    start = [np.array([0, 0, 0, 0, 3, 1, 0]), np.array([0, 0, 0, 0, 5, 1, 0])]
    spans, _ = decoded(features, start, start, 10, 1)[0]
    assert spans == [(0, 1, 10), (1, 2, 2)]


def test_the_score_of_no_answer_is_the_least_of_the_windows():
    features = make_features([(0, 0, 1), (0, 0, 1), (1, 0, 1)], [[0, 1]])
    start = [np.array([a, 0, 0, 0, 0, 0]) for a in (4, 1, 7)]
    end = [np.array([a, 0, 0, 0, 0, 0]) for a in (0, 2, 7)]
    results = decoded(features, start, end, 10, 10)
    assert [null for _, null in results.values()] == [3, 14]


def test_no_span_of_an_empty_passage():
    features = make_features([(0, 0, 0), (1, 0, 1)], [[0, 1]])
    logits = [np.zeros(HEAD + TAIL), np.ones(HEAD + TAIL + 1)]
    results = decoded(features, logits, logits, 10, 10)
    assert results == {0: ([], 0), 1: ([(0, 1, 2)], 2)}
    alone = make_features([(0, 0, 0)], [])
    assert decoded(alone, logits[:1], logits[:1], 10, 10) == {0: ([], 0)}


def test_no_questions():
    spans = decoding.best_spans(
        make_features([], []), [], [], num_questions=0, n_best=5, max_answer_length=5
    )
    assert len(spans.question) == 0
    assert spans.first.tolist() == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    features = make_features([(0, 0, 1)], [[0, 1]])
    with pytest.raises(UsageError, match="not all finite"):
        decoded(features, [np.full(6, value)], [np.zeros(6)], 5, 5)


def test_logits_of_other_lengths_are_refused():
    features = make_features([(0, 0, 1)], [[0, 1]])
    with pytest.raises(ValueError, match="other lengths"):
        decoded(features, [np.zeros(7)], [np.zeros(6)], 5, 5)
