"""A small vocabulary, rows of its ids and maskers, for tests of masking.

Letters in array names as in the modules: B rows, L positions, M inputs in a row, K slots.
"""

import itertools

import numpy as np
from hypothesis import strategies as st

from roberta_jax.data.hashing import fold
from roberta_jax.data.masking import Masker, Masking
from roberta_jax.data.masking_schemes import input_numbers

VOCAB, MASK_ID, SPECIALS = 60, 59, (0, 1, 2, 3, 59)
# Special tokens start a word, and every third of the tokens 4 to 58.
WORD_STARTS = np.isin(np.arange(VOCAB), SPECIALS) | (np.arange(VOCAB) % 3 == 0)


def make_masker(seq_len, max_inputs=1, **options):
    return Masker(
        Masking(**options),
        seq_len=seq_len,
        max_inputs=max_inputs,
        vocab_size=VOCAB,
        mask_id=MASK_ID,
        pad_id=1,
        special_ids=SPECIALS,
        word_starts=WORD_STARTS,
    )


def make_rows(rng, lengths_BM, seq_len, end_share=0.1):
    """Random rows: each input is `<s>`, then tokens from 4 to 58 and some `</s>`."""
    num_rows = len(lengths_BM)
    ids_BL = rng.integers(4, MASK_ID, (num_rows, seq_len)).astype(np.int32)
    ids_BL[rng.random(ids_BL.shape) < end_share] = 2
    inputs_BL = input_numbers(lengths_BM, seq_len)
    ids_BL[np.diff(inputs_BL, axis=1, prepend=-1) != 0] = 0
    ids_BL[inputs_BL == lengths_BM.shape[1]] = 1
    return ids_BL


def mask(masker, ids_BL, lengths_BM, seed=0):
    """(masked ids, positions, labels, weights); `ids_BL` is not changed."""
    masked_BL = ids_BL.copy()
    keys_B = fold(seed, np.arange(len(ids_BL)))
    return masked_BL, *masker(keys_B, masked_BL, np.asarray(lengths_BM, np.int64))


def chosen(positions_BK, weights_BK, seq_len):
    """bool [B, L]: True for positions that are predicted."""
    chosen_BL = np.zeros((len(positions_BK), seq_len), bool)
    rows, slots = np.nonzero(weights_BK)
    chosen_BL[rows, positions_BK[rows, slots]] = True
    return chosen_BL


def words_of(ids, length):
    """The words of one input that starts at 0, as slices, in plain Python."""
    starts = [
        i
        for i in range(length)
        if i == 0 or WORD_STARTS[ids[i]] or ids[i] in SPECIALS or ids[i - 1] in SPECIALS
    ]
    return [slice(*ends) for ends in itertools.pairwise([*starts, length])]


@st.composite
def layouts(draw):
    """(seed, ids, lengths of the inputs) of 7 rows, some of them with few, short or no inputs."""
    max_inputs, seq_len = draw(st.integers(1, 5)), draw(st.integers(2, 40))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    lengths_BM = np.zeros((7, max_inputs), np.int64)
    for row in lengths_BM:
        room = seq_len
        for i in range(draw(st.integers(0, max_inputs))):
            row[i] = rng.integers(0, room + 1)
            room -= row[i]
            if not row[i]:
                break
    return seed, make_rows(rng, lengths_BM, seq_len), lengths_BM
