"""Builds RoBERTa's pipeline with the `tokenizers` library.

The pipeline has four steps: GPT-2's regular expression splits the text into pieces; the UTF-8 bytes
of each piece are written in an alphabet of 256 printable characters ("Ġ" is the space); BPE merges
pairs of symbols in the order in which the merges were learned; and the template `<s> A </s>` or
`<s> A </s></s> B </s>` adds the special tokens. Every file format and every newly trained
vocabulary is turned into this pipeline. `related_models` handles the pipelines of other models.
"""

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from roberta_jax.tokenizer import templates
from roberta_jax.tokenizer.special_tokens import MASK, ROBERTA_SPECIAL_TOKENS, SPECIAL_TOKENS


class PipelineError(ValueError):
    """A vocabulary, a list of merges or a `tokenizer.json` that is not a supported tokenizer."""


def bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """Returns a pipeline that has a BPE model and no other step.

    Args:
      vocab: token to id.
      merges: pairs of tokens; earlier pairs are merged first.

    Raises:
      PipelineError: a merge contains or produces a token that is not in the vocabulary.
    """
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocab:
                raise PipelineError(
                    f"the merge {left!r} {right!r} needs the token {token!r}, which is not in the "
                    "vocabulary: use a vocabulary and merges of the same tokenizer"
                )
    return Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))


def build(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, add_prefix_space: bool
) -> Tokenizer:
    """Returns RoBERTa's pipeline for a vocabulary (token to id) and its merges (earlier first).

    Raises:
      PipelineError: a merge contains or produces a token that is not in the vocabulary, or the ids
        are not 0 to n - 1.
    """
    return complete(bpe(vocab, merges), add_prefix_space=add_prefix_space)


def is_complete(backend: Tokenizer) -> bool:
    """Whether a pipeline has RoBERTa's steps: byte-level BPE with RoBERTa's template."""
    return (
        isinstance(backend.model, models.BPE)
        and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        and backend.pre_tokenizer.use_regex
        and templates.roberta_tokens(backend) is not None
    )


def complete(
    backend: Tokenizer,
    *,
    add_prefix_space: bool,
    trim_offsets: bool = True,
    single_separator: bool | None = None,
    tokens: Mapping[str, str | AddedToken] = ROBERTA_SPECIAL_TOKENS,
) -> Tokenizer:
    """Adds RoBERTa's other steps to a BPE model, in place, and returns the pipeline.

    Special tokens that are not in the vocabulary get the next free ids, as in HF's class. RoBERTa's
    own special tokens get RoBERTa's settings whatever the file says, because some versions of
    transformers write wrong ones: `<mask>` includes the space on its left ("a <mask> b" becomes
    "a", "<mask>", "Ġb") and the others include no space. An `AddedToken` in `tokens` keeps its own
    settings.

    Args:
      backend: a BPE model, with or without the other steps.
      add_prefix_space: encode a text as if it started with a space.
      trim_offsets: exclude the space before a word from the offsets of the word's token.
      single_separator: encode pairs as `<s> A </s> B </s>`, as fairseq can; None keeps the template
        of `backend`.
      tokens: special tokens by attribute.

    Raises:
      PipelineError: the model is not BPE, the pre-tokenizer is not byte-level, or the ids are not 0
        to n - 1.
    """
    if not isinstance(backend.model, models.BPE):
        raise PipelineError(
            f"the model is {type(backend.model).__name__}, not BPE: RoBERTa's tokenizer is "
            "byte-level BPE"
        )
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel | None):
        raise PipelineError(
            f"the pre-tokenizer is {type(backend.pre_tokenizer).__name__}, not ByteLevel: "
            "this is not a RoBERTa tokenizer"
        )
    if backend.pre_tokenizer is not None and not backend.pre_tokenizer.use_regex:
        raise PipelineError(
            "the pre-tokenizer does not split text with GPT-2's regular expression (use_regex is "
            "false): this is not a RoBERTa tokenizer"
        )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.no_truncation()
    backend.no_padding()

    add_special_tokens(backend, tokens)
    vocab = backend.get_vocab(with_added_tokens=True)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise PipelineError(
            f"the {len(vocab)} tokens do not have the ids 0 to {len(vocab) - 1}: ids must be "
            "unique and without gaps, because the embedding table has one row per id"
        )
    cls, sep, has_single_separator = templates.roberta_tokens(backend) or (None, None, False)
    if cls not in vocab or sep not in vocab:
        cls, sep = str(tokens["cls_token"]), str(tokens["sep_token"])
    backend.post_processor = templates.roberta_post_processor(
        (cls, vocab[cls]),
        (sep, vocab[sep]),
        trim_offsets=trim_offsets,
        add_prefix_space=add_prefix_space,
        single_separator=has_single_separator if single_separator is None else single_separator,
    )
    return backend


def add_special_tokens(backend: Tokenizer, tokens: Mapping[str, str | AddedToken]) -> None:
    """Adds special tokens (by attribute) to a byte-level pipeline, in place.

    Tokens that the file lists keep the file's settings, unless they are RoBERTa's own.
    """
    listed = {token.content for token in backend.get_added_tokens_decoder().values()}
    added_tokens = {}
    for attribute, token in tokens.items():
        content = str(token)
        if isinstance(token, str):
            if content in listed and content not in SPECIAL_TOKENS:
                continue
            if attribute == "mask_token" or content == MASK:
                token = AddedToken(content, lstrip=True, normalized=False)
            else:
                token = AddedToken(content, normalized=True)
        added_tokens.setdefault(content, token)
    backend.add_special_tokens(list(added_tokens.values()))


def set_prefix_space(backend: Tokenizer, add_prefix_space: bool, trim_offsets: bool) -> None:
    """Changes `add_prefix_space` of a pipeline that `complete` returned, in place."""
    cls, sep, single_separator = templates.roberta_tokens(backend)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.post_processor = templates.roberta_post_processor(
        (cls, backend.token_to_id(cls)),
        (sep, backend.token_to_id(sep)),
        trim_offsets=trim_offsets,
        add_prefix_space=add_prefix_space,
        single_separator=single_separator,
    )
