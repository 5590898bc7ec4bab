"""The small architecture that tests build their models from."""

from roberta_jax.modeling.config import RobertaConfig


def small_config(**changes) -> RobertaConfig:
    """A narrow `RobertaConfig.base()` without dropout, with some fields changed."""
    fields = {
        "vocab_size": 211,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return RobertaConfig.base(**(fields | changes))
