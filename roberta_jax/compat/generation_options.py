"""Turns transformers' generation options into the arguments of this package's searches."""

import dataclasses
import logging
import numbers
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from roberta_jax.compat.generation_config import (
    DEFAULT_MAX_LENGTH,
    SUPPORTED,
    FlaxGenerationConfig,
    check_supported,
    to_options,
)
from roberta_jax.errors import UsageError
from roberta_jax.modeling.beam_search import Beams
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.next_token import Sampling, TokenRules

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ResolvedOptions:
    """Arguments of `modeling.generation.generate` or `modeling.beam_search.beam_search`.

    Attributes:
      beams: None for greedy search and sampling.
      num_samples: Continuations to sample for each prompt.
    """

    max_new_tokens: int
    min_new_tokens: int
    sampling: Sampling
    beams: Beams | None
    num_samples: int
    rules: TokenRules
    eos_token_id: tuple[int, ...]
    pad_token_id: int


def resolve_options(
    generation_config: Any,
    call_options: Mapping[str, Any],
    prompt_length: int,
    model_config: RobertaConfig,
    processors: Iterable[Any] = (),
) -> ResolvedOptions:
    """Resolves the options of one call of `generate`.

    Args:
      generation_config: A mapping, a `FlaxGenerationConfig` or transformers' `GenerationConfig`.
      call_options: Options passed to the call. They override `generation_config`, also with None,
        which turns an option off.
      prompt_length: Tokens in each prompt, padding included.
      model_config: Provides the special tokens that no option sets.
      processors: Functions for `TokenRules.processors`.

    Raises:
      UsageError: An option is unknown, has a value of the wrong type or is not supported, or the
        options leave no token to generate.
      ValueError: See `Sampling`, `Beams` and `TokenRules`.
    """
    names = FlaxGenerationConfig.names()
    for name, value in call_options.items():
        if name not in names and value is not None:
            raise UsageError(
                f"generate has no option {name!r}; its options are {', '.join(SUPPORTED)}"
            )
    options = to_options(generation_config) | dict(call_options)
    options = _Options({name: value for name, value in options.items() if value is not None})
    check_supported(options.values)
    max_new_tokens = _max_new_tokens(options, call_options, prompt_length)
    beams, num_samples = _beams(options)
    return ResolvedOptions(
        max_new_tokens,
        _min_new_tokens(options, max_new_tokens, prompt_length),
        _sampling(options),
        beams,
        num_samples,
        _rules(options, prompt_length, max_new_tokens, tuple(processors)),
        eos_token_id=options.ids("eos_token_id") or (model_config.eos_token_id,),
        pad_token_id=options.integer("pad_token_id", model_config.pad_token_id),
    )


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options that are not None, read with a check of their types."""

    values: dict[str, Any]

    def integer(self, name: str, default: int) -> int:
        return self._checked(name, self.values.get(name, default), numbers.Integral, "an integer")

    def number(self, name: str, default: float) -> float:
        return float(self._checked(name, self.values.get(name, default), numbers.Real, "a number"))

    def flag(self, name: str) -> bool:
        return bool(self.values.get(name, False))

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them; () without."""
        ids = self.values.get(name, ())
        ids = ids if isinstance(ids, list | tuple) else (ids,)
        kind = "a token id or a list of token ids"
        return tuple(self._checked(name, i, numbers.Integral, kind) for i in ids)

    def id_lists(self, name: str, length: int | None = None) -> tuple[tuple[int, ...], ...]:
        """A list of lists of token ids, all of this length if it is given; () without."""
        lists = self.values.get(name, ())
        kind = "a list of lists of token ids" if length is None else "a list of pairs of integers"
        for ids in self._checked(name, lists, list | tuple, kind):
            self._checked(name, ids, list | tuple, kind)
            if length not in (None, len(ids)):
                raise UsageError(f"{name} must be {kind}, not {lists!r}")
        return tuple(
            tuple(self._checked(name, i, numbers.Integral, kind) for i in ids) for ids in lists
        )

    def _checked(self, name: str, value: Any, types: Any, kind: str) -> Any:
        if not isinstance(value, types) or isinstance(value, bool):
            raise UsageError(f"{name} must be {kind}, not {self.values[name]!r}")
        return int(value) if isinstance(value, numbers.Integral) else value


def _sampling(options: _Options) -> Sampling:
    sampling = Sampling(
        do_sample=options.flag("do_sample"),
        temperature=options.number("temperature", 1.0),
        top_k=options.integer("top_k", 0),
        top_p=options.number("top_p", 1.0),
    )
    if not sampling.do_sample:
        neutral = {"temperature": (1.0,), "top_k": (0, 50), "top_p": (1.0,)}
        _warn_of_no_effect(options, neutral, "do_sample=True")
        return Sampling()  # so that these options do not compile again
    return sampling


