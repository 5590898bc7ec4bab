"""Scores a masked language model on rows of tokens: the loss of each target, and its rank.

Letters in array names: N targets, B rows of a batch, L positions in a row, K slots for masked
positions, D documents, V vocabulary.
"""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm.auto
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_jax.data import hashing
from roberta_jax.data.masking import Masker, Masking, num_slots
from roberta_jax.data.row_lengths import choose_lengths
from roberta_jax.errors import UsageError, counted
from roberta_jax.language_modeling.rows import MAX_BUCKETS, Rows, batches
from roberta_jax.training.partitioning import (
    create_mesh,
    local_batch_rows,
    on_mesh,
    to_global,
)

Batch = dict[str, np.ndarray]
Build = Callable[[np.ndarray, int], Batch]  # (items, L) -> their batch

_MASK_STREAM = 0x6C6D6576  # makes masks independent of other uses of the same seed
_BATCHES_AHEAD = 2  # batches that the devices have, while the host reads an earlier one


@dataclasses.dataclass(frozen=True)
class MaskedSums:
    """Masked scores of each document, as sums over its targets. All arrays are [D].

    Attributes:
      loss: float64, negative log-likelihoods in nats.
      top1, top5: int64, targets that are the most probable token, or one of the five.
      targets: int64, masked tokens.
    """

    loss: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class PseudoSums:
    """Pseudo-log-likelihoods (Salazar et al. 2020) of each document. All arrays are [D].

    Attributes:
      loss: float64, negative pseudo-log-likelihoods in nats.
      targets: int64, tokens, of which each was masked once; 0 for a document that was not scored.
    """

    loss: np.ndarray
    targets: np.ndarray


