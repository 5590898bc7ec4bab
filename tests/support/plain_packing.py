"""Reference implementations of packing in plain Python, one line at a time.

A line is given by its number of tokens, `</s>` included, and a document by its lines without the
final blank one. Inputs are `(start, length)` and pairs are `Pair`, in tokens from the start of the
shard.
"""

import itertools
from typing import NamedTuple

import numpy as np

from roberta_jax.data import hashing
from roberta_jax.data.packing import pairs


def line_ends(documents):
    """(line_ends, document_ends) of documents, with a blank line at the end of each."""
    lines = [length for document in documents for length in [*document, 1]]
    tokens = [sum(document) + 1 for document in documents]
    return np.cumsum(lines, dtype=np.int64), np.cumsum(tokens, dtype=np.int64)


def pieces(length, block):
    """The lengths of the pieces of a line, which is cut if it is longer than an input."""
    return [block] * ((length - 1) // block) + [(length - 1) % block + 1]


def full_sentences(line_lengths, block):
    """fairseq's `complete`, but long lines are cut."""
    inputs, start, size = [], 0, 0
    for length in itertools.chain.from_iterable(pieces(n, block) for n in line_lengths):
        if size + length > block:
            inputs.append((start, size))
            start, size = start + size, 0
        size += length
    return [*inputs, (start, size)]


def doc_sentences(documents, block):
    """fairseq's `complete_doc`, but long lines are cut. Blank lines are in no input."""
    inputs, start, size = [], 0, 0
    for document in documents:
        for length in itertools.chain.from_iterable(pieces(n, block) for n in document):
            if size + length > block:
                inputs.append((start, size))
                start, size = start + size, 0
            size += length
        inputs.append((start, size))
        start, size = start + size + 1, 0
    return inputs


def sentences(documents, block):
    """fairseq's `eos` without blank lines, but long lines are cut."""
    inputs, start = [], 0
    for document in documents:
        for length in itertools.chain.from_iterable(pieces(n, block) for n in document):
            inputs.append((start, length))
            start += length
        start += 1
    return inputs


class Pair(NamedTuple):
    a_start: int
    a_len: int
    b_start: int
    b_len: int
    label: int
    had_choice: bool  # whether the label was drawn at random


class Sampler:
    """The random numbers of `pairs.Choices`, one at a time."""

    def __init__(self, documents, seed=0, duplicate=0, shard=0):
        self._key = (pairs._STREAM, seed, duplicate, shard)
        choices = pairs.Choices(seed, duplicate, shard)
        lines = sum(len(document) + 1 for document in documents)
        self._bits = {purpose: choices.bits(purpose, lines).tolist() for purpose in range(6)}

    def chance(self, purpose, number):
        return self._bits[purpose][number] / 2**32

    def below(self, purpose, number, limit):
        return self._bits[purpose][number] * limit // 2**32

    def tosses(self, purpose, line):
        """An endless series of coin tosses: the bits of successive hashes, highest bit first."""
        for word in itertools.count():
            bits = int(hashing.fold(*self._key, purpose, line, word)[0])
            yield from (bool(bits >> place & 1) for place in range(63, -1, -1))


def truncate(a, b, budget, sampler, line):
    """BERT's `truncate_seq_pair`: shortens the ranges a and b until both fit."""
    a, b = list(a), list(b)
    coins = {
        0: sampler.tosses(pairs._FRONT_A, line),
        1: sampler.tosses(pairs._FRONT_B, line),
    }
    while (a[1] - a[0]) + (b[1] - b[0]) > budget:
        number = 0 if a[1] - a[0] > b[1] - b[0] else 1
        cut = (a, b)[number]
        if next(coins[number]):
            cut[0] += 1
        else:
            cut[1] -= 1
    return a, b


def segment_pairs(documents, budget, short_seq_prob, sampler):
    """BERT's `create_instances_from_document`, over all documents of a shard."""
    first_lines, starts = _places(documents)
    sampled = []
    for number, document in enumerate(documents):
        target = budget
        if sampler.chance(pairs._SHORT, number) < short_seq_prob:
            target = 2 + sampler.below(pairs._TARGET, number, budget - 1)
        line, chunk = 0, []
        while line < len(document):
            chunk.append(line)
            # The last `</s>` of A and of B does not count.
            gathered = sum(document[i] for i in chunk) - 2
            if line == len(document) - 1 or gathered >= target:
                opening = first_lines[number] + chunk[0]
                in_a = 1
                if len(chunk) >= 2:
                    in_a = 1 + sampler.below(pairs._SPLIT, opening, len(chunk) - 1)
                a = _span(starts[number], document, chunk[0], chunk[0] + in_a)
                had_choice = len(chunk) > 1 and len(documents) > 1
                follows = len(chunk) > 1
                if had_choice:
                    follows = sampler.chance(pairs._COIN, opening) >= 0.5
                b = None
                if follows:
                    label = 0
                    b = _span(starts[number], document, chunk[0] + in_a, chunk[-1] + 1)
                elif len(documents) > 1:
                    label = 1
                    other = sampler.below(pairs._DOCUMENT, opening, len(documents) - 1)
                    other += other >= number
                    room = target - (a[1] - a[0])
                    begin = sampler.below(pairs._LINE, opening, len(documents[other]))
                    end = begin
                    while True:
                        end += 1
                        b = _span(starts[other], documents[other], begin, end)
                        if b[1] - b[0] >= room or end == len(documents[other]):
                            break
                    line -= len(chunk) - in_a  # the unused sentences are used again
                if b is not None:
                    a, b = truncate(a, b, budget, sampler, opening)
                    sampled.append(_pair(a, b, label, had_choice))
                chunk = []
            line += 1
    return sampled


def sentence_pairs(documents, budget, sampler):
    """Each sentence with the next one or a random one of another document."""
    first_lines, starts = _places(documents)
    sampled = []
    for number, document in enumerate(documents):
        line = 0
        while line < len(document):
            opening = first_lines[number] + line
            a = _span(starts[number], document, line, line + 1)
            has_next = line + 1 < len(document)
            had_choice = has_next and len(documents) > 1
            if has_next and (len(documents) == 1 or sampler.chance(pairs._COIN, opening) >= 0.5):
                b = _span(starts[number], document, line + 1, line + 2)
                sampled.append(_pair(*truncate(a, b, budget, sampler, opening), 0, had_choice))
                line += 1
            elif len(documents) > 1:
                other = sampler.below(pairs._DOCUMENT, opening, len(documents) - 1)
                other += other >= number
                other_line = sampler.below(pairs._LINE, opening, len(documents[other]))
                b = _span(starts[other], documents[other], other_line, other_line + 1)
                sampled.append(_pair(*truncate(a, b, budget, sampler, opening), 1, had_choice))
            line += 1
    return sampled


def assert_true_pairs(line_ends, document_ends, budget, a_start, a_len, b_start, b_len, label):
    """Checks that pairs fit, lie within documents and agree with their labels."""
    assert a_len.min(initial=1) >= 1
    assert b_len.min(initial=1) >= 1
    assert (a_len + b_len).max(initial=0) <= budget
    document_a = np.searchsorted(document_ends, a_start, side="right")
    document_b = np.searchsorted(document_ends, b_start, side="right")
    # Neither text crosses the end of a document or holds the `</s>` of its last line.
    assert (a_start + a_len <= document_ends[document_a] - 2).all()
    assert (b_start + b_len <= document_ends[document_b] - 2).all()
    follows = label == pairs.FOLLOWS
    assert (document_a == document_b)[follows].all()
    assert (document_a != document_b)[~follows].all()
    # A text that follows starts with the line after A. Only the `</s>` of A is in between, unless
    # the pair was truncated.
    a_end, b_start = (a_start + a_len)[follows], b_start[follows]
    line_starts = np.append(0, line_ends[:-1])
    assert (line_starts[np.searchsorted(line_starts, a_end + 1)] <= b_start).all()
    uncut = (a_len + b_len)[follows] < budget
    assert (b_start - a_end == 1)[uncut].all()


def _places(documents):
    """(first lines, first tokens) of the documents."""
    first_lines = np.cumsum([0] + [len(document) + 1 for document in documents]).tolist()
    starts = np.cumsum([0] + [sum(document) + 1 for document in documents]).tolist()
    return first_lines, starts


def _span(start, document, first, stop):
    """(start, end) of consecutive lines without the last `</s>`."""
    return start + sum(document[:first]), start + sum(document[:stop]) - 1


def _pair(a, b, label, had_choice):
    return Pair(a[0], a[1] - a[0], b[0], b[1] - b[0], label, had_choice)
