"""Inputs that are pairs of texts, for next-sentence prediction: SEGMENT-PAIR and SENTENCE-PAIR.

SEGMENT-PAIR is BERT's sampling (`create_pretraining_data.py`). It goes through a document and
collects sentences until they fill an input. Then it either splits them at a random sentence into A
and B, or uses only A, draws B from a random place of another document, and continues with the
sentences after A. With probability `short_seq_prob` the inputs of a document have a random shorter
length.

SENTENCE-PAIR (Liu et al. 2019, section 4.2) does the same with single sentences: B is the sentence
after A or a random sentence of another document.

Both draw the label with probability 1/2, except if no text follows A in its document; then B is
random. Pairs that are too long are truncated as in BERT: token by token from the longer text, each
time from its start or its end with probability 1/2.

The last `</s>` of A and of B is not part of the slices, because batches add their own. The `</s>`s
between the sentences of a segment are part of them, as in fairseq's pairs. A sentence of n tokens
is a line of n + 1 tokens.

The other document is drawn uniformly from the other documents of the same shard. (BERT draws from
all documents, and gives up after ten draws of A's document.) If a shard holds a single document, B
always follows A, and an A that no text follows is left out.

Every random choice is a hash of the seed, the duplicate, the shard and the first line of A.

Letters in array names: S lines, D documents, N inputs.
"""

import array
import bisect
import dataclasses

import numpy as np

from roberta_jax.data import hashing

FOLLOWS, RANDOM = 0, 1  # BERT's labels

_STREAM = 0x70616972  # makes pairs independent of other uses of the same seed
# The purposes of random numbers, each of which has its own stream.
_SPLIT, _COIN, _DOCUMENT, _LINE, _SHORT, _TARGET, _FRONT_A, _FRONT_B = range(8)
_HALF = 1 << 31
_SHIFT = np.uint64(32)
_BITS_SET = np.array([bin(byte).count("1") for byte in range(256)], np.int64)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of one shard, without the last `</s>` of either text.

    Attributes:
      a_start: int64 [N], position of the first token of A in the shard.
      a_len: int64 [N], number of tokens of A.
      b_start: int64 [N], position of the first token of B in the shard.
      b_len: int64 [N], number of tokens of B.
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
      seed: The seed of the run.
      duplicate: The number of the sampling, from 0.
      shard: The number of the shard.
    """

    def __init__(self, seed: int, duplicate: int, shard: int):
        self._key = (_STREAM, seed, duplicate, shard)

    def bits(self, purpose: int, count: int) -> np.ndarray:
        """uint32 [count]: 32 random bits for each line or document."""
        key = hashing.fold(*self._key, purpose)
        return hashing.hash32(key, np.arange(count, dtype=np.uint32))[0]

    def heads(self, purpose: int, lines_N: np.ndarray, tosses_N: np.ndarray) -> np.ndarray:
        """Tosses a fair coin several times and counts the heads.

        Args:
          purpose: The stream of random numbers.
          lines_N: int64, the line that each count belongs to; other lines toss other coins.
          tosses_N: int64, the numbers of tosses.

        Returns:
          int64 [N], the numbers of heads.
        """
        heads_N = np.zeros(len(lines_N), np.int64)
        remaining_N = tosses_N.copy()
        word = 0
        while (active := np.flatnonzero(remaining_N > 0)).size:
            random = hashing.fold(*self._key, purpose, lines_N[active], word)
            unused_bits = np.maximum(64 - remaining_N[active], 0).astype(np.uint64)
            bytes_N8 = (random >> unused_bits).reshape(-1, 1).view(np.uint8)
            heads_N[active] += _BITS_SET[bytes_N8].sum(axis=1)
            remaining_N[active] -= 64
            word += 1
        return heads_N


def segment_pairs(
    line_ends_S: np.ndarray,
    document_ends_D: np.ndarray,
    budget: int,
    short_seq_prob: float,
    choices: Choices,
) -> Pairs:
    """Samples pairs of segments.

    Args:
      line_ends_S: int64, exclusive ends of a shard's lines, in tokens. The last line of a document
        is the blank one.
      document_ends_D: int64, exclusive ends of its documents, in tokens.
      budget: Maximum number of tokens of A and B together.
      short_seq_prob: Fraction of the documents whose inputs have a random shorter target length.
      choices: The random choices.
    """
    num_documents, num_lines = len(document_ends_D), len(line_ends_S)
    first_D, stop_D = _lines_of_documents(line_ends_S, document_ends_D)
    split, coin, random_document, random_line = (
        memoryview(choices.bits(purpose, num_lines))
        for purpose in (_SPLIT, _COIN, _DOCUMENT, _LINE)
    )
    short_D = choices.bits(_SHORT, num_documents) < round(short_seq_prob * 2**32)
    target_D = np.full(num_documents, budget)
    target_D[short_D] = 2 + _below(choices.bits(_TARGET, num_documents)[short_D], budget - 1)
    firsts, stops = memoryview(first_D), memoryview(stop_D)
    ends = memoryview(np.append(0, line_ends_S))  # line i is ends[i] to ends[i + 1]
    # For each pair the first line of A, the line after A, the same for B, and the label.
    table = array.array("q")
    for document in range(num_documents):
        target = int(target_D[document])
        line, stop = firsts[document], stops[document]
        while line < stop:
            # Collect sentences until they reach the target, or all that remain.
            collected = bisect.bisect_left(ends, ends[line] + target + 2, line + 1, stop)
            sentences = collected - line
            a_stop = line + 1
            if sentences > 1:
                a_stop += split[line] * (sentences - 1) >> 32
            if num_documents == 1:
                if sentences > 1:
                    table.extend((line, a_stop, a_stop, collected, FOLLOWS))
                line = collected
            elif sentences > 1 and coin[line] >= _HALF:
                table.extend((line, a_stop, a_stop, collected, FOLLOWS))
                line = collected
            else:
                other = random_document[line] * (num_documents - 1) >> 32
                other += other >= document  # any document but this one
                b = firsts[other]
                b += random_line[line] * (stops[other] - b) >> 32
                room = target - (ends[a_stop] - ends[line] - 1)
                b_stop = bisect.bisect_left(ends, ends[b] + room + 1, b + 1, stops[other])
                table.extend((line, a_stop, b, b_stop, RANDOM))
                line = a_stop
    table_N5 = np.frombuffer(table, np.int64) if table else np.zeros(0, np.int64)
    return _truncate(line_ends_S, table_N5.reshape(-1, 5), budget, choices)


def sentence_pairs(
    line_ends_S: np.ndarray, document_ends_D: np.ndarray, budget: int, choices: Choices
) -> Pairs:
    """Samples pairs of single sentences; the arguments are those of `segment_pairs`."""
    num_documents, num_lines = len(document_ends_D), len(line_ends_S)
    first_D, stop_D = _lines_of_documents(line_ends_S, document_ends_D)
    document_S = np.repeat(np.arange(num_documents), stop_D - first_D + 1)  # blank lines included
    index_S = np.arange(num_lines)
    has_next_S = index_S + 1 < stop_D[document_S]
    follows_S = has_next_S
    if num_documents > 1:
        follows_S = has_next_S & (choices.bits(_COIN, num_lines) >= _HALF)

    # A line is an A unless it is the B of the previous line. So among consecutive lines whose coin
    # says "follows", every second one is an A.
    last_random_S = np.maximum.accumulate(np.where(follows_S, -1, index_S))
    previous_S = np.append(-1, last_random_S[:-1])  # the last earlier line that says "random"
    is_a_S = (index_S - previous_S) % 2 == 1
    is_a_S[stop_D] = False
    if num_documents == 1:
        is_a_S &= follows_S
    a = np.flatnonzero(is_a_S)
    follows = follows_S[a]

    other = np.zeros(len(a), np.int64)
    if num_documents > 1:
        other = _below(choices.bits(_DOCUMENT, num_lines)[a], num_documents - 1)
        other += other >= document_S[a]  # any document but A's
    in_document = _below(choices.bits(_LINE, num_lines)[a], (stop_D - first_D)[other])
    b = np.where(follows, a + 1, first_D[other] + in_document)
    label = np.where(follows, FOLLOWS, RANDOM)
    table_N5 = np.stack([a, a + 1, b, b + 1, label], axis=1)
    return _truncate(line_ends_S, table_N5, budget, choices)


def _lines_of_documents(line_ends_S, document_ends_D) -> tuple[np.ndarray, np.ndarray]:
    """(first, stop) int64 [D]: the range of each document's lines, without the blank one."""
    stop_D = np.searchsorted(line_ends_S, document_ends_D)
    return np.append(0, stop_D[:-1] + 1), stop_D


