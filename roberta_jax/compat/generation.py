"""What the drop-in causal LM's `generate` is told, in transformers' words.

`modeling.generation` does the work; here transformers' options, their defaults and the places that
they come from (the call, `generation_config`, the model's config) become its arguments.
"""

import dataclasses
import logging
import warnings
from collections.abc import Mapping
from typing import Any

from roberta_jax.errors import UsageError
from roberta_jax.modeling.generation import Sampling

logger = logging.getLogger(__name__)

_DEFAULT_LENGTH = 20

# Options that change what is generated and that are not built: {name: values that ask for nothing}.
_NOT_BUILT = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "repetition_penalty": (None, 1.0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "forced_decoder_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "bad_words_ids": (None, []),
    "logits_processor": (None, []),
}
# Options that decide nothing here: of beams, of the cache, which is always used, and of what is
# returned, which is always an object with `sequences`.
_WITHOUT_EFFECT = (
    "early_stopping", "length_penalty", "output_attentions", "output_hidden_states",
    "output_logits", "output_scores", "return_dict_in_generate", "use_cache",
)  # fmt: skip


@dataclasses.dataclass
class FlaxGenerationConfig:
    """Defaults of `generate`, with transformers' names and values; may be written.

    Attributes:
      max_length: tokens of prompt and continuation together.
      max_new_tokens: tokens of the continuation; comes before `max_length`.
      min_length: no input ends before it has more tokens than these.
      min_new_tokens: no continuation ends before it has so many.
      do_sample, temperature, top_k, top_p: see `modeling.generation.Sampling`.
      num_beams, num_return_sequences: 1; more are refused.
      bos_token_id, eos_token_id, pad_token_id: the model's.
    """

    max_length: int = _DEFAULT_LENGTH
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    num_beams: int = 1
    num_return_sequences: int = 1
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    @classmethod
    def from_model_config(cls, config: Any) -> "FlaxGenerationConfig":
        """What a model's config says of generation, as transformers' configs once did."""
        values = config.to_dict()
        found = {name: values.get(name) for name in cls.names()}
        return cls(**{name: value for name, value in found.items() if value is not None})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options it holds."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as `generation_config.json` holds it."""
        default = FlaxGenerationConfig()
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if v != getattr(default, k)}


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """The arguments of `modeling.generation.generate`, and the id that follows an input's end."""

    max_new_tokens: int
    min_new_tokens: int
    sampling: Sampling
    eos_token_id: int
    pad_token_id: int


def options_of(
    settings: Any, options: Mapping[str, Any], prompt_length: int, config: Any
) -> GenerateOptions:
    """Resolves the options of a call.

    Args:
      settings: The `generation_config`, ours or transformers'.
      options: Those of the call, which come before.
      prompt_length: L.
      config: The model's.

    Raises:
      UsageError: An option is unknown, not built, or leaves nothing to generate.
    """
    held = settings if isinstance(settings, Mapping) else _values_of(settings)
    names = FlaxGenerationConfig.names()
    for name in options:
        if name not in (*names, *_NOT_BUILT, *_WITHOUT_EFFECT):
            raise UsageError(f"generate has no option {name!r}; it has {', '.join(names)}")
    asked = {name: value for name, value in options.items() if value is not None}
    told = {name: value for name, value in held.items() if value is not None} | asked
    for name, nothing in _NOT_BUILT.items():
        if told.get(name) not in nothing:
            more = "; repeat the prompts instead" if name == "num_return_sequences" else ""
            raise UsageError(
                f"generate cannot do {name}={told[name]!r}: it is greedy (do_sample=False) or it "
                f"samples (temperature, top_k, top_p), one continuation a prompt{more}"
            )
    if "max_new_tokens" in told:
        if "max_length" in asked:
            logger.warning(
                "both max_new_tokens (=%s) and max_length (=%s) are set; the first is used",
                told["max_new_tokens"],
                told["max_length"],
            )
        new = told["max_new_tokens"]
    else:
        total = told.get("max_length", _DEFAULT_LENGTH)
        if "max_length" not in asked and total == _DEFAULT_LENGTH:
            warnings.warn(
                f"neither max_new_tokens nor max_length is set: generating up to {total} tokens, "
                "prompt included",
                stacklevel=3,
            )
        new = total - prompt_length
        if new < 1:
            raise UsageError(
                f"the prompt has {prompt_length} tokens and max_length is {total}, which leaves "
                "none to generate; pass max_new_tokens"
            )
    least = max(0, told.get("min_new_tokens", 0), told.get("min_length", 0) - prompt_length + 1)
    return GenerateOptions(
        new,
        least,
        Sampling(
            bool(told.get("do_sample", False)),
            told.get("temperature", 1.0),
            told.get("top_k", 0),
            told.get("top_p", 1.0),
        ),
        _single(told.get("eos_token_id", config.eos_token_id)),
        _single(told.get("pad_token_id", config.pad_token_id)),
    )


def _values_of(settings: Any) -> Mapping[str, Any]:
    if dataclasses.is_dataclass(settings):
        return vars(settings)
    return settings.to_dict()


def _single(token_id: Any) -> int:
    """An id; of several that end an input, as transformers' configs may have them, the first."""
    return token_id[0] if isinstance(token_id, list | tuple) else token_id
