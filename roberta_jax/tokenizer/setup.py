"""Completes a pipeline that was read from files, as the tokenizer's options say."""

from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from roberta_jax.tokenizer import pipeline, related_models
from roberta_jax.tokenizer.options import TokenizerOptions
from roberta_jax.tokenizer.special_tokens import ROBERTA_SPECIAL_TOKENS


class Setup(NamedTuple):
    """What `set_up` decided."""

    is_byte_level: bool  # RoBERTa's own pipeline, rather than one of a related model
    special_tokens: dict[str, str | AddedToken | None]  # by attribute
    additional_special_tokens: list[str | AddedToken]


def set_up(backend: Tokenizer, options: TokenizerOptions) -> Setup:
    """Completes a pipeline, in place: its steps and its special and added tokens.

    Raises:
      PipelineError: the pipeline is not supported.
      ValueError: `single_separator_pairs` for a related model.
    """
    _add_listed_tokens(backend, options)
    is_byte_level = not related_models.is_related_model(backend)
    complete = _complete_roberta if is_byte_level else _complete_related_model
    special_tokens, additional = complete(backend, options)
    listed = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([
        AddedToken(token, special=True) if isinstance(token, str) else token
        for token in additional
        if str(token) not in listed
    ])  # fmt: skip
    return Setup(is_byte_level, special_tokens, additional)


def _add_listed_tokens(backend: Tokenizer, options: TokenizerOptions) -> None:
    """Adds the tokens of `added_tokens_decoder` that the pipeline lacks, in the order of ids."""
    special = set(map(str, options.special_tokens.values()))
    special |= set(map(str, options.additional_special_tokens))
    listed = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    missing = [token for _, token in sorted(options.added_tokens.items())]
    missing = [token for token in missing if repr(token) not in listed]
    for token in missing:
        token.special = token.special or token.content in special
    backend.add_tokens(missing)


def _complete_roberta(backend: Tokenizer, options: TokenizerOptions) -> tuple[dict, list]:
    special_tokens = {**ROBERTA_SPECIAL_TOKENS, **options.special_tokens}
    add_prefix_space = options.add_prefix_space
    if add_prefix_space is None:
        add_prefix_space = getattr(backend.pre_tokenizer, "add_prefix_space", False)
    pipeline.complete(
        backend,
        add_prefix_space=add_prefix_space,
        trim_offsets=options.trim_offsets,
        single_separator=options.single_separator_pairs,
        tokens=special_tokens,
    )
    return special_tokens, options.additional_special_tokens


def _complete_related_model(backend: Tokenizer, options: TokenizerOptions) -> tuple[dict, list]:
    if options.single_separator_pairs:
        raise ValueError(
            "single_separator_pairs is only for RoBERTa's own kind of tokenizer: this one encodes "
            "pairs as its tokenizer.json says"
        )
    special_tokens = related_models.set_up_special_tokens(backend, options.special_tokens)
    is_byte_level = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
    if is_byte_level and options.add_prefix_space is not None:
        backend.pre_tokenizer.add_prefix_space = options.add_prefix_space
    vocab = backend.get_vocab(with_added_tokens=True)
    unused = [token for token in related_models.CAMEMBERT_UNUSED_TOKENS if token in vocab]
    return special_tokens, options.additional_special_tokens or unused
