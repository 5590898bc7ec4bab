"""Evaluates one or two masked language models on the same documents.

**Masked scores.** A share of the tokens is masked as in pretraining (15%, of which 80% become
`<mask>`, 10% a random token and 10% stay), and each masked token is predicted. These are the loss
and the perplexity that a pretraining run reports, on rows of single documents.

**Pseudo-perplexity** (Salazar et al. 2020, "Masked Language Model Scoring"). Each token is masked
once, alone. The sum of its log-probabilities is the pseudo-log-likelihood (PLL) of the text, and
the pseudo-perplexity is exp(-PLL / number of tokens).

Both are per token, so they compare models with one tokenizer alone. The pseudo-perplexity per word,
exp(-PLL / number of words), has the same unit for all tokenizers. Still it favours tokenizers that
divide words into more tokens, since the other tokens of a word are visible.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.inference.loading import MaskedLanguageModel
from roberta_jax.language_modeling.documents import Document
from roberta_jax.language_modeling.rows import Rows, make_rows
from roberta_jax.language_modeling.scoring import Scorer
from roberta_jax.language_modeling.statistics import METRICS, Estimate, Sums, estimates, metrics_of

SCORES = ("masked", "pseudo")
_RANGES = {
    "masks": (1, 1000),
    "seed": (0, 2**32 - 1),
    "max_tokens": (1, 10**12),
    "batch_tokens": (1, 10**8),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is computed, and how.

    Attributes:
      scores: some of `SCORES`.
      masks: how often each row is masked anew, for the masked scores.
      seed: of the masks, the bootstrap and the sample of documents.
      max_length: tokens of a row at most, special tokens included. None takes what all models can.
      max_tokens: pseudo-perplexity of a random sample of the documents, of about so many tokens;
        None scores all documents.
      batch_tokens: positions that a device computes at once.

    Raises:
      UsageError: a value is out of its range.
    """

    scores: tuple[str, ...] = ("masked",)
    masks: int = 1
    seed: int = 0
    max_length: int | None = None
    max_tokens: int | None = None
    batch_tokens: int = 4096

    def __post_init__(self):
        if not self.scores or set(self.scores) - set(SCORES):
            raise UsageError(
                f"--scores={','.join(self.scores)}: name one or both of {', '.join(SCORES)}, such "
                f"as --scores={','.join(SCORES)}"
            )
        for name, (least, most) in _RANGES.items():
            check_range(name, getattr(self, name), least, most)
        if self.max_length is not None and self.max_length < 2:
            raise UsageError(
                f"--max_length={self.max_length} leaves no room for text: a row starts with <s>, "
                "so use a number from 2"
            )
        if self.max_tokens is not None and "pseudo" not in self.scores:
            raise UsageError(
                f"--max_tokens={self.max_tokens} has no effect without pseudo-perplexity: add "
                "--scores=masked,pseudo, or leave it out"
            )


def check_range(option: str, value: int | None, least: int, most: int) -> None:
    """Raises a UsageError if the value of an option is not None and out of its range."""
    if value is not None and not least <= value <= most:
        raise UsageError(f"--{option}={value} must be a number from {least} to {most}")


