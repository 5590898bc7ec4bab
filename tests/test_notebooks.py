"""The notebooks are valid, have no outputs, and run from top to bottom at a reduced size."""

import json
import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"

# Replaces the cell tagged "parameters" of the quickstart.
PARAMETERS = """
workdir = {workdir!r}
changes = {changes!r}
"""


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_valid_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, cell.id
            assert cell.execution_count is None, cell.id


def test_the_parameters_of_ablations_reach_its_study(tmp_path, monkeypatch):
    from experiments.study import load_study

    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(NOTEBOOKS / "ablations.ipynb", as_version=4)
    cells = {cell.id: cell.source for cell in notebook.cells}
    names = {"pathlib": pathlib, "steps": 30, "rates": (0.2, 0.4), "seeds": (7, 3)}
    exec(cells["write"], names)
    points = load_study("units.py").points()
    assert len(points) == 3 * 2 * 2
    assert {point.seed for point in points} == {7, 3}
    assert {point.config().masking.rate for point in points} == {0.2, 0.4}
    assert {point.config().train.steps for point in points} == {30}


@pytest.mark.slow
def test_ablations_runs(tmp_path):
    """It reads and plots a committed report, and trains the study that it defines."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOKS / "ablations.ipynb", as_version=4)
    [parameters] = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    report = next(line for line in parameters.source.splitlines() if line.startswith("report"))
    out = str(tmp_path / "runs")
    parameters.source = (
        f"{report}\nrun, steps, rates, seeds, out = True, 20, (0.15,), (3,), {out!r}"
    )
    cells = {cell.id: cell for cell in notebook.cells}
    study_path = 'pathlib.Path("units.py")'
    assert study_path in cells["write"].source
    cells["write"].source = cells["write"].source.replace(
        study_path, f"pathlib.Path({str(tmp_path / 'units.py')!r})"
    )

    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()

    def text(cell):
        return json.dumps(cells[cell].outputs, ensure_ascii=False)

    assert "FULL-SENTENCES" in text("read")
    assert "image/png" in text("draw")
    assert "image/png" in text("draw-seconds")
    assert "SEGMENT-PAIR+NSP - FULL-SENTENCES" in text("support")
    assert "undecided" in text("support")
    assert "did you mean masking.rate" in text("check")
    assert "Nothing is missing." in text("run-report")
    assert len(list((tmp_path / "runs").glob("*-seed3-*"))) == 3


@pytest.mark.slow
def test_quickstart_runs(tmp_path):
    """It trains a small model for a few steps on a few documents, and fills masks with it."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("ipykernel")
    for number in range(40):
        text = f"The function number {number} returns the value of the argument. " * 8
        (tmp_path / f"{number}.txt").write_text(text + "\n\n" + text.replace("value", "sum"))
    changes = {
        "data.source": "files",
        "data.files": str(tmp_path / "*.txt"),
        "data.cache_dir": str(tmp_path / "cache"),
        "data.validation_fraction": 0.2,
        "seq_len": 64,
        "new_tokenizer.vocab_size": 300,
        "train.steps": 60,
        "train.log_every": 10,
        "schedule.warmup_steps": 10,
    }
    notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
    [parameters] = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    parameters.source = PARAMETERS.format(workdir=str(tmp_path / "run"), changes=changes)

    # The kernel starts in the notebook's folder, as it does in Jupyter.
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()

    cells = {cell.id: cell for cell in notebook.cells}
    assert "image/png" in json.dumps(cells["loss"].outputs)
    tables = "".join(output.text for output in cells["fill-mask"].outputs)
    assert "for i in <mask>(10):" in tables
    assert tables.count("score") == 3
    [result] = cells["data"].outputs
    assert "token_str" in result["data"]["text/plain"]
    assert (tmp_path / "run" / "hf" / "config.json").exists()
