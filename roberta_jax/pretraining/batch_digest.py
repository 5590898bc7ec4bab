"""A digest of some rows of a training batch, which every host of a run must compute alike."""

import hashlib

import numpy as np

from roberta_jax.data.pipeline import train_batches
from roberta_jax.pretraining.datasets import Dataset
from roberta_jax.pretraining.spec import PretrainingSpec

_ROWS = 4


def batch_digest(spec: PretrainingSpec, dataset: Dataset, step: int) -> str:
    """Returns the digest of some rows of the batch that follows `step` updates.

    In training each host computes other rows of the batch. Here all compute the same ones, so that
    hosts with another text, tokenizer, order or masks have another digest.
    """
    training = spec.training
    step = min(step, training.steps - 1)
    batches = train_batches(
        dataset,
        batch_size=training.batch_size,
        seed=training.seed,
        start_step=step,
        stop_step=step + 1,
        local_rows=np.unique(np.linspace(0, training.batch_size - 1, _ROWS).astype(np.int64)),
        engine="numpy",
    )
    digest = hashlib.blake2b(digest_size=8)
    for name, rows in sorted(next(iter(batches)).items()):
        digest.update(f"{name} {rows.dtype} {rows.shape}".encode())
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()
