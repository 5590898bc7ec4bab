"""Which of a file's tensors are a model's parameters: all of them, or a list of what is not."""

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from roberta_jax.errors import UsageError, listed
from roberta_jax.weights.names import Leaf, canonical
from roberta_jax.weights.tensors import FLOATING, StoredTensor

# Parts that some classes have and others lack: where the class that is loaded lacks one, its
# tensors are passed over. (roberta-base's own file, a masked LM, has a pooler.)
_OTHER_HEADS = "classification_heads."  # of a checkpoint of fairseq's that has several
HEADS = ("pooler", "lm_head", "classifier", "qa_outputs", _OTHER_HEADS[:-1])

# Second names of other tensors, and buffers that hold no parameter.
_WORDS = "embeddings.word_embeddings.weight"
_ALIASES = {"lm_head.decoder.weight": _WORDS, "lm_head.decoder.bias": "lm_head.bias"}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


class Tensors:
    """A file's tensors under the names that every class shares.

    Attributes:
      stored: {name in the file: tensor}.
      names: {shared name: name in the file}.
    """

    def __init__(self, stored: dict[str, StoredTensor]):
        self.stored = stored
        self.names = {canonical(name): name for name in stored}
        if len(self.names) < len(stored):
            twice = sorted(set(stored) - set(self.names.values()))
            raise UsageError(f"the file holds tensors under two names each: {listed(twice)}")
        # Files made by hand may hold the output layer's bias under its second name alone.
        bias = "lm_head.decoder.bias"
        if bias in self.names and _ALIASES[bias] not in self.names:
            self.names[_ALIASES[bias]] = self.names.pop(bias)

    def has(self, part: str) -> bool:
        """Whether there is a tensor of a part, such as "lm_head"."""
        return any(name == part or name.startswith(f"{part}.") for name in self.names)

    def find(self, name: str) -> StoredTensor:
        """The tensor of this name, in any class's form."""
        return self.stored[self.names[canonical(name)]]

    def unused(self, wanted: Iterable[Leaf]) -> list[str]:
        """The file's names of tensors that no leaf takes, but for buffers and second names."""
        used = {canonical(name) for leaf in wanted for name in leaf.names}
        used |= {alias for alias, name in _ALIASES.items() if name in used} | set(_BUFFERS)
        return [original for name, original in self.names.items() if name not in used]

    def check(
        self, wanted: Sequence[Leaf], folder: pathlib.Path, model_class: type, new_head: bool
    ) -> set[str]:
        """Finds what does not fit.

        Args:
          wanted: The model's leaves.
          folder: What error messages name.
          model_class: As `folder`.
          new_head: Whether parts outside the encoder may be missing or of another shape.

        Returns:
          The shared names of the tensors that have to be new; empty unless `new_head`.

        Raises:
          UsageError: Lists every tensor that is missing, left over or of a wrong shape or type.
        """
        shapes = {canonical(name): leaf.tensor_shape for leaf in wanted for name in leaf.names}
        present = [name for name in shapes if name in self.names]
        encoder = [name for name in shapes if not _is_of_head(name)]
        if not any(name in self.names for name in encoder):
            raise UsageError(
                f"no tensor in {folder} is a {model_class.__name__}'s: it holds "
                f"{listed(sorted(self.stored))}, and not {listed(sorted(shapes))}"
            )
        missing = [name for name in shapes if name not in self.names]
        wrong = {name: self._misfit(name, shapes[name]) for name in present}
        wrong = {name: reason for name, reason in wrong.items() if reason}
        new: set[str] = set()
        if new_head:
            new = {name for name in [*missing, *wrong] if _may_be_new(name, self)}
        elif missing and not wrong and all(_may_be_new(name, self) for name in missing):
            message = _lacks_a_head(missing, folder, model_class)
            several = {name.split(".")[1] for name in self.names if name.startswith(_OTHER_HEADS)}
            if several:
                names = ", ".join(sorted(several))
                message += f". Its heads {names} cannot be told apart: keep one of them"
            raise UsageError(message)
        missing = [name for name in missing if name not in new]
        left = [
            original
            for name, original in self.names.items()
            if self._is_left_over(name, shapes, new)
        ]
        unfit = [reason for name, reason in wrong.items() if name not in new]
        problems = []
        for title, names in (("missing", missing), ("left over", left), ("unfit", unfit)):
            if names:
                problems.append(f"  {title} ({len(names)}): {listed(sorted(names))}")
        if problems:
            advice = _advice({name for name in wrong if name not in new})
            raise UsageError(
                f"the tensors in {folder} are not those of {model_class.__name__} as "
                "config.json describes it:\n" + "\n".join(problems + advice)
            )
        return new

    def _misfit(self, name: str, shape: tuple[int, ...]) -> str | None:
        original = self.names[name]
        tensor = self.stored[original]
        if tensor.shape != shape:
            return f"{original} (file {list(tensor.shape)}, config {list(shape)})"
        if tensor.dtype not in FLOATING:
            return f"{original} (of type {tensor.dtype}; only floating types are read)"
        return None

    def _is_left_over(self, name: str, wanted: dict[str, tuple[int, ...]], new: set[str]) -> bool:
        if name in wanted or name in _BUFFERS:
            return False
        if name in _ALIASES and _ALIASES[name] in wanted:
            # Equal to the tensor that it repeats, or the model is another one (an untied decoder).
            one, other = self.find(name), self.find(_ALIASES[name])
            same_place = (one.path, one.extents) == (other.path, other.extents)
            return not (same_place or np.array_equal(one.read(), other.read()))
        part = name.split(".")[0]
        if part not in HEADS or any(key.split(".")[0] == part for key in new):
            return part not in HEADS
        return any(key.startswith(f"{part}.") for key in wanted)


def _is_of_head(name: str) -> bool:
    return name.split(".")[0] in HEADS


def _may_be_new(name: str, tensors: Tensors) -> bool:
    """A head's tensor, or cross-attention's where the file, an encoder's, has none of it."""
    if ".crossattention." in name:
        return not any(".crossattention." in other for other in tensors.names)
    return _is_of_head(name)


def _lacks_a_head(missing: list[str], folder: pathlib.Path, model_class: type) -> str:
    parts = sorted({name.split(".")[0] for name in missing})
    what = "no masked-LM head" if parts == ["lm_head"] else f"no {' and no '.join(parts)}"
    if parts == ["encoder"]:
        what = "no cross-attention"
    return (
        f"{folder} has {what} ({listed(sorted(missing))}): it cannot be loaded as "
        f"{model_class.__name__}. Load its encoder alone with model_class=RobertaModel, or pass "
        "new_head=True to begin with random numbers there, as for fine-tuning"
    )


def _advice(wrong: set[str]) -> list[str]:
    advice = []
    if _WORDS in wrong:
        advice.append(
            "  The vocabulary is not the model's: vocab_size in config.json must be the rows of "
            "the word embeddings; take the config.json that belongs to the weights"
        )
    if any(name.startswith(("classifier", "qa_outputs")) for name in wrong):
        advice.append(
            "  The head was trained for another number of labels: leave num_labels as the file "
            "has it, or pass new_head=True to begin with random numbers there"
        )
    return advice
