"""A new vocabulary for a pipeline that is there: the same steps, learned from other text."""

import json
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

_TRAINERS = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordPiece": trainers.WordPieceTrainer,
    "WordLevel": trainers.WordLevelTrainer,
}


def retrained(
    backend: Tokenizer,
    texts: Iterable[str] | Iterable[Sequence[str]],
    *,
    vocab_size: int,
    length: int | None,
    new_special_tokens: Sequence[str | AddedToken],
    renamed: Mapping[str, str],
    options: Mapping,
) -> Tokenizer:
    """Trains a copy of a pipeline.

    Args:
      backend: the pipeline, which stays as it is.
      texts: texts, or lists of texts.
      vocab_size: number of ids to end with; more, if special tokens and bytes are more.
      length: number of texts, for the progress bar.
      new_special_tokens: put behind the ones that are there, which get the first ids.
      renamed: special tokens that get another name.
      options: of the `tokenizers` trainer, such as `min_frequency`.

    Raises:
      ValueError: a special token that the new template needs is not among the trained ones.
    """
    pipeline = json.loads(backend.to_str())
    added, template = pipeline.pop("added_tokens"), pipeline.pop("post_processor")
    model, options = pipeline["model"], dict(options)
    kind = model["type"]
    unknown = model.get("unk_token")
    if kind == "Unigram":
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    if unknown is not None:
        unknown = renamed.get(unknown, unknown)
    if kind == "Unigram":
        if unknown is not None:
            options.setdefault("unk_token", unknown)
            model |= {"unk_id": 0, "vocab": [[unknown, 0.0]]}
    else:
        model |= {"vocab": {}, "unk_token": unknown} | ({"merges": []} if kind == "BPE" else {})
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if kind in ("BPE", "WordPiece") and model.get(name):
            options.setdefault(name, model[name])
    if "ByteLevel" in _kinds(pipeline["pre_tokenizer"]):
        options.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    special = [
        AddedToken(**{k: v for k, v in token.items() if k != "id"} | {"content": name})
        for token in added
        if token["special"]
        for name in [renamed.get(token["content"], token["content"])]
    ]
    trainer = _TRAINERS[kind](
        vocab_size=vocab_size, special_tokens=[*special, *new_special_tokens], **options
    )
    learner = Tokenizer.from_str(json.dumps(pipeline))
    learner.train_from_iterator(texts, trainer=trainer, length=length)
    if template is None:
        return learner
    trained = json.loads(learner.to_str())
    trained["post_processor"] = _with_new_ids(template, learner, renamed)
    return Tokenizer.from_str(json.dumps(trained))


def _kinds(state) -> set[str]:
    """The kinds of a step, and of the steps that it is a sequence of."""
    if state is None:
        return set()
    parts = state.get("pretokenizers", []) if state["type"] == "Sequence" else []
    return {state["type"]}.union(*map(_kinds, parts))


def _with_new_ids(state: dict, learner: Tokenizer, renamed: Mapping[str, str]) -> dict:
    """A post-processor's JSON with the new vocabulary's names and ids."""

    def new(token: str) -> tuple[str, int]:
        name = renamed.get(token, token)
        if (i := learner.token_to_id(name)) is None:
            raise ValueError(f"the template needs the token {name!r}, which was not trained")
        return name, i

    template_tokens, state = state.get("special_tokens"), dict(state)
    if state["type"] == "Sequence":
        parts = state["processors"]
        state["processors"] = [_with_new_ids(part, learner, renamed) for part in parts]
    for role in ("cls", "sep"):
        if role in state:
            state[role] = list(new(state[role][0]))
    if state["type"] == "TemplateProcessing":
        state["special_tokens"] = {}
        for name, special in template_tokens.items():
            found = [new(token) for token in special["tokens"]]
            names, ids = map(list, zip(*found, strict=True))
            state["special_tokens"][name] = {**special, "tokens": names, "ids": ids}
    return state
