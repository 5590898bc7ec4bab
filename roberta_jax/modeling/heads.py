"""The models: `RobertaModel`, the encoder with its inputs, and `RobertaForMaskedLM` on top of it.

Array names carry their shape: B inputs, L tokens an input, D hidden width, K masked positions an
input, V vocabulary.
"""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from roberta_jax.modeling.config import Execution, RobertaConfig
from roberta_jax.modeling.encoder import Encoder
from roberta_jax.modeling.layers import (
    Dense,
    Embeddings,
    LayerNorm,
    gelu,
    replicated,
    shape_error,
)
from roberta_jax.modeling.losses import projected_cross_entropy


@flax.struct.dataclass
class ModelOutput:
    """What `RobertaModel` returns.

    Attributes:
      last_hidden_state: [B, L, D].
      pooler_output: [B, D], or None without a pooling layer.
      hidden_states: the embeddings and each block's output, if asked for.
      attentions: each block's [B, H, L, L] attention probabilities, if asked for.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class MaskedLMOutput:
    """What `RobertaForMaskedLM` returns.

    Attributes:
      logits: float32 [B, K, V] at the masked positions, or [B, L, V] everywhere if none are given.
      hidden_states, attentions: as in `ModelOutput`.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


def positions_from_ids(
    input_ids: jax.Array, pad_token_id: int, segment_ids: jax.Array | None = None
) -> jax.Array:
    """RoBERTa's position of each token: pads at `pad_token_id`, the others from the next one on.

    As fairseq's `make_positions`: p = cumsum(ids != pad) * (ids != pad) + pad. With `segment_ids`
    the count starts again wherever a new segment starts.

    Args:
      input_ids: int [B, L].
      pad_token_id: the id of `<pad>`.
      segment_ids: int [B, L] or None.

    Returns:
      int32 [B, L].
    """
    real = (input_ids != pad_token_id).astype(jnp.int32)
    count = jnp.cumsum(real, axis=-1)
    if segment_ids is not None:
        starts = jnp.diff(segment_ids, axis=-1, prepend=segment_ids[:, :1]) != 0
        before = jax.lax.cummax(jnp.where(starts, count - real, 0), axis=1)
        count = count - before
    return count * real + pad_token_id


def attention_mask_from(
    attention_mask: jax.Array | None, segment_ids: jax.Array | None
) -> jax.Array | None:
    """Which query may see which key: bool [B, 1, 1 or L, L], or None where all see all.

    A key is seen where `attention_mask` is not 0 and, with `segment_ids`, where query and key are
    of the same segment and that segment is not 0 (padding).
    """
    mask = None
    if attention_mask is not None:
        mask = (attention_mask != 0)[:, None, None, :]
    if segment_ids is not None:
        query, key = segment_ids[:, None, :, None], segment_ids[:, None, None, :]
        same = (query == key) & (key != 0)
        mask = same if mask is None else mask & same
    return mask


