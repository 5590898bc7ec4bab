"""Runs of the toy model, and what is compared between them."""

import jax
import numpy as np

from roberta_jax.training import run
from roberta_jax.training.metrics import read_metrics

BATCH, STEPS = 8, 6
CONFIG = {"train": {"steps": STEPS}, "seed": 0}


class Killed(BaseException):
    """Stands for SIGKILL: no code of the run handles it."""


def start(workdir, spec, make_job, config=CONFIG):
    return run.run(workdir, spec, make_job, config=config, may_change=("train.steps",))


def exported(workdir):
    with np.load(workdir / run.EXPORT / "params.npz") as params:
        return dict(params)


def reproducible(workdir):
    """The records of a run without what depends on the speed of the machine."""
    timing = ("tokens_per_second", "mfu")
    return [
        {name: value for name, value in record.items() if name not in timing}
        for record in read_metrics(workdir)
    ]


def assert_same_export(workdir, expected):
    jax.tree.map(np.testing.assert_array_equal, exported(workdir), exported(expected))
