"""RoBERTa's pipeline in terms of the `tokenizers` library.

Text is cut by GPT-2's regular expression, each piece's UTF-8 bytes are written in an alphabet of
256 printable characters ("Ġ" is the space), byte pairs are merged in the order they were learned,
and `<s> A </s>` or `<s> A </s></s> B </s>` is put around the result. Every file format, and a
freshly trained vocabulary, ends up here.
"""

import json
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
# In the order of HF's `all_special_tokens`, in which missing ones are added as well.
SPECIAL_TOKENS = (BOS, EOS, UNK, PAD, MASK)
# fairseq rounds its dictionary up to a multiple of 8 with entries of this name.
FILLER_PREFIX = "madeupword"


class BackendError(ValueError):
    """The vocabulary, the merges or a `tokenizer.json` make no RoBERTa tokenizer."""


def build(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, add_prefix_space: bool
) -> Tokenizer:
    """Makes the pipeline from a vocabulary (token to id) and the merges, most urgent first.

    Raises:
      BackendError: a merge names a token that the vocabulary lacks, or ids are not 0 to n - 1.
    """
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocab:
                raise BackendError(
                    f"the merge {left!r} {right!r} needs the token {token!r}, which is not in the "
                    "vocabulary: the two files do not belong together"
                )
    return complete(
        Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges))),
        add_prefix_space=add_prefix_space,
    )


def complete(backend: Tokenizer, *, add_prefix_space: bool) -> Tokenizer:
    """Puts RoBERTa's steps around a BPE model, in place, and returns it.

    Special tokens that the vocabulary lacks get the next free ids, as in HF's class. They behave as
    in RoBERTa whatever the file said, since some versions of transformers write it wrong: `<mask>`
    takes the space on its left ("a <mask> b" is "a", "<mask>", "Ġb"), the others take none.

    Raises:
      BackendError: the model is not BPE, the pre-tokenizer is not byte-level, or ids have gaps.
    """
    if not isinstance(backend.model, models.BPE):
        raise BackendError(
            f"the model is {type(backend.model).__name__}, not BPE: RoBERTa's tokenizer is "
            "byte-level BPE; XLM-R, CamemBERT and the like have another kind"
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

    backend.add_special_tokens(
        [AddedToken(token, normalized=True) for token in SPECIAL_TOKENS if token != MASK]
        + [AddedToken(MASK, lstrip=True, normalized=False)]
    )
    known = backend.get_vocab(with_added_tokens=True)
    if sorted(known.values()) != list(range(len(known))):
        raise BackendError(
            f"the {len(known)} tokens do not have the ids 0 to {len(known) - 1}: ids must be "
            "unique and without gaps, as an embedding table has one row for each"
        )
    # By position: versions of the library call the second argument `cls` or `cls_token`.
    backend.post_processor = processors.RobertaProcessing(
        (EOS, known[EOS]), (BOS, known[BOS]), trim_offsets=True, add_prefix_space=add_prefix_space
    )
    return backend


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
