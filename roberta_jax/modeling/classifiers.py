"""The classification heads: sequences, multiple choice, tokens, and answer spans.

Logits and losses are float32. `loss` and `count` follow the contract described in `heads`.
`classifier_dropout` is applied before the last layer, `hidden_dropout_prob` where it is None.
`loss_of` is `loss` for an output that is there already: evaluation needs both the logits and the
loss. `TARGETS` names the arrays of a batch that go to it; the others go to the model.

Array names carry their shape: B inputs, L tokens an input, C classes, N choices.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.modeling import losses
from roberta_jax.modeling.activations import tanh
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.inputs import shape_error
from roberta_jax.modeling.layers import Dense, Dropout
from roberta_jax.modeling.model import ConfigModule, RobertaModel
from roberta_jax.modeling.outputs import LogitsOutput, QuestionAnsweringOutput


class ClassificationHead(nn.Module):
    """dropout -> dense -> tanh -> dropout -> out_proj, on the first token."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BLD: jax.Array, deterministic: bool) -> jax.Array:
        config, spread = self.config, self.config.initializer_range
        drop = Dropout(config.classifier_dropout_prob)
        dense = Dense(
            config.hidden_size, ("embed", "heads"), spread, self.execution.dtype, name="dense"
        )
        x_BD = drop(tanh(dense(drop(x_BLD[:, 0], deterministic))), deterministic)
        out_proj = Dense(config.num_labels, ("embed", None), spread, jnp.float32, name="out_proj")
        return out_proj(x_BD)


def _last_layer(config: RobertaConfig, features: int) -> Dense:
    return Dense(features, ("embed", None), config.initializer_range, jnp.float32)


