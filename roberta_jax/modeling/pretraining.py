"""RoBERTa with both of BERT's objectives: masked tokens, and whether a pair's texts follow.

Array names carry their shape: B rows, L tokens a row, D hidden width, M inputs a row, K masked
positions a row.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels.cross_entropy import cross_entropy
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import LMHead, at_positions
from roberta_jax.modeling.layers import Dense
from roberta_jax.modeling.model import RobertaModel


@flax.struct.dataclass
class PreTrainingOutput:
    """Attributes:

    logits: float32 [B, L, V], or [B, K, V] at masked positions.
    next_sentence_logits: float32 [B, M, 2]: the second text follows the first, or is random.
    """

    logits: jax.Array
    next_sentence_logits: jax.Array


class NextSentenceHead(nn.Module):
    """BERT's pooler and its classifier: tanh(dense(first token)), then two logits."""

    config: RobertaConfig
    execution: Execution

    def setup(self):
        width, spread = self.config.hidden_size, self.config.initializer_range
        self.pooler = Dense(width, ("embed", "heads"), spread, self.execution.dtype)
        self.classifier = Dense(2, ("embed", None), spread, jnp.float32)

    def __call__(self, x_BMD: jax.Array) -> jax.Array:
        """The inputs' first vectors [B, M, D] to float32 logits [B, M, 2]."""
        return self.classifier(jnp.tanh(self.pooler(x_BMD)).astype(jnp.float32))


class RobertaForPreTraining(nn.Module):
    """RoBERTa with the masked-LM head and the head of next-sentence prediction.

    Its parameters are `RobertaForMaskedLM`'s and, under "next_sentence", the second head's.

    Attributes:
      config: the model's shape.
      execution: how to compute it.
    """

    config: RobertaConfig
    execution: Execution = Execution()

    def setup(self):
        self.roberta = RobertaModel(self.config, self.execution)
        self.lm_head = LMHead(self.config, self.execution)
        self.next_sentence = NextSentenceHead(self.config, self.execution)

    def __call__(
        self,
        *args: Any,
        masked_positions: jax.Array | None = None,
        next_sentence_positions: jax.Array | None = None,
        **inputs: Any,
    ) -> PreTrainingOutput:
        """Predicts tokens and whether texts follow each other.

        Args:
          masked_positions: as for `RobertaForMaskedLM`.
          next_sentence_positions: int [B, M], the first token of each input of a row; None takes
            each row as one input.
          others: see `RobertaModel.__call__`.
        """
        x_BLD = self.roberta(*args, **inputs).last_hidden_state
        if next_sentence_positions is None:
            next_sentence_positions = jnp.zeros((x_BLD.shape[0], 1), jnp.int32)
        table = self.roberta.embeddings.word_embeddings.embedding
        return PreTrainingOutput(
            self.lm_head(at_positions(x_BLD, masked_positions), table),
            self.next_sentence(at_positions(x_BLD, next_sentence_positions)),
        )

    def loss(
        self,
        *,
        masked_positions: jax.Array,
        masked_labels: jax.Array,
        masked_weights: jax.Array,
        next_sentence_positions: jax.Array,
        next_sentence_labels: jax.Array,
        next_sentence_weights: jax.Array,
        **inputs: Any,
    ) -> dict[str, jax.Array]:
        """Both losses, summed, and how many pairs were told right; float32 scalars.

        Args:
          masked_positions, masked_labels, masked_weights: as for `RobertaForMaskedLM.loss`.
          next_sentence_positions: int [B, M], in [0, L).
          next_sentence_labels: int [B, M], 0 where the second text follows, 1 where it is random.
          next_sentence_weights: float [B, M], 1, or 0 in an empty slot.
          inputs: see `RobertaModel.__call__`.

        Returns:
          "masked_lm" and "next_sentence": summed negative log-likelihoods in nats;
          "next_sentence_hits": the pairs whose label has the greater logit.
        """
        x_BLD = self.roberta(**inputs).last_hidden_state
        table = self.roberta.embeddings.word_embeddings.embedding
        losses_BK = self.lm_head.loss(at_positions(x_BLD, masked_positions), table, masked_labels)
        logits_BM2 = self.next_sentence(at_positions(x_BLD, next_sentence_positions))
        losses_BM = cross_entropy(logits_BM2, next_sentence_labels)
        hits_BM = jnp.argmax(logits_BM2, axis=-1) == next_sentence_labels
        return {
            "masked_lm": jnp.sum(losses_BK * masked_weights),
            "next_sentence": jnp.sum(losses_BM * next_sentence_weights),
            "next_sentence_hits": jnp.sum(hits_BM * next_sentence_weights),
        }


def split_next_sentence(params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`RobertaForPreTraining`'s parameters as `RobertaForMaskedLM`'s and the second head's."""
    masked_lm = {key: value for key, value in params.items() if key != "next_sentence"}
    return masked_lm, params["next_sentence"]
