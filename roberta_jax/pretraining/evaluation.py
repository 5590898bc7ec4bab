"""What a run is scored on: its held-out rows, their evaluation steps, and the n-gram yardsticks."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.pipeline import eval_batches
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.modeling.objectives import masked_lm_objective, next_sentence_objective
from roberta_jax.pretraining.ngrams import ngram_perplexities
from roberta_jax.training import loop
from roberta_jax.training.partitioning import local_batch_rows, to_global


class HeldOut:
    """Scores parameters on held-out rows; false where there are none.

    Args:
      config: as `configs/pretrain.py` has it.
      mesh: where the parameters live.
      masked_lm: the model without any other head.
      model: the model that is trained, whose parameters are those of `masked_lm` and maybe more.
      datasets: of the rows, see `rows.held_out_rows`.

    Attributes:
      datasets: as given.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        masked_lm: RobertaForMaskedLM,
        model: nn.Module,
        datasets: Mapping[str, PackedDataset],
    ):
        self._config, self._mesh, self.datasets = config, mesh, datasets
        self._steps = {}
        for name, dataset in datasets.items():
            shared = dataset.max_inputs > 1
            if name == "pairs":
                objective = next_sentence_objective(model, shared_rows=shared)
            else:
                objective = masked_lm_objective(masked_lm, shared_rows=shared)
            self._steps[name] = loop.make_eval_step(*objective, mesh)

    def __bool__(self) -> bool:
        return bool(self.datasets)

    @property
    def num_rows(self) -> int:
        """FULL-SENTENCES rows that are held out."""
        return self.datasets["full"].num_rows if self.datasets else 0

    def score(self, params: Any, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Evaluates on all the rows.

        Returns:
          eval_loss (nats a masked token) and eval_perplexity of FULL-SENTENCES; eval_short_loss and
          eval_short_perplexity of single sentences; next_sentence_loss (nats a pair) and
          next_sentence_accuracy; what of it there is. None if `should_stop` said so in between.
        """
        scores: dict[str, float] = {}
        for name, step in self._steps.items():
            found = loop.evaluate(step, params, self._batches(name), should_stop)
            if found is None:
                return None
            if name == "pairs":
                scores["next_sentence_loss"] = found["next_sentence"]
                scores["next_sentence_accuracy"] = found["next_sentence_accuracy"]
            else:
                prefix = {"full": "eval", "short": "eval_short"}[name]
                scores[f"{prefix}_loss"] = found["masked_lm"]
                scores[f"{prefix}_perplexity"] = math.exp(found["masked_lm"])
        return scores

    def ngram_perplexities(self, train_dataset: PackedDataset) -> dict[str, float]:
        """unigram_perplexity and bigram_perplexity of the FULL-SENTENCES targets."""
        found = ngram_perplexities(
            train_dataset,
            self.datasets["full"],
            seed=self._config.eval.seed,
            max_rows=self._config.eval.max_rows,
        )
        return {f"{name}_perplexity": value for name, value in found.items()}

    def _batches(self, name: str) -> Iterator[dict[str, jax.Array]]:
        settings = self._config.eval
        batches = eval_batches(
            self.datasets[name],
            batch_size=settings.batch_size,
            seed=settings.seed,
            max_rows=settings.max_rows,
            local_rows=local_batch_rows(self._mesh, settings.batch_size),
            engine=self._config.data.engine,
        )
        return placed(batches, self._mesh, settings.batch_size)


def placed(
    batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, batch_size: int
) -> Iterator[dict[str, jax.Array]]:
    """Hands a host's parts of batches to the devices."""
    rows = local_batch_rows(mesh, batch_size)
    for batch in batches:
        yield to_global(batch, mesh, batch_size, rows)
