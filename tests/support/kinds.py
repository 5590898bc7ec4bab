"""Makes kinds of tasks, and calls their parts as training and evaluation do."""

from collections.abc import Sequence

import jax
import numpy as np

from roberta_jax.tasks.features import Features
from roberta_jax.tasks.kinds import Kind, kind_class
from roberta_jax.tasks.task import Formatting, Task
from tests.support import heads

PAD_ID = 1


def make_kind(
    name: str, labels: Sequence[str] = (), *, formatting: Formatting | None = None, **fields
) -> Kind:
    """A kind, made for a task without a reader; `fields` are those of the task."""
    task = Task(name="made", title="Made", kind=name, reader=lambda *_: iter(()), **fields)
    return kind_class(name)(task, labels, formatting or Formatting(max_length=38))


def batch_of(kind: Kind, features: Features, rows: Sequence[int] | None = None) -> dict:
    """The arrays of some rows, by default of all, padded to the longest."""
    rows = np.arange(features.num_rows) if rows is None else np.asarray(rows)
    length = int(features.row_lengths[rows[rows >= 0]].max())
    return features.gather(rows, length, kind.fill(), PAD_ID)


def build(kind: Kind, **changes):
    """(model, params): the kind's head, small and random."""
    return _build(
        kind.model_class, heads.SMALL.replace(vocab_size=1000, **changes | kind.config_changes())
    )


def _build(model_class, config):
    from roberta_jax.weights.parameters import parameter_shapes

    model = model_class(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), parameter_shapes(model)
    )
    return model, params


def mean_loss(model, params, batch) -> float:
    """The loss of a batch, as a training step computes it."""
    sums, counts = heads.summed_losses(model, params, **batch), model.count(**batch)
    return float(sum(sums[name] / counts[name] for name in sums))


def outputs_of(kind: Kind, model, params, features: Features) -> dict[str, list[np.ndarray]]:
    """The kind's outputs for all rows, cut to their lengths."""
    batch = batch_of(kind, features)
    targets = kind.model_class.TARGETS
    inputs = {name: values for name, values in batch.items() if name not in targets}
    outputs = kind.outputs(heads.apply(model, params, **inputs))
    return {
        name: [
            row[:size] if kind.per_token else row
            for row, size in zip(np.asarray(values), features.row_lengths, strict=True)
        ]
        for name, values in outputs.items()
    }
