"""From prepared text to batches on the devices: what a run trains on and is evaluated on.

The training set is as the config says: format, masking, mixture. The validation sets do not depend
on these settings, so that the scores of different settings can be compared: FULL-SENTENCES rows
and, if asked for, single sentences, with fairseq's masking at the paper's rate.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from roberta_jax.data.batches import PackedDataset
from roberta_jax.data.masking import Masking
from roberta_jax.data.mixture import Mixture
from roberta_jax.data.packing.index import PairOptions, load_or_pack
from roberta_jax.data.pipeline import eval_batches, train_batches
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.training.partitioning import local_batch_rows, to_global

if TYPE_CHECKING:
    from roberta_jax.pretraining.text import Prepared
    from roberta_jax.tokenizer import RobertaTokenizer

Dataset = PackedDataset | Mixture
Batch = dict[str, jax.Array]


def training_dataset(spec: PretrainingSpec, prepared: "Prepared", *, token_types: bool) -> Dataset:
    """The rows to train on.

    Args:
      spec: what the config says.
      prepared: the text.
      token_types: whether the model has more than one token type.

    Raises:
      UsageError: the text does not suit the format, or does not fill one batch.
    """
    datasets = []
    stores = (prepared.train, *prepared.more)
    for corpus, store in zip(spec.text.corpora, stores, strict=True):
        if corpus.max_tokens is not None:
            store = store.first(corpus.max_tokens)
        datasets.append(
            _dataset(
                store,
                prepared.tokenizer,
                spec.format,
                spec.seq_len,
                spec.masking,
                spec.training.seed,
                spec.pairs,
                token_types=token_types,
                next_sentence=spec.next_sentence,
                row_order=spec.row_order,
            )
        )
    dataset = datasets[0]
    if len(datasets) > 1:
        weights = [corpus.weight for corpus in spec.text.corpora]
        dataset = Mixture(datasets, weights, spec.training.seed)
    rows, batch_size = dataset.num_rows // len(dataset.epoch_ends), spec.training.batch_size
    if rows < batch_size:
        raise UsageError(
            f"the corpus fills {rows} rows of {spec.seq_len} tokens, fewer than one batch "
            f"(--config.train.batch_size={batch_size}). Give more text, or lower "
            f"--config.train.batch_size to {rows} or less."
        )
    return dataset


def validation_datasets(
    spec: PretrainingSpec, prepared: "Prepared", *, token_types: bool
) -> dict[str, PackedDataset]:
    """The rows to evaluate on, by name; none without held-out text.

    Returns:
      "full": FULL-SENTENCES; "short": single sentences, with `eval.short_inputs`; "pairs": for
      next-sentence prediction, in the format that is trained on.

    Raises:
      UsageError: `data.validation_fraction` is so small that it holds out no document.
    """
    store = prepared.heldout
    if not store.num_tokens:
        fraction = spec.text.validation_fraction
        overlapping = prepared.train.index["counts"].get("overlapping", 0)
        if overlapping:
            raise UsageError(
                f"All {overlapping} validation documents occur in the training text (each by more "
                f"than --config.data.validation_max_overlap={spec.text.validation_max_overlap}), "
                "so there is nothing to evaluate on. Raise --config.data.validation_fraction, or "
                "--config.data.validation_max_overlap to 1 to score them all the same, or set "
                "--config.data.validation_fraction=0 to train without evaluation."
            )
        if fraction:
            raise UsageError(
                f"--config.data.validation_fraction={fraction} holds out none of the "
                f"{prepared.train.num_documents} documents, so there is nothing to evaluate on. "
                "Raise it, or set it to 0 to train without evaluation."
            )
        return {}

    seed = spec.evaluation.seed
    pairs = dataclasses.replace(spec.pairs, dupe_factor=1, seed=seed)

    def dataset(format: str, **options: bool) -> PackedDataset:
        return _dataset(
            store, prepared.tokenizer, format, spec.seq_len, Masking(), seed, pairs, **options
        )

    datasets = {"full": dataset("full_sentences")}
    if spec.evaluation.short_inputs:
        datasets["short"] = dataset("sentences")
    if spec.next_sentence:
        datasets["pairs"] = dataset(spec.format, token_types=token_types, next_sentence=True)
    return datasets


def device_train_batches(
    spec: PretrainingSpec, dataset: Dataset, position: int, *, endless: bool = False
) -> Iterator[Batch]:
    """The global batches at the positions position, position + 1, ..., on the mesh.

    A run that skips no batches trains on those before position `train.steps`, where it ends unless
    it is `endless`.
    """
    training = spec.training
    batches = train_batches(
        dataset,
        batch_size=training.batch_size,
        seed=training.seed,
        start_step=position,
        stop_step=None if endless else training.steps,
        local_rows=local_batch_rows(training.mesh, training.batch_size),
        engine=spec.engine,
    )
    return _on_devices(batches, dataset, training.mesh, training.batch_size)


def device_eval_batches(spec: PretrainingSpec, dataset: PackedDataset) -> Iterator[Batch]:
    """Each row of a validation set once, on the mesh; see `pipeline.eval_batches`."""
    mesh, evaluation = spec.training.mesh, spec.evaluation
    batches = eval_batches(
        dataset,
        batch_size=evaluation.batch_size,
        seed=evaluation.seed,
        max_rows=evaluation.max_rows,
        local_rows=local_batch_rows(mesh, evaluation.batch_size),
        engine=spec.engine,
    )
    return _on_devices(batches, dataset, mesh, evaluation.batch_size)


def model_inputs(batch: Mapping[str, np.ndarray], max_inputs: int) -> dict[str, np.ndarray]:
    """A batch as the model's methods take it.

    Where each row holds one input, the segments are 1 for a token and 0 for padding: that is an
    attention mask, which is cheaper than the block-diagonal attention of `segment_ids`.
    """
    arrays = dict(batch)
    if max_inputs == 1:
        arrays["attention_mask"] = arrays.pop("segment_ids")
    return arrays


def _on_devices(
    batches: Iterator[Mapping[str, np.ndarray]], dataset: Dataset, mesh: Mesh, batch_size: int
) -> Iterator[Batch]:
    rows = local_batch_rows(mesh, batch_size)
    for batch in batches:
        yield to_global(model_inputs(batch, dataset.max_inputs), mesh, batch_size, rows)


def _dataset(
    store: TokenStore,
    tokenizer: "RobertaTokenizer",
    format: str,
    seq_len: int,
    masking: Masking,
    seed: int,
    pairs: PairOptions,
    **options: Any,
) -> PackedDataset:
    return PackedDataset(
        store,
        load_or_pack(store, format, seq_len, pairs),
        masking,
        seed,
        vocab_size=len(tokenizer),
        bos_id=tokenizer.bos_token_id,
        pad_id=tokenizer.pad_token_id,
        mask_id=tokenizer.mask_token_id,
        special_ids=tokenizer.all_special_ids,
        word_starts=tokenizer.word_start_table() if masking.needs_word_starts else None,
        **options,
    )
