"""Who may import whom, and what importing the package may cost."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "roberta_jax"

# Package -> the packages and modules that it may import. OPEN_TO_ALL are small modules.
OPEN_TO_ALL = {"config_ranges", "dotted_keys", "errors"}
ALLOWED = {
    "kernels": set(),
    "modeling": {"kernels"},
    "storage": set(),
    "tokenizer": {"storage"},
    "data": {"tokenizer", "storage"},
    "training": {"storage"},
    "weights": {"modeling", "storage"},
    "inference": {"modeling", "tokenizer", "weights"},
    "language_modeling": {"data", "inference", "storage", "tokenizer", "training"},
    "pretraining": {
        "config_groups",
        "data",
        "kernels",
        "modeling",
        "storage",
        "tokenizer",
        "training",
        "weights",
    },
    "tasks": {"data", "modeling", "storage", "tokenizer"},
    "finetuning": {
        "config_groups",
        "data",
        "kernels",
        "modeling",
        "storage",
        "tasks",
        "tokenizer",
        "training",
        "weights",
    },
    "planning": {"data", "kernels", "modeling", "pretraining", "storage", "training"},
    "compat": {"modeling", "storage", "weights"},
    "exporting": {"modeling", "storage", "weights"},
    "launching": {"storage", "training"},
    "diagnostics": {"launching", "modeling", "storage", "training"},
    "config_groups": {"kernels", "modeling", "tokenizer", "training"},
    "config_ranges": set(),
    "errors": set(),
    "__init__": set(),
}


def imported_names(path: pathlib.Path, lazy: bool = True) -> set[str]:
    """Every module that the file imports, dotted; `lazy` includes imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else tree.body
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_imported(path: pathlib.Path) -> set[str]:
    return {name.split(".")[1] for name in imported_names(path) if name.startswith("roberta_jax.")}


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_parts_import_only_what_they_may(part):
    files = list((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else []
    files += [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else []
    assert files, f"no files in {part}"
    for path in files:
        assert parts_imported(path) <= ALLOWED[part] | {part} | OPEN_TO_ALL, path


def test_every_part_has_its_rule():
    parts = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert parts <= set(ALLOWED)


def test_package_never_imports_configs_experiments_or_notebooks():
    for path in PACKAGE.rglob("*.py"):
        roots = {name.split(".")[0] for name in imported_names(path)}
        assert not roots & {"configs", "experiments", "notebooks", "tests"}, path


def test_tensorflow_is_imported_lazily_and_only_for_data_and_for_serving():
    writes_saved_models = {PACKAGE / "exporting" / "saved_model.py"}
    for path in PACKAGE.rglob("*.py"):
        names = {name.split(".")[0] for name in imported_names(path)}
        if names & {"tensorflow", "tensorflow_datasets"}:
            assert "data" in path.relative_to(PACKAGE).parts or path in writes_saved_models, path
            eager = {name.split(".")[0] for name in imported_names(path, lazy=False)}
            assert not eager & {"tensorflow", "tensorflow_datasets"}, path


def test_torch_and_transformers_are_never_imported():
    """Tokenizers import torch and TensorFlow by name, if `return_tensors` asks for them."""
    returns_tensors = PACKAGE / "tokenizer" / "hf_api" / "batch_encoding.py"
    for path in PACKAGE.rglob("*.py"):
        names = {name.split(".")[0] for name in imported_names(path)}
        assert not names & {"torch", "transformers"}
        if path != returns_tensors:
            assert '"torch"' not in path.read_text() or "import_module" not in path.read_text()


def test_no_file_is_past_four_hundred_lines_or_named_utils():
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in ("utils", "util", "helpers", "common", "misc"), path
        assert len(path.read_text().splitlines()) <= 420, f"{path} asks to be two"


def test_importing_the_package_loads_nothing_and_using_it_loads_no_tensorflow():
    program = (
        "import sys, roberta_jax\n"
        "assert not {'jax', 'tensorflow', 'tokenizers'} & set(sys.modules), 'eager import'\n"
        "for name in roberta_jax.__all__: getattr(roberta_jax, name)\n"
        "assert not {'tensorflow', 'torch', 'transformers'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_optional_parts_are_imported_by_their_own_commands_only():
    importers = {"compat": set(), "exporting": {"export"}, "planning": {"plan", "pretrain"}}
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for optional in parts_imported(path) & set(importers) - {part}:
            assert part in importers[optional], f"{path} imports {optional}"


def test_importing_pretrain_loads_few_modules_and_no_foreign_format():
    program = (
        "import sys, roberta_jax.pretrain\n"
        "print(*(name for name in sys.modules if name.startswith('roberta_jax')))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    modules = run.stdout.split()
    assert len(modules) <= 99
    foreign = (
        "compat",
        "exporting",
        "planning",
        "fairseq",
        "flax_",
        "msgpack",
        "pickle",
        "pytorch",
        "torch",
    )
    assert not [name for name in modules if any(word in name for word in foreign)]


def test_only_the_specification_and_the_commands_see_the_config():
    readers = {
        "pretraining/spec.py",
        "pretraining/text_spec.py",
        "finetuning/spec.py",
        "config_help.py",
        "cli.py",
        "config_files.py",
        "dotted_keys.py",
    }
    commands = {"pretrain.py", "prepare.py", "plan.py", "finetune.py", "evaluate.py"}
    for path in PACKAGE.rglob("*.py"):
        if any(name.startswith("ml_collections") for name in imported_names(path)):
            assert str(path.relative_to(PACKAGE)) in readers | commands, path


def test_nothing_replaces_the_process():
    """A module that runs as `__main__` may run within a notebook or a user's script."""
    for path in PACKAGE.rglob("*.py"):
        assert "os.exec" not in path.read_text(), path