class Scorer:
    """Scores rows with a model on all devices.

    Args:
      name: of the model, for messages.
      model: a `RobertaForMaskedLM`.
      params: its parameters.
      mask_id: the id of `<mask>`.
      batch_tokens: positions that a device computes at once.
      mesh: the devices; None uses all of them.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        params: Any,
        mask_id: int,
        *,
        batch_tokens: int,
        mesh: Mesh | None = None,
    ):
        self._name, self._mask_id = name, mask_id
        self._mesh = create_mesh() if mesh is None else mesh
        self._batch_tokens = batch_tokens * self._mesh.size
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))
        self._step = _compiled(model, self._mesh)

    def masked(self, rows: Rows, tokenizer_size: int, masks: int, seed: int) -> MaskedSums:
        """Masks 15% of the tokens of each row and predicts them, as pretraining evaluates.

        The masks of a row depend on the seed, its document's number and its number in it alone.

        Args:
          rows: the text.
          tokenizer_size: number of ids of the tokenizer, for the replacement by random tokens.
          masks: how often each row is masked anew and computed.
          seed: of the masks.

        Raises:
          UsageError: a loss is not finite, or no token was masked.
        """
        masker = Masker(
            Masking(),
            seq_len=rows.max_length,
            max_inputs=1,
            vocab_size=tokenizer_size,
            mask_id=self._mask_id,
            pad_id=rows.pad_id,
            special_ids=(),
        )
        row_N = np.tile(np.arange(rows.num_rows), masks)
        draw_N = np.repeat(np.arange(masks), rows.num_rows)
        lengths_N = rows.lengths[row_N]
        keys_N = hashing.fold(
            _MASK_STREAM, seed, draw_N, rows.document[row_N], rows.number_in_document[row_N]
        )

        def build(items: np.ndarray, length: int) -> Batch:
            chosen = np.where(items >= 0, items, items[0])
            inputs = rows.inputs(row_N[chosen], rows.max_length)
            # Masks depend on the width of the rows, so all rows are masked at the same width.
            masked = masker(keys_N[chosen], inputs["input_ids"], lengths_N[chosen][:, None])
            slots = num_slots(length, Masking().rate, 1)
            positions, labels, weights = (array[:, :slots] for array in masked)
            return {
                **{name: array[:, :length] for name, array in inputs.items()},
                "masked_positions": positions,
                "masked_labels": labels,
                "masked_weights": weights * (items >= 0)[:, None],
            }

        sums = {name: np.zeros(rows.num_documents) for name in ("loss", "top1", "top5", "targets")}
        with _bar("Masked tokens", int(lengths_N.sum()), "tokens") as bar:
            results = self._run(build, self._batches(lengths_N, rows.max_length))
            for items, batch, losses_BK, ranks_BK in results:
                documents = rows.document[row_N[np.where(items >= 0, items, items[0])]]
                weights_BK = batch["masked_weights"].astype(np.float64)
                for name, values_BK in (
                    ("loss", losses_BK),
                    ("top1", ranks_BK < 1),
                    ("top5", ranks_BK < 5),
                    ("targets", 1),
                ):
                    np.add.at(sums[name], documents, (values_BK * weights_BK).sum(1))
                bar.update(int(lengths_N[items[items >= 0]].sum()))
        counts = {name: sums[name].astype(np.int64) for name in ("top1", "top5", "targets")}
        if not counts["targets"].any():
            raise UsageError(
                f"none of the {int(rows.lengths.sum())} tokens was masked: give more text, or more "
                "masks, such as --masks=8"
            )
        return MaskedSums(sums["loss"], **counts)

    def pseudo(
        self,
        rows: Rows,
        documents: np.ndarray,
        announce: Callable[[str], None] | None = None,
    ) -> PseudoSums:
        """Masks each token of the text once, alone in its row, and predicts it.

        `<s>` and `</s>` are never masked.

        Args:
          rows: the text.
          documents: bool [D], which documents to score.
          announce: called before the start with a sentence on what it will cost.

        Raises:
          UsageError: a loss is not finite.
        """
        row_N, position_N = rows.text_positions(np.flatnonzero(documents[rows.document]))
        lengths_N, document_N = rows.lengths[row_N], rows.document[row_N]

        def build(items: np.ndarray, length: int) -> Batch:
            chosen = np.where(items >= 0, items, items[0])
            inputs, positions = rows.inputs(row_N[chosen], length), position_N[chosen][:, None]
            labels = np.take_along_axis(inputs["input_ids"], positions, axis=1)
            np.put_along_axis(inputs["input_ids"], positions, self._mask_id, axis=1)
            return {
                **inputs,
                "masked_positions": positions.astype(np.int32),
                "masked_labels": labels,
                "masked_weights": (items >= 0).astype(np.float32)[:, None],
            }

        parts = list(self._batches(lengths_N, rows.max_length))
        if announce is not None and parts:
            announce(self._cost(build, parts, len(row_N)))
        loss = np.zeros(rows.num_documents)
        with _bar("Each token masked", len(row_N), "tokens") as bar:
            for items, _, losses_BK, _ in self._run(build, parts):
                real = items >= 0
                np.add.at(loss, document_N[items[real]], losses_BK[real, 0])
                bar.update(int(real.sum()))
        return PseudoSums(loss, np.bincount(document_N, minlength=rows.num_documents))

    def _batches(self, lengths: np.ndarray, max_length: int) -> Iterator[tuple[np.ndarray, int]]:
        buckets = choose_lengths(lengths, MAX_BUCKETS, max_length)
        return batches(lengths, buckets, self._batch_tokens, self._mesh.size)

    def _dispatch(self, batch: dict[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
        """Starts the computation of a batch."""
        size = len(batch["input_ids"])
        local = local_batch_rows(self._mesh, size)
        with on_mesh(self._mesh):
            arrays = {name: array[local] for name, array in batch.items()}
            return self._step(self._params, to_global(arrays, self._mesh, size, local))

    def _run(
        self, build: Build, parts: Iterable[tuple[np.ndarray, int]]
    ) -> Iterator[tuple[np.ndarray, Batch, np.ndarray, np.ndarray]]:
        """Yields (items [B], batch, losses float64 [B, K], ranks int [B, K]) of each batch."""
        pending: collections.deque = collections.deque()
        for items, length in parts:
            batch = build(items, length)
            pending.append((items, batch, self._dispatch(batch)))
            if len(pending) > _BATCHES_AHEAD:
                yield self._finished(*pending.popleft())
        while pending:
            yield self._finished(*pending.popleft())

    def _finished(self, items: np.ndarray, batch: Batch, scores: tuple[jax.Array, jax.Array]):
        losses_BK, ranks_BK = jax.device_get(scores)
        used_BK = batch["masked_weights"] > 0
        if not np.isfinite(losses_BK[used_BK]).all():
            raise UsageError(
                f"{self._name} gives losses that are not finite: its training has diverged, or its "
                "numbers overflow in the type that it is computed in"
            )
        return items, batch, np.where(used_BK, losses_BK, 0).astype(np.float64), ranks_BK

    def _cost(self, build: Build, parts: list[tuple[np.ndarray, int]], targets: int) -> str:
        """What scoring all batches costs; computes the last one, of the longest rows, twice."""
        batch = build(*parts[-1])
        jax.block_until_ready(self._dispatch(batch))  # compiled here
        start = time.perf_counter()
        jax.block_until_ready(self._dispatch(batch))
        seconds = time.perf_counter() - start
        positions = sum(len(items) * length for items, length in parts)
        seconds *= positions / batch["input_ids"].size
        time_needed = tqdm.auto.tqdm.format_interval(math.ceil(seconds))
        return (
            f"{self._name}: masks each of {counted(targets, 'token')} once, which computes as many "
            f"rows of up to {parts[-1][1]} tokens, {positions:,} with padding; about {time_needed} "
            "at the speed of the first batch."
        )


@functools.cache  # so that models of one shape share their programs
def _compiled(model: nn.Module, mesh: Mesh) -> Callable:
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(functools.partial(_target_scores, model), out_shardings=everywhere)


def _target_scores(
    model: nn.Module, params: Any, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """(losses float32 [B, K] in nats, ranks int32 [B, K]: how many tokens are more probable)."""
    batch = dict(batch)
    labels_BK = batch.pop("masked_labels")
    del batch["masked_weights"]
    logits_BKV = model.apply({"params": params}, **batch, deterministic=True).logits
    label_BK1 = jnp.take_along_axis(logits_BKV, labels_BK[..., None], axis=-1)
    losses_BK = jax.nn.logsumexp(logits_BKV, axis=-1) - label_BK1[..., 0]
    # Of equal logits the first is the more probable, as `argmax` and `top_k` choose.
    ids_V = jnp.arange(logits_BKV.shape[-1])
    is_before = (logits_BKV == label_BK1) & (ids_V < labels_BK[..., None])
    ranks_BK = jnp.sum((logits_BKV > label_BK1) | is_before, axis=-1)
    return losses_BK, ranks_BK


def _bar(title: str, total: int, unit: str) -> tqdm.auto.tqdm:
    """A progress bar on stderr, if that is a terminal."""
    return tqdm.auto.tqdm(
        desc=title, total=total, unit=f" {unit}", unit_scale=True, disable=None, leave=False
    )
