"""Templates: the special tokens that a pipeline adds around one text and around a pair of texts.

RoBERTa's templates are `<s> A </s>` and `<s> A </s></s> B </s>`. fairseq can also encode a pair
with one separator, `<s> A </s> B </s>` (`encode(..., no_separator=True)` of its hub interface).
"""

import dataclasses
import json

from tokenizers import Tokenizer, processors


@dataclasses.dataclass(frozen=True)
class Piece:
    """One part of a template: a text, or special tokens."""

    text: int | None  # 0 for the first text, 1 for the second, None for special tokens
    ids: tuple[int, ...]  # ids of the special tokens; empty for a text
    type_id: int


@dataclasses.dataclass(frozen=True)
class Templates:
    """The template for one text and the template for a pair."""

    single: tuple[Piece, ...]
    pair: tuple[Piece, ...]

    def apply(
        self, ids: list[int], pair_ids: list[int] | None = None
    ) -> tuple[list[int], list[int], list[int]]:
        """Adds the special tokens to the ids of one text or of a pair.

        Returns:
          Three lists of equal length: the ids, the token type ids, and the special tokens mask (1
          for special tokens, 0 for others).
        """
        texts = (ids, pair_ids)
        input_ids, type_ids, special_tokens_mask = [], [], []
        for piece in self.single if pair_ids is None else self.pair:
            part = piece.ids if piece.text is None else texts[piece.text]
            input_ids += part
            type_ids += [piece.type_id] * len(part)
            special_tokens_mask += [int(piece.text is None)] * len(part)
        return input_ids, type_ids, special_tokens_mask


_WITHOUT_SPECIAL_TOKENS = Templates((Piece(0, (), 0),), (Piece(0, (), 0), Piece(1, (), 1)))


def read(backend: Tokenizer) -> Templates:
    """Returns the templates of a pipeline.

    Raises:
      ValueError: the type of the post-processor is not supported.
    """
    if backend.post_processor is None:
        return _WITHOUT_SPECIAL_TOKENS
    state = json.loads(backend.post_processor.__getstate__())
    return _read_state(state) or _WITHOUT_SPECIAL_TOKENS


def _read_state(state: dict) -> Templates | None:
    """Reads the templates in the JSON of a post-processor; None if it adds no tokens."""
    kind = state["type"]
    if kind == "ByteLevel":  # it changes offsets only
        return None
    if kind == "Sequence":
        templates = (_read_state(processor) for processor in state["processors"])
        return next((template for template in templates if template), None)
    if kind in ("RobertaProcessing", "BertProcessing"):
        (_, cls), (_, sep) = state["cls"], state["sep"]
        second_type = int(kind == "BertProcessing")
        single = (Piece(None, (cls,), 0), Piece(0, (), 0), Piece(None, (sep,), 0))
        separator = () if kind == "BertProcessing" else (Piece(None, (sep,), 0),)
        second = (Piece(1, (), second_type), Piece(None, (sep,), second_type))
        return Templates(single, (*single, *separator, *second))
    if kind == "TemplateProcessing":
        ids = {name: tuple(token["ids"]) for name, token in state["special_tokens"].items()}
        return Templates(
            single=tuple(_piece(part, ids) for part in state["single"]),
            pair=tuple(_piece(part, ids) for part in state["pair"]),
        )
    raise ValueError(f"post-processors of the type {kind} are not supported")


def _piece(part: dict, ids: dict[str, tuple[int, ...]]) -> Piece:
    [(kind, value)] = part.items()
    if kind == "Sequence":
        return Piece("AB".index(value["id"]), (), value["type_id"])
    return Piece(None, ids[value["id"]], value["type_id"])


def roberta_post_processor(
    cls: tuple[str, int],
    sep: tuple[str, int],
    *,
    trim_offsets: bool,
    add_prefix_space: bool,
    single_separator: bool,
) -> processors.PostProcessor:
    """Returns RoBERTa's post-processor.

    Args:
      cls, sep: each a token and its id.
      trim_offsets: exclude the space before a word from the offsets of the word's token.
      add_prefix_space: the setting of the pre-tokenizer, which offsets have to account for.
      single_separator: encode pairs with one `</s>` between the texts.
    """
    if not single_separator:
        # Positional, because versions of the library name the second argument `cls` or `cls_token`.
        return processors.RobertaProcessing(
            sep, cls, trim_offsets=trim_offsets, add_prefix_space=add_prefix_space
        )
    byte_level = processors.ByteLevel()
    # Set as a state, because only newer versions of the constructor take add_prefix_space.
    state = {"type": "ByteLevel", "trim_offsets": trim_offsets, "use_regex": True}
    byte_level.__setstate__(json.dumps(state | {"add_prefix_space": add_prefix_space}).encode())
    template = processors.TemplateProcessing(
        single=[cls[0], "$A", sep[0]],
        pair=[cls[0], "$A", sep[0], "$B:0", sep[0]],
        special_tokens=[cls, sep],
    )
    return processors.Sequence([byte_level, template])


def roberta_tokens(backend: Tokenizer) -> tuple[str, str, bool] | None:
    """Reads a post-processor that `roberta_post_processor` can return.

    Returns:
      The `cls` token, the `sep` token, and whether pairs have a single separator. None if there is
      no post-processor, if it only trims offsets, or if it is of another type.
    """
    if backend.post_processor is None:
        return None
    state = json.loads(backend.post_processor.__getstate__())
    if state["type"] == "RobertaProcessing":
        return state["cls"][0], state["sep"][0], False
    if state["type"] != "Sequence":
        return None
    kinds = [processor["type"] for processor in state["processors"]]
    if kinds != ["ByteLevel", "TemplateProcessing"]:
        return None
    pair = state["processors"][1]["pair"]
    tokens = [part["SpecialToken"]["id"] for part in pair if "SpecialToken" in part]
    shape = "".join("s" if "SpecialToken" in p else p["Sequence"]["id"] for p in pair)
    return (tokens[0], tokens[1], True) if shape == "sAsBs" and tokens[1] == tokens[2] else None


def has_single_separator(backend: Tokenizer) -> bool:
    """Whether pairs are encoded as `<s> A </s> B </s>`."""
    tokens = roberta_tokens(backend)
    return tokens is not None and tokens[2]


def adds_tokens(backend: Tokenizer) -> bool:
    """Whether a pipeline adds any special token around a text."""
    return backend.num_special_tokens_to_add(False) > 0
