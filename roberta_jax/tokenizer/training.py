"""Trains tokenizers: RoBERTa's byte-level BPE, or another pipeline with a new vocabulary.

`train` gives the special tokens RoBERTa's ids: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, then the
256 bytes, then the merges in the order in which they were learned, and `<mask>` last. `train_like`
is HF's `train_new_from_iterator`, which gives all special tokens the first ids.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from roberta_jax.tokenizer import pipeline, vocabulary
from roberta_jax.tokenizer.special_tokens import BOS, EOS, MASK, PAD, UNK
from roberta_jax.tokenizer.surrogates import replace_surrogates

# More text changes the merges very little, while counting pairs takes minutes and much memory.
SAMPLE_BYTES = 1_000_000_000
SMALLEST_VOCAB = 256 + 5
# The library reserves memory for this many tokens at once; 10^9 end the process.
LARGEST_VOCAB = 10**7

# The library needs about 100 bytes of memory per byte of a text, to align it with its tokens.
_SLICE_CHARACTERS = 1 << 20

_TRAINERS = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordPiece": trainers.WordPieceTrainer,
    "WordLevel": trainers.WordLevelTrainer,
}


def train(
    texts: Iterable[str], *, vocab_size: int, min_frequency: int, progress: bool
) -> Tokenizer:
    """Trains RoBERTa's pipeline on the first `SAMPLE_BYTES` of `texts`.

    The same texts give the same tokenizer.

    Args:
      texts: documents or sentences; read once, and only as far as needed.
      vocab_size: the number of ids, including 5 special tokens and 256 bytes.
      min_frequency: pairs that occur less often are not merged.
      progress: show the library's progress bars.

    Raises:
      ValueError: a number is out of its range (`vocab_size` is below 261), or the text has too few
        frequent pairs to reach `vocab_size`.
    """
    _check_sizes(vocab_size, min_frequency)
    if vocab_size < SMALLEST_VOCAB:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: it includes 5 special tokens and 256 bytes, so "
            f"it must be at least {SMALLEST_VOCAB} (--config.new_tokenizer.vocab_size="
            f"{SMALLEST_VOCAB})"
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # <mask> is added afterwards
        min_frequency=min_frequency,
        show_progress=progress,
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    sample = take_bytes(texts, SAMPLE_BYTES)
    learner.train_from_iterator(_lines(sample), trainer=trainer)

    largest = learner.get_vocab_size() + 1
    if largest < vocab_size:
        raise ValueError(
            f"the text is too small for vocab_size={vocab_size}: it allows {largest} tokens with "
            f"pairs that occur at least {min_frequency} times. Use more text, or a smaller "
            f"vocabulary (--config.new_tokenizer.vocab_size={largest})"
        )
    vocab, merges = vocabulary.vocab_and_merges(learner)
    vocab[MASK] = len(vocab)
    return pipeline.build(vocab, merges, add_prefix_space=False)


def _check_sizes(vocab_size: int, min_frequency: int) -> None:
    """Refuses numbers with which the library aborts the process or raises an OverflowError."""
    for name, value, low, high in (
        ("vocab_size", vocab_size, 1, LARGEST_VOCAB),
        ("min_frequency", min_frequency, 0, 2**32 - 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(
                f"{name}={value!r} must be a whole number from {low} to {high} "
                f"(--config.new_tokenizer.{name})"
            )


def take_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yields the first texts, up to `limit` bytes of UTF-8 in total; the last text may be cut."""
    remaining = limit
    for text in texts:
        text = replace_surrogates(text)
        size = len(text.encode("utf-8"))
        if size >= remaining:
            yield text.encode("utf-8")[:remaining].decode("utf-8", "ignore")
            return
        remaining -= size
        yield text


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Yields the lines of texts without their line ends; very long lines in slices."""
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), _SLICE_CHARACTERS):
                yield line[start : start + _SLICE_CHARACTERS]


def train_like(
    backend: Tokenizer,
    texts: Iterable[str] | Iterable[Sequence[str]],
    *,
    vocab_size: int,
    length: int | None,
    new_special_tokens: Sequence[str | AddedToken],
    renamed: Mapping[str, str],
    trainer_options: Mapping,
) -> Tokenizer:
    """Returns a pipeline with the same steps and a vocabulary learned from other texts.

    Args:
      backend: the pipeline whose steps are used; it is not changed.
      texts: texts, or lists of texts.
      vocab_size: the number of ids; special tokens and bytes are included even if they are more.
      length: the number of texts, for the progress bar.
      new_special_tokens: they get the ids after those of the pipeline's own special tokens.
      renamed: new names of special tokens, by old name.
      trainer_options: options of the trainer in `tokenizers`, such as `min_frequency`.

    Raises:
      ValueError: the pipeline's template needs a token that is not in the new vocabulary, or a
        number is out of its range.
    """
    _check_sizes(vocab_size, trainer_options.get("min_frequency", 0))
    state = json.loads(backend.to_str())
    added_tokens, post_processor = state.pop("added_tokens"), state.pop("post_processor")
    state["model"], options = _untrained(state["model"], renamed, dict(trainer_options))
    kind = state["model"]["type"]
    if "ByteLevel" in _step_types(state["pre_tokenizer"]):
        options.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    special_tokens = [
        AddedToken(**{
            **{name: value for name, value in token.items() if name != "id"},
            "content": renamed.get(token["content"], token["content"]),
        })
        for token in added_tokens
        if token["special"]
    ]  # fmt: skip
    trainer = _TRAINERS[kind](
        vocab_size=vocab_size, special_tokens=[*special_tokens, *new_special_tokens], **options
    )
    learner = Tokenizer.from_str(json.dumps(state))
    learner.train_from_iterator(texts, trainer=trainer, length=length)
    if post_processor is None:
        return learner
    trained = json.loads(learner.to_str())
    trained["post_processor"] = _with_new_ids(post_processor, learner, renamed)
    return Tokenizer.from_str(json.dumps(trained))


def _untrained(model: dict, renamed: Mapping[str, str], options: dict) -> tuple[dict, dict]:
    """Returns a model's JSON with an empty vocabulary, and the options its trainer needs."""
    kind = model["type"]
    if kind == "Unigram":
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    else:
        unknown = model.get("unk_token")
    if unknown is not None:
        unknown = renamed.get(unknown, unknown)

    if kind != "Unigram":
        model = model | {"vocab": {}, "unk_token": unknown}
        if kind == "BPE":
            model["merges"] = []
    elif unknown is not None:
        options.setdefault("unk_token", unknown)
        model = model | {"unk_id": 0, "vocab": [[unknown, 0.0]]}
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if kind in ("BPE", "WordPiece") and model.get(name):
            options.setdefault(name, model[name])
    return model, options


