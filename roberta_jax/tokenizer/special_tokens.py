"""RoBERTa's special tokens and the attributes that name them.

A tokenizer has seven attributes such as `cls_token` or `mask_token`. One token can be the value of
several: `<s>` is both `bos_token` and `cls_token`.
"""

from collections.abc import Mapping

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"

# In the order of HF's `all_special_tokens`, which is also the order in which tokens that the
# vocabulary lacks are added to it.
SPECIAL_TOKENS = (BOS, EOS, UNK, PAD, MASK)

# Attribute to token, in HF's order.
ROBERTA_SPECIAL_TOKENS: Mapping[str, str] = {
    "bos_token": BOS,
    "eos_token": EOS,
    "unk_token": UNK,
    "sep_token": EOS,
    "pad_token": PAD,
    "cls_token": BOS,
    "mask_token": MASK,
}
ATTRIBUTES = tuple(ROBERTA_SPECIAL_TOKENS)

# The attribute that lists special tokens beside those seven.
ADDITIONAL = "additional_special_tokens"

# fairseq pads its dictionary to a multiple of 8 with entries whose names start like this.
FILLER_PREFIX = "madeupword"