class RobertaForSequenceClassification(ConfigModule):
    """Sequence classification: one label, several labels or a number for each input.

    Attributes:
      config: the model's shape; `num_labels` classes.
      execution: how to compute it.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("labels", "example_weights")
    config: RobertaConfig
    execution: Execution = Execution()

    def setup(self):
        self.roberta = RobertaModel(self.config, self.execution)
        self.classifier = ClassificationHead(self.config, self.execution)

    def __call__(self, *args: Any, deterministic: bool = True, **inputs: Any) -> LogitsOutput:
        """Logits [B, C]; the arguments are `RobertaModel`'s."""
        output = self.roberta(*args, deterministic=deterministic, first_token_only=True, **inputs)
        logits = self.classifier(output.last_hidden_state, deterministic)
        return LogitsOutput(logits, output.hidden_states, output.attentions)

    def loss(
        self, *, labels: jax.Array, example_weights: jax.Array | None = None, **inputs: Any
    ) -> dict[str, jax.Array]:
        """{"classification": summed loss}; see `losses.classification_loss`.

        Args:
          labels: int [B] for one class each, float [B, C] of 0 and 1 for several, float [B] or
            [B, C] for regression. `config.problem_type` says which; None decides by the number of
            labels and their type.
          example_weights: float [B], 0 for an input that only fills up the batch and 1 for the
            others; None counts all.
          inputs: see `RobertaModel.__call__`.
        """
        return self.loss_of(self(**inputs), labels=labels, example_weights=example_weights)

    @nn.nowrap
    def loss_of(
        self, output: LogitsOutput, *, labels: jax.Array, example_weights: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """`loss` of an output that is there already."""
        return {"classification": self._loss(output.logits, labels, example_weights)[0]}

    @nn.nowrap
    def count(
        self, *, labels: jax.Array, example_weights: jax.Array | None = None, **inputs: Any
    ) -> dict[str, jax.Array]:
        """{"classification": what to divide the summed loss by}."""
        no_logits = jnp.zeros((labels.shape[0], self.config.num_labels))
        return {"classification": self._loss(no_logits, labels, example_weights)[1]}

    @nn.nowrap
    def _loss(self, logits_BC, labels, weights_B):
        return losses.classification_loss(logits_BC, labels, self.config.problem_type, weights_B)


class RobertaForTokenClassification(ConfigModule):
    """Token classification: a label for each token.

    Attributes:
      config: the model's shape; `num_labels` classes.
      execution: how to compute it.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("labels",)
    config: RobertaConfig
    execution: Execution = Execution()

    def setup(self):
        self.roberta = RobertaModel(self.config, self.execution)
        self.dropout = Dropout(self.config.classifier_dropout_prob)
        self.classifier = _last_layer(self.config, self.config.num_labels)

    def __call__(self, *args: Any, deterministic: bool = True, **inputs: Any) -> LogitsOutput:
        """Logits [B, L, C]; the arguments are `RobertaModel`'s."""
        output = self.roberta(*args, deterministic=deterministic, **inputs)
        logits = self.classifier(self.dropout(output.last_hidden_state, deterministic))
        return LogitsOutput(logits, output.hidden_states, output.attentions)

    def loss(self, *, labels: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
        """{"token_classification": summed cross-entropy in nats}.

        Args:
          labels: int [B, L], -100 where there is no target.
          inputs: see `RobertaModel.__call__`.
        """
        return self.loss_of(self(**inputs), labels=labels)

    @nn.nowrap
    def loss_of(self, output: LogitsOutput, *, labels: jax.Array) -> dict[str, jax.Array]:
        """`loss` of an output that is there already."""
        return {"token_classification": losses.label_loss(output.logits, labels)[0]}

    @nn.nowrap
    def count(self, *, labels: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
        """{"token_classification": number of targets}."""
        return {"token_classification": losses.label_count(labels)}


class RobertaForMultipleChoice(ConfigModule):
    """Multiple choice: a score for each choice of a question.

    Attributes:
      config: the model's shape.
      execution: how to compute it.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("labels", "choice_mask")
    config: RobertaConfig
    execution: Execution = Execution()

    def setup(self):
        self.roberta = RobertaModel(self.config, self.execution, add_pooling_layer=True)
        self.dropout = Dropout(self.config.hidden_dropout_prob)
        self.classifier = _last_layer(self.config, 1)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        *,
        deterministic: bool = True,
        **inputs: Any,
    ) -> LogitsOutput:
        """Logits [B, N], of inputs [B, N, L]: question i with its N choices in rows [i, 0..N).

        Args:
          input_ids, attention_mask, token_type_ids, position_ids, segment_ids: [B, N, L].
          inputs_embeds: [B, N, L, D].
          inputs: see `RobertaModel.__call__`; hidden states and attentions are returned for B * N
            inputs.

        Raises:
          ValueError: an input without an axis of choices, or as `RobertaModel.__call__`.
        """
        given = inputs_embeds if input_ids is None else input_ids
        if given is not None and given.ndim != (3 if input_ids is not None else 4):
            name = "input_ids" if input_ids is not None else "inputs_embeds"
            raise shape_error(name, given.shape, "(batch, choices, length, …)")

        def flat(x):
            return None if x is None else x.reshape(-1, *x.shape[2:])

        output = self.roberta(
            flat(input_ids),
            flat(attention_mask),
            flat(token_type_ids),
            flat(position_ids),
            flat(segment_ids),
            flat(inputs_embeds),
            deterministic=deterministic,
            first_token_only=True,
            **inputs,
        )
        scores = self.classifier(self.dropout(output.pooler_output, deterministic))
        return LogitsOutput(
            scores.reshape(-1, given.shape[1]), output.hidden_states, output.attentions
        )

    def loss(
        self, *, labels: jax.Array, choice_mask: jax.Array | None = None, **inputs: Any
    ) -> dict[str, jax.Array]:
        """{"multiple_choice": summed cross-entropy in nats}.

        Args:
          labels: int [B], the correct choice; -100 for a question that does not count.
          choice_mask: int or bool [B, N], 0 at sequences that are no choice of their question, for
            questions with different numbers of choices. None takes all.
          inputs: see `__call__`.
        """
        return self.loss_of(self(**inputs), labels=labels, choice_mask=choice_mask)

    @nn.nowrap
    def loss_of(
        self, output: LogitsOutput, *, labels: jax.Array, choice_mask: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """`loss` of an output that is there already."""
        logits_BN = output.logits
        if choice_mask is not None:
            logits_BN = jnp.where(choice_mask > 0, logits_BN, jnp.finfo(logits_BN.dtype).min)
        return {"multiple_choice": losses.label_loss(logits_BN, labels)[0]}

    @nn.nowrap
    def count(self, *, labels: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
        """{"multiple_choice": number of questions that count}."""
        return {"multiple_choice": losses.label_count(labels)}


class RobertaForQuestionAnswering(ConfigModule):
    """Extractive question answering: where in an input the answer starts and ends.

    Attributes:
      config: the model's shape.
      execution: how to compute it.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    config: RobertaConfig
    execution: Execution = Execution()

    def setup(self):
        self.roberta = RobertaModel(self.config, self.execution)
        self.qa_outputs = _last_layer(self.config, 2)

    def __call__(self, *args: Any, **inputs: Any) -> QuestionAnsweringOutput:
        """Start and end logits [B, L]; the arguments are `RobertaModel`'s."""
        output = self.roberta(*args, **inputs)
        logits_BL2 = self.qa_outputs(output.last_hidden_state)
        return QuestionAnsweringOutput(
            logits_BL2[..., 0], logits_BL2[..., 1], output.hidden_states, output.attentions
        )

    def loss(
        self, *, start_positions: jax.Array, end_positions: jax.Array, **inputs: Any
    ) -> dict[str, jax.Array]:
        """{"start": ..., "end": ...}: half of each summed cross-entropy, in nats.

        Halves, because the loss is the mean of the two quotients. A position past the input is no
        target; that is how windows without the answer are marked. A negative position counts as 0,
        as in Hugging Face's classes.

        Args:
          start_positions, end_positions: int [B].
          inputs: see `RobertaModel.__call__`.
        """
        return self.loss_of(
            self(**inputs), start_positions=start_positions, end_positions=end_positions
        )

    @nn.nowrap
    def loss_of(
        self,
        output: QuestionAnsweringOutput,
        *,
        start_positions: jax.Array,
        end_positions: jax.Array,
    ) -> dict[str, jax.Array]:
        """`loss` of an output that is there already."""
        return {
            "start": 0.5 * losses.span_loss(output.start_logits, start_positions)[0],
            "end": 0.5 * losses.span_loss(output.end_logits, end_positions)[0],
        }

    @nn.nowrap
    def count(
        self, *, start_positions: jax.Array, end_positions: jax.Array, **inputs: Any
    ) -> dict[str, jax.Array]:
        """{"start": ..., "end": ...}: the number of positions inside their inputs."""
        given = inputs.get("input_ids")
        length = (inputs["inputs_embeds"] if given is None else given).shape[1]
        return {
            "start": losses.span_count(start_positions, length),
            "end": losses.span_count(end_positions, length),
        }


# These read the first token of the last hidden state alone.
FIRST_TOKEN_HEADS = (RobertaForSequenceClassification, RobertaForMultipleChoice)
