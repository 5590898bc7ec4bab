"""`FillMask`: the likeliest tokens at each `<mask>` of a text, with their probabilities.

Texts go through the model in batches of few different shapes, so that a handful of compiled
programs serves any list of texts: tokens a text, masks a text and texts a batch are rounded up, and
texts of one shape share batches. The head sees the masked positions alone, and only the best tokens
leave the device.

Array names carry their shape: B texts, L tokens a text, K masks a text, V vocabulary, T choices.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from roberta_jax.errors import UsageError
from roberta_jax.tokenizer import RobertaTokenizer

_SHORTEST = 16  # tokens; shorter texts are padded to it, longer ones to a power of two
_MOST_MASKS = 1024  # in a batch: each takes a row of vocabulary-sized logits


class FillMask:
    """Fills masks, with the results of the fill-mask pipeline of Hugging Face's `transformers`.

    Example:
      model, params = roberta_jax.from_pretrained("runs/tiny")
      tokenizer = roberta_jax.RobertaTokenizer.from_pretrained("runs/tiny/hf")
      fill_mask = roberta_jax.FillMask(model, params, tokenizer)
      fill_mask("Return <mask> if the file exists.")
    """

    def __init__(
        self, model: nn.Module, params: Any, tokenizer: RobertaTokenizer, batch_size: int = 32
    ):
        """Makes a pipeline.

        Args:
          model: A `RobertaForMaskedLM`.
          params: Its parameters, as `from_pretrained` gives them.
          tokenizer: The tokenizer that the model was trained with.
          batch_size: How many texts at most go through the model at once.

        Raises:
          UsageError: The model has no masked-LM head, or the tokenizer is not the model's.
        """
        if "lm_head" not in params:
            raise UsageError(
                f"this {type(model).__name__} has no masked-LM head (no lm_head in its "
                "parameters); load a RobertaForMaskedLM"
            )
        if len(tokenizer) > model.config.vocab_size:
            raise UsageError(
                f"the tokenizer has {len(tokenizer)} ids and the model {model.config.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._params = jax.device_put(params)  # once, should they still be on the host
        self._best = jax.jit(self._best_tokens, static_argnames="top_k")

    def __call__(
        self,
        texts: str | Sequence[str],
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
    ) -> list:
        """Returns the likeliest tokens at each mask.

        Args:
          texts: A text, or a list of texts, each with one or more `<mask>`.
          top_k: How many tokens a mask; at most the vocabulary or the number of `targets`.
          targets: Only these tokens are ranked (their scores stay those among all tokens). A
            target is a token as the vocabulary spells it ("Ġworld"); of any other string the
            first token stands for it, with a warning.

        Returns:
          For one mask, a list of dictionaries, the best first: `score` (probability), `token`
          (id), `token_str` (its text) and `sequence` (the text with the mask filled). For a text
          with several masks, a list of such lists, one a mask, each filled on its own, with the
          special tokens and other masks left in `sequence`. For a list of texts, a list with
          that for each text; but as in `transformers`, a list of one text counts as that text.
          `predictions` has one shape for all.

        Raises:
          UsageError: A text has no mask or too many tokens, or an argument is out of range.
        """
        results = self.predictions([texts] if isinstance(texts, str) else texts, top_k, targets)
        results = [masks[0] if len(masks) == 1 else masks for masks in results]
        return results[0] if len(results) == 1 else results

    def predictions(
        self,
        texts: Iterable[str],
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
    ) -> list[list[list[dict[str, Any]]]]:
        """As `__call__`, nested the same way always: texts, then masks, then choices."""
        texts = list(texts)
        inputs = [self._encode(text) for text in texts]
        allowed = self._target_ids(targets)
        if top_k < 1:
            raise UsageError(f"top_k must be at least 1, not {top_k}")
        top_k = min(top_k, len(allowed))
        allowed_V = np.zeros(self.model.config.vocab_size, bool)
        allowed_V[allowed] = True

        results: list = [None] * len(texts)
        for group, slots, length in self._groups(inputs):
            batch = self._pad([inputs[i] for i in group], slots, length)
            # A rounded top_k keeps the number of compiled programs small, too.
            most = min(_round_up(top_k, by=2, least=8), len(allowed_V))
            best = jax.device_get(self._best(self._params, *batch, allowed_V, top_k=most))
            for row, i in enumerate(group):
                scores_KT, tokens_KT = (array[row, :, :top_k] for array in best)
                results[i] = self._describe(inputs[i], scores_KT, tokens_KT)
        return results

    def _encode(self, text: str) -> np.ndarray:
        if not isinstance(text, str):
            raise UsageError(f"texts must be strings, not {type(text).__name__}: {text!r:.60}")
        ids = np.asarray(self.tokenizer.encode(text))
        limit = self.model.config.max_length
        if len(ids) > limit:
            raise UsageError(
                f"the text {_quoted(text)} has {len(ids)} tokens, <s> and </s> included, and this "
                f"model takes at most {limit}; shorten it"
            )
        if self.tokenizer.mask_token_id not in ids:
            raise UsageError(
                f"the text {_quoted(text)} has no mask: write {self.tokenizer.mask_token} where a "
                "word is to be filled in"
            )
        return ids

    def _target_ids(self, targets: str | Sequence[str] | None) -> list[int]:
        if targets is None:
            return list(range(self.model.config.vocab_size))
        vocabulary = self.tokenizer.get_vocab()
        found = set()
        for target in [targets] if isinstance(targets, str) else targets:
            ids = [vocabulary[target]] if target in vocabulary else None
            if ids is None:
                ids = self.tokenizer.encode(target, add_special_tokens=False)[:1]
                stead = self.tokenizer.convert_ids_to_tokens(ids)
                warnings.warn(
                    f"target {target!r} is no token of the vocabulary: "
                    + (f"its first token {stead[0]!r} is used" if ids else "it is left out"),
                    stacklevel=4,
                )
            found.update(ids)
        if not found:
            raise UsageError("targets names no token; give at least one, or None for all")
        return sorted(found)

    def _groups(self, inputs: list[np.ndarray]) -> Iterator[tuple[list[int], int, int]]:
        """Yields (indices of inputs, K, L): inputs that K masks and L tokens are enough for."""

        def shape(i: int) -> tuple[int, int]:
            slots = _round_up(int(np.sum(inputs[i] == self.tokenizer.mask_token_id)), by=8)
            length = _round_up(len(inputs[i]), by=2, least=_SHORTEST)
            return slots, min(length, self.model.config.max_length)

        order = sorted(range(len(inputs)), key=shape)
        for (slots, length), members in itertools.groupby(order, key=shape):
            group = list(members)
            size = self._most_rows(slots)
            for start in range(0, len(group), size):
                yield group[start : start + size], slots, length

    def _most_rows(self, slots: int) -> int:
        return min(self.batch_size, max(1, _MOST_MASKS // slots))

    def _pad(
        self, inputs: list[np.ndarray], slots: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids [B, L], attention mask [B, L] and masked positions [B, K]."""
        rows = min(_round_up(len(inputs), by=4), self._most_rows(slots))
        ids_BL = np.full((rows, length), self.model.config.pad_token_id, np.int32)
        attended_BL = np.zeros((rows, length), np.int32)
        positions_BK = np.zeros((rows, slots), np.int32)
        for row, ids in enumerate(inputs):
            masked = np.flatnonzero(ids == self.tokenizer.mask_token_id)
            ids_BL[row, : len(ids)] = ids
            attended_BL[row, : len(ids)] = 1
            positions_BK[row, : len(masked)] = masked
        attended_BL[len(inputs) :, 0] = 1  # rows that only fill the batch need a token to attend to
        return ids_BL, attended_BL, positions_BK

    def _best_tokens(self, params, ids_BL, attended_BL, positions_BK, allowed_V, *, top_k: int):
        """The best allowed tokens: probabilities float32 [B, K, T] and ids int32 [B, K, T]."""
        logits_BKV = self.model.apply(
            {"params": params}, ids_BL, attended_BL, masked_positions=positions_BK
        ).logits
        scores_BKV = jax.nn.softmax(logits_BKV.astype(jnp.float32))
        return jax.lax.top_k(jnp.where(allowed_V, scores_BKV, -1.0), top_k)

    def _describe(self, ids, scores_KT, tokens_KT) -> list[list[dict[str, Any]]]:
        masked = np.flatnonzero(ids == self.tokenizer.mask_token_id)
        results = []
        # zip leaves out the slots that only fill the batch.
        for position, scores, tokens in zip(masked, scores_KT, tokens_KT, strict=False):
            choices = []
            for score, token in zip(scores.tolist(), tokens.tolist(), strict=True):
                filled = ids.copy()
                filled[position] = token
                filled = filled[filled != self.tokenizer.pad_token_id]
                # With other masks in the text, skipping special tokens would drop these as well.
                sequence = self.tokenizer.decode(filled, skip_special_tokens=len(masked) == 1)
                choices.append(
                    {
                        "score": score,
                        "token": token,
                        "token_str": self.tokenizer.decode([token]),
                        "sequence": sequence,
                    }
                )
            results.append(choices)
        return results


def _round_up(count: int, by: int, least: int = 1) -> int:
    """The first of `least`, `least` * `by`, `least` * `by`**2, … that is `count` or more."""
    while least < count:
        least *= by
    return least


def _quoted(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")
