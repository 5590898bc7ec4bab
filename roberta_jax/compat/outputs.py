"""Outputs of the drop-in classes, which are read by attribute, by name or by index.

Fields, their names and their order are those of transformers' `modeling_flax_outputs`. As there,
outputs are ordered dictionaries, and a field that is None is left out of the keys and of the tuple.
All outputs are pytrees and can be returned from `jit`.

Array names carry their shape: B batch, L tokens of an input, S tokens of the encoder's input, D
hidden size, H attention heads, V vocabulary, C classes, T tokens of prompt and continuation.
"""

import collections
import dataclasses
from typing import Any, NoReturn

import flax
import jax


class FlaxOutput(collections.OrderedDict):
    """A dictionary of the fields that are not None; integers and slices index it as a tuple.

    It cannot be changed; `replace(name=value)` returns a changed copy.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are not None, in order."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def copy(self) -> "FlaxOutput":
        """Returns a copy with the same values."""
        return dataclasses.replace(self)

    def __reduce__(self):  # that of OrderedDict would create the object without its fields
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __or__(self, other: Any) -> dict[str, Any]:
        return dict(self) | dict(other)

    def __ror__(self, other: Any) -> dict[str, Any]:
        return dict(other) | dict(self)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be changed: use output.replace(name=value), or change "
            "the copy dict(output)"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = move_to_end = _refuse


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
