"""The masked LM as a judge of which noun phrase a pronoun stands for (WSC, after fairseq's recipe).

The pronoun is replaced by as many `<mask>` as a phrase has tokens. The score of the phrase is the
mean log-probability of its tokens there (fairseq, `examples/roberta/wsc`, its cross-entropy form).

Array names carry their shape: B sentences, N phrases, L tokens an input, K tokens of a phrase.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.modeling import losses
from roberta_jax.modeling.heads import RobertaForMaskedLM, at_positions
from roberta_jax.modeling.outputs import LogitsOutput


class RobertaForPronouns(RobertaForMaskedLM):
    """Scores noun phrases in place of a pronoun; its parameters are `RobertaForMaskedLM`'s.

    Attributes:
      config: the model's shape.
      execution: how to compute it.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("labels",)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        masked_positions: jax.Array | None = None,
        masked_labels: jax.Array | None = None,
        masked_weights: jax.Array | None = None,
        **inputs: Any,
    ) -> LogitsOutput:
        """Scores [B, N]: mean log-probabilities in nats.

        A phrase without tokens, which fills up a sentence with fewer phrases, has the lowest number
        of float32. Without the masked tokens, the output is that of `RobertaForMaskedLM`.

        Args:
          input_ids, attention_mask: [B, N, L], a sentence once for each phrase, the phrase masked.
          masked_positions: int [B, N, K], in [0, L), where the phrase's tokens are masked.
          masked_labels: int [B, N, K], the tokens of the phrase.
          masked_weights: float [B, N, K], 1 for a token and 0 for an empty slot.
          inputs: see `RobertaModel.__call__`.
        """

        def flat(x):  # without the axis of phrases, if it has one
            return None if x is None else x.reshape(-1, x.shape[-1])

        input_ids, attention_mask = flat(input_ids), flat(attention_mask)
        if masked_labels is None:
            return super().__call__(input_ids, attention_mask, **inputs)
        output = self.roberta(input_ids, attention_mask, **inputs)
        vectors = at_positions(output.last_hidden_state, flat(masked_positions))
        table = self.roberta.embeddings.word_embeddings.embedding
        losses_RK = self.lm_head.loss(vectors, table, flat(masked_labels))
        losses_BNK = losses_RK.reshape(masked_labels.shape)
        weights_BNK = masked_weights.astype(jnp.float32)
        counts_BN = jnp.sum(weights_BNK, axis=-1)
        scores_BN = -jnp.sum(losses_BNK * weights_BNK, axis=-1) / jnp.maximum(counts_BN, 1)
        lowest = jnp.finfo(jnp.float32).min
        return LogitsOutput(
            jnp.where(counts_BN > 0, scores_BN, lowest), output.hidden_states, output.attentions
        )

    def loss(self, *, labels: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
        """{"pronoun": summed cross-entropy of the phrases' scores, in nats}.

        Args:
          labels: int [B], the correct phrase; -100 for a sentence that does not count.
          inputs: see `__call__`.
        """
        return self.loss_of(self(**inputs), labels=labels)

    @nn.nowrap
    def loss_of(self, output: LogitsOutput, *, labels: jax.Array) -> dict[str, jax.Array]:
        """`loss` of an output that is there already."""
        return {"pronoun": losses.label_loss(output.logits, labels)[0]}

    @nn.nowrap
    def count(self, *, labels: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
        """{"pronoun": number of sentences that count}."""
        return {"pronoun": losses.label_count(labels)}
