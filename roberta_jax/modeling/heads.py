"""Every `RobertaFor…` class: the language models here, the others from `classifiers`.

Array names carry their shape: B inputs, L tokens an input, D hidden width, K masked positions an
input, V vocabulary, N targets.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels.cross_entropy import projected_cross_entropy
from roberta_jax.modeling.activations import gelu
from roberta_jax.modeling.classifiers import (
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
)
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.inputs import shape_error
from roberta_jax.modeling.layers import Dense, LayerNorm, replicated
from roberta_jax.modeling.losses import IGNORE_INDEX
from roberta_jax.modeling.model import RobertaModel
from roberta_jax.modeling.outputs import LogitsOutput


class Decoder(nn.Module):
    """The last product's kernel [D, V], where it is not the word table."""

    config: RobertaConfig

    def setup(self):
        config = self.config
        self.kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(config.initializer_range), ("embed", "vocab")
            ),
            (config.hidden_size, config.vocab_size),
            jnp.float32,
        )


class LMHead(nn.Module):
    """dense -> GELU -> LayerNorm -> decoder, the transposed word table if tied, plus a bias."""

    config: RobertaConfig
    execution: Execution

    def setup(self):
        config, dtype = self.config, self.execution.dtype
        width, spread = config.hidden_size, config.initializer_range
        self.dense = Dense(width, ("embed", "heads"), spread, dtype)
        self.layer_norm = LayerNorm(config.layer_norm_eps, dtype)
        if not config.tie_word_embeddings:
            self.decoder = Decoder(config)
        self.bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)),
            (config.vocab_size,),
            jnp.float32,
        )

    def transform(self, x: jax.Array) -> jax.Array:
        """All but the last product: [..., D] to [..., D]."""
        return self.layer_norm(gelu(self.dense(x)))

    def _table(self, words_VD, dtype):
        table = words_VD if self.config.tie_word_embeddings else self.decoder.kernel.T
        return replicated(table, dtype)

    def __call__(self, x: jax.Array, words_VD: jax.Array) -> jax.Array:
        """[..., D] and the word table to float32 logits [..., V]."""
        x = self.transform(x)
        table_VD = self._table(words_VD, x.dtype)
        return (
            jnp.einsum("...d,vd->...v", x, table_VD, preferred_element_type=jnp.float32) + self.bias
        )

    def loss(self, x: jax.Array, words_VD: jax.Array, labels: jax.Array) -> jax.Array:
        """[..., D] and labels [...] to the negative log-likelihoods [...], in nats."""
        x_ND = self.transform(x).reshape(-1, x.shape[-1])
        table_VD = self._table(words_VD, x_ND.dtype)
        loss_N = projected_cross_entropy(x_ND, table_VD, self.bias, labels.reshape(-1))
        return loss_N.reshape(labels.shape)


