"""The commands on the page of `experiments/launch` are ones that the programs take."""

import importlib
import pathlib
import re
import shlex

import pytest

from experiments import sweep
from experiments.study.loading import load_study
from roberta_jax import cli
from roberta_jax.launching import command as launched
from tests.support import processes

FOLDER = pathlib.Path(processes.ROOT, "experiments", "launch")
PAGE = (FOLDER / "README.md").read_text()
PYTHON = ["python", "-m"]


def commands():
    """The commands of the page's blocks and sentences, with the variables' values."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    outside = re.sub(r"```.*?```", "", PAGE, flags=re.S)
    sentences = re.findall(r"`(python -m [^`]*)`", outside)
    text = "\n".join([*blocks, *(" ".join(each.split()) for each in sentences)])
    variables = {"BUCKET": "gs://my-bucket", "RUN": "gs://my-bucket/runs/base"}
    for name, value in variables.items():
        text = text.replace(f"${name}", value)
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("python ")]


def of(package):
    """The modules and arguments of the page's commands of a package."""
    found = []
    for words in commands():
        assert words[:2] == PYTHON
        if words[2].startswith(f"{package}."):
            # `...` stands for what another command on the page has.
            found.append((words[2], [word for word in words[3:] if word != "..."]))
    assert found
    return found


def test_every_program_of_the_page_exists():
    for words in commands():
        importlib.import_module(words[2])


@pytest.mark.parametrize(("module", "arguments"), of("experiments.launch"))
def test_launch_commands_of_the_page_are_taken(capsys, module, arguments):
    own, words = launched.split(arguments)
    rest = ["--", *words] if words else []
    importlib.import_module(module).main([*own, "--dry_run", *rest])
    assert capsys.readouterr().out
    check_config(words)


def check_config(words):
    """Checks the config of a command and the values that it changes."""
    if words and any(word.startswith("--config=") for word in words):
        values = [word for word in words if word.startswith("--config")]
        cli.parse([words[0], *values])


@pytest.mark.parametrize(("module", "arguments"), of("roberta_jax"))
def test_configs_of_the_page_exist(module, arguments):
    own, words = launched.split(arguments)
    check_config(words or [module, *own])


SWEEPS = [words[3:] for words in commands() if words[2] == "experiments.sweep"]


@pytest.mark.parametrize("arguments", [each for each in SWEEPS if each[0] != "STUDY"])
def test_studies_of_the_page_exist(capsys, arguments):
    ends = [arguments.index(each) for each in "|>" if each in arguments]  # of the command itself
    own = arguments[: min(ends, default=None)]
    parsed = sweep._parser().parse_args(own)
    assert load_study(parsed.study).points()
    if parsed.print:
        sweep.main(own)
        assert capsys.readouterr().out


def test_the_page_has_commands_of_all_programs():
    modules = {words[2] for words in commands()}
    assert {"experiments.sweep", "roberta_jax.plan", "roberta_jax.prepare"} <= modules
    programs = {path.stem for path in FOLDER.glob("*.py") if "main(" in path.read_text()}
    assert modules >= {f"experiments.launch.{each}" for each in programs}


def test_links_of_the_page_lead_somewhere():
    headings = {
        re.sub("[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]*)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https://"):
            assert (FOLDER / target).exists(), target
