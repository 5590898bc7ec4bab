"""Pipelines of models related to RoBERTa, used as their `tokenizer.json` defines them.

XLM-R and CamemBERT have unigram models, other relatives have BERT's WordPiece. Their ids, white
space rules and templates are all in `tokenizer.json`. Only the attributes of the special tokens
(`cls_token`, `mask_token`, ...) are not: they are read from `tokenizer_config.json` or
`special_tokens_map.json`, and where those do not say, from the usual names in the vocabulary.
"""

from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer, models

from roberta_jax.tokenizer import templates
from roberta_jax.tokenizer.pipeline import PipelineError
from roberta_jax.tokenizer.special_tokens import ROBERTA_SPECIAL_TOKENS

BERT_SPECIAL_TOKENS: Mapping[str, str] = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
# Unused entries of CamemBERT's vocabulary: its SentencePiece model has these tokens at other ids.
CAMEMBERT_UNUSED_TOKENS = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")


def is_related_model(backend: Tokenizer) -> bool:
    """Whether a pipeline is used as it is: it is not BPE, or is BPE with another template."""
    if not isinstance(backend.model, models.BPE):
        return True
    return templates.adds_tokens(backend) and templates.roberta_tokens(backend) is None


def set_up_special_tokens(
    backend: Tokenizer, named: Mapping[str, str | AddedToken]
) -> dict[str, str | AddedToken | None]:
    """Finds the special tokens, adds those that are missing, and turns truncation and padding off.

    Args:
      backend: the pipeline, changed in place.
      named: the tokens that the files or the user name, by attribute. As in HF, those that the
        vocabulary lacks are added to it.

    Returns:
      The token for each attribute; None where there is none.

    Raises:
      PipelineError: no `cls_token`, `sep_token` or `pad_token` is named, and the vocabulary has
        none of the usual names.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    usual = max(
        (ROBERTA_SPECIAL_TOKENS, BERT_SPECIAL_TOKENS),
        key=lambda tokens: sum(token in vocab for token in tokens.values()),
    )
    special_tokens = {
        attribute: named.get(attribute) or (token if token in vocab else None)
        for attribute, token in usual.items()
    }
    required = ("cls_token", "sep_token", "pad_token")
    lacking = [attribute for attribute in required if special_tokens[attribute] is None]
    if lacking:
        raise PipelineError(
            f"the model is {type(backend.model).__name__}, not BPE, so this is not a tokenizer of "
            f"RoBERTa; to use it as one of a related model, name its {', '.join(lacking)} in "
            "tokenizer_config.json or as arguments (cls_token=..., ...)"
        )
    listed = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = {}
    for attribute, token in special_tokens.items():
        if token is not None and str(token) not in listed:
            if isinstance(token, str):
                lstrip = attribute == "mask_token" and usual is ROBERTA_SPECIAL_TOKENS
                token = AddedToken(token, lstrip=lstrip, special=True)
            missing.setdefault(str(token), token)
    backend.add_special_tokens(list(missing.values()))
    backend.no_truncation()
    backend.no_padding()
    return special_tokens


def word_prefix(backend: Tokenizer) -> tuple[str, bool]:
    """Returns the prefix by which tokens show whether they begin a word.

    Returns:
      The prefix, and True if tokens with it begin a word, False if they continue one.

    Raises:
      ValueError: tokens of this type of model do not show it.
    """
    if isinstance(backend.model, models.WordPiece):
        return backend.model.continuing_subword_prefix, False
    state = b"" if backend.pre_tokenizer is None else backend.pre_tokenizer.__getstate__()
    for pre_tokenizer, prefix in ((b'"ByteLevel"', "Ġ"), (b'"Metaspace"', "▁")):
        if pre_tokenizer in state:
            return prefix, True
    raise ValueError(
        f"whole-word masking is not possible with this tokenizer: tokens of this "
        f"{type(backend.model).__name__} model do not show which of them begin a word"
    )
