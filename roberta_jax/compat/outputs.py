"""Outputs of the drop-in classes, which are read by attribute, by name or by index.

Fields, their names and their order are those of transformers' `modeling_flax_outputs`. As there, a
field that is None is left out of the keys and of the tuple. All outputs are pytrees and can be
returned from `jit`.

Array names carry their shape: B batch, L tokens of an input, S tokens of the encoder's input, D
hidden size, H attention heads, V vocabulary, C classes, T tokens of prompt and continuation.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax


class FlaxOutput(Mapping):
    """A mapping of the fields that are not None; integers and slices index it as a tuple."""

    def keys(self) -> list[str]:
        """The names of the fields that are not None, in order."""
        names = [field.name for field in dataclasses.fields(self)]
        return [name for name in names if getattr(self, name) is not None]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@flax.struct.dataclass
class FlaxModelOutput(FlaxOutput):
    """Output of `FlaxRobertaModel`.

    Attributes:
      last_hidden_state: [B, L, D].
      pooler_output: [B, D], or None without a pooling layer.
      hidden_states: The embeddings and the output of each layer, [B, L, D] each, if requested.
      past_key_values: The updated cache, if one was passed.
      attentions: The attention probabilities of each layer, [B, H, L, L] each, if requested.
      cross_attentions: The cross-attention probabilities of each layer, [B, H, L, S] each, if
        requested and if the model has cross-attention.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    past_key_values: dict[str, Any] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class FlaxCausalLMOutput(FlaxOutput):
    """Output of `FlaxRobertaForCausalLM`.

    Attributes:
      logits: float32 [B, L, V].
      past_key_values, hidden_states, attentions, cross_attentions: See `FlaxModelOutput`.
    """

    logits: jax.Array
    past_key_values: dict[str, Any] | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class FlaxLogitsOutput(FlaxOutput):
    """Output of the other classes, which have a single array of logits.

    Attributes:
      logits: float32. [B, L, V] for masked LM, [B, C] for sequence classification, [B, L, C] for
        token classification, [B, number of choices] for multiple choice.
      hidden_states, attentions: See `FlaxModelOutput`.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class FlaxQuestionAnsweringOutput(FlaxOutput):
    """Output of `FlaxRobertaForQuestionAnswering`.

    Attributes:
      start_logits, end_logits: float32 [B, L].
      hidden_states, attentions: See `FlaxModelOutput`.
    """

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class FlaxGenerateOutput(FlaxOutput):
    """Output of `generate`.

    Attributes:
      sequences: int32 [B, T], the prompts and their continuations. With several of each prompt,
        they are one after the other.
      scores: float32 [B], after beam search: see `modeling.beam_search.BeamSearchOutput`.
    """

    sequences: jax.Array
    scores: jax.Array | None = None
