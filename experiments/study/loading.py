"""Loads studies by name or path."""

import dataclasses
import importlib.util
import pathlib
import sys
import types
from collections.abc import Sequence

from experiments.study.config_changes import parse_change
from experiments.study.definition import Study
from roberta_jax.errors import UsageError

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the clone
STUDIES = ROOT / "experiments" / "studies"


def load_study(name: str, changes: Sequence[str] = (), seeds: Sequence[int] | None = None) -> Study:
    """Loads a study.

    Args:
      name: "STUDY" or "STUDY:FORM". STUDY is the name of a file in `experiments/studies/`, a unique
        prefix of one, or the path of any Python file.
      changes: "KEY=VALUE" changes of the config of all points.
      seeds: replaces the seeds of the study. Default: its own.

    Raises:
      UsageError: the study or the form does not exist, or a change is wrong.
    """
    path, form = _find(name)
    module = _import_file(path)
    if form is None:
        form = module.FORMS[0]
    if form not in module.FORMS:
        raise UsageError(
            f"the study {path.stem} has the forms {', '.join(module.FORMS)}, no {form!r}."
        )
    study = dataclasses.replace(module.get_study(form), origin=f"{_origin(path)}:{form}")
    if seeds is not None:
        study = dataclasses.replace(study, seeds=tuple(seeds))
    return study.changed(dict(parse_change(study.base, change) for change in changes))


def study_files() -> dict[str, pathlib.Path]:
    """Returns the files in `experiments/studies/` that define a study, by name."""
    paths = sorted(STUDIES.glob("*.py"))
    return {path.stem: path for path in paths if not path.stem.startswith("_")}


def _find(name: str) -> tuple[pathlib.Path, str | None]:
    """Splits "STUDY[:FORM]" into the study's file and the form, if any."""
    stem, form = name, None
    if not pathlib.Path(name).is_file() and ":" in name:
        stem, form = name.rsplit(":", 1)
    if pathlib.Path(stem).suffix == ".py":
        if not pathlib.Path(stem).is_file():
            raise UsageError(f"no file {stem}: give the path of a study's file.")
        return pathlib.Path(stem), form
    paths = study_files()
    matches = (
        [stem] if stem in paths else [each for each in paths if stem and each.startswith(stem)]
    )
    if len(matches) != 1:
        names = ", ".join(matches or paths) or "none"
        problem = f"{stem!r} matches several studies" if matches else f"no study {stem!r}"
        raise UsageError(f"{problem}: experiments/studies/ has {names}. Give one of these names.")
    return paths[matches[0]], form


def _import_file(path: pathlib.Path) -> types.ModuleType:
    name = f"study_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    missing = [attribute for attribute in ("get_study", "FORMS") if not hasattr(module, attribute)]
    if missing:
        raise UsageError(f"{path} does not define a study: it has no {' and no '.join(missing)}.")
    return module


def _origin(path: pathlib.Path) -> str:
    """Returns the study's name on a command line, without folders outside of the clone."""
    path = path.resolve()
    if path.parent == STUDIES:
        return path.stem
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
