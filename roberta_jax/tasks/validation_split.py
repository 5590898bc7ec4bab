"""Divides the examples of a file into training and validation examples."""

import collections
import hashlib
import logging
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from roberta_jax.errors import UsageError, counted, listed
from roberta_jax.tasks.examples import (
    ChoiceExample,
    Example,
    PronounExample,
    QuestionExample,
    TextExample,
    TokenExample,
)

AnyExample = TypeVar("AnyExample", bound=Example)

_BINS = 10  # equal parts of the targets of a regression, of which each is divided


def split_validation(
    examples: Sequence[AnyExample], share: float, seed: int = 0
) -> tuple[list[AnyExample], list[AnyExample]]:
    """Holds out a share of the examples for validation.

    Which ones are held out follows from the examples and the seed alone, not from the order or the
    ids of the examples. Examples with the same content are on the same side. The content is the
    text or both texts of a pair, the words, or for choices and questions the passage, so that no
    passage is on both sides (the question where there is no passage); case and white space do not
    count. As far as that allows, each label has the same share on both sides; with several labels
    or tags in an example its rarest one counts, and the targets of a regression are divided into
    ten parts of equal size. All labels of the examples are among the training examples.

    Args:
      examples: of a file.
      share: of the examples that is held out, between 0 and 1.
      seed: selects one of many divisions.

    Returns:
      (training examples, validation examples), each in the order of `examples`.

    Raises:
      UsageError: the share is not between 0 and 1, or one side would be empty.
    """
    if not 0 < share < 1:
        raise UsageError(
            f"--config.data.validation={share}: a share of the training examples has to be between "
            "0 and 1, such as 0.1."
        )
    groups = collections.defaultdict(list)
    for number, example in enumerate(examples):
        groups[content_digest(example, seed)].append(number)
    wanted = max(round(share * len(examples)), 1)
    if len(groups) < 2:
        raise UsageError(
            f"--config.data.validation={share}: {counted(len(examples), 'example')} with "
            f"{counted(len(groups), 'different text')} cannot be divided. Name a file with "
            "--config.data.validation instead."
        )
    strata = collections.defaultdict(list)
    keys = _strata(examples)
    for digest in sorted(groups):
        strata[keys[groups[digest][0]]].append(groups[digest])
    held_out: set[int] = set()
    for members, most in zip(strata.values(), _quotas(list(strata.values()), wanted), strict=True):
        held_out |= _taken(members, most)
    _keep_all_labels(examples, list(groups.values()), held_out)
    if not held_out or len(held_out) == len(examples):
        side = "validation" if not held_out else "training"
        raise UsageError(
            f"--config.data.validation={share} of {counted(len(examples), 'example')} leaves no "
            f"{side} example: examples with the same text stay together, and each label needs one "
            "for training. Set another share, or name a file."
        )
    train = [each for number, each in enumerate(examples) if number not in held_out]
    validation = [each for number, each in enumerate(examples) if number in held_out]
    _warn_of_missing_labels(examples, validation, share)
    return train, validation


def content_digest(example: Example, seed: int = 0) -> bytes:
    """16 bytes that two examples share if their content is the same; see `split_validation`."""
    if isinstance(example, TextExample):
        texts = [example.text_a, example.text_b or ""]
    elif isinstance(example, TokenExample):
        texts = list(example.words)
    elif isinstance(example, (ChoiceExample, QuestionExample)):
        texts = [example.context if example.context.strip() else example.question]
    else:
        texts = [example.text]
    normal = "\n".join(" ".join(text.casefold().split()) for text in texts)
    data = f"{seed} {normal}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()


def _labels(example: Example) -> tuple[Hashable, ...]:
    """All labels of an example; () for numbers, positions of choices, and unknown ones."""
    if isinstance(example, TokenExample):
        return tuple(dict.fromkeys(example.tags or ()))
    if isinstance(example, QuestionExample):
        return () if example.answers is None else (bool(example.answers),)
    if not isinstance(example, (TextExample, PronounExample)) or example.label is None:
        return ()
    if isinstance(example.label, tuple):
        return example.label
    return () if isinstance(example.label, float) else (example.label,)


def _strata(examples: Sequence[Example]) -> list[Hashable]:
    """What the two sides should have equally much of: the rarest label, or a range of targets."""
    counts = collections.Counter(label for each in examples for label in _labels(each))
    targets = [getattr(each, "label", None) for each in examples]
    numbers = np.array([each for each in targets if isinstance(each, float)])
    edges = np.quantile(numbers, np.arange(1, _BINS) / _BINS) if len(numbers) else None
    keys: list[Hashable] = []
    for example, target in zip(examples, targets, strict=True):
        labels = _labels(example)
        if labels:
            keys.append(min(labels, key=lambda label: (counts[label], str(label))))
        elif edges is not None and isinstance(target, float):
            keys.append(int(np.searchsorted(edges, target)))
        else:
            keys.append(None)
    return keys


def _quotas(strata: list[list[list[int]]], wanted: int) -> list[int]:
    """Examples to hold out of each stratum: proportional, rounded by the largest remainders."""
    sizes = np.array([sum(map(len, members)) for members in strata])
    exact = sizes * wanted / sizes.sum()
    quotas = np.floor(exact).astype(int)
    order = np.argsort(-(exact - quotas), kind="stable")
    quotas[order[: wanted - quotas.sum()]] += 1
    return quotas.tolist()


def _taken(members: list[list[int]], most: int) -> set[int]:
    """Numbers of the examples of the first groups that do not exceed `most`; never all groups."""
    taken: set[int] = set()
    for group in members[:-1]:
        if len(taken) + len(group) <= most:
            taken.update(group)
    return taken


def _keep_all_labels(
    examples: Sequence[Example], groups: list[list[int]], held_out: set[int]
) -> None:
    """Moves groups back to the training examples that have a label which those lack otherwise."""
    known = {
        label for i, each in enumerate(examples) if i not in held_out for label in _labels(each)
    }
    for group in groups:
        labels = {label for number in group for label in _labels(examples[number])}
        if not labels <= known:
            known |= labels
            held_out.difference_update(group)


def _warn_of_missing_labels(examples, validation, share) -> None:
    all_labels = {label for each in examples for label in _labels(each)}
    missing = sorted(
        map(str, all_labels - {label for each in validation for label in _labels(each)})
    )
    if missing:
        logging.warning(
            "--config.data.validation=%s holds out no example of %s: %s. A larger share, or a "
            "validation file, would measure them.",
            *(share, "this label" if len(missing) == 1 else "these labels", listed(missing)),
        )