def _below(bits: np.ndarray, limit) -> np.ndarray:
    """int64: maps 32 random bits to [0, limit)."""
    limit = np.asarray(limit).astype(np.uint64)
    return ((bits.astype(np.uint64) * limit) >> _SHIFT).astype(np.int64)


def _truncate(line_ends_S, table_N5, budget: int, choices: Choices) -> Pairs:
    """Converts pairs of line ranges to pairs of tokens, truncated to the budget."""
    ends = np.append(0, line_ends_S)
    a, a_stop, b, b_stop, label = table_N5.T
    a_start, b_start = ends[a], ends[b]
    a_len, b_len = ends[a_stop] - a_start - 1, ends[b_stop] - b_start - 1
    # BERT's `truncate_seq_pair` shortens the longer text until both have the same length, and then
    # both in turn, B first.
    excess = np.maximum(a_len + b_len - budget, 0)
    from_longer = np.minimum(excess, np.abs(a_len - b_len))
    rest = excess - from_longer
    cut_a = rest // 2 + np.where(a_len > b_len, from_longer, 0)
    cut_b = excess - cut_a
    a_start = a_start + choices.heads(_FRONT_A, a, cut_a)
    b_start = b_start + choices.heads(_FRONT_B, a, cut_b)
    truncated = Pairs(a_start, a_len - cut_a, b_start, b_len - cut_b, label.astype(np.int8))
    is_valid = (truncated.a_len > 0) & (truncated.b_len > 0)
    return Pairs(**{name: values[is_valid] for name, values in vars(truncated).items()})
