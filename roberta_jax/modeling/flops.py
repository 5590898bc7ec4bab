"""The floating-point operations of a training step."""

from roberta_jax.modeling.config import RobertaConfig


def training_flops(config: RobertaConfig, batch_size: int, length: int, num_slots: int) -> float:
    """Floating-point operations of one masked-LM update, by formula.

    Counts the matrix products of the forward and backward passes (three times the forward pass),
    with two operations per multiply-add. Rematerialisation does not count. XLA's own cost analysis
    is no alternative: it counts the body of a scan over the layers once.

    Args:
      config: the architecture.
      batch_size: rows per update.
      length: tokens per row.
      num_slots: prediction slots per row, the positions at which the LM head computes logits.
    """
    width = config.hidden_size
    block = 4 * width * width + 2 * width * config.intermediate_size + 2 * length * width
    head = width * width + width * config.vocab_size
    return 6.0 * batch_size * (config.num_hidden_layers * length * block + num_slots * head)