class Pooler(nn.Module):
    """tanh(dense(first token))."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        config = self.config
        dense = Dense(
            config.hidden_size,
            ("embed", "heads"),
            config.initializer_range,
            self.execution.dtype,
            name="dense",
        )
        return jnp.tanh(dense(x_BLD[:, 0]))


class RobertaModel(nn.Module):
    """The encoder: token ids in, one vector a token out.

    Attributes:
      config: the model's shape.
      execution: how to compute it.
      add_pooling_layer: whether to add BERT's pooler, as Hugging Face's class does by default;
        masked-LM training has no use for it.
    """

    config: RobertaConfig
    execution: Execution = Execution()
    add_pooling_layer: bool = False

    def setup(self):
        self.embeddings = Embeddings(self.config, self.execution)
        self.encoder = Encoder(self.config, self.execution)
        if self.add_pooling_layer:
            self.pooler = Pooler(self.config, self.execution)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        head_mask: jax.Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ModelOutput:
        """Encodes a batch.

        An id outside its table raises ValueError where the ids can be looked at; inside `jit` they
        cannot, and such an id gives NaN.

        Args:
          input_ids: int [B, L]; or give `inputs_embeds`.
          attention_mask: int or bool [B, L], 0 at keys that no query may see. None lets all see
            all, padding included, as in Hugging Face's classes.
          token_type_ids: int [B, L], 0 if None.
          position_ids: int [B, L]; if None, derived from the ids (see `positions_from_ids`), or
            running from `pad_token_id + 1` with `inputs_embeds`.
          segment_ids: int [B, L], for rows that hold several inputs: tokens attend within their
            own segment alone, and 0 is padding.
          inputs_embeds: [B, L, D] vectors in place of the word table's.
          head_mask: [H] or [layers, H] factors on the heads' attention probabilities.
          deterministic: no dropout; False needs the RNG stream "dropout".
          output_hidden_states, output_attentions: what else to return.

        Returns:
          A `ModelOutput`.

        Raises:
          ValueError: shapes do not fit each other or the config, or the input is too long.
        """
        _check_inputs(
            self.config,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            segment_ids=segment_ids,
            inputs_embeds=inputs_embeds,
        )
        if position_ids is None:
            if input_ids is None:
                start = self.config.pad_token_id + 1
                position_ids = jnp.arange(start, start + inputs_embeds.shape[1])[None]
            else:
                position_ids = positions_from_ids(input_ids, self.config.pad_token_id, segment_ids)
        x_BLD = self.embeddings(
            input_ids, token_type_ids, position_ids, inputs_embeds, deterministic
        )
        mask = attention_mask_from(attention_mask, segment_ids)
        last, hidden_states, attentions = self.encoder(
            x_BLD, mask, head_mask, deterministic, output_hidden_states, output_attentions
        )
        pooled = self.pooler(last) if self.add_pooling_layer else None
        return ModelOutput(last, pooled, hidden_states, attentions)


class LMHead(nn.Module):
    """dense -> GELU -> LayerNorm -> the transposed word table, plus a bias."""

    config: RobertaConfig
    execution: Execution

    def setup(self):
        config, dtype = self.config, self.execution.dtype
        width, spread = config.hidden_size, config.initializer_range
        self.dense = Dense(width, ("embed", "heads"), spread, dtype)
        self.layer_norm = LayerNorm(config.layer_norm_eps, dtype)
        self.bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)),
            (config.vocab_size,),
            jnp.float32,
        )

    def transform(self, x: jax.Array) -> jax.Array:
        """All but the last product: [..., D] to [..., D]."""
        return self.layer_norm(gelu(self.dense(x)))

    def __call__(self, x: jax.Array, table_VD: jax.Array) -> jax.Array:
        """[..., D] to float32 logits [..., V]."""
        x = self.transform(x)
        table_VD = replicated(table_VD, x.dtype)
        return (
            jnp.einsum("...d,vd->...v", x, table_VD, preferred_element_type=jnp.float32) + self.bias
        )

    def loss(self, x: jax.Array, table_VD: jax.Array, labels: jax.Array) -> jax.Array:
        """[..., D] and labels [...] to the negative log-likelihoods [...], in nats."""
        x_ND = self.transform(x).reshape(-1, x.shape[-1])
        table_VD = replicated(table_VD, x_ND.dtype)
        loss_N = projected_cross_entropy(x_ND, table_VD, self.bias, labels.reshape(-1))
        return loss_N.reshape(labels.shape)


class RobertaForMaskedLM(nn.Module):
    """RoBERTa with its masked-language-modelling head, the decoder tied to the word table.

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
        inputs_embeds: jax.Array | None = None,
        head_mask: jax.Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> MaskedLMOutput:
        """Predicts tokens: everywhere, or at `masked_positions` alone, which is far cheaper.

        Args:
          masked_positions: int [B, K], in [0, L): where to predict, as fairseq projects only the
            masked tokens. Position 0 may fill empty slots.
          others: see `RobertaModel.__call__`.

        Returns:
          A `MaskedLMOutput`.

        Raises:
          ValueError: as `RobertaModel.__call__`.
        """
        output = self.roberta(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            segment_ids,
            inputs_embeds,
            head_mask,
            deterministic,
            output_hidden_states,
            output_attentions,
        )
        x = _at_positions(output.last_hidden_state, masked_positions)
        logits = self.lm_head(x, self.roberta.embeddings.word_embeddings.embedding)
        return MaskedLMOutput(logits, output.hidden_states, output.attentions)

    def loss(
        self,
        *,
        masked_positions: jax.Array,
        masked_labels: jax.Array,
        masked_weights: jax.Array,
        **inputs,
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
        x = _at_positions(self.roberta(**inputs).last_hidden_state, masked_positions)
        table = self.roberta.embeddings.word_embeddings.embedding
        weights = masked_weights.astype(jnp.float32)
        return jnp.sum(self.lm_head.loss(x, table, masked_labels) * weights), jnp.sum(weights)


def _at_positions(x_BLD, positions_BK):
    """The vectors [B, K, D] at these positions, or all of them for None."""
    if positions_BK is None:
        return x_BLD
    if positions_BK.ndim != 2 or positions_BK.shape[0] != x_BLD.shape[0]:
        raise shape_error("masked_positions", positions_BK.shape, f"({x_BLD.shape[0]}, K)")
    x_BKD = jnp.take_along_axis(x_BLD, positions_BK[..., None], axis=1)
    return nn.with_logical_constraint(x_BKD, ("batch", None, None))


def _check_inputs(config, *, input_ids, inputs_embeds, **others):
    """Raises ValueError for inputs that do not fit; see `RobertaModel.__call__`."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds, and not both")
    if input_ids is not None:
        shape = input_ids.shape
        if len(shape) != 2:
            raise shape_error("input_ids", shape, "(batch, length)")
    else:
        *shape, width = inputs_embeds.shape
        shape = tuple(shape)
        if len(shape) != 2 or width != config.hidden_size:
            wanted = f"(batch, length, {config.hidden_size})"
            raise shape_error("inputs_embeds", inputs_embeds.shape, wanted)
    for name, value in others.items():
        # Positions and token types may be given once for the whole batch.
        shared = name in ("position_ids", "token_type_ids") and value is not None
        if (
            value is not None
            and value.shape != shape
            and not (shared and value.shape == (1, shape[1]))
        ):
            raise shape_error(name, value.shape, f"that of the input, {shape}")
    if shape[1] > config.max_length:
        raise ValueError(
            f"input of {shape[1]} tokens, but this model has positions for {config.max_length} "
            f"(max_position_embeddings {config.max_position_embeddings}, of which the first "
            f"{config.pad_token_id + 1} are reserved); truncate the input"
        )
    for name, ids, rows in (
        ("input_ids", input_ids, config.vocab_size),
        ("token_type_ids", others["token_type_ids"], config.type_vocab_size),
        ("position_ids", others["position_ids"], config.max_position_embeddings),
    ):
        if ids is None or isinstance(ids, jax.core.Tracer):
            continue
        ids = np.asarray(ids)
        if ids.size and (ids.min() < 0 or ids.max() >= rows):
            raise ValueError(
                f"{name} must lie in [0, {rows}), but they span [{ids.min()}, {ids.max()}]"
            )