def _step_types(state: dict | None) -> set[str]:
    """Returns the types of a pre-tokenizer and of those that it is a sequence of."""
    if state is None:
        return set()
    steps = state.get("pretokenizers", []) if state["type"] == "Sequence" else []
    return {state["type"]}.union(*map(_step_types, steps))


def _with_new_ids(state: dict, learner: Tokenizer, renamed: Mapping[str, str]) -> dict:
    """Returns a post-processor's JSON with the new names and ids of its special tokens."""

    def name_and_id(token: str) -> tuple[str, int]:
        name = renamed.get(token, token)
        if (i := learner.token_to_id(name)) is None:
            raise ValueError(
                f"the template needs the token {name!r}, which is not in the new vocabulary"
            )
        return name, i

    state = dict(state)
    if state["type"] == "Sequence":
        state["processors"] = [
            _with_new_ids(processor, learner, renamed) for processor in state["processors"]
        ]
    for attribute in ("cls", "sep"):
        if attribute in state:
            state[attribute] = list(name_and_id(state[attribute][0]))
    if state["type"] == "TemplateProcessing":
        special_tokens = {}
        for placeholder, special in state["special_tokens"].items():
            names, ids = zip(*map(name_and_id, special["tokens"]), strict=True)
            special_tokens[placeholder] = {**special, "tokens": list(names), "ids": list(ids)}
        state["special_tokens"] = special_tokens
    return state
