"""Pipelines of RoBERTa's relatives, taken as their `tokenizer.json` has them.

XLM-R and CamemBERT have unigram models, others BERT's word pieces, each with ids, white space and
templates of their own, all of which the file holds. What it does not say is which token serves what
purpose: `tokenizer_config.json` or `special_tokens_map.json` do, and where they are silent, the
names that the vocabulary has.
"""

from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer, models

from roberta_jax.tokenizer import templates
from roberta_jax.tokenizer.backend import ROBERTAS_TOKENS, BackendError

_BERTS_TOKENS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
# fairseq's own four entries in CamemBERT's vocabulary, which its sentencepiece model repeats at 5.
CAMEMBERTS_UNUSED = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")


def is_sibling(backend: Tokenizer) -> bool:
    """Whether a pipeline is to be taken as it is: not BPE, or BPE in a template of its own."""
    if not isinstance(backend.model, models.BPE):
        return True
    return templates.adds_tokens(backend) and templates.cls_and_sep(backend) is None


def special_tokens(
    backend: Tokenizer, named: Mapping[str, str | AddedToken]
) -> dict[str, str | AddedToken | None]:
    """Purpose to token, from what the files name and else from RoBERTa's and BERT's names.

    Args:
      backend: the pipeline.
      named: purpose to token; tokens that the vocabulary lacks are added to it, as HF does.

    Raises:
      BackendError: nothing names them and the vocabulary has none of the usual names.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    usual = max(
        (ROBERTAS_TOKENS, _BERTS_TOKENS),
        key=lambda names: sum(name in vocab for name in names.values()),
    )
    found = {
        role: named.get(role) or (token if token in vocab else None)
        for role, token in usual.items()
    }
    lacking = [role for role in ("cls_token", "sep_token", "pad_token") if found[role] is None]
    if lacking:
        raise BackendError(
            f"the model is {type(backend.model).__name__}, not BPE, so this is no tokenizer of "
            f"RoBERTa's own; and for one of its relatives there is no {', '.join(lacking)}: name "
            "them in tokenizer_config.json, or pass them (cls_token=..., ...)"
        )
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = {}
    for role, token in found.items():
        if token is not None and str(token) not in known:
            lstrip = role == "mask_token" and usual is ROBERTAS_TOKENS
            made = AddedToken(token, lstrip=lstrip, special=True) if type(token) is str else token
            missing.setdefault(str(token), made)
    backend.add_special_tokens(list(missing.values()))
    backend.no_truncation()
    backend.no_padding()
    return found


def word_start_prefixes(backend: Tokenizer) -> tuple[str, bool]:
    """How a token shows that it begins a word.

    Returns:
      A prefix, and whether tokens with it begin a word (or rather go on with one).

    Raises:
      ValueError: the model is of a kind that says nothing of words.
    """
    if isinstance(backend.model, models.WordPiece):
        return backend.model.continuing_subword_prefix, False
    steps = b"" if backend.pre_tokenizer is None else backend.pre_tokenizer.__getstate__()
    for step, prefix in ((b'"ByteLevel"', "Ġ"), (b'"Metaspace"', "▁")):
        if step in steps:
            return prefix, True
    raise ValueError(
        f"tokens of this {type(backend.model).__name__} model do not show which of them begin a "
        "word: whole words cannot be masked with this tokenizer"
    )
