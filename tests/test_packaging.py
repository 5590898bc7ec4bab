"""The wheel: its contents, and that it can pretrain and run studies without a clone."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tomllib
import zipfile

import pytest

from roberta_jax import __version__

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.slow

TRAINING = [
    "--config=configs/pretrain.py:tiny",
    "--workdir=run",
    "--config.data.source=files",
    "--config.data.files=corpus.txt",
    "--config.data.cache_dir=cache",
    "--config.data.num_workers=1",
    "--config.data.engine=numpy",
    "--config.data.validation_fraction=0.2",
    "--config.new_tokenizer.vocab_size=300",
    "--config.model.hidden_size=32",
    "--config.model.intermediate_size=64",
    "--config.schedule.warmup_steps=1",
    "--config.train.steps=3",
    "--config.train.batch_size=4",
    "--config.eval.batch_size=4",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--wheel-dir", folder]
    if importlib.util.find_spec("hatchling"):
        command.append("--no-build-isolation")
    result = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for hatchling" in result.stderr:
        pytest.skip("hatchling is not installed and cannot be downloaded")
    assert result.returncode == 0, result.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the unpacked wheel, to be put on the path."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run(site, tmp_path):
    """Runs `python -m roberta_jax` of the wheel in an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*arguments):
        result = subprocess.run(
            [sys.executable, "-m", "roberta_jax", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result

    run.folder = folder
    return run


def test_contents(wheel):
    assert wheel.name == f"roberta_jax-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        [scripts] = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        assert (
            "Project-URL: Paper, https://arxiv.org/abs/1907.11692"
            in archive.read(metadata).decode()
        )
        assert "roberta-jax = roberta_jax.__main__:main" in archive.read(scripts).decode()
    assert "roberta_jax/py.typed" in names

    def sources(folder):
        return {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}

    left_out = [
        pathlib.Path("experiments", name)
        for name in ("benchmarks", "launch", "results", "robustness")
    ]
    bundled = {
        path
        for path in sources("configs") | sources("experiments")
        if not any(path.is_relative_to(folder) for folder in left_out)
    }
    expected = {path.as_posix() for path in sources("roberta_jax")}
    expected |= {f"roberta_jax/_bundled/{path.as_posix()}" for path in bundled}
    assert {name for name in names if name.endswith(".py")} == expected
    assert {pathlib.Path(name).suffix for name in names} == {".py", ".typed"}


def test_version_has_one_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert "version" not in project


def test_help_describes_the_bundled_config(run):
    printed = run("pretrain", "--help").stdout
    assert "--config.masking.rate" in printed
    assert "--workdir" in printed


def test_training_without_a_clone(run, site):
    documents = [f"The cat sees {count} birds. A dog follows the cat." for count in range(200)]
    (run.folder / "corpus.txt").write_text("\n\n".join(documents))
    result = run("pretrain", *TRAINING)
    assert f"Using {site / 'roberta_jax/_bundled/configs/pretrain.py'}" in result.stderr
    assert (run.folder / "run" / "hf" / "config.json").is_file()
    assert "The cat" in run("fill-mask", "run", "The cat <mask> a bird.").stdout


def test_studies_without_a_clone(run):
    printed = run("sweep", "table1:tiny", "--out=runs", "--list").stdout
    assert "runs/" in printed
    assert not (run.folder / "experiments").exists()
