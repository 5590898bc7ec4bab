"""The command `python -m roberta_jax.export`."""

import re
import shutil
import subprocess
import sys

import pytest

from roberta_jax import export, weights
from roberta_jax.errors import UsageError
from tests.support import object_store
from tests.support.exported import build_small


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    model, params = build_small("RobertaForTokenClassification", type_vocab_size=2)
    weights.save_pretrained(folder, model, params)
    return folder


@pytest.mark.parametrize("format", export.FORMATS)
def test_the_command_exports_compares_and_says_how_to_run_it(source, tmp_path, capsys, format):
    if format == "saved_model":
        pytest.importorskip("tensorflow")
    arguments = [str(source), str(tmp_path / "out"), f"--to={format}"]
    export.main(arguments)
    printed = capsys.readouterr().out
    assert format in printed
    assert float(printed.split()[-1]) < 1e-5
    sizes = {
        str(path.relative_to(tmp_path / "out")): path.stat().st_size
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert sizes
    for name, size in sizes.items():
        assert re.search(rf"{re.escape(name)} +{size:,} bytes", printed)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert re.search(rf"{name} +int32 \[batch, length\]", printed)
    assert re.search(r"logits +float32 \[batch, length, \d+\]", printed)
    # The example runs as it is printed.
    lines = [line[4:] for line in printed.splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})
    assert re.search(r"'logits': .*1, 2, \d", capsys.readouterr().out)
    export.main(arguments)  # replaces the first export
    again = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {str(path) for path in again} == set(sizes)


def test_a_program_is_written_to_a_bucket(source, tmp_path, monkeypatch, capsys):
    store = object_store.install(tmp_path / "objects", monkeypatch.setattr)
    export.main([str(source), "gs://bucket/programs/a"])
    printed = capsys.readouterr().out
    assert float(printed.split()[-1]) < 1e-5
    # The example runs on a copy, in the folder that has it.
    shutil.copytree(store / "bucket/programs/a", tmp_path / "a")
    assert "After: gcloud storage cp -r gs://bucket/programs/a ." in printed
    lines = [line[4:] for line in printed.splitlines() if line.startswith("    ")]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})


def test_a_source_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(SystemExit):
        export.main([str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_the_target_is_checked_before_the_model_is_loaded(tmp_path, monkeypatch):
    def load(*arguments):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("roberta_jax.weights.load.from_pretrained", load)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("link")
    for target, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "file is a file"),
        (tmp_path / "link", "is a link to nothing"),
        (tmp_path, "other files"),
        (tmp_path / ("x" * 300), "too long"),
        ("", "not the name of a folder"),
    ):
        with pytest.raises(UsageError, match=message):
            export.export(tmp_path / "model", target)


@pytest.mark.parametrize("format", export.FORMATS)
def test_a_full_disk_is_one_message_and_leaves_nothing(source, tmp_path, format):
    if format == "saved_model":
        pytest.importorskip("tensorflow")
    (tmp_path / "out").mkdir()

    program = tmp_path / "out" / "program"
    limited = ["sh", "-c", 'ulimit -f 20; exec "$@"', "sh"]  # no file may grow past 10 kB
    command = [*limited, sys.executable, "-m", "roberta_jax.export", source, program]
    run = subprocess.run([*command, f"--to={format}"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "cannot write" in run.stderr.splitlines()[-1]
    assert "Free some space" in run.stderr
    assert not list((tmp_path / "out").iterdir())
