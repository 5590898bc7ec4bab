"""What a pipeline puts around one text and around a pair, read from its post-processor.

RoBERTa's is `<s> A </s>` and `<s> A </s></s> B </s>`; fairseq can also be told to write pairs with
one separator, `<s> A </s> B </s>` (`encode(..., no_separator=True)` of its hub interface).
"""

import dataclasses
import json

from tokenizers import Tokenizer, processors


@dataclasses.dataclass(frozen=True)
class Piece:
    """One part of a template: a text, or special tokens."""

    text: int | None  # 0 or 1; None for special tokens
    ids: tuple[int, ...]  # of the special tokens
    type_id: int


@dataclasses.dataclass(frozen=True)
class Templates:
    single: tuple[Piece, ...]
    pair: tuple[Piece, ...]

    def __call__(self, ids: list[int], pair_ids: list[int] | None = None):
        """Fills in the ids of one or two texts.

        Returns:
          The ids, the type ids, and 1 for each special token and 0 for the others; lists.
        """
        texts = (ids, pair_ids)
        filled, types, special = [], [], []
        for piece in self.single if pair_ids is None else self.pair:
            part = piece.ids if piece.text is None else texts[piece.text]
            filled += part
            types += [piece.type_id] * len(part)
            special += [int(piece.text is None)] * len(part)
        return filled, types, special


_NOTHING = Templates((Piece(0, (), 0),), (Piece(0, (), 0), Piece(1, (), 1)))


def read(backend: Tokenizer) -> Templates:
    """The templates of a pipeline.

    Raises:
      ValueError: a post-processor of an unknown kind.
    """
    if backend.post_processor is None:
        return _NOTHING
    return _of_state(json.loads(backend.post_processor.__getstate__())) or _NOTHING


def _of_state(state: dict) -> Templates | None:
    kind = state["type"]
    if kind == "ByteLevel":  # trims offsets only
        return None
    if kind == "Sequence":
        found = [template for part in state["processors"] if (template := _of_state(part))]
        return found[0] if found else None
    if kind in ("RobertaProcessing", "BertProcessing"):
        (_, cls), (_, sep) = state["cls"], state["sep"]
        second = int(kind == "BertProcessing")
        single = (Piece(None, (cls,), 0), Piece(0, (), 0), Piece(None, (sep,), 0))
        between = () if second else (Piece(None, (sep,), 0),)
        return Templates(
            single, (*single, *between, Piece(1, (), second), Piece(None, (sep,), second))
        )
    if kind == "TemplateProcessing":
        ids = {name: tuple(token["ids"]) for name, token in state["special_tokens"].items()}
        return Templates(
            *(tuple(_piece(part, ids) for part in state[name]) for name in ("single", "pair"))
        )
    raise ValueError(f"a post-processor of the kind {kind} is not known")


def _piece(part: dict, ids: dict[str, tuple[int, ...]]) -> Piece:
    [(kind, value)] = part.items()
    if kind == "Sequence":
        return Piece("AB".index(value["id"]), (), value["type_id"])
    return Piece(None, ids[value["id"]], value["type_id"])


def robertas(
    cls: tuple[str, int],
    sep: tuple[str, int],
    *,
    trim_offsets: bool,
    add_prefix_space: bool,
    single_separator: bool,
) -> processors.PostProcessor:
    """RoBERTa's post-processor; `cls` and `sep` are tokens with their ids.

    Args:
      trim_offsets: leave the space before a word out of the offsets of its token.
      add_prefix_space: what the pre-tokenizer does; offsets allow for the space put there.
      single_separator: write pairs with one `</s>` between them.
    """
    if not single_separator:
        # By position: versions of the library call the second argument `cls` or `cls_token`.
        return processors.RobertaProcessing(
            sep, cls, trim_offsets=trim_offsets, add_prefix_space=add_prefix_space
        )
    trim = processors.ByteLevel()
    # The constructor takes add_prefix_space in newer versions of the library only.
    state = {"type": "ByteLevel", "trim_offsets": trim_offsets, "use_regex": True}
    trim.__setstate__(json.dumps(state | {"add_prefix_space": add_prefix_space}).encode())
    around = processors.TemplateProcessing(
        single=[cls[0], "$A", sep[0]],
        pair=[cls[0], "$A", sep[0], "$B:0", sep[0]],
        special_tokens=[cls, sep],
    )
    return processors.Sequence([trim, around])


def cls_and_sep(backend: Tokenizer) -> tuple[str, str, bool] | None:
    """What RoBERTa's own post-processor puts around texts, and whether pairs have one separator.

    None if the post-processor is none, only trims offsets, or is of another kind.
    """
    if backend.post_processor is None:
        return None
    state = json.loads(backend.post_processor.__getstate__())
    if state["type"] == "RobertaProcessing":
        return state["cls"][0], state["sep"][0], False
    if state["type"] != "Sequence":
        return None
    kinds = [part["type"] for part in state["processors"]]
    if kinds != ["ByteLevel", "TemplateProcessing"]:
        return None
    pair = state["processors"][1]["pair"]
    names = [part["SpecialToken"]["id"] for part in pair if "SpecialToken" in part]
    shape = "".join("s" if "SpecialToken" in p else p["Sequence"]["id"] for p in pair)
    return (names[0], names[1], True) if shape == "sAsBs" and names[1] == names[2] else None


def adds_tokens(backend: Tokenizer) -> bool:
    """Whether the post-processor puts any special token around a text."""
    return backend.num_special_tokens_to_add(False) > 0
