"""Inputs that are pairs, for next-sentence prediction: SEGMENT-PAIR and SENTENCE-PAIR.

SEGMENT-PAIR is BERT's own sampling (`create_pretraining_data.py`): go through a document, gather
sentences until they fill an input, split them at random into A and B; or keep A alone, take B from
a random place of another document, and put the rest of what was gathered back. With probability
`short_seq_prob` a document's inputs are to be of a random shorter length. SENTENCE-PAIR (Liu et al.
2019, section 4.2) does the same with single sentences: B is the sentence after A, or any sentence
of another document. Both halve the cases by a coin, except where nothing follows A in its document:
there B must come from another. What is too long is cut as in BERT: token by token off the longer of
the two, from its front or its back by a coin.

The last `</s>` of A and of B is left out here, since the format puts its own; those between the
sentences of a segment stay, as in fairseq's pairs. So a "sentence" of length n below is a line of
n + 1 tokens.

The other document is drawn from the same shard, all documents but A's alike likely. (BERT gives up
after ten draws of the same one.) A shard that holds a single document has no other: there B always
follows A, and what nothing follows is left out.

Every choice is a hash of the seed, the duplicate, the shard and the line that A begins with.

Letters in array names: S lines, D documents, N inputs.
"""

import array
import bisect
import dataclasses

import numpy as np

from roberta_jax.data import hashing

FOLLOWS, RANDOM = 0, 1  # BERT's labels: whether B is random

_STREAM = 0x70616972  # keeps pairs apart from every other use of the same seed
_SPLIT, _COIN, _DOCUMENT, _LINE, _SHORT, _TARGET, _FRONT_A, _FRONT_B = range(8)
_HALF = 1 << 31
_SHIFT = np.uint64(32)
_BITS_SET = np.array([bin(byte).count("1") for byte in range(256)], np.int64)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of one shard: starts and lengths within it, without `</s>` at the end.

    Attributes:
      a_start, a_len, b_start, b_len: int64 [N].
      label: int8 [N], FOLLOWS or RANDOM.
    """

    a_start: np.ndarray
    a_len: np.ndarray
    b_start: np.ndarray
    b_len: np.ndarray
    label: np.ndarray


class Choices:
    """The random choices of one sampling of one shard.

    Args:
      seed: of the run.
      duplicate: which sampling of the corpus, from 0.
      shard: its number.
    """

    def __init__(self, seed: int, duplicate: int, shard: int):
        self._about = (_STREAM, seed, duplicate, shard)

    def bits(self, purpose: int, count: int) -> np.ndarray:
        """uint32 [count]: for each line, or document, 32 random bits."""
        key = hashing.fold(*self._about, purpose)
        return hashing.hash32(key, np.arange(count, dtype=np.uint32))[0]

    def heads(self, purpose: int, about_N: np.ndarray, tosses_N: np.ndarray) -> np.ndarray:
        """int64 [N]: how many of so many tosses of a coin were heads; `about` tells them apart."""
        heads_N = np.zeros(len(about_N), np.int64)
        left_N = tosses_N.copy()
        word = 0
        while (mine := np.flatnonzero(left_N > 0)).size:
            random = hashing.fold(*self._about, purpose, about_N[mine], word)
            shorter = np.maximum(64 - left_N[mine], 0).astype(np.uint64)
            bytes_N8 = (random >> shorter).reshape(-1, 1).view(np.uint8)
            heads_N[mine] += _BITS_SET[bytes_N8].sum(axis=1)
            left_N[mine] -= 64
            word += 1
        return heads_N


def segment_pairs(
    line_ends_S: np.ndarray,
    document_ends_D: np.ndarray,
    budget: int,
    short_seq_prob: float,
    choices: Choices,
) -> Pairs:
    """BERT's pairs of segments.

    Args:
      line_ends_S: int64, exclusive ends of a shard's lines in tokens; the blank one that closes a
        document is its last.
      document_ends_D: int64, exclusive ends of its documents.
      budget: the most tokens of A and B together.
      short_seq_prob: share of the documents with a random shorter target.
      choices: where randomness comes from.
    """
    num_documents, num_lines = len(document_ends_D), len(line_ends_S)
    first_D, stop_D = _lines_of_documents(line_ends_S, document_ends_D)
    split, coin, other, line_of = (
        memoryview(choices.bits(purpose, num_lines))
        for purpose in (_SPLIT, _COIN, _DOCUMENT, _LINE)
    )
    short_D = choices.bits(_SHORT, num_documents) < round(short_seq_prob * 2**32)
    target_D = np.full(num_documents, budget)
    target_D[short_D] = 2 + _below(choices.bits(_TARGET, num_documents)[short_D], budget - 1)
    firsts, stops = memoryview(first_D), memoryview(stop_D)
    ends = memoryview(np.append(0, line_ends_S))  # line i is ends[i] to ends[i + 1]
    found = array.array("q")  # for each pair the lines a, a', b, b' (exclusive) and the label
    for document in range(num_documents):
        target = int(target_D[document])
        line, stop = firsts[document], stops[document]
        while line < stop:
            # As many sentences as reach the target, or all that are left.
            enough = bisect.bisect_left(ends, ends[line] + target + 2, line + 1, stop)
            sentences = enough - line
            a_stop = line + 1
            if sentences > 1:
                a_stop += split[line] * (sentences - 1) >> 32
            if num_documents == 1:
                if sentences > 1:
                    found.extend((line, a_stop, a_stop, enough, FOLLOWS))
                line = enough
            elif sentences > 1 and coin[line] >= _HALF:
                found.extend((line, a_stop, a_stop, enough, FOLLOWS))
                line = enough
            else:
                there = other[line] * (num_documents - 1) >> 32
                there += there >= document  # any but this one
                begin = firsts[there]
                begin += line_of[line] * (stops[there] - begin) >> 32
                wanted = target - (ends[a_stop] - ends[line] - 1)
                end = bisect.bisect_left(ends, ends[begin] + wanted + 1, begin + 1, stops[there])
                found.extend((line, a_stop, begin, end, RANDOM))
                line = a_stop
    table = np.frombuffer(found, np.int64).reshape(-1, 5) if found else np.zeros((0, 5), np.int64)
    return _cut(line_ends_S, table, budget, choices)


def sentence_pairs(
    line_ends_S: np.ndarray, document_ends_D: np.ndarray, budget: int, choices: Choices
) -> Pairs:
    """Pairs of single sentences; arguments as for `segment_pairs`."""
    num_documents, num_lines = len(document_ends_D), len(line_ends_S)
    first_D, stop_D = _lines_of_documents(line_ends_S, document_ends_D)
    document_S = np.repeat(np.arange(num_documents), stop_D - first_D + 1)  # the blank one, too
    number_S = np.arange(num_lines)
    has_next_S = number_S + 1 < stop_D[document_S]
    follows_S = has_next_S
    if num_documents > 1:
        follows_S = has_next_S & (choices.bits(_COIN, num_lines) >= _HALF)

    # A line is an A unless it was used up as the B of the line before: in a run of lines whose
    # coin says "follows", every second one.
    last_other_S = np.maximum.accumulate(np.where(follows_S, -1, number_S))
    before_S = np.append(-1, last_other_S[:-1])  # the last line before that does not
    is_a_S = (number_S - before_S) % 2 == 1
    is_a_S[stop_D] = False
    if num_documents == 1:
        is_a_S &= follows_S
    a = np.flatnonzero(is_a_S)
    follows = follows_S[a]

    there = np.zeros(len(a), np.int64)
    if num_documents > 1:
        there = _below(choices.bits(_DOCUMENT, num_lines)[a], num_documents - 1)
        there += there >= document_S[a]
    in_document = _below(choices.bits(_LINE, num_lines)[a], (stop_D - first_D)[there])
    b = np.where(follows, a + 1, first_D[there] + in_document)
    label = np.where(follows, FOLLOWS, RANDOM)
    table = np.stack([a, a + 1, b, b + 1, label], axis=1)
    return _cut(line_ends_S, table, budget, choices)


def _lines_of_documents(line_ends_S, document_ends_D) -> tuple[np.ndarray, np.ndarray]:
    """(first, stop) int64 [D]: the numbers of a document's lines, without the blank one."""
    stop_D = np.searchsorted(line_ends_S, document_ends_D)
    return np.append(0, stop_D[:-1] + 1), stop_D


