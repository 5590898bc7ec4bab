"""Stacked and unstacked parameters."""

import numpy as np
import pytest

from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.weights import names
from tests.support.checkpoints import CONFIG, assert_trees_equal, logits_of


def test_stacking_and_unstacking_undo_each_other(masked_lm):
    _, stacked = masked_lm
    unstacked = names.unstack_layers(stacked)
    assert set(unstacked["roberta"]["encoder"]["layer"]) == {"0", "1", "2"}
    assert_trees_equal(names.stack_layers(unstacked), stacked)
    assert_trees_equal(names.unstack_layers(unstacked), unstacked)
    assert_trees_equal(names.stack_layers(stacked), stacked)


def test_unstacked_parameters_are_those_of_the_unscanned_model(masked_lm):
    model, stacked = masked_lm
    unscanned = RobertaForMaskedLM(CONFIG, Execution(scan_layers=False))
    np.testing.assert_allclose(
        logits_of(unscanned, names.unstack_layers(stacked)),
        logits_of(model, stacked),
        rtol=0,
        atol=1e-5,
    )


def test_more_than_ten_layers_stack_in_numeric_order():
    unstacked = {"layer": {str(i): {"bias": np.full(2, i)} for i in reversed(range(12))}}
    stacked = names.stack_layers(unstacked)
    np.testing.assert_array_equal(stacked["layer"]["bias"][:, 0], np.arange(12))


@pytest.mark.parametrize("keys", [("0", "2"), ("1", "2")])
def test_layers_with_a_gap_do_not_stack(keys):
    with pytest.raises(ValueError, match="numbered"):
        names.stack_layers({"layer": {key: {"bias": np.zeros(2)} for key in keys}})
