"""The committed plans: what was compiled is kept."""

import pytest

from experiments.benchmarks import plans
from roberta_jax.planning.report import was_compiled


@pytest.fixture
def few(monkeypatch):
    names = ("base_v5e-4x4", "base_h200x8")
    monkeypatch.setattr(plans, "PLANS", {name: plans.PLANS[name] for name in names})


def test_a_compiled_report_is_written_again_only_with_compile(monkeypatch, few, tmp_path, capsys):
    report, other = tmp_path / "base_v5e-4x4.md", tmp_path / "base_h200x8.md"
    kept = "# base\n\nCompiled by the TPU compiler and by formula.\n"
    report.write_text(kept)
    other.write_text("# base\n\nBy formula alone.\n")
    plans.write_plans(tmp_path)
    assert report.read_text() == kept
    assert "base_v5e-4x4: kept" in (printed := capsys.readouterr().out)
    assert "--compile=base_v5e-4x4" in printed
    assert "## Memory of a chip" in other.read_text()

    plan_of = plans.plan_of
    asked = []

    def compile_nothing(size, pod, compile):
        asked.append((size, pod.name, compile))
        return plan_of(size, pod)

    monkeypatch.setattr(plans, "plan_of", compile_nothing)
    before = other.read_text()
    plans.write_plans(tmp_path, ["base_v5e-4x4"])
    assert asked == [("base", "v5e-4x4", True)]
    assert report.read_text() != kept
    assert other.read_text() == before


def test_the_page_names_the_compiled_reports():
    compiled = {
        name for name in plans.PLANS if was_compiled((plans.RESULTS / f"{name}.md").read_text())
    }
    page = (plans.RESULTS / "README.md").read_text()
    table = page[page.index("## What was compiled") : page.index("## How good")]
    assert compiled == {name for name in plans.PLANS if f"({name}.md)" in table}
    assert compiled
