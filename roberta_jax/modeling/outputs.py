"""What the models return.

Array names carry their shape: B inputs, L tokens an input, D hidden width, H heads, S tokens of the
other model's input, K masked positions an input, V vocabulary, C classes.
"""

import flax
import jax


@flax.struct.dataclass
class ModelOutput:
    """What `RobertaModel` returns.

    Attributes:
      last_hidden_state: [B, L, D].
      pooler_output: [B, D], or None without a pooling layer.
      hidden_states: the embeddings and each block's output [B, L, D], if asked for.
      attentions: each block's [B, H, L, L] attention probabilities, if asked for.
      cross_attentions: each block's [B, H, L, S] probabilities over the other model's tokens, if
        asked for and there is a cross-attention.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class LogitsOutput:
    """What every model with one kind of logits returns.

    Attributes:
      logits: float32. Masked LM: [B, K, V] at the masked positions, or [B, L, V] everywhere if none
        are given. Causal LM: [B, L, V]. Sequence classification: [B, C]. Token classification:
        [B, L, C]. Multiple choice: [B, number of choices].
      hidden_states, attentions, cross_attentions: as in `ModelOutput`.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class QuestionAnsweringOutput:
    """What `RobertaForQuestionAnswering` returns.

    Attributes:
      start_logits, end_logits: float32 [B, L].
      hidden_states, attentions: as in `ModelOutput`.
    """

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
