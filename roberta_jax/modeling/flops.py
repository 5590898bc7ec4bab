"""The number of parameters of a model, and the floating-point operations of a training step."""

from roberta_jax.modeling.config import RobertaConfig


def training_flops(
    config: RobertaConfig,
    batch_size: int,
    length: int,
    num_slots: int,
    first_token_only: bool = False,
) -> float:
    """Floating-point operations of one masked-LM update, by formula.

    Counts the matrix products of the forward and backward passes (three times the forward pass),
    with two operations per multiply-add. Rematerialisation does not count. XLA's own cost analysis
    is no alternative: it counts the body of a scan over the layers once.

    Args:
      config: the architecture.
      batch_size: rows per update.
      length: tokens per row.
      num_slots: prediction slots per row, the positions at which the LM head computes logits.
      first_token_only: the last block computes keys and values of all tokens, and the rest of the
        first one alone; see `RobertaModel.__call__`.
    """
    width = config.hidden_size
    keys_and_values = 2 * width * width
    rest = 2 * width * width + 2 * width * config.intermediate_size + 2 * length * width
    head = width * width + width * config.vocab_size
    layers = config.num_hidden_layers
    rest_tokens = (layers - 1) * length + 1 if first_token_only else layers * length
    per_row = layers * length * keys_and_values + rest_tokens * rest + num_slots * head
    return 6.0 * batch_size * per_row


def num_parameters(config: RobertaConfig) -> int:
    """The parameters of the masked language model, by formula; those of the encoder and LM head."""
    width, inner = config.hidden_size, config.intermediate_size
    tables = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    block = 4 * (width + 1) * width + (width + 1) * inner + (inner + 1) * width + 4 * width
    head = (width + 1) * width + 2 * width + config.vocab_size
    return tables * width + 2 * width + config.num_hidden_layers * block + head
