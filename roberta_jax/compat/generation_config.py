"""Options of the drop-in causal LM's `generate`, with transformers' names and defaults.

An option may come from the call, from `model.generation_config` or from the model's config.
`resolve_options` turns them into the arguments of `modeling.generation.generate`.
"""

import dataclasses
import logging
import warnings
from collections.abc import Mapping
from typing import Any

from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.generation import Sampling

logger = logging.getLogger(__name__)

_DEFAULT_MAX_LENGTH = 20

# Options that change the generated tokens and are not supported: {name: values that turn it off}.
_UNSUPPORTED = {
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
# Options that are accepted and ignored. They concern beam search, the cache (which is always used)
# or what is returned (always an object with `sequences`).
_IGNORED = (
    "early_stopping", "length_penalty", "output_attentions", "output_hidden_states",
    "output_logits", "output_scores", "return_dict_in_generate", "use_cache",
)  # fmt: skip


@dataclasses.dataclass
class FlaxGenerationConfig:
    """Default options of `generate`, with transformers' names and values. Mutable.

    Attributes:
      max_length: Maximum number of tokens, prompt included.
      max_new_tokens: Maximum number of generated tokens; takes precedence over `max_length`.
      min_length: A sequence ends only when it has more tokens than this, prompt included.
      min_new_tokens: Minimum number of tokens generated before the end of a sequence.
      do_sample, temperature, top_k, top_p: See `modeling.generation.Sampling`.
      num_beams, num_return_sequences: Must be 1.
      bos_token_id, eos_token_id, pad_token_id: Special tokens; the model config's if None.
    """

    max_length: int = _DEFAULT_MAX_LENGTH
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
        """Takes the generation options that a model's config holds, as older configs do."""
        generation_config = cls()
        generation_config.set_values(config.to_dict())
        return generation_config

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the options."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Sets the options that `values` holds; ignores its other keys and values of None."""
        for name in self.names():
            if values.get(name) is not None:
                setattr(self, name, values[name])

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, as in `generation_config.json`."""
        default = FlaxGenerationConfig()
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value != getattr(default, name)}


@dataclasses.dataclass(frozen=True)
class ResolvedOptions:
    """Arguments of `modeling.generation.generate`, and the id that fills up ended sequences."""

    max_new_tokens: int
    min_new_tokens: int
    sampling: Sampling
    eos_token_id: int
    pad_token_id: int


def resolve_options(
    generation_config: Any,
    call_options: Mapping[str, Any],
    prompt_length: int,
    model_config: RobertaConfig,
) -> ResolvedOptions:
    """Resolves the options of one call of `generate`.

    Args:
      generation_config: A mapping, a `FlaxGenerationConfig` or transformers' `GenerationConfig`.
      call_options: Options passed to the call; they override `generation_config` unless None.
      prompt_length: Tokens in each prompt, padding included.
      model_config: Provides the special tokens that no option sets.

    Raises:
      UsageError: An option is unknown or not supported, or leaves no token to generate.
    """
    names = FlaxGenerationConfig.names()
    for name in call_options:
        if name not in (*names, *_UNSUPPORTED, *_IGNORED):
            raise UsageError(f"generate has no option {name!r}; its options are {', '.join(names)}")
    call_options = _without_none(call_options)
    options = _without_none(_to_mapping(generation_config)) | call_options
    _check_supported(options)
    max_new_tokens = _max_new_tokens(options, call_options, prompt_length)
    min_new_tokens = max(
        0, options.get("min_new_tokens", 0), options.get("min_length", 0) - prompt_length + 1
    )
    sampling = Sampling(
        do_sample=bool(options.get("do_sample", False)),
        temperature=options.get("temperature", 1.0),
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 1.0),
    )
    return ResolvedOptions(
        max_new_tokens,
        min_new_tokens,
        sampling,
        eos_token_id=_first_id(options.get("eos_token_id", model_config.eos_token_id)),
        pad_token_id=_first_id(options.get("pad_token_id", model_config.pad_token_id)),
    )


def _check_supported(options: Mapping[str, Any]) -> None:
    for name, off_values in _UNSUPPORTED.items():
        if options.get(name) not in off_values:
            advice = "; repeat the prompts instead" if name == "num_return_sequences" else ""
            raise UsageError(
                f"generate does not support {name}={options[name]!r}: it does greedy search "
                "(do_sample=False) or sampling (temperature, top_k, top_p), with one continuation "
                f"per prompt{advice}"
            )


def _max_new_tokens(
    options: Mapping[str, Any], call_options: Mapping[str, Any], prompt_length: int
) -> int:
    """Derives the number of tokens to generate from `max_new_tokens` or `max_length`."""
    if "max_new_tokens" in options:
        if "max_length" in call_options:
            logger.warning(
                "both max_new_tokens (=%s) and max_length (=%s) are set; max_new_tokens is used",
                options["max_new_tokens"],
                options["max_length"],
            )
        return options["max_new_tokens"]
    max_length = options.get("max_length", _DEFAULT_MAX_LENGTH)
    if "max_length" not in call_options and max_length == _DEFAULT_MAX_LENGTH:
        warnings.warn(
            f"neither max_new_tokens nor max_length is set: generating up to {max_length} tokens, "
            "prompt included",
            stacklevel=4,  # the caller of `generate`
        )
    max_new_tokens = max_length - prompt_length
    if max_new_tokens < 1:
        raise UsageError(
            f"the prompt has {prompt_length} tokens and max_length is {max_length}, which leaves "
            "none to generate; set max_new_tokens instead"
        )
    return max_new_tokens


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _to_mapping(generation_config: Any) -> Mapping[str, Any]:
    if isinstance(generation_config, Mapping):
        return generation_config
    if dataclasses.is_dataclass(generation_config):
        return vars(generation_config)
    return generation_config.to_dict()


def _first_id(token_id: Any) -> int:
    """Returns the id, or the first of a list of ids, which transformers' configs may hold."""
    return token_id[0] if isinstance(token_id, list | tuple) else token_id
