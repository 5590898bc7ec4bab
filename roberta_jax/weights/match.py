"""Matches the tensors of a file with the parameters of a model, and reports all differences."""

import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from roberta_jax.errors import UsageError, listed
from roberta_jax.weights.names import Leaf, canonical
from roberta_jax.weights.tensors import FLOATING, LazyTensor

# Parts that some model classes have and others lack. Their tensors are ignored where the model has
# no such part. (roberta-base's own file, a masked LM, has a pooler.)
_FAIRSEQ_HEADS = "classification_heads"  # of a fairseq checkpoint with several heads
HEADS = ("pooler", "lm_head", "classifier", "qa_outputs", "next_sentence", _FAIRSEQ_HEADS)
_CROSS_ATTENTION = "crossattention"
# The parts that `new_head` may name.
_NEW_PARTS = ("pooler", "lm_head", "classifier", "qa_outputs", "next_sentence", _CROSS_ATTENTION)
_PART_TITLES = {
    "lm_head": "masked-LM head",
    "next_sentence": "next-sentence head",
    _CROSS_ATTENTION: "cross-attention",
}

_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
# Tensors that repeat another one, and buffers that are not parameters.
_WORDS = "embeddings.word_embeddings.weight"
_ALIASES = {"lm_head.decoder.weight": _WORDS, "lm_head.decoder.bias": "lm_head.bias"}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


class Tensors:
    """A file's tensors, found by canonical name (see `names.canonical`).

    Attributes:
      in_file: {name in the file: tensor}.
      names: {canonical name: name in the file}.
    """

    def __init__(self, in_file: Mapping[str, LazyTensor]):
        self.in_file = dict(in_file)
        self.names = {canonical(name): name for name in in_file}
        if len(self.names) < len(in_file):
            duplicates = sorted(set(in_file) - set(self.names.values()))
            raise UsageError(f"the file holds tensors under two names each: {listed(duplicates)}")
        # Some files hold the bias of the output layer only under its second name.
        bias = "lm_head.decoder.bias"
        if bias in self.names and _ALIASES[bias] not in self.names:
            self.names[_ALIASES[bias]] = self.names.pop(bias)

    def has(self, part: str) -> bool:
        """Whether there is a tensor of a part of the model, such as "lm_head"."""
        return any(name == part or name.startswith(f"{part}.") for name in self.names)

    def find(self, name: str) -> LazyTensor:
        """The tensor with this PyTorch name, whichever class wrote the file."""
        return self.in_file[self.names[canonical(name)]]

    def unused(self, leaves: Iterable[Leaf]) -> list[str]:
        """The file's names of tensors that belong to no leaf, except buffers and repetitions."""
        used = {canonical(name) for leaf in leaves for name in leaf.names}
        used |= {alias for alias, name in _ALIASES.items() if name in used} | set(_BUFFERS)
        return [original for name, original in self.names.items() if name not in used]

    def check_layers(self, num_layers: int, source: os.PathLike) -> None:
        """Refuses a config with many more layers than the file, which would take long to build.

        Any other difference is reported by `check`, tensor by tensor.

        Args:
          num_layers: The `num_hidden_layers` of the config.
          source: The config's file, for the error message.

        Raises:
          UsageError: The model has 100 layers more than the file.
        """
        in_file = {match[1] for name in self.names if (match := _LAYER.match(name))}
        if num_layers > len(in_file) + 100:
            raise UsageError(
                f"{source} has num_hidden_layers={num_layers}, but the weights are of a model with "
                f"{len(in_file)} layers; take the config.json that belongs to the weights"
            )

    def check(
        self,
        leaves: Sequence[Leaf],
        folder: pathlib.Path,
        model_class: type,
        new_head: bool | Collection[str],
    ) -> set[str]:
        """Checks that the tensors are the model's parameters.

        Args:
          leaves: The model's leaves.
          folder: Where the tensors are, for error messages.
          model_class: The model's class, for error messages.
          new_head: Which parts outside the encoder may be missing or of another shape: all (True),
            none (False) or those named.

        Returns:
          The canonical names of the tensors that have to be initialized.

        Raises:
          UsageError: Lists every tensor that is missing, left over or of a wrong shape or type.
        """
        new_parts = _new_parts(new_head)
        shapes = {canonical(name): leaf.tensor_shape for leaf in leaves for name in leaf.names}
        encoder = [name for name in shapes if not _is_of_head(name)]
        if not any(name in self.names for name in encoder):
            raise UsageError(
                f"no tensor in {folder} is a {model_class.__name__}'s: it holds "
                f"{listed(sorted(self.in_file))}, and not {listed(sorted(shapes))}"
            )
        missing = [name for name in shapes if name not in self.names]
        misfits = {
            name: self._misfit(name, shape) for name, shape in shapes.items() if name in self.names
        }
        misfits = {name: reason for name, reason in misfits.items() if reason}
        new = {
            name
            for name in [*missing, *misfits]
            if _part_of(name) in new_parts and self._may_be_new(name)
        }
        missing = [name for name in missing if name not in new]
        misfits = {name: reason for name, reason in misfits.items() if name not in new}
        if missing and not misfits and all(self._may_be_new(name) for name in missing):
            message = _head_is_missing(missing, folder, model_class)
            prefix = f"{_FAIRSEQ_HEADS}."
            heads = {name.split(".")[1] for name in self.names if name.startswith(prefix)}
            if heads:
                message += (
                    f". It is unclear which of its heads {', '.join(sorted(heads))} to load: keep "
                    "one of them"
                )
            raise UsageError(message)
        left_over = [
            original
            for name, original in self.names.items()
            if self._is_left_over(name, shapes, new)
        ]
        problems = [
            f"  {title} ({len(names)}): {listed(sorted(names))}"
            for title, names in (
                ("missing", missing),
                ("left over", left_over),
                ("of another shape or type", list(misfits.values())),
            )
            if names
        ]
        if problems:
            raise UsageError(
                f"the tensors in {folder} are not those of {model_class.__name__} as "
                "config.json describes it:\n" + "\n".join(problems + _advice(misfits))
            )
        return new

    def _misfit(self, name: str, shape: tuple[int, ...]) -> str | None:
        original = self.names[name]
        tensor = self.in_file[original]
        if tensor.shape != shape:
            return f"{original} (file {list(tensor.shape)}, config {list(shape)})"
        if tensor.dtype not in FLOATING:
            return f"{original} (of type {tensor.dtype}; only floating types are read)"
        return None

    def _may_be_new(self, name: str) -> bool:
        """Whether `new_head` can apply to a tensor that is missing or does not fit.

        It applies to a head's tensors, and to those of cross-attention if the file has none at all.
        """
        if _part_of(name) == _CROSS_ATTENTION:
            return not any(_part_of(other) == _CROSS_ATTENTION for other in self.names)
        return _is_of_head(name)

    def _is_left_over(self, name: str, shapes: Collection[str], new: set[str]) -> bool:
        if name in shapes or name in _BUFFERS:
            return False
        if name in _ALIASES and _ALIASES[name] in shapes:
            # Unless the two are equal, this is another model (one with an untied decoder).
            tensor, original = self.find(name), self.find(_ALIASES[name])
            same_place = (tensor.path, tensor.byte_ranges) == (original.path, original.byte_ranges)
            return not (same_place or np.array_equal(tensor.read(), original.read()))
        part = name.split(".")[0]
        if part not in HEADS:
            return True
        if any(key.split(".")[0] == part for key in new):
            return False
        return any(key.startswith(f"{part}.") for key in shapes)


