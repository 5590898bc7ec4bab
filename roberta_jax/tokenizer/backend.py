"""RoBERTa's pipeline in terms of the `tokenizers` library.

Text is cut by GPT-2's regular expression, each piece's UTF-8 bytes are written in an alphabet of
256 printable characters ("Ġ" is the space), byte pairs are merged in the order they were learned,
and `<s> A </s>` or `<s> A </s></s> B </s>` is put around the result. Every file format, and a
freshly trained vocabulary, ends up here; `siblings` has the pipelines of other kinds.
"""

import json
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from roberta_jax.tokenizer import templates

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
# In the order of HF's `all_special_tokens`, in which missing ones are added as well.
SPECIAL_TOKENS = (BOS, EOS, UNK, PAD, MASK)
# Purpose to token, in HF's order.
ROBERTAS_TOKENS: Mapping[str, str | AddedToken] = {
    "bos_token": BOS,
    "eos_token": EOS,
    "unk_token": UNK,
    "sep_token": EOS,
    "pad_token": PAD,
    "cls_token": BOS,
    "mask_token": MASK,
}
# fairseq rounds its dictionary up to a multiple of 8 with entries of this name.
FILLER_PREFIX = "madeupword"


class BackendError(ValueError):
    """The vocabulary, the merges or a `tokenizer.json` make no tokenizer of this family."""


def bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """A pipeline of a BPE model alone.

    Args:
      vocab: token to id.
      merges: pairs of tokens, most urgent first.

    Raises:
      BackendError: a merge names a token that the vocabulary lacks.
    """
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocab:
                raise BackendError(
                    f"the merge {left!r} {right!r} needs the token {token!r}, which is not in the "
                    "vocabulary: the two files do not belong together"
                )
    return Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))


def build(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, add_prefix_space: bool
) -> Tokenizer:
    """Makes RoBERTa's pipeline from a vocabulary (token to id) and merges, most urgent first.

    Raises:
      BackendError: a merge names a token that the vocabulary lacks, or ids are not 0 to n - 1.
    """
    return complete(bpe(vocab, merges), add_prefix_space=add_prefix_space)


def is_robertas(backend: Tokenizer) -> bool:
    """Whether a pipeline is a completed one of RoBERTa's kind: byte-level BPE in its template."""
    return (
        isinstance(backend.model, models.BPE)
        and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        and backend.pre_tokenizer.use_regex
        and templates.cls_and_sep(backend) is not None
    )


def complete(
    backend: Tokenizer,
    *,
    add_prefix_space: bool,
    trim_offsets: bool = True,
    single_separator: bool | None = None,
    tokens: Mapping[str, str | AddedToken] = ROBERTAS_TOKENS,
) -> Tokenizer:
    """Puts RoBERTa's steps around a BPE model, in place, and returns it.

    Special tokens that the vocabulary lacks get the next free ids, as in HF's class. RoBERTa's own
    behave as in RoBERTa whatever the file said, since some versions of transformers write it wrong:
    `<mask>` takes the space on its left ("a <mask> b" is "a", "<mask>", "Ġb"), the others none. An
    `AddedToken` in `tokens` behaves as it says.

    Args:
      backend: a BPE model, with or without the other steps.
      add_prefix_space: encode a text as if it began with a space.
      trim_offsets: leave the space before a word out of its token's offsets.
      single_separator: write pairs `<s> A </s> B </s>`, as fairseq can; None as `backend` does.
      tokens: purpose to special token.

    Raises:
      BackendError: the model is not BPE, the pre-tokenizer is not byte-level, or ids have gaps.
    """
    if not isinstance(backend.model, models.BPE):
        raise BackendError(
            f"the model is {type(backend.model).__name__}, not BPE: RoBERTa's tokenizer is "
            "byte-level BPE"
        )
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel | None):
        raise BackendError(
            f"the pre-tokenizer is {type(backend.pre_tokenizer).__name__}, not ByteLevel: "
            "this is not a RoBERTa tokenizer"
        )
    if backend.pre_tokenizer is not None and not backend.pre_tokenizer.use_regex:
        raise BackendError("the pre-tokenizer does not cut text as GPT-2's does (use_regex is off)")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.no_truncation()
    backend.no_padding()

    add_robertas_special_tokens(backend, tokens)
    known = backend.get_vocab(with_added_tokens=True)
    if sorted(known.values()) != list(range(len(known))):
        raise BackendError(
            f"the {len(known)} tokens do not have the ids 0 to {len(known) - 1}: ids must be "
            "unique and without gaps, as an embedding table has one row for each"
        )
    cls, sep, single = templates.cls_and_sep(backend) or (None, None, False)
    if cls not in known or sep not in known:
        cls, sep = str(tokens["cls_token"]), str(tokens["sep_token"])
    backend.post_processor = templates.robertas(
        (cls, known[cls]),
        (sep, known[sep]),
        trim_offsets=trim_offsets,
        add_prefix_space=add_prefix_space,
        single_separator=single if single_separator is None else single_separator,
    )
    return backend


def add_robertas_special_tokens(backend: Tokenizer, tokens: Mapping[str, str | AddedToken]) -> None:
    """Adds special tokens by purpose; those that RoBERTa does not have keep what the file says."""
    in_file = {token.content for token in backend.get_added_tokens_decoder().values()}
    wanted = {}
    for role, token in tokens.items():
        content = str(token)
        if isinstance(token, str):
            if content in in_file and content not in SPECIAL_TOKENS:
                continue
            if role == "mask_token" or content == MASK:
                token = AddedToken(content, lstrip=True, normalized=False)
            else:
                token = AddedToken(content, normalized=True)
        wanted.setdefault(content, token)
    backend.add_special_tokens(list(wanted.values()))


def replace_surrogates(text: str) -> str:
    """`text` with each lone surrogate, which UTF-8 cannot hold, made U+FFFD; pairs are joined."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def vocab_and_merges(backend: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The BPE model's own vocabulary (without added tokens), by ascending id, and its merges."""
    model = json.loads(backend.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return vocab, merges


def byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the n-th of the others
    for 256 + n ("Ġ" is the space, "Ċ" the line end)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def set_prefix_space(backend: Tokenizer, add_prefix_space: bool, trim_offsets: bool) -> None:
    """Switches `add_prefix_space` of a completed pipeline of RoBERTa's kind, in place."""
    cls, sep, single_separator = templates.cls_and_sep(backend)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.post_processor = templates.robertas(
        (cls, backend.token_to_id(cls)),
        (sep, backend.token_to_id(sep)),
        trim_offsets=trim_offsets,
        add_prefix_space=add_prefix_space,
        single_separator=single_separator,
    )
