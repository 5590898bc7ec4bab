"""Settings that are built from lists of values."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.study.grid import product, zipped
from roberta_jax.errors import UsageError


@given(
    st.dictionaries(
        st.sampled_from(["train.steps", "train.batch_size", "seq_len"]),
        st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
        min_size=1,
    )
)
def test_product_has_each_combination_once_and_zipped_pairs_the_values(values):
    settings = product(values)
    size = 1
    for column in values.values():
        size *= len(column)
    assert len(settings) == len({json.dumps(each) for each in settings.values()}) == size
    for name, changes in settings.items():
        assert list(changes) == list(values)
        assert all(changes[key] in values[key] for key in values)
        assert name == ", ".join(f"{key.split('.')[-1]}={changes[key]}" for key in values)
    if len({len(column) for column in values.values()}) == 1:
        rows = list(zipped(values).values())
        assert {key: [row[key] for row in rows] for key in values} == values
    else:
        with pytest.raises(UsageError, match="as many values"):
            zipped(values)


def test_names_have_whole_keys_if_their_last_parts_are_equal():
    assert list(product({"train.batch_size": [1], "eval.batch_size": [2]})) == [
        "train.batch_size=1, eval.batch_size=2"
    ]


def test_two_equal_settings_are_an_error():
    with pytest.raises(UsageError, match="two settings are the same"):
        product({"seq_len": [16, 16]})
