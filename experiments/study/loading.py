"""Loads studies by name or path."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import sys
import types
from collections.abc import Iterator, Sequence

from experiments.study.comparability import check_changes
from experiments.study.config_changes import parse_change
from experiments.study.definition import Study
from roberta_jax.config_files import failure
from roberta_jax.errors import UsageError, shortened

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the clone
STUDIES = ROOT / "experiments" / "studies"


def load_study(
    name: str,
    changes: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    data: str | None = None,
) -> Study:
    """Loads a study.

    Args:
      name: "STUDY" or "STUDY:FORM". STUDY is the name of a file in `experiments/studies/`, a unique
        prefix of one, or the path of any Python file.
      changes: "KEY=VALUE" changes of the config of all points.
      seeds: replaces the seeds of the study. Default: its own.
      data: the folder of the tasks' examples, see `Study.with_data`.

    Raises:
      UsageError: the study or the form does not exist, its file is wrong, a change is wrong, or
        there are no examples in `data`.
    """
    path, form = _find(name)
    module = _import_file(path)
    if form is None:
        form = module.FORMS[0]
    if form not in module.FORMS:
        raise UsageError(
            f"the study {path.stem} has the forms {', '.join(module.FORMS)}, no {form!r}."
        )
    with _explained(path):
        study = module.get_study(form)
    if not isinstance(study, Study):
        raise UsageError(
            f"{path} does not define a study: its get_study returns {type(study).__name__}, but it "
            "must return an experiments.study.definition.Study."
        )
    study = dataclasses.replace(study, origin=f"{_origin(path)}:{form}")
    if seeds is not None:
        study = dataclasses.replace(study, seeds=tuple(seeds))
    study = study.changed(dict(parse_change(study.base, change) for change in changes))
    if changes:
        check_changes(study)
    return study.with_data(data) if data else study


def study_files() -> dict[str, pathlib.Path]:
    """Returns the files in `experiments/studies/` that define a study, by name."""
    paths = sorted(STUDIES.glob("*.py"))
    return {path.stem: path for path in paths if not path.stem.startswith("_")}


def _find(name: str) -> tuple[pathlib.Path, str | None]:
    """Splits "STUDY[:FORM]" into the study's file and the form, if any."""
    stem, form = name, None
    if not os.path.isfile(name) and ":" in name:
        stem, form = name.rsplit(":", 1)
    if pathlib.Path(stem).suffix == ".py":
        if not os.path.isfile(stem):
            raise UsageError(f"no file {shortened(stem)}: give the path of a study's file.")
        return pathlib.Path(stem), form
    paths = study_files()
    matches = (
        [stem] if stem in paths else [each for each in paths if stem and each.startswith(stem)]
    )
    if len(matches) != 1:
        names = ", ".join(matches or paths) or "none"
        stem = repr(shortened(stem))
        problem = f"{stem} matches several studies" if matches else f"no study {stem}"
        raise UsageError(f"{problem}: experiments/studies/ has {names}. Give one of these names.")
    return paths[matches[0]], form


def _is_file(name: str) -> bool:
    try:
        return pathlib.Path(name).is_file()
    except (OSError, ValueError):  # not a valid file name, for example a too long one
        return False


def _import_file(path: pathlib.Path) -> types.ModuleType:
    """Runs the file of a study; see `load_study` for the errors."""
    name = f"study_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    with _explained(path):
        spec.loader.exec_module(module)
    missing = [attribute for attribute in ("get_study", "FORMS") if not hasattr(module, attribute)]
    if missing:
        raise UsageError(f"{path} does not define a study: it has no {' and no '.join(missing)}.")
    forms = module.FORMS
    names = isinstance(forms, tuple | list) and all(isinstance(form, str) for form in forms)
    if not names or not forms or not callable(module.get_study):
        raise UsageError(
            f"{path} does not define a study: FORMS must be a tuple with at least one name, and "
            "get_study a function of such a name."
        )
    return module


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    """Raises what a study's file raises as a UsageError that names its line."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        reason = failure(error, str(path.absolute()))
        raise UsageError(
            f"the study {path} cannot be loaded: {reason}. Correct the file."
        ) from error


def _origin(path: pathlib.Path) -> str:
    """Returns the study's name on a command line, without folders outside of the clone."""
    path = path.resolve()
    if path.parent == STUDIES:
        return path.stem
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
