"""What pretraining computes: the objectives of a batch, and what they cost.

Letters in array names: B rows, L tokens a row, M inputs a row, K masked positions a row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.modeling.pretraining import RobertaForPreTraining

Batch = Mapping[str, jax.Array]
LossFn = Callable[[Any, Batch, jax.Array | None], dict[str, jax.Array]]
CountFn = Callable[[Batch], dict[str, jax.Array]]

# A batch's arrays that are not the encoder's inputs.
_TARGETS = ("masked_positions", "masked_labels", "masked_weights")
_PAIR_TARGETS = tuple(f"next_sentence_{name}" for name in ("positions", "labels", "weights"))


def masked_lm_objective(
    model: RobertaForMaskedLM, *, shared_rows: bool = False
) -> tuple[LossFn, CountFn]:
    """Returns the two functions of a batch that a training loop needs.

    A batch holds input_ids, segment_ids, position_ids and maybe token_type_ids [B, L], and
    masked_positions, masked_labels, masked_weights [B, K].

    Args:
      model: computes the loss.
      shared_rows: whether a row may hold several inputs, each of which sees itself alone. Where a
        row holds one, hiding the padding (segment 0) is all that the attention needs.

    Returns:
      loss_fn(params, batch, dropout_key) -> {"masked_lm": summed negative log-likelihood, nats};
        without a key there is no dropout.
      count_fn(batch) -> {"masked_lm": number of targets}.
    """

    def loss_fn(params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, jax.Array]:
        total, _ = _loss(model, params, batch, _TARGETS, shared_rows, dropout_key)
        return {"masked_lm": total}

    def count_fn(batch: Batch) -> dict[str, jax.Array]:
        return {"masked_lm": jnp.sum(batch["masked_weights"])}

    return loss_fn, count_fn


def pretraining_objective(
    model: RobertaForPreTraining, *, shared_rows: bool
) -> tuple[LossFn, CountFn]:
    """The same with next-sentence prediction: BERT's loss is the sum of the two means.

    A batch also holds next_sentence_positions, _labels and _weights [B, M].

    Returns:
      loss_fn(params, batch, dropout_key) -> {"masked_lm": ..., "next_sentence": summed negative
        log-likelihood of the labels, nats}.
      count_fn(batch) -> {"masked_lm": number of targets, "next_sentence": number of pairs}.
    """

    def loss_fn(params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, jax.Array]:
        found = _loss(model, params, batch, _TARGETS + _PAIR_TARGETS, shared_rows, dropout_key)
        return {name: found[name] for name in ("masked_lm", "next_sentence")}

    return loss_fn, _count_both


def next_sentence_objective(
    model: RobertaForPreTraining, *, shared_rows: bool
) -> tuple[LossFn, CountFn]:
    """What to tell of held-out pairs: {"next_sentence": loss, "next_sentence_accuracy": hits}."""

    def loss_fn(params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, jax.Array]:
        found = _loss(model, params, batch, _TARGETS + _PAIR_TARGETS, shared_rows, dropout_key)
        return {
            "next_sentence": found["next_sentence"],
            "next_sentence_accuracy": found["next_sentence_hits"],
        }

    def count_fn(batch: Batch) -> dict[str, jax.Array]:
        count = _count_both(batch)["next_sentence"]
        return {"next_sentence": count, "next_sentence_accuracy": count}

    return loss_fn, count_fn


def _count_both(batch: Batch) -> dict[str, jax.Array]:
    return {
        "masked_lm": jnp.sum(batch["masked_weights"]),
        "next_sentence": jnp.sum(batch["next_sentence_weights"]),
    }


def _loss(model, params, batch, targets, shared_rows: bool, dropout_key: jax.Array | None):
    return model.apply(
        {"params": params},
        input_ids=batch["input_ids"],
        **{"segment_ids" if shared_rows else "attention_mask": batch["segment_ids"]},
        position_ids=batch["position_ids"],
        token_type_ids=batch.get("token_type_ids"),
        **{name: batch[name] for name in targets},
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method="loss",
    )


def training_flops(config: RobertaConfig, batch_size: int, length: int, num_slots: int) -> float:
    """Floating-point operations of one update, by formula (a multiply-add is two).

    Matrix products alone, three times the forward pass; what remat computes again does not count.
    (A compiler's own count takes the body of a scan over the layers once.)

    Args:
      config: the model's shape.
      batch_size: B.
      length: L.
      num_slots: K, where the head predicts.
    """
    width = config.hidden_size
    block = 4 * width * width + 2 * width * config.intermediate_size + 2 * length * width
    head = width * width + width * config.vocab_size
    return 6.0 * batch_size * (config.num_hidden_layers * length * block + num_slots * head)
