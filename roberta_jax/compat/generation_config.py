"""Options of the drop-in causal LM's `generate`, with transformers' names and defaults.

An option may come from the call, from `model.generation_config` or from the model's config. Each is
either built, or refused with an error if its value differs from its neutral one, or has no effect
on the tokens. None is ignored in silence.
"""

import copy
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from roberta_jax.errors import UsageError, listed

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 20

# Options that change the tokens as in transformers.
SUPPORTED = (
    "bad_words_ids", "begin_suppress_tokens", "do_sample", "early_stopping", "eos_token_id",
    "forced_bos_token_id", "forced_decoder_ids", "forced_eos_token_id", "length_penalty",
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size",
    "num_beams", "num_return_sequences", "pad_token_id", "repetition_penalty", "suppress_tokens",
    "temperature", "top_k", "top_p",
)  # fmt: skip

# Options that are accepted with any value. Those of the cache, of compilation and of the output's
# class change no token: the cache is always used, the loop always compiled, the output always an
# object. `bos_token_id` starts an empty prompt, but there is always a prompt;
# `decoder_start_token_id` is for encoder-decoder models.
NO_EFFECT = (
    "bos_token_id", "cache_config", "cache_implementation", "compile_config",
    "decoder_start_token_id", "disable_compile", "low_memory", "prefill_chunk_size",
    "return_dict_in_generate", "return_legacy_cache", "use_cache",
)  # fmt: skip

# All other options are refused unless they are None, have their default, or one of these values.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "constraints": ([],),
    "force_words_ids": ([],),
    "guidance_scale": (1.0,),
    "min_p": (0.0,),
    "output_logits": (False,),
    "penalty_alpha": (0.0,),
    "sequence_bias": ({}, []),
    "stop_strings": ([], ""),
}

# In a model's config these concern calls of the model, not `generate`.
_FLAGS_OF_CALLS = ("output_attentions", "output_hidden_states")
_METADATA = ("transformers_version",)


