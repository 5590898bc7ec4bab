"""The n-gram baselines, compared with plain Python on small corpora."""

import collections
import math

import numpy as np
import pytest

from roberta_jax.data.pipeline import eval_batches
from roberta_jax.data.store.token_store import write_store
from roberta_jax.pretraining import ngrams
from roberta_jax.pretraining.ngrams import NgramModels, eval_targets, ngram_perplexities
from tests.support.toy_corpus import BOS, EOS, VOCAB, make_dataset, make_store, share_rows


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return make_store(folder / "train", seed=0), make_store(folder / "heldout", 10, seed=1)


def inputs_of(dataset):
    """Yields the tokens of every input, which start with `<s>`, as lists."""
    batch = dataset.assemble(np.arange(dataset.num_rows))
    for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
        for number in range(1, segments.max() + 1):
            yield ids[segments == number].tolist()


@pytest.fixture(params=["one input", "shared"])
def datasets(request, stores):
    if request.param == "one input":
        return [make_dataset(store, 32) for store in stores]
    return [make_dataset(store, packed=share_rows(store, 48)) for store in stores]


def test_counts(datasets, monkeypatch):
    monkeypatch.setattr(ngrams, "_CHUNK_TOKENS", 500)  # adds up many tables
    models = NgramModels.count(datasets[0])
    unigrams, bigrams = collections.Counter(), collections.Counter()
    for tokens in inputs_of(datasets[0]):
        unigrams.update(tokens)
        bigrams.update(zip([VOCAB, *tokens], tokens, strict=False))
    assert models.unigrams.tolist() == [unigrams[i] for i in range(VOCAB)]
    pair_counts = dict(zip(models.pairs.tolist(), models.pair_counts.tolist(), strict=True))
    assert pair_counts == {left * VOCAB + right: n for (left, right), n in bigrams.items()}
    assert (np.diff(models.pairs) > 0).all()
    assert unigrams[BOS] == bigrams[VOCAB, BOS]  # every row starts with <s>


def test_perplexities_by_the_formulas(datasets):
    train, heldout = datasets
    perplexities = ngram_perplexities(train, heldout, seed=4)

    unigrams, bigrams = collections.Counter(), collections.Counter()
    for tokens in inputs_of(train):
        unigrams.update(tokens)
        bigrams.update(zip([VOCAB, *tokens], tokens, strict=False))
    count_of_left, types_of_left, types_of_right = (collections.Counter() for _ in range(3))
    for (left, right), count in bigrams.items():
        count_of_left[left] += count
        types_of_left[left] += 1
        types_of_right[right] += 1
    types_with_count = collections.Counter(bigrams.values())
    discount = types_with_count[1] / (types_with_count[1] + 2 * types_with_count[2])

    def unigram(token):
        return (unigrams[token] + 1) / (sum(unigrams.values()) + VOCAB)

    def bigram(token, left):
        lower = (types_of_right[token] + 1) / (len(bigrams) + VOCAB)
        total = count_of_left[left]
        if not total:
            return lower
        discounted = max(bigrams[left, token] - discount, 0) / total
        return discounted + discount * types_of_left[left] / total * lower

    logs = [0.0, 0.0]
    num_targets = 0
    for targets, lefts in eval_targets(heldout, seed=4):
        for token, left in zip(targets.tolist(), lefts.tolist(), strict=True):
            logs[0] += math.log(unigram(token))
            logs[1] += math.log(bigram(token, left))
            num_targets += 1
    assert perplexities == {
        "unigram": pytest.approx(math.exp(-logs[0] / num_targets), rel=1e-10),
        "bigram": pytest.approx(math.exp(-logs[1] / num_targets), rel=1e-10),
    }


@pytest.mark.parametrize("batch_size", [3, 16])
@pytest.mark.parametrize("max_rows", [None, 7])
def test_targets_are_those_of_the_evaluation(datasets, batch_size, max_rows, monkeypatch):
    monkeypatch.setattr(ngrams, "_CHUNK_TOKENS", 200)
    dataset = datasets[1]
    parts = list(eval_targets(dataset, seed=4, max_rows=max_rows))
    targets, left = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    batches = eval_batches(
        dataset, batch_size=batch_size, seed=4, max_rows=max_rows, engine="numpy"
    )
    expected = [batch["masked_labels"][batch["masked_weights"] > 0] for batch in batches]
    assert np.array_equal(targets, np.concatenate(expected))
    assert (left[targets == BOS] == VOCAB).all()  # the <s> of a row has no left neighbour
    assert (left[targets != BOS] < VOCAB).all()


def test_left_neighbours(tmp_path):
    """In this text each token determines its left neighbour."""
    store = write_store(tmp_path, [[list(range(4, 64))], [list(range(4, 64))]], VOCAB)
    dataset = make_dataset(store, 16, rate=0.5)
    lefts = collections.defaultdict(set)
    for seed in range(20):
        for targets, left in eval_targets(dataset, seed=seed):
            for token, neighbour in zip(targets.tolist(), left.tolist(), strict=True):
                lefts[token].add(neighbour)
    for token in range(5, 64):
        assert lefts[token] <= {token - 1, BOS}  # <s> where a row starts with it
    assert lefts[BOS] == {VOCAB}
    assert lefts[EOS] <= {63, EOS, BOS}


def test_bigram_probabilities_sum_to_one(datasets):
    models = NgramModels.count(datasets[0])
    tokens = np.arange(VOCAB)
    bigram = ngrams._Bigram(models)
    for left in (BOS, EOS, 10, VOCAB):
        assert bigram(tokens, np.full(VOCAB, left)).sum() == pytest.approx(1)
    assert bigram(np.array([BOS]), np.array([VOCAB]))[0] > 0.98


def test_a_text_that_a_bigram_model_predicts(tmp_path):
    """Every token determines the next one."""
    documents = [[list(range(4, 104))] for _ in range(30)]
    store = write_store(tmp_path, documents, VOCAB)
    dataset = make_dataset(store, 128)
    perplexities = ngram_perplexities(dataset, dataset, seed=0)
    assert perplexities["bigram"] < 1.1
    assert 90 < perplexities["unigram"] < 105


def test_max_tokens_limits_the_counts(datasets):
    models = NgramModels.count(datasets[0], max_tokens=10 * datasets[0].seq_len)
    assert models.pair_counts.sum() <= 10 * datasets[0].seq_len
    assert models.unigrams[BOS] >= 10  # ten rows


def test_no_targets():
    models = NgramModels(np.ones(5, np.int64), np.array([3]), np.array([1]))
    assert all(math.isnan(value) for value in models.perplexities([]).values())