def _below(bits: np.ndarray, limit) -> np.ndarray:
    """int64: from 32 random bits to [0, limit)."""
    limit = np.asarray(limit).astype(np.uint64)
    return ((bits.astype(np.uint64) * limit) >> _SHIFT).astype(np.int64)


def _cut(line_ends_S, table_N5, budget: int, choices: Choices) -> Pairs:
    """From lines to tokens, with what is beyond the budget cut off."""
    ends = np.append(0, line_ends_S)
    a, a_stop, b, b_stop, label = table_N5.T
    a_start, b_start = ends[a], ends[b]
    a_len, b_len = ends[a_stop] - a_start - 1, ends[b_stop] - b_start - 1
    # Off the longer one until they are equal; then in turn, B first (BERT's `truncate_seq_pair`).
    over = np.maximum(a_len + b_len - budget, 0)
    from_longer = np.minimum(over, np.abs(a_len - b_len))
    rest = over - from_longer
    off_a = rest // 2 + np.where(a_len > b_len, from_longer, 0)
    off_b = over - off_a
    a_start = a_start + choices.heads(_FRONT_A, a, off_a)
    b_start = b_start + choices.heads(_FRONT_B, a, off_b)
    found = Pairs(a_start, a_len - off_a, b_start, b_len - off_b, label.astype(np.int8))
    kept = (found.a_len > 0) & (found.b_len > 0)
    return Pairs(**{key: value[kept] for key, value in vars(found).items()})