@dataclasses.dataclass
class FlaxGenerationConfig:
    """Default options of `generate`, with transformers' names and values. Mutable.

    It has every field of transformers 4.57's `GenerationConfig`. `generate` takes the following
    ones. `NO_EFFECT` lists others that change no token. The rest must keep their defaults.

    Attributes:
      max_length: Maximum number of tokens, prompt included.
      max_new_tokens: Maximum number of generated tokens; takes precedence over `max_length`.
      min_length: A sequence may end once it has more tokens than this, prompt included, as in
        transformers' Flax classes. (In its PyTorch classes, once it has this many.)
      min_new_tokens: Minimum number of tokens generated before the end of a sequence.
      do_sample, temperature, top_k, top_p: See `modeling.next_token.Sampling`.
      num_beams: Beam search if it is more than 1, for which `do_sample` must be False.
      early_stopping, length_penalty: See `modeling.beam_search.Beams`.
      num_return_sequences: Continuations of each prompt: the best beams, or so many samples.
      repetition_penalty, no_repeat_ngram_size, bad_words_ids, suppress_tokens,
        begin_suppress_tokens: See `modeling.next_token.TokenRules`.
      forced_bos_token_id: The first generated token if the prompt has one token, as in
        transformers, where that prompt is the start token.
      forced_eos_token_id: The last token of sequences of the maximum length.
      forced_decoder_ids: Pairs of the number of a new token, counted from 1, and its id.
      eos_token_id: The token that ends a sequence, or a list of them.
      pad_token_id: The token that fills up sequences that have ended.
      bos_token_id: Not used.
      Special tokens that are None are those of the model's config.
    """

    max_length: int | None = DEFAULT_MAX_LENGTH
    max_new_tokens: int | None = None
    min_length: int | None = 0
    min_new_tokens: int | None = None
    early_stopping: bool | str = False
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool = False
    num_beams: int = 1
    use_cache: bool = True
    cache_implementation: str | None = None
    cache_config: dict[str, Any] | None = None
    return_legacy_cache: bool | None = None
    prefill_chunk_size: int | None = None
    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    typical_p: float | None = 1.0
    epsilon_cutoff: float | None = 0.0
    eta_cutoff: float | None = 0.0
    repetition_penalty: float | None = 1.0
    encoder_repetition_penalty: float | None = 1.0
    length_penalty: float | None = 1.0
    no_repeat_ngram_size: int | None = 0
    bad_words_ids: list[list[int]] | None = None
    renormalize_logits: bool = False
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    forced_decoder_ids: list[list[int]] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    sequence_bias: Any = None
    token_healing: bool = False
    guidance_scale: float | None = None
    watermarking_config: Any = None
    num_return_sequences: int = 1
    output_attentions: bool = False
    output_hidden_states: bool = False
    output_scores: bool = False
    output_logits: bool | None = None
    return_dict_in_generate: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    encoder_no_repeat_ngram_size: int | None = 0
    decoder_start_token_id: int | list[int] | None = None
    is_assistant: bool = False
    num_assistant_tokens: int = 20
    num_assistant_tokens_schedule: str = "constant"
    assistant_confidence_threshold: float = 0.4
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    assistant_early_exit: int | None = None
    assistant_lookbehind: int = 10
    target_lookbehind: int = 10
    compile_config: Any = None
    disable_compile: bool = False
    low_memory: bool | None = None
    penalty_alpha: float | None = None
    dola_layers: Any = None
    diversity_penalty: float | None = 0.0
    num_beam_groups: int = 1
    constraints: Any = None
    force_words_ids: Any = None

    @classmethod
    def from_model_config(cls, config: Any) -> "FlaxGenerationConfig":
        """Takes the generation options that a model's config holds, as older configs do."""
        values = config.to_dict()
        names = [name for name in cls.names() if name not in _FLAGS_OF_CALLS]
        return cls(**{name: values[name] for name in names if values.get(name) is not None})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FlaxGenerationConfig":
        """Creates it from a parsed `generation_config.json`; warns of keys that are no options."""
        names = cls.names()
        unknown = [
            name
            for name, value in values.items()
            if name not in (*names, *_METADATA) and not name.startswith("_") and value is not None
        ]
        if unknown:
            logger.warning(
                "the generation config sets %s, which generate does not know and ignores",
                listed(unknown),
            )
        return cls(**{name: value for name, value in values.items() if name in names})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the options."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, as in `generation_config.json`."""
        defaults = default_options()
        values = copy.deepcopy(vars(self))
        return {
            name: value
            for name, value in values.items()
            if name not in defaults or value != defaults[name]
        }


def default_options() -> dict[str, Any]:
    """The default of each option."""
    return {field.name: field.default for field in dataclasses.fields(FlaxGenerationConfig)}


def to_options(generation_config: Any) -> dict[str, Any]:
    """The options of a mapping, a `FlaxGenerationConfig` or transformers' `GenerationConfig`."""
    if isinstance(generation_config, FlaxGenerationConfig):
        generation_config = vars(generation_config)  # it may hold attributes that are no fields
    elif not isinstance(generation_config, Mapping):
        generation_config = generation_config.to_dict()
    return vars(FlaxGenerationConfig.from_dict(generation_config))


def check_supported(options: Mapping[str, Any]) -> None:
    """Raises UsageError if an option that is not built has a value other than its neutral one."""
    for name, default in default_options().items():
        value = options.get(name)
        if name in (*SUPPORTED, *NO_EFFECT) or value is None or value == default:
            continue
        if value not in _NEUTRAL_VALUES.get(name, ()):
            reason = f"leave it at {default!r}"
            if name == "output_scores":
                reason += "; the output of beam search always has the scores of its sequences"
            raise UsageError(f"generate does not support {name}={value!r}; {reason}")
