"""The metrics of a language model, with intervals from a bootstrap over the documents.

A metric is a ratio of two sums over documents, such as nats per token, or e to its power. So it is
computed again for any sample of documents from their sums.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
_CHUNK = 1 << 22  # numbers that a part of the bootstrap draws at once


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a model on a set of documents.

    Attributes:
      title: how tables call it.
      numerator, denominator: names of the sums of a document, see `evaluation.ModelScores.sums`.
      is_exponential: whether it is e to the power of the ratio.
      is_share: whether it is a share, which tables show in per cent.
      per_word: whether models with different tokenizers have it on one scale.
    """

    title: str
    numerator: str
    denominator: str
    is_exponential: bool = False
    is_share: bool = False
    per_word: bool = False


MASKED_METRICS: dict[str, Metric] = {
    "masked_loss": Metric("loss, nats per masked token", "masked_loss", "masked_targets"),
    "masked_perplexity": Metric("perplexity", "masked_loss", "masked_targets", is_exponential=True),
    "accuracy_at_1": Metric("accuracy at 1", "masked_top1", "masked_targets", is_share=True),
    "accuracy_at_5": Metric("accuracy at 5", "masked_top5", "masked_targets", is_share=True),
}
PSEUDO_METRICS: dict[str, Metric] = {
    "pseudo_loss": Metric("loss, nats per token", "pseudo_loss", "pseudo_targets"),
    "pseudo_perplexity": Metric(
        "pseudo-perplexity", "pseudo_loss", "pseudo_targets", is_exponential=True
    ),
    "pseudo_loss_per_word": Metric(
        "loss, nats per word", "pseudo_loss", "pseudo_words", per_word=True
    ),
    "pseudo_perplexity_per_word": Metric(
        "pseudo-perplexity per word",
        "pseudo_loss",
        "pseudo_words",
        is_exponential=True,
        per_word=True,
    ),
}
METRICS = MASKED_METRICS | PSEUDO_METRICS

# The sums of each document, float64 or int64 [D]; see `Metric`.
Sums = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its interval.

    Attributes:
      value: the value on all documents.
      low, high: the ends of the 95% interval; None for both with a single document.
    """

    value: float
    low: float | None
    high: float | None


def metrics_of(sums: Sums) -> list[str]:
    """The names of the metrics for which the sums are there."""
    return [name for name, metric in METRICS.items() if metric.numerator in sums]


def estimates(models: Sequence[Sums], names: Sequence[str], seed: int = 0) -> list[dict]:
    """Metrics of models on the same documents, with 95% percentile bootstrap intervals.

    All models, and so their differences, are computed on the same resamples of the documents.
    Documents without a target (sums of 0) do not take part.

    Args:
      models: the sums of each model.
      names: keys of `METRICS`.
      seed: of the resamples.

    Returns:
      {name: Estimate} of each model; and of two models, a third one: that of the second minus the
      first.
    """
    results: list[dict[str, Estimate]] = [{} for _ in range(3 if len(models) == 2 else len(models))]
    for name in names:
        metric = METRICS[name]
        columns = [sums[part] for sums in models for part in (metric.numerator, metric.denominator)]
        table = np.stack(columns, 1).astype(np.float64)
        table = table[(table[:, 1::2] > 0).any(1)]
        values = _values(metric, table.sum(0))
        samples = _values(metric, _resampled_sums(table, seed)) if len(table) > 1 else None
        for number, result in enumerate(results):
            of_samples = None if samples is None else samples[:, number]
            result[name] = _estimate(float(values[number]), of_samples)
    return results


def _values(metric: Metric, sums: np.ndarray) -> np.ndarray:
    """[..., 2 * models] sums to the models' values [..., models], and a difference for two."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        values = sums[..., ::2] / sums[..., 1::2]
        if metric.is_exponential:
            values = np.exp(values)
        if values.shape[-1] == 2:
            values = np.concatenate([values, values[..., 1:] - values[..., :1]], -1)
    return values


def _resampled_sums(table: np.ndarray, seed: int) -> np.ndarray:
    """[RESAMPLES, columns]: the sums over as many documents, drawn with replacement."""
    rng = np.random.default_rng(seed)
    documents = len(table)
    step = max(1, _CHUNK // documents)
    parts = []
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        drawn = rng.integers(documents, size=(count, documents))
        drawn += np.arange(count)[:, None] * documents
        times = np.bincount(drawn.ravel(), minlength=count * documents)
        parts.append(times.reshape(count, documents) @ table)
    return np.concatenate(parts)


def _estimate(value: float, samples: np.ndarray | None) -> Estimate:
    samples = None if samples is None else samples[~np.isnan(samples)]  # drew no target
    if samples is None or not len(samples):
        return Estimate(value, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
