"""The scores of held-out text."""

import math

import pytest

from roberta_jax import weights
from roberta_jax.data.pipeline import eval_batches
from roberta_jax.pretraining.datasets import model_inputs, validation_datasets
from roberta_jax.pretraining.evaluation import Evaluation, summary
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.pretraining.text import prepare


@pytest.fixture(scope="module")
def spec(four_steps):
    return read_spec(four_steps())


@pytest.fixture(scope="module")
def datasets(spec):
    prepared = prepare(spec.text, progress=False)
    return validation_datasets(spec, prepared, token_types=False)


def test_the_recorded_loss_is_that_of_the_exported_model(finished_run, datasets):
    """The held-out loss is recomputed from the exported folder, with another batch size."""
    model, params = weights.from_pretrained(finished_run.workdir)
    total = count = 0.0
    for batch in eval_batches(datasets["full"], batch_size=64, seed=0, engine="numpy"):
        batch = model_inputs(batch, datasets["full"].max_inputs)
        total += float(model.apply({"params": params}, **batch, method="loss")["masked_lm"])
        count += float(model.count(**batch)["masked_lm"])
    assert total / count == pytest.approx(finished_run.metrics["eval_loss"], rel=1e-5)


def test_it_ends_early_on_request(finished_run, spec, datasets):
    model, params = weights.from_pretrained(finished_run.workdir)
    evaluate = Evaluation(spec, model, datasets)
    scores = evaluate(params, lambda: False)
    assert scores == {
        "eval_loss": pytest.approx(finished_run.metrics["eval_loss"], rel=1e-5),
        "eval_perplexity": pytest.approx(math.exp(scores["eval_loss"])),
    }
    assert evaluate(params, lambda: True) is None


def test_summary():
    metrics = {"eval_loss": 3.7, "eval_perplexity": 40.447}
    assert summary(metrics) == "perplexity 40.45"
    metrics |= {"unigram_perplexity": 713.6, "bigram_perplexity": 109.31}
    assert summary(metrics) == "perplexity 40.45 (unigram 713.60, bigram 109.31)"
    metrics |= {"eval_short_perplexity": 51.0, "next_sentence_accuracy": 0.6789}
    assert summary(metrics) == (
        "perplexity 40.45, on single sentences 51.00, next-sentence accuracy 67.9% "
        "(unigram 713.60, bigram 109.31)"
    )
