"""The committed reports in `experiments/results/`."""

import pytest

from experiments.reporting.report_files import README, readme
from experiments.reporting.results import Results
from experiments.study.loading import ROOT, load_study

FOLDERS = sorted(path.parent for path in ROOT.glob("experiments/results/*/study.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_committed_report_agrees_with_its_files_and_with_its_study(folder):
    results = Results.from_folder(folder)
    # The reports of fine-tuning have no plots.
    plots = [f"{x}.png" for x in ("steps", "tokens", "seconds")] if "table" in folder.name else []
    assert {path.name for path in folder.glob("*.png")} == set(plots)
    assert (folder / README).read_text() == readme(results, plots)
    for name, text in results.files().items():
        assert (folder / name).read_text() == text, name
    study = load_study(results.study["origin"])
    assert results.study["question"] == study.question
    assert results.study["notes"] == study.notes
    assert results.study["columns"] == dict(study.columns)
    assert results.study["settings"] == list(study.settings)
