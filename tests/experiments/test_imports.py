"""Which folders of `experiments` may import which others."""

import pytest

from experiments.study.loading import ROOT
from tests.test_architecture import imported_names

EXPERIMENTS = ROOT / "experiments"
ALLOWED = {
    "study": set(),
    "studies": {"study"},
    "running": {"study"},
    "reporting": {"study"},
    "launch": {"command_line"},
}


def python_files():
    return [path for folder in ALLOWED for path in (EXPERIMENTS / folder).glob("*.py")]


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules_imported(path):
    """Returns the modules and packages of `experiments` that a file imports, as dotted names."""
    modules = {module_name(file) for file in python_files()}
    names = {name for name in imported_names(path) if name.startswith("experiments.")}
    return {name if name in modules else name.rpartition(".")[0] for name in names} & modules


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folders_import_only_what_they_may(folder):
    for path in (EXPERIMENTS / folder).glob("*.py"):
        names = {name for name in imported_names(path) if name.startswith("experiments.")}
        assert {name.split(".")[1] for name in names} <= ALLOWED[folder] | {folder}, path


def test_no_modules_import_each_other():
    """Not even inside functions or for type checking."""
    edges = {module_name(path): modules_imported(path) for path in python_files()}
    while edges:
        leaves = {name for name, imported in edges.items() if not imported & edges.keys()}
        assert leaves, f"import cycle among {sorted(edges)}"
        edges = {name: imported for name, imported in edges.items() if name not in leaves}


def test_no_file_is_past_four_hundred_lines():
    for path in EXPERIMENTS.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