def _beams(options: _Options) -> tuple[Beams | None, int]:
    """(the options of beam search, the number of samples of each prompt)."""
    num_beams = options.integer("num_beams", 1)
    num_return_sequences = options.integer("num_return_sequences", 1)
    if num_beams > 1:
        if options.flag("do_sample"):
            raise UsageError(
                f"generate does not support do_sample=True with num_beams={num_beams}; set "
                "do_sample=False for beam search, or num_beams=1 for sampling"
            )
        return Beams(
            num_beams,
            options.number("length_penalty", 1.0),
            options.values.get("early_stopping", False),
            num_return_sequences,
        ), 1
    if num_beams < 1:
        raise UsageError(f"num_beams must be at least 1, not {num_beams}")
    neutral = {"early_stopping": (False,), "length_penalty": (1.0,)}
    _warn_of_no_effect(options, neutral, "num_beams above 1")
    if num_return_sequences < 1:
        raise UsageError(f"num_return_sequences must be at least 1, not {num_return_sequences}")
    if num_return_sequences > 1 and not options.flag("do_sample"):
        raise UsageError(
            f"num_return_sequences={num_return_sequences} needs num_beams="
            f"{num_return_sequences} or more, or do_sample=True: greedy search has one result"
        )
    return None, num_return_sequences


def _rules(
    options: _Options, prompt_length: int, max_new_tokens: int, processors: tuple[Any, ...]
) -> TokenRules:
    """The rules for the next token; see `FlaxGenerationConfig` for when tokens are forced."""
    # Pairs of a step, from 0, and a token. Those that come later win.
    forced = {step - 1: token for step, token in options.id_lists("forced_decoder_ids", 2)}
    if forced and min(forced) < 0:
        raise UsageError("forced_decoder_ids number the new tokens from 1, not from 0")
    begin_step = max(forced, default=-1) + 1
    is_start_forced = prompt_length == 1 and "forced_bos_token_id" in options.values
    for name, step in (("forced_bos_token_id", 0), ("forced_eos_token_id", max_new_tokens - 1)):
        ids = options.ids(name)
        if len(ids) > 1:
            raise UsageError(f"generate does not support {name}={list(ids)}; give one token id")
        if ids and (is_start_forced or name == "forced_eos_token_id"):
            forced[step] = ids[0]
    return TokenRules(
        repetition_penalty=options.number("repetition_penalty", 1.0),
        no_repeat_ngram_size=options.integer("no_repeat_ngram_size", 0),
        bad_words_ids=options.id_lists("bad_words_ids"),
        suppress_tokens=options.ids("suppress_tokens"),
        begin_suppress_tokens=options.ids("begin_suppress_tokens"),
        begin_step=begin_step + is_start_forced,
        processors=processors,
        forced_tokens=tuple(sorted(forced.items())),
    )


def _min_new_tokens(options: _Options, max_new_tokens: int, prompt_length: int) -> int:
    """Derives the number of tokens before which no sequence ends."""
    min_length = options.integer("min_length", 0)
    min_new_tokens = options.integer("min_new_tokens", 0)
    max_length = prompt_length + max_new_tokens
    if min_length > max_length or min_new_tokens > max_new_tokens:
        raise UsageError(
            f"min_length={min_length} and min_new_tokens={min_new_tokens} do not fit "
            f"{max_new_tokens} new tokens ({max_length} with the prompt)"
        )
    return max(0, min_new_tokens, min_length - prompt_length + 1)


def _max_new_tokens(options: _Options, call_options: Mapping[str, Any], prompt_length: int) -> int:
    """Derives the number of tokens to generate from `max_new_tokens` or `max_length`."""
    max_length = options.integer("max_length", DEFAULT_MAX_LENGTH)
    if "max_new_tokens" in options.values:
        max_new_tokens = options.integer("max_new_tokens", 0)
        if call_options.get("max_length") is not None:
            logger.warning(
                "both max_new_tokens (=%s) and max_length (=%s) are set; max_new_tokens is used",
                max_new_tokens,
                max_length,
            )
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        return max_new_tokens
    if call_options.get("max_length") is None and max_length == DEFAULT_MAX_LENGTH:
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


def _warn_of_no_effect(
    options: _Options, neutral_values: Mapping[str, tuple[Any, ...]], needed: str
) -> None:
    for name, neutral in neutral_values.items():
        if name in options.values and options.values[name] not in neutral:
            warnings.warn(
                f"{name}={options.values[name]!r} has no effect without {needed}",
                stacklevel=5,  # the caller of `generate`
            )