class RobertaForMaskedLM(nn.Module):
    """RoBERTa with its masked-language-modelling head.

    Attributes:
      config: the model's shape.
      execution: how to compute it.
    """

    config: RobertaConfig
    execution: Execution = Execution()

    def setup(self):
        self.roberta = RobertaModel(self.config, self.execution)
        self.lm_head = LMHead(self.config, self.execution)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        masked_positions: jax.Array | None = None,
        **inputs: Any,
    ) -> LogitsOutput:
        """Predicts tokens: everywhere, or at `masked_positions` alone, which is far cheaper.

        Args:
          masked_positions: int [B, K], in [0, L): where to predict, as fairseq projects only the
            masked tokens. Position 0 may fill empty slots.
          others: see `RobertaModel.__call__`.

        Raises:
          ValueError: as `RobertaModel.__call__`.
        """
        output = self.roberta(
            input_ids, attention_mask, token_type_ids, position_ids, segment_ids, **inputs
        )
        x = at_positions(output.last_hidden_state, masked_positions)
        logits = self.lm_head(x, self.roberta.embeddings.word_embeddings.embedding)
        return LogitsOutput(logits, output.hidden_states, output.attentions)

    def loss(
        self,
        *,
        masked_positions: jax.Array,
        masked_labels: jax.Array,
        masked_weights: jax.Array,
        **inputs: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """The training loss, summed, and the number of targets; a batch's arrays are its arguments.

        Equal to `losses.masked_lm_loss` of the logits, but faster and in a fraction of the memory:
        the logits are never whole (see `losses.projected_cross_entropy`). Use it as
        `model.apply({"params": params}, **batch, deterministic=False, rngs=..., method="loss")`.

        Args:
          masked_positions: int [B, K], in [0, L).
          masked_labels: int [B, K], in [0, V).
          masked_weights: float [B, K], 1 for a target and 0 for an empty slot.
          inputs: see `RobertaModel.__call__`.

        Returns:
          (sum of weight * negative log-likelihood in nats, sum of weights), float32 scalars.
        """
        x = at_positions(self.roberta(**inputs).last_hidden_state, masked_positions)
        table = self.roberta.embeddings.word_embeddings.embedding
        weights = masked_weights.astype(jnp.float32)
        return jnp.sum(self.lm_head.loss(x, table, masked_labels) * weights), jnp.sum(weights)


class RobertaForCausalLM(nn.Module):
    """RoBERTa that predicts the next token; set `is_decoder=True` in its config.

    Without `is_decoder` each token sees all others, and predicting the next one is no task; Hugging
    Face's class allows it with a warning, and so it is allowed here.

    Attributes:
      config: the model's shape.
      execution: how to compute it.
    """

    config: RobertaConfig
    execution: Execution = Execution()

    def setup(self):
        self.roberta = RobertaModel(self.config, self.execution)
        self.lm_head = LMHead(self.config, self.execution)

    def __call__(self, *args: Any, **inputs: Any) -> LogitsOutput:
        """Predicts, at each position, the token after it; the arguments are `RobertaModel`'s."""
        output = self.roberta(*args, **inputs)
        logits = self.lm_head(
            output.last_hidden_state, self.roberta.embeddings.word_embeddings.embedding
        )
        return LogitsOutput(
            logits, output.hidden_states, output.attentions, output.cross_attentions
        )

    def loss(self, *, labels: jax.Array, **inputs: Any) -> tuple[jax.Array, jax.Array]:
        """The training loss, summed, and the number of targets.

        Args:
          labels: int [B, L], usually the input ids themselves: the token at position i + 1 is the
            target of position i. -100 is no target.
          inputs: see `RobertaModel.__call__`.

        Returns:
          (sum of negative log-likelihoods in nats, number of targets), float32 scalars.
        """
        x_BLD = self.roberta(**inputs).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        weights = (targets != IGNORE_INDEX).astype(jnp.float32)
        table = self.roberta.embeddings.word_embeddings.embedding
        losses = self.lm_head.loss(x_BLD, table, jnp.where(weights > 0, targets, 0))
        return jnp.sum(losses * weights), jnp.sum(weights)


def at_positions(x_BLD, positions_BK):
    """The vectors [B, K, D] at these positions, or all of them for None."""
    if positions_BK is None:
        return x_BLD
    if positions_BK.ndim != 2 or positions_BK.shape[0] != x_BLD.shape[0]:
        raise shape_error("masked_positions", positions_BK.shape, f"({x_BLD.shape[0]}, K)")
    x_BKD = jnp.take_along_axis(x_BLD, positions_BK[..., None], axis=1)
    return nn.with_logical_constraint(x_BKD, ("batch", None, None))


# Hugging Face's class names, as `architectures` in a config.json has them.
MODEL_CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        RobertaModel,
        RobertaForMaskedLM,
        RobertaForCausalLM,
        RobertaForSequenceClassification,
        RobertaForMultipleChoice,
        RobertaForTokenClassification,
        RobertaForQuestionAnswering,
    )
}
