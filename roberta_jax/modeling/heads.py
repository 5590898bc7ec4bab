"""The `RobertaFor…` classes: the language models are defined here, the others in `classifiers`.

Every head has the same two methods for training, which take a batch's arrays as keywords:

    loss(**batch, deterministic=...) -> {objective: summed loss}
    count(**batch)                   -> {objective: what to divide that sum by}

The loss of a batch is the sum over the objectives of sum / count. Sums and counts add up over
microbatches, devices and hosts; means would not, where the parts differ in their number of targets.
`count` needs no parameters and is called on the module itself, `loss` through `apply`:

    sums = model.apply({"params": params}, **batch, method="loss")
    counts = model.count(**batch)
    loss = sum(sums[name] / counts[name] for name in sums)

Array names carry their shape: B inputs, L tokens an input, D hidden width, K masked positions an
input, M inputs that share a row, V vocabulary, N targets.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels.cross_entropy import cross_entropy, projected_cross_entropy
from roberta_jax.modeling.activations import gelu, tanh
from roberta_jax.modeling.classifiers import (
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
)
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.inputs import check_range, shape_error
from roberta_jax.modeling.layers import Dense, LayerNorm, replicated
from roberta_jax.modeling.losses import IGNORE_INDEX, label_count
from roberta_jax.modeling.model import ConfigModule, RobertaModel
from roberta_jax.modeling.outputs import LogitsOutput


class Decoder(nn.Module):
    """The decoder's own kernel [D, V], where it is not tied to the word embeddings."""

    config: RobertaConfig

    def setup(self):
        config = self.config
        self.kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(config.initializer_range), ("embedding", "vocab")
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

    def _table(self, words_VD):
        return words_VD if self.config.tie_word_embeddings else self.decoder.kernel.T

    def __call__(self, x: jax.Array, words_VD: jax.Array) -> jax.Array:
        """[..., D] and the word table to float32 logits [..., V]."""
        x = self.transform(x)
        table_VD = replicated(self._table(words_VD), x.dtype)
        return (
            jnp.einsum("...d,vd->...v", x, table_VD, preferred_element_type=jnp.float32) + self.bias
        )

    def loss(self, x: jax.Array, words_VD: jax.Array, labels: jax.Array) -> jax.Array:
        """[..., D] and labels [...] to the negative log-likelihoods [...], in nats.

        Equal to the cross-entropy of the logits, but faster, and in a fraction of the memory where
        there are many targets (see `projected_cross_entropy`).
        """
        x_ND = self.transform(x).reshape(-1, x.shape[-1])
        x_ND = nn.with_logical_constraint(x_ND, ("batch", None))  # gathered once for both products
        loss_N = projected_cross_entropy(x_ND, self._table(words_VD), self.bias, labels.reshape(-1))
        return loss_N.reshape(labels.shape)


