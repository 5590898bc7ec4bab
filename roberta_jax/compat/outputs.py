"""What the drop-in classes return: read by attribute, by name, or by place.

The fields, their names and their order are those of transformers' `modeling_flax_outputs`. As
there, a field that is None is no key and has no place. All are pytrees, so that they pass through
`jit`.

Array names carry their shape: B inputs, L tokens an input, S tokens of the other model's input, D
hidden width, H heads, V vocabulary, C classes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax


class FlaxOutput(Mapping):
    """A mapping of the fields that are not None, which numbers and slices index, too."""

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
    """What `FlaxRobertaModel` returns.

    Attributes:
      last_hidden_state: [B, L, D].
      pooler_output: [B, D], or None without a pooling layer.
      hidden_states: the embeddings and each block's output [B, L, D], if asked for.
      past_key_values: the cache with this call's keys and values, if one was given.
      attentions: each block's probabilities [B, H, L, L], if asked for.
      cross_attentions: each block's [B, H, L, S], if asked for and there is cross-attention.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    past_key_values: dict[str, Any] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class FlaxCausalLMOutput(FlaxOutput):
    """What `FlaxRobertaForCausalLM` returns.

    Attributes:
      logits: float32 [B, L, V].
      past_key_values, hidden_states, attentions, cross_attentions: as in `FlaxModelOutput`.
    """

    logits: jax.Array
    past_key_values: dict[str, Any] | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class FlaxLogitsOutput(FlaxOutput):
    """What the other classes with one kind of logits return.

    Attributes:
      logits: float32. Masked LM: [B, L, V]. Sequence classification: [B, C]. Token classification:
        [B, L, C]. Multiple choice: [B, number of choices].
      hidden_states, attentions: as in `FlaxModelOutput`.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class FlaxQuestionAnsweringOutput(FlaxOutput):
    """What `FlaxRobertaForQuestionAnswering` returns.

    Attributes:
      start_logits, end_logits: float32 [B, L].
      hidden_states, attentions: as in `FlaxModelOutput`.
    """

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class FlaxGenerateOutput(FlaxOutput):
    """What `generate` returns.

    Attributes:
      sequences: int32 [B, prompt and continuation].
    """

    sequences: jax.Array