@dataclasses.dataclass(frozen=True)
class ModelScores:
    """The scores of one model.

    Attributes:
      name: of the model.
      fingerprint: of its tokenizer.
      num_rows: rows that the documents were divided into.
      tokens: int64 [D], tokens of each document, without special tokens.
      sums: the sums of each document, [D]: `masked_loss` (nats), `masked_top1`, `masked_top5` and
        `masked_targets`; `pseudo_loss` (nats), `pseudo_targets` (tokens) and `pseudo_words`, 0 for
        documents that are not in the sample.
      metrics: name -> value with its interval.
    """

    name: str
    fingerprint: str
    num_rows: int
    tokens: np.ndarray
    sums: Sums
    metrics: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of one or two models.

    Attributes:
      documents: what was scored.
      options: as they were given, with `max_length` filled in.
      models: the scores of each model.
      differences: metrics of the second model minus those of the first, where they can be compared.
    """

    documents: Sequence[Document]
    options: Options
    models: Sequence[ModelScores]
    differences: dict[str, Estimate]

    @property
    def same_tokenizer(self) -> bool:
        return len({model.fingerprint for model in self.models}) == 1


def evaluate(
    models: Sequence[tuple[str, MaskedLanguageModel]],
    documents: Sequence[Document],
    options: Options,
    announce: Callable[[str], None] | None = None,
) -> Evaluation:
    """Scores the models on the documents, one model after the other, on all devices.

    Args:
      models: (name, model) of one or two models.
      documents: the text.
      options: what is computed.
      announce: called with sentences about long work before it starts.

    Raises:
      UsageError: a model cannot be scored, or the options do not fit the models.
    """
    options = check_models(models, options)
    words = np.array([document.num_words for document in documents])
    rows: dict[str, Rows] = {}
    sample = None
    sums: list[Sums] = []
    for name, each in models:
        key = each.tokenizer.fingerprint()
        if key not in rows:
            rows[key] = make_rows(documents, each.tokenizer, options.max_length)
        if sample is None:  # the same documents for all models
            sample = sample_documents(rows[key].text_tokens, options.max_tokens, options.seed)
        sums.append(_sums(name, each, rows[key], sample, words, options, announce))
    names = metrics_of(sums[0])
    computed = estimates(sums, names, options.seed)
    scores = [
        ModelScores(name, key, rows[key].num_rows, rows[key].text_tokens, sums_of, metrics)
        for (name, each), sums_of, metrics in zip(models, sums, computed, strict=False)
        for key in [each.tokenizer.fingerprint()]
    ]
    same = len(rows) == 1
    differences = {
        name: estimate
        for name, estimate in (computed[2] if len(models) == 2 else {}).items()
        if same or METRICS[name].per_word
    }
    return Evaluation(documents, options, scores, differences)


def check_models(models: Sequence[tuple[str, MaskedLanguageModel]], options: Options) -> Options:
    """Checks that models can be scored, without computing anything.

    Returns:
      The options with `max_length` filled in.

    Raises:
      UsageError: a model cannot be scored, or the options do not fit the models.
    """
    for name, each in models:
        _check(name, each)
    return dataclasses.replace(options, max_length=_max_length(models, options))


def sample_documents(tokens: np.ndarray, max_tokens: int | None, seed: int) -> np.ndarray:
    """Draws documents at random until their tokens exceed `max_tokens`; at least one.

    Args:
      tokens: int64 [D], tokens of each document.
      max_tokens: None takes all documents.
      seed: of the draw.

    Returns:
      bool [D].
    """
    if max_tokens is None or tokens.sum() <= max_tokens:
        return np.ones(len(tokens), bool)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(tokens))
    count = max(1, int(np.searchsorted(np.cumsum(tokens[order]), max_tokens, side="right")))
    sample = np.zeros(len(tokens), bool)
    sample[order[:count]] = True
    return sample


def _sums(
    name: str,
    loaded: MaskedLanguageModel,
    rows: Rows,
    sample: np.ndarray,
    words: np.ndarray,
    options: Options,
    announce: Callable[[str], None] | None,
) -> Sums:
    """The sums of each document for one model."""
    tokenizer = loaded.tokenizer
    scorer = Scorer(
        name,
        loaded.model,
        loaded.params,
        tokenizer.mask_token_id,
        batch_tokens=options.batch_tokens,
    )
    sums: dict[str, np.ndarray] = {}
    if "masked" in options.scores:
        masked = scorer.masked(rows, len(tokenizer), options.masks, options.seed)
        sums |= {f"masked_{key}": value for key, value in vars(masked).items()}
    if "pseudo" in options.scores:
        pseudo = scorer.pseudo(rows, sample, announce)
        sums |= {f"pseudo_{key}": value for key, value in vars(pseudo).items()}
        sums["pseudo_words"] = np.where(pseudo.targets > 0, words, 0)
    return sums


def _max_length(models: Sequence[tuple[str, MaskedLanguageModel]], options: Options) -> int:
    """Tokens of a row: the models see the same context, so it is what all of them can take."""
    name, most = min(
        ((name, each.model.config.max_length) for name, each in models), key=lambda each: each[1]
    )
    if options.max_length is None:
        return most
    if options.max_length > most:
        raise UsageError(
            f"--max_length={options.max_length} is longer than the {most} tokens that {name} "
            f"takes: use --max_length={most} or less"
        )
    return options.max_length


def _check(name: str, loaded: MaskedLanguageModel) -> None:
    config, tokenizer = loaded.model.config, loaded.tokenizer
    if config.is_decoder:
        raise UsageError(
            f"{name} is a decoder, which sees only the tokens before each one (is_decoder in its "
            "config.json): masked tokens cannot be predicted with it"
        )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id"):
        if getattr(tokenizer, token) is None:
            raise UsageError(f"the tokenizer of {name} has no {token.removesuffix('_id')}")
    if tokenizer.pad_token_id != config.pad_token_id:
        raise UsageError(
            f"the tokenizer of {name} has the pad_token_id {tokenizer.pad_token_id}, its model "
            f"{config.pad_token_id}: use the tokenizer that the model was trained with"
        )