class RobertaForMaskedLM(ConfigModule):
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
            masked tokens. Position 0 may fill empty slots. Under `jit`, where positions cannot be
            checked, one out of range gives NaN.
          others: see `RobertaModel.__call__`.

        Raises:
          ValueError: a masked position is out of range, or as `RobertaModel.__call__`.
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
    ) -> dict[str, jax.Array]:
        """{"masked_lm": summed negative log-likelihood in nats}, a float32 scalar.

        Args:
          masked_positions: int [B, K], in [0, L).
          masked_labels: int [B, K], in [0, V).
          masked_weights: float [B, K], 1 for a target and 0 for an empty slot.
          inputs: see `RobertaModel.__call__`.
        """
        x_BLD = self.roberta(**inputs).last_hidden_state
        table = self.roberta.embeddings.word_embeddings.embedding
        losses_BK = self.lm_head.loss(at_positions(x_BLD, masked_positions), table, masked_labels)
        return {"masked_lm": jnp.sum(losses_BK * masked_weights.astype(jnp.float32))}

    @nn.nowrap
    def count(self, *, masked_weights: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
        """{"masked_lm": number of targets}."""
        return {"masked_lm": jnp.sum(masked_weights.astype(jnp.float32))}


class RobertaForCausalLM(ConfigModule):
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

    def loss(self, *, labels: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
        """{"causal_lm": summed negative log-likelihood in nats}, a float32 scalar.

        Args:
          labels: int [B, L], usually the input ids themselves: the token at position i + 1 is the
            target of position i. -100 is no target.
          inputs: see `RobertaModel.__call__`.
        """
        x_BLD = self.roberta(**inputs).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        weights = (targets != IGNORE_INDEX).astype(jnp.float32)
        table = self.roberta.embeddings.word_embeddings.embedding
        losses = self.lm_head.loss(x_BLD, table, jnp.where(weights > 0, targets, 0))
        return {"causal_lm": jnp.sum(losses * weights)}

    @nn.nowrap
    def count(self, *, labels: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
        """{"causal_lm": number of targets}."""
        return {"causal_lm": label_count(labels[:, 1:])}


@flax.struct.dataclass
class PreTrainingOutput:
    """Attributes:

    logits: float32 [B, L, V], or [B, K, V] at masked positions.
    next_sentence_logits: float32 [B, M, 2]: class 0 means that the second text follows the first,
      class 1 that it is random.
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
        return self.classifier(tanh(self.pooler(x_BMD)).astype(jnp.float32))


class RobertaForPreTraining(ConfigModule):
    """RoBERTa with BERT's two objectives: masked LM and next-sentence prediction.

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
        """Predicts masked tokens and whether texts follow each other.

        Args:
          masked_positions: as for `RobertaForMaskedLM`.
          next_sentence_positions: int [B, M], in [0, L), the first token of each input of a row;
            None takes each row as one input.
          others: see `RobertaModel.__call__`.
        """
        x_BLD = self.roberta(*args, **inputs).last_hidden_state
        if next_sentence_positions is None:
            next_sentence_positions = jnp.zeros((x_BLD.shape[0], 1), jnp.int32)
        table = self.roberta.embeddings.word_embeddings.embedding
        x_BMD = at_positions(x_BLD, next_sentence_positions, "next_sentence_positions")
        return PreTrainingOutput(
            self.lm_head(at_positions(x_BLD, masked_positions), table), self.next_sentence(x_BMD)
        )

    def loss(self, **batch: Any) -> dict[str, jax.Array]:
        """{"masked_lm": ..., "next_sentence": ...}: summed negative log-likelihoods in nats.

        An objective whose targets are not in the batch is left out.

        Args:
          batch: see `evaluate`.
        """
        scores = self.evaluate(**batch)
        scores.pop("next_sentence_accuracy", None)
        return scores

    def evaluate(
        self,
        *,
        masked_positions: jax.Array | None = None,
        masked_labels: jax.Array | None = None,
        masked_weights: jax.Array | None = None,
        next_sentence_positions: jax.Array | None = None,
        next_sentence_labels: jax.Array | None = None,
        next_sentence_weights: jax.Array | None = None,
        **inputs: Any,
    ) -> dict[str, jax.Array]:
        """The losses, and {"next_sentence_accuracy": number of pairs classified correctly}.

        Args:
          masked_positions, masked_labels, masked_weights: as for `RobertaForMaskedLM.loss`.
          next_sentence_positions: int [B, M], in [0, L).
          next_sentence_labels: int [B, M], 0 where the second text follows, 1 where it is random.
          next_sentence_weights: float [B, M], 1 for a pair and 0 for an empty slot.
          inputs: see `RobertaModel.__call__`.
        """
        x_BLD = self.roberta(**inputs).last_hidden_state
        scores = {}
        if masked_positions is not None:
            table = self.roberta.embeddings.word_embeddings.embedding
            x_BKD = at_positions(x_BLD, masked_positions)
            losses_BK = self.lm_head.loss(x_BKD, table, masked_labels)
            scores["masked_lm"] = jnp.sum(losses_BK * masked_weights)
        if next_sentence_positions is not None:
            x_BMD = at_positions(x_BLD, next_sentence_positions, "next_sentence_positions")
            logits_BM2 = self.next_sentence(x_BMD)
            losses_BM = cross_entropy(logits_BM2, next_sentence_labels)
            correct_BM = jnp.argmax(logits_BM2, axis=-1) == next_sentence_labels
            scores["next_sentence"] = jnp.sum(losses_BM * next_sentence_weights)
            scores["next_sentence_accuracy"] = jnp.sum(correct_BM * next_sentence_weights)
        return scores

    @nn.nowrap
    def count(self, **batch: jax.Array) -> dict[str, jax.Array]:
        """The divisors of what `loss` and `evaluate` give for this batch."""
        counts = {}
        if "masked_weights" in batch:
            counts["masked_lm"] = jnp.sum(batch["masked_weights"].astype(jnp.float32))
        if "next_sentence_weights" in batch:
            pairs = jnp.sum(batch["next_sentence_weights"].astype(jnp.float32))
            counts |= {"next_sentence": pairs, "next_sentence_accuracy": pairs}
        return counts


def at_positions(
    x_BLD: jax.Array, positions_BK: jax.Array | None, name: str = "masked_positions"
) -> jax.Array:
    """The vectors [B, K, D] at these positions, or all of them for None.

    Raises:
      ValueError: the positions, which the message calls by `name`, have a wrong shape or are
        outside of the input. Under `jit` their values cannot be checked; such a one gives NaN.
    """
    if positions_BK is None:
        return x_BLD
    batch, length, _ = x_BLD.shape
    if positions_BK.ndim != 2 or positions_BK.shape[0] != batch:
        raise shape_error(name, positions_BK.shape, f"({batch}, K)")
    check_range(name, positions_BK, length)
    # Indexing would take a negative position from the end.
    positions_BK = jnp.where(positions_BK < 0, length, positions_BK)
    x_BKD = jnp.take_along_axis(x_BLD, positions_BK[..., None], axis=1, mode="fill")
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
