"""Evaluation on held-out text: perplexities, next-sentence accuracy, and n-gram baselines."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from roberta_jax.data.batches import PackedDataset
from roberta_jax.pretraining.datasets import Dataset, device_eval_batches
from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.training import loop
from roberta_jax.training.steps import make_eval_step

# The targets of masked LM. They are dropped from pairs, so that the LM head is not computed there.
_MASKED_TARGETS = ("masked_positions", "masked_labels", "masked_weights")


class Evaluation:
    """Scores parameters on the validation sets.

    Args:
      spec: what the config says.
      model: the model that is trained.
      datasets: from `datasets.validation_datasets`, not empty.
    """

    def __init__(
        self, spec: PretrainingSpec, model: nn.Module, datasets: Mapping[str, PackedDataset]
    ):
        self._spec, self._datasets = spec, datasets
        mesh = spec.training.mesh
        self._steps = {
            name: make_eval_step(
                model, mesh, "evaluate" if name == "pairs" else "loss", spec.training.rules
            )
            for name in datasets
        }

    def __call__(self, params: Any, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Evaluates on all rows.

        Returns:
          eval_loss (nats per masked token) and eval_perplexity on FULL-SENTENCES rows;
          eval_short_loss and eval_short_perplexity on single sentences; next_sentence_loss (nats
          per pair) and next_sentence_accuracy; for the sets that there are. None if `should_stop`
          returned True in between.
        """
        scores: dict[str, float] = {}
        for name, dataset in self._datasets.items():
            means = loop.evaluate(
                self._steps[name], params, self._batches(name, dataset), should_stop
            )
            if means is None:
                return None
            if name == "pairs":
                scores["next_sentence_loss"] = means["next_sentence"]
                scores["next_sentence_accuracy"] = means["next_sentence_accuracy"]
            else:
                prefix = {"full": "eval", "short": "eval_short"}[name]
                scores[f"{prefix}_loss"] = means["masked_lm"]
                scores[f"{prefix}_perplexity"] = _exp(means["masked_lm"])
        return scores

    def ngram_perplexities(self, train_dataset: Dataset) -> dict[str, float]:
        """unigram_perplexity and bigram_perplexity of the masked tokens of the FULL-SENTENCES set.

        Args:
          train_dataset: the rows to count.
        """
        from roberta_jax.pretraining.ngrams import ngram_perplexities

        perplexities = ngram_perplexities(
            train_dataset,
            self._datasets["full"],
            seed=self._spec.evaluation.seed,
            max_rows=self._spec.evaluation.max_rows,
        )
        return {f"{name}_perplexity": value for name, value in perplexities.items()}

    def _batches(self, name: str, dataset: PackedDataset):
        for batch in device_eval_batches(self._spec, dataset):
            if name == "pairs":
                batch = {key: x for key, x in batch.items() if key not in _MASKED_TARGETS}
            yield batch


def _exp(nats: float) -> float:
    """e**nats; infinity where that is too large for a float (`math.exp` raises an error)."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def summary(metrics: Mapping[str, float]) -> str:
    """The scores of an evaluation, and of the n-gram baselines if they are there, in words."""
    text = f"perplexity {metrics['eval_perplexity']:.2f}"
    if "eval_short_perplexity" in metrics:
        text += f", on single sentences {metrics['eval_short_perplexity']:.2f}"
    if "next_sentence_accuracy" in metrics:
        text += f", next-sentence accuracy {metrics['next_sentence_accuracy']:.1%}"
    baselines = [
        f"{name} {metrics[f'{name}_perplexity']:.2f}"
        for name in ("unigram", "bigram")
        if f"{name}_perplexity" in metrics
    ]
    return text + (f" ({', '.join(baselines)})" if baselines else "")
