"""The outputs of the models.

Array names carry their shape: B batch, L length, D hidden width, H heads, S length of the
cross-attention's keys, K masked positions per input, V vocabulary, C classes.
"""

import flax
import jax


@flax.struct.dataclass
class ModelOutput:
    """The output of `RobertaModel`.

    Attributes:
      last_hidden_state: [B, L, D].
      pooler_output: [B, D], or None without a pooling layer.
      hidden_states: the embeddings and each block's output [B, L, D], if requested.
      attentions: each block's attention probabilities [B, H, L, L], if requested.
      cross_attentions: each block's cross-attention probabilities [B, H, L, S], if requested and if
        the model has a cross-attention.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class LogitsOutput:
    """The output of every model with a single logits array.

    Attributes:
      logits: float32. Masked LM: [B, K, V] at the masked positions, or [B, L, V] if no positions
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
    """The output of `RobertaForQuestionAnswering`.

    Attributes:
      start_logits, end_logits: float32 [B, L].
      hidden_states, attentions: as in `ModelOutput`.
    """

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
