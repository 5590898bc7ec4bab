"""How far a point is, and the results of its evaluations."""

import dataclasses

import pytest

from experiments.study.loading import load_study
from experiments.study.progress import read_evaluations
from roberta_jax.errors import UsageError
from tests.support import fake_runs, toy_study


def test_progress_of_a_point(tmp_path):
    small, large = load_study(f"{toy_study.PATH}:evaluated", seeds=[0]).points()
    assert str(small.progress(tmp_path)) == "not begun"
    fake_runs.begin(small, tmp_path, 6)
    progress = small.progress(tmp_path)
    assert (progress.step, progress.steps, progress.finished) == (6, 12, False)
    assert str(progress) == "step 6/12"

    workdir = fake_runs.finish(large, tmp_path, perplexity=9.0)
    progress = large.progress(tmp_path)
    assert progress.metrics["eval_perplexity"] == 9.0
    assert progress.missing == ("measured",)
    assert not progress.finished
    (workdir / "evaluations").mkdir()
    (workdir / "evaluations" / "measured.json").write_text('{"records": 5, "on": "dev"}')
    progress = large.progress(tmp_path)
    assert progress.finished
    assert progress.metrics["measured.records"] == 5.0
    assert "measured.on" not in progress.metrics

    # With more steps it is another point, so that no run is continued by mistake.
    longer = dataclasses.replace(
        small.study, settings={"LARGE (2x)": {"train.steps": 99}}, paper={}
    )
    assert str(longer.points()[0].progress(tmp_path)) == "not begun"


@pytest.mark.parametrize("text", ["", "[1]", '{"accuracy": "high"}', "{"])
def test_a_damaged_evaluation_is_an_error(text, tmp_path):
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "mnli.json").write_text(text)
    with pytest.raises(UsageError, match="mnli.json: .*Delete it"):
        read_evaluations(tmp_path)
