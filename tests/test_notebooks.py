"""The notebooks are valid, have no outputs, and run from top to bottom at a reduced size."""

import base64
import io
import json
import pathlib
import re
import zipfile

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


def test_the_keys_that_finetune_names_are_in_its_config():
    from configs.finetune import get_config
    from roberta_jax.dotted_keys import flatten

    notebook = nbformat.read(NOTEBOOKS / "finetune.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    keys = set(re.findall(r'"([a-z_]+\.[a-z_]+)":', text))
    keys |= set(re.findall(r"--config\.([a-z_.]+)=", text))
    keys |= set(re.findall(r"`((?:adapt|data|train)\.[a-z_]+)`", text))
    assert {"adapt.lora_rank", "data.train", "train.log_every", "init_from"} <= keys
    assert not keys - flatten(get_config("csv")).keys()


def write_sst2(path, sizes):
    """A zip file like that of SST-2; one word of each sentence decides its label.

    Returns:
      The sentences of the validation examples whose label is wrong on purpose.
    """
    from tests.support.finetuning import sentence

    wrong = []
    with zipfile.ZipFile(path, "w") as archive:
        for split, numbers in sizes.items():
            lines = ["sentence\tlabel"]
            for number in numbers:
                text, label = sentence(number)
                is_wrong = split == "dev" and number % 13 == 0
                wrong += [text] * is_wrong
                lines.append(f"{text} \t{int((label == 'good') != is_wrong)}")
            archive.writestr(f"SST-2/{split}.tsv", "\n".join(lines) + "\n")
    return wrong


@pytest.mark.slow
def test_finetune_runs(tmp_path):
    """It fine-tunes a small model on sentences in which one word decides the label."""
    for package in ("matplotlib", "sklearn", "ipykernel"):
        pytest.importorskip(package)
    from matplotlib.image import imread

    from tests.support.finetuning import write_model

    write_model(tmp_path / "model")
    wrong = write_sst2(tmp_path / "SST-2.zip", {"train": range(160), "dev": range(300, 340)})
    new_sentences = ["the film is great", "a book is awful", "$_$ | *new* <b>words</b>"]
    workdir = tmp_path / "runs" / "sentiment"
    changes = {
        "data.cache_dir": str(tmp_path / "cache"),
        "data.max_train_examples": 120,
        "data.num_lengths": 2,
        "format.max_length": 24,
        "optimizer.learning_rate": 3e-3,
        "train.batch_size": 8,
        "train.epochs": 6.0,
        "train.log_every": 5,
        "eval.batch_size": 8,
    }
    parameters = {
        "init_from": str(tmp_path / "model"),
        "train": "",
        "validation": "0.1",
        "workdir": str(workdir),
        "changes": changes,
        "sst2": (tmp_path / "SST-2.zip").as_uri(),
        "new_sentences": new_sentences,
    }
    notebook = nbformat.read(NOTEBOOKS / "finetune.ipynb", as_version=4)
    [cell] = [each for each in notebook.cells if "parameters" in each.metadata.get("tags", [])]
    names = {}
    exec(cell.source, names)
    assert parameters.keys() == names.keys() - {"__builtins__"}
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())

    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()

    cells = {cell.id: cell for cell in notebook.cells}

    def printed(cell):
        return "".join(each.get("text", "") for each in cells[cell].outputs)

    def shown(cell):
        return "".join(
            each.data.get("text/markdown", "") for each in cells[cell].outputs if "data" in each
        )

    description = printed("look")
    assert "train: 160 examples of sst2_train.csv" in description
    assert "text: sentence; label: label (2 labels: negative (80), positive (80))" in description
    assert shown("examples").count("\n") == 6
    assert f"The model is in {workdir}/hf" in printed("train")
    assert "95% intervals" in shown("results")
    assert "precision" in printed("report")
    for name in ("curve", "confusion", "confident", "bars"):
        *_, output = cells[name].outputs
        image = imread(io.BytesIO(base64.b64decode(output.data["image/png"])))
        assert image.size > 10_000
        assert image.std() > 0.02  # not of one colour

    assert re.fullmatch(r"confident half: \d+ of 20 correct\n.*\n", printed("confident"))

    # What the model has learned contradicts the wrong labels.
    mistakes = shown("mistakes")
    assert len(wrong) >= 3
    for text in wrong:
        assert f"| {text} |" in mistakes

    # The last one has characters of Markdown, and words that were not in the training examples.
    rows = [line.strip("| ").split(" | ") for line in shown("predict").splitlines()[2:]]
    assert [row[0] for row in rows[:2]] == new_sentences[:2]
    probabilities = [[float(value) for value in row[-2:]] for row in rows]
    predicted = ["positive" if row[1] > row[0] else "negative" for row in probabilities]
    assert predicted[:2] == ["positive", "negative"]
    loaded = [line.split("  ") for line in printed("load").splitlines()]
    assert [row[0] for row in loaded] == predicted
    largest = [max(row) for row in probabilities]
    assert [float(row[1]) for row in loaded] == pytest.approx(largest, abs=2e-4)
