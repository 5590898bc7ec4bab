"""The batches that are measured, and the goals."""

import numpy as np
import pytest

from experiments.benchmarks.accelerator import workload
from roberta_jax.data.masking import num_slots
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.flops import training_flops


@pytest.mark.parametrize("length", [16, 128, 512])
def test_masked_rows_are_those_of_pretraining(length):
    ids, positions, labels = workload.masked_rows("base", 8, length)
    number = max(1, int(workload.RATE * length))
    assert ids.shape == (8, length)
    assert positions.shape == labels.shape == (8, number)
    assert (np.diff(positions, axis=1) > 0).all()
    assert positions.min() >= 0
    assert positions.max() < length
    shown = np.take_along_axis(ids, positions, axis=1)
    mask_id = workload.CONFIGS["base"]["vocab_size"] - 1
    assert set(shown[shown != labels]) <= {mask_id}
    assert number <= num_slots(length, workload.RATE, max_inputs=1)
    assert ids.min() >= 4
    assert labels.max() < mask_id


def test_masked_rows_have_frequent_words_and_masks():
    ids, positions, labels = workload.masked_rows("base", 64, 512)
    shown = np.take_along_axis(ids, positions, axis=1)
    mask_id = workload.CONFIGS["base"]["vocab_size"] - 1
    assert abs((shown == mask_id).mean() - 0.8) < 0.02
    _, counts = np.unique(labels, return_counts=True)
    assert counts.max() > 20 * np.median(counts)


def test_rows_are_the_same_for_both_sides():
    for first, second in zip(
        workload.masked_rows("tiny", 4, 32), workload.masked_rows("tiny", 4, 32), strict=True
    ):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("name", "make"), [("base", RobertaConfig.base), ("large", RobertaConfig.large)]
)
def test_configs_are_the_released_models(name, make):
    assert RobertaConfig(**workload.CONFIGS[name]) == make()


def test_rungs_descend_and_have_a_row():
    assert workload.rungs([1024, 4096, 100], 512) == [8, 2, 1]


def test_goal_of_large_is_sixty_percent_of_the_measured_product():
    """As the page of results says; 790 TFLOP/s."""
    slots = num_slots(512, workload.RATE, max_inputs=1)
    flops = training_flops(RobertaConfig.large(), 16, 512, slots) / (16 * 512)
    assert workload.flops_per_token("large", 512) == pytest.approx(flops)
    goal = workload.goal_of("h200", "large", 512, 989e12)
    assert goal.aim * flops == pytest.approx(0.6 * 790e12, rel=0.01)
    assert workload.goal_of("h200", "large", 128, 989e12) is None
    assert workload.goal_of("v5e", "large", 512, 197e12).aim * flops == pytest.approx(98.5e12)
    assert workload.goal_of("v5e", "large", 512, None) is None
    assert workload.goal_of(None, "large", 512, None) is None
