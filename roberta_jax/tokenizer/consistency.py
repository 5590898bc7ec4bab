"""Checks that the files of a tokenizer belong together, so that no damaged file is used.

A token that has another id, or a merge that is missing, changes the ids of texts without any other
sign of it. A folder usually has the vocabulary and the merges twice, in `tokenizer.json` and in
`vocab.json` with `merges.txt`. Where it has them once, the vocabulary implies the merges.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from roberta_jax.errors import UsageError, listed
from roberta_jax.tokenizer.byte_alphabet import byte_alphabet
from roberta_jax.tokenizer.special_tokens import FILLER_PREFIX

Merges = Sequence[tuple[str, str]]


def check_same_vocabulary(
    pipeline: Mapping[str, Any],
    vocab: Mapping[str, int],
    merges: Merges,
    files: tuple[os.PathLike, os.PathLike, os.PathLike],
) -> None:
    """Compares the contents of `tokenizer.json` with those of `vocab.json` and `merges.txt`.

    Added tokens may be in one vocabulary alone. Models that are not BPE are not compared.

    Args:
      pipeline: The parsed `tokenizer.json`.
      vocab: Token to id, of `vocab.json`.
      merges: The pairs of `merges.txt`.
      files: The paths of the three files, for the message.

    Raises:
      UsageError: They differ; the message names both files and a difference.
    """
    model = pipeline.get("model", {})
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        return
    added = {token["content"]: token["id"] for token in pipeline.get("added_tokens") or ()}
    ids = {**added, **model["vocab"]}
    problems = [
        f"{token!r} has id {ids.get(token)} and {vocab.get(token)}"
        for token in dict.fromkeys((*ids, *vocab))
        if ids.get(token) != vocab.get(token) and (token not in added or token in vocab)
    ]
    problems += [
        f"{token!r} has id {model['vocab'][token]} and {i} in {files[0]}"
        for token, i in added.items()
        if model["vocab"].get(token, i) != i
    ]
    if problems:
        raise UsageError(_differ(files[0], files[1], listed(problems, 3)))
    model_merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in model.get("merges") or ()
    ]
    if model_merges != list(merges):
        pairs = zip(model_merges, merges, strict=False)
        same = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(model_merges), len(merges))
        )
        problem = f"{len(model_merges)} and {len(merges)} merges, the first {same} of them equal"
        raise UsageError(_differ(files[0], files[2], problem))


def _differ(first: os.PathLike, second: os.PathLike, problem: str) -> str:
    return (
        f"{first} and {second} do not hold the same tokenizer ({problem}): one of them is damaged "
        "or belongs to another tokenizer. Copy both again, or delete the one that is wrong"
    )


def check_every_token_has_its_merge(
    vocab: Mapping[str, int],
    merges: Merges,
    added: Collection[str],
    files: tuple[os.PathLike, os.PathLike],
) -> None:
    """Checks that the merges produce the whole vocabulary, which a truncated file does not.

    A vocabulary without a token for each byte was not trained, and is not checked.

    Args:
      vocab: Token to id.
      merges: Pairs of tokens.
      added: Special and added tokens, which need no merge.
      files: The paths of the vocabulary and of the merges, for the message.

    Raises:
      UsageError: Text can never give some token that consists of bytes.
    """
    alphabet = set(byte_alphabet())
    if not alphabet <= vocab.keys():
        return
    produced = {left + right for left, right in merges}
    lacking = [
        token
        for token in vocab
        if len(token) > 1
        and token not in produced
        and token not in added
        and not token.startswith(FILLER_PREFIX)
        and not (token[0] in "<[" and token[-1] in ">]")
        and alphabet.issuperset(token)
    ]
    if lacking:
        raise UsageError(
            f"{files[1]} has no merge for {len(lacking)} of the {len(vocab)} tokens in {files[0]} "
            f"({listed([repr(token) for token in lacking], 3)}): it is cut short or belongs to "
            "another vocabulary. Copy both files again; words that were added to the vocabulary "
            "belong in added_tokens.json"
        )
