"""Tests the overlap of held-out documents with training text against sets of tuples."""

import numpy as np
import pytest

from roberta_jax.data.store import overlap
from roberta_jax.data.store.overlap import SHINGLE_LENGTH, overlap_with_training

EOS = 2


def openers(shards):
    return [lambda shard=shard: shard for shard in shards]


def reference(shards, documents):
    def shingles(ids):
        ids = [int(i) for i in ids if i != EOS]
        return [tuple(ids[i : i + SHINGLE_LENGTH]) for i in range(len(ids) - SHINGLE_LENGTH + 1)]

    known = {shingle for shard in shards for shingle in shingles(shard)}
    return [
        float(np.mean([shingle in known for shingle in shingles(ids)])) if shingles(ids) else 0.0
        for ids in documents
    ]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("chunk", [1 << 20, 100, 7])
@pytest.mark.parametrize("workers", [1, 3])
def test_overlap_equals_the_reference(monkeypatch, dtype, chunk, workers):
    monkeypatch.setattr(overlap, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    shards = [rng.integers(2, 30, length).astype(dtype) for length in (1000, 12, 0, 700)]
    documents = [
        shards[0][100:200],  # a copy
        np.concatenate([shards[3][50:90], rng.integers(2, 30, 60).astype(dtype)]),  # partly new
        np.insert(shards[0][300:350], [10, 20, 20], EOS),  # other sentence ends
        rng.integers(2, 30, 80).astype(dtype),  # new
        shards[0][:5],  # shorter than a shingle
        np.concatenate([shards[0][-8:], shards[3][:8]]),  # only across the end of a shard
        shards[1],
    ]
    expected = reference(shards, documents)
    assert expected[0] == 1
    assert 0.1 < expected[1] < 0.5
    assert expected[2] == 1
    assert expected[3:6] == [0, 0, 0]
    assert overlap_with_training(openers(shards), documents, EOS, workers).tolist() == expected


def test_overlap_without_text_is_0():
    document = np.arange(3, 40, dtype=np.uint16)
    assert overlap_with_training([], [document], EOS).tolist() == [0]
    assert overlap_with_training(openers([document]), [], EOS).tolist() == []
    assert overlap_with_training(openers([document]), [document[:3]], EOS).tolist() == [0]
