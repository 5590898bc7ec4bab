"""`FillMask`: predicts the tokens at each `<mask>` of a text, with their probabilities.

Batches have few different shapes, so that few programs are compiled for any list of texts. The
number of tokens per text, masks per text and texts per batch are rounded up, and texts of the same
rounded shape are batched together. The LM head is computed at the masked positions only, and only
the best tokens are copied from the device.

Array names end in their shape: B texts, L tokens per text, K masks per text, V vocabulary, T
predictions per mask.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from roberta_jax.errors import UsageError
from roberta_jax.modeling.execution import for_inference
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.weights import unstack_layers

_MIN_LENGTH = 16  # tokens that shorter texts are padded to; longer ones to a power of two
_MAX_MASKS = 1024  # masks per batch; each needs a row of vocabulary-sized logits


class FillMask:
    """Predicts masked tokens, like the fill-mask pipeline of Hugging Face's `transformers`.

    Example:
      model, params = roberta_jax.from_pretrained("runs/tiny")
      tokenizer = roberta_jax.RobertaTokenizer.from_pretrained("runs/tiny/hf")
      fill_mask = roberta_jax.FillMask(model, params, tokenizer)
      fill_mask("Return <mask> if the file exists.")
    """

    def __init__(
        self, model: nn.Module, params: Any, tokenizer: RobertaTokenizer, batch_size: int = 32
    ):
        """Creates a pipeline.

        Args:
          model: A `RobertaForMaskedLM`.
          params: Its parameters, as `from_pretrained` returns them.
          tokenizer: The tokenizer that the model was trained with.
          batch_size: The maximum number of texts per batch.

        Raises:
          UsageError: The model has no masked-LM head, or fewer tokens than the tokenizer.
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
        self._model = model
        if model.execution.scan_layers and not for_inference().scan_layers:
            execution = dataclasses.replace(model.execution, scan_layers=False)
            self._model = model.clone(execution=execution)
            params = unstack_layers(nn.meta.unbox(params))
        self._params = jax.device_put(params)  # if they are on the host, copy them only once
        self._best = jax.jit(self._best_tokens, static_argnames="top_k")

    def __call__(
        self,
        texts: str | Sequence[str],
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
    ) -> list:
        """Returns the most probable tokens at each mask.

        Args:
          texts: A text or a list of texts, each with one or more `<mask>`.
          top_k: The number of tokens per mask; at most the size of the vocabulary or the number of
            `targets`.
          targets: Rank only these tokens. Their scores are still the probabilities among all
            tokens. A target is a token as it is in the vocabulary ("Ġworld"). Any other string is
            replaced by its first token, with a warning.

        Returns:
          For one mask, a list of dictionaries, best first: `score` (probability), `token` (id),
          `token_str` (its text) and `sequence` (the text with the mask replaced). For a text with
          several masks, a list of such lists, one per mask; each mask is replaced separately, and
          `sequence` contains the special tokens and the other masks. For a list of texts, a list
          of the results for each text; but as in `transformers`, a list of one text is treated as
          that text. `predictions` always returns the same nesting.

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
        """Like `__call__`, but the result is always nested by texts, masks and predictions."""
        texts = list(texts)
        inputs = [self._encode(text) for text in texts]
        allowed = self._target_ids(targets)
        if top_k < 1:
            raise UsageError(f"top_k must be at least 1, not {top_k}")
        top_k = min(top_k, len(allowed))
        allowed_V = np.zeros(self.model.config.vocab_size, bool)
        allowed_V[allowed] = True

        results: list = [None] * len(texts)
        for group, num_masks, length in self._groups(inputs):
            batch = self._pad([inputs[i] for i in group], num_masks, length)
            # top_k is rounded up as well, so that fewer programs are compiled.
            rounded = min(_round_up(top_k, by=2, least=8), len(allowed_V))
            best = jax.device_get(self._best(self._params, *batch, allowed_V, top_k=rounded))
            for row, i in enumerate(group):
                scores_KT, tokens_KT = (array[row, :, :top_k] for array in best)
                results[i] = self._describe(inputs[i], scores_KT, tokens_KT)
        return results

    def _encode(self, text: str) -> np.ndarray:
        if not isinstance(text, str):
            raise UsageError(f"texts must be strings, not {type(text).__name__}: {text!r:.60}")
        try:
            ids = np.asarray(self.tokenizer.encode(text))
        except Exception as error:  # `tokenizers` raises no narrower class
            raise UsageError(f"the tokenizer cannot encode {_quoted(text)}: {error}") from error
        limit = self.model.config.max_length
        if len(ids) > limit:
            raise UsageError(
                f"the text {_quoted(text)} has {len(ids)} tokens, <s> and </s> included, and this "
                f"model takes at most {limit}; shorten it"
            )
        if self.tokenizer.mask_token_id not in ids:
            raise UsageError(
                f"the text {_quoted(text)} has no mask: write {self.tokenizer.mask_token} where a "
                "word is to be predicted"
            )
        return ids

    def _target_ids(self, targets: str | Sequence[str] | None) -> list[int]:
        if targets is None:
            # A model may have more rows than the tokenizer has ids, for alignment.
            return list(range(len(self.tokenizer)))
        vocabulary = self.tokenizer.get_vocab()
        target_ids = set()
        for target in [targets] if isinstance(targets, str) else targets:
            ids = [vocabulary[target]] if target in vocabulary else None
            if ids is None:
                ids = self.tokenizer.encode(target, add_special_tokens=False)[:1]
                replacement = self.tokenizer.convert_ids_to_tokens(ids)
                warnings.warn(
                    f"target {target!r} is not a token of the vocabulary: "
                    + (f"its first token {replacement[0]!r} is used" if ids else "it is ignored"),
                    stacklevel=4,
                )
            target_ids.update(ids)
        if not target_ids:
            raise UsageError("targets names no token; give at least one, or None for all")
        return sorted(target_ids)

    def _groups(self, inputs: list[np.ndarray]) -> Iterator[tuple[list[int], int, int]]:
        """Yields the batches: (indices of inputs, K, L), with K masks and L tokens per input."""

        def shape(i: int) -> tuple[int, int]:
            num_masks = _round_up(int(np.sum(inputs[i] == self.tokenizer.mask_token_id)), by=8)
            length = _round_up(len(inputs[i]), by=2, least=_MIN_LENGTH)
            return num_masks, min(length, self.model.config.max_length)

        order = sorted(range(len(inputs)), key=shape)
        for (num_masks, length), members in itertools.groupby(order, key=shape):
            group = list(members)
            size = self._max_rows(num_masks)
            for start in range(0, len(group), size):
                yield group[start : start + size], num_masks, length

    def _max_rows(self, num_masks: int) -> int:
        return min(self.batch_size, max(1, _MAX_MASKS // num_masks))

    def _pad(
        self, inputs: list[np.ndarray], num_masks: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids [B, L], attention mask [B, L] and masked positions [B, K]."""
        rows = min(_round_up(len(inputs), by=4), self._max_rows(num_masks))
        ids_BL = np.full((rows, length), self.model.config.pad_token_id, np.int32)
        attended_BL = np.zeros((rows, length), np.int32)
        positions_BK = np.zeros((rows, num_masks), np.int32)
        for row, ids in enumerate(inputs):
            masked = np.flatnonzero(ids == self.tokenizer.mask_token_id)
            ids_BL[row, : len(ids)] = ids
            attended_BL[row, : len(ids)] = 1
            positions_BK[row, : len(masked)] = masked
        attended_BL[len(inputs) :, 0] = 1  # an empty row must attend to some token
        return ids_BL, attended_BL, positions_BK

    def _best_tokens(self, params, ids_BL, attended_BL, positions_BK, allowed_V, *, top_k: int):
        """The best allowed tokens: probabilities float32 [B, K, T] and ids int32 [B, K, T]."""
        logits_BKV = self._model.apply(
            {"params": params}, ids_BL, attended_BL, masked_positions=positions_BK
        ).logits
        scores_BKV = jax.nn.softmax(logits_BKV.astype(jnp.float32))
        return jax.lax.top_k(jnp.where(allowed_V, scores_BKV, -1.0), top_k)

    def _describe(self, ids, scores_KT, tokens_KT) -> list[list[dict[str, Any]]]:
        masked = np.flatnonzero(ids == self.tokenizer.mask_token_id)
        results = []
        # zip drops the padding among the masked positions.
        for position, scores, tokens in zip(masked, scores_KT, tokens_KT, strict=False):
            choices = []
            for score, token in zip(scores.tolist(), tokens.tolist(), strict=True):
                filled = ids.copy()
                filled[position] = token
                filled = filled[filled != self.tokenizer.pad_token_id]
                # Masks are special tokens: if there are other masks, `sequence` has to show them.
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
    """The smallest of `least`, `least` * `by`, `least` * `by`**2, … that is at least `count`."""
    while least < count:
        least *= by
    return least


def _quoted(text: str, max_length: int = 60) -> str:
    return repr(text if len(text) <= max_length else f"{text[: max_length - 1]}…")
