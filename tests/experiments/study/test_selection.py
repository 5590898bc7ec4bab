"""Points are selected by shard and by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.study.loading import load_study
from experiments.study.selection import select_points
from roberta_jax.errors import UsageError
from tests.support import toy_study


@given(st.integers(1, 9), st.integers(1, 12))
def test_shards_are_disjoint_complete_and_even(n, seeds):
    points = load_study(f"{toy_study.PATH}:quick", seeds=range(seeds)).points()
    shards = [select_points(points, shard=(k, n)) for k in range(1, n + 1)]
    assert sorted(str(point) for shard in shards for point in shard) == sorted(map(str, points))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shards == [select_points(points, shard=(k, n)) for k in range(1, n + 1)]


def test_a_point_is_selected_by_its_name():
    points = load_study(toy_study.PATH).points()
    assert select_points(points, name=points[2].name) == [points[2]]
    with pytest.raises(UsageError, match="--point=none: no such point"):
        select_points(points, name="none")
