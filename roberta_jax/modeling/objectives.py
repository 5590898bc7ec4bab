"""What pretraining computes: the masked-LM objective of a batch, and what it costs.

Letters in array names: B inputs, L tokens an input, K masked positions an input.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM

Batch = Mapping[str, jax.Array]


def masked_lm_objective(
    model: RobertaForMaskedLM,
) -> tuple[
    Callable[[Any, Batch, jax.Array | None], dict[str, jax.Array]],
    Callable[[Batch], dict[str, jax.Array]],
]:
    """Returns the two functions of a batch that a training loop needs.

    A batch holds input_ids, segment_ids, position_ids [B, L] and masked_positions, masked_labels,
    masked_weights [B, K]. Rows hold one input each, so that hiding the padding (segment 0) is all
    that the attention needs.

    Returns:
      loss_fn(params, batch, dropout_key) -> {"masked_lm": summed negative log-likelihood, nats};
        without a key there is no dropout.
      count_fn(batch) -> {"masked_lm": number of targets}.
    """

    def loss_fn(params: Any, batch: Batch, dropout_key: jax.Array | None) -> dict[str, jax.Array]:
        total, _ = model.apply(
            {"params": params},
            input_ids=batch["input_ids"],
            attention_mask=batch["segment_ids"],
            position_ids=batch["position_ids"],
            masked_positions=batch["masked_positions"],
            masked_labels=batch["masked_labels"],
            masked_weights=batch["masked_weights"],
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method="loss",
        )
        return {"masked_lm": total}

    def count_fn(batch: Batch) -> dict[str, jax.Array]:
        return {"masked_lm": jnp.sum(batch["masked_weights"])}

    return loss_fn, count_fn


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