def _is_of_head(name: str) -> bool:
    return name.split(".")[0] in HEADS


def _part_of(name: str) -> str:
    return _CROSS_ATTENTION if f".{_CROSS_ATTENTION}." in name else name.split(".")[0]


def _new_parts(new_head: bool | Collection[str]) -> Collection[str]:
    if isinstance(new_head, bool):
        return _NEW_PARTS if new_head else ()
    if isinstance(new_head, str) or not set(new_head) <= set(_NEW_PARTS):
        raise UsageError(
            f"new_head={new_head!r}: use True, False or a collection of {', '.join(_NEW_PARTS)}"
        )
    return new_head


def _head_is_missing(missing: list[str], folder: pathlib.Path, model_class: type) -> str:
    parts = sorted({_part_of(name) for name in missing})
    titles = " and no ".join(_PART_TITLES.get(part, part) for part in parts)
    return (
        f"{folder} has no {titles} ({listed(sorted(missing))}): it cannot be loaded as "
        f"{model_class.__name__}. Load its encoder alone with model_class=RobertaModel, or pass "
        "new_head=True to initialize these parameters randomly, as for fine-tuning"
    )


def _advice(misfits: Collection[str]) -> list[str]:
    advice = []
    if _WORDS in misfits:
        advice.append(
            "  The vocabulary is not the model's: vocab_size in config.json must be the rows of "
            "the word embeddings; take the config.json that belongs to the weights"
        )
    if any(name.startswith(("classifier", "qa_outputs")) for name in misfits):
        advice.append(
            "  The head was trained for another number of labels: leave num_labels as the file "
            "has it, or pass new_head=True to initialize the head randomly"
        )
    return advice
