"""Finds studies by name, and reads the arguments that the commands about studies share."""

import argparse
import ast
import dataclasses
import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from experiments.study import Study, unknown_key
from roberta_jax.cli import flatten
from roberta_jax.errors import UsageError

ROOT = pathlib.Path(__file__).resolve().parent.parent  # of the clone
STUDIES = ROOT / "experiments" / "studies"


def load_study(name: str, changes: Sequence[str] = (), seeds: Sequence[int] | None = None) -> Study:
    """Loads a study.

    Args:
      name: "STUDY" or "STUDY:FORM"; STUDY is the name of a file in `experiments/studies/`, the
        beginning of one that no other has, or the path of a file anywhere.
      changes: "KEY=VALUE" for the config of all points.
      seeds: in place of the study's own.

    Raises:
      UsageError: there is no such study or form, or a change is wrong.
    """
    path, form = _find(name)
    module = _module(path)
    if form is None:
        form = module.FORMS[0]
    if form not in module.FORMS:
        raise UsageError(
            f"the study {path.stem} has the forms {', '.join(module.FORMS)}, no {form!r}."
        )
    study = dataclasses.replace(module.get_study(form), origin=f"{_short(path)}:{form}")
    if seeds is not None:
        study = dataclasses.replace(study, seeds=tuple(seeds))
    return study.changed(dict(parse_change(study, change) for change in changes))


def parse_change(study: Study, change: str) -> tuple[str, Any]:
    """Reads "KEY=VALUE", VALUE as the type of the key's present value asks for."""
    key, equals, text = change.partition("=")
    keys = flatten(study.base)
    if not equals:
        raise UsageError(f"--set={change}: write --set=KEY=VALUE, as in --set=train.steps=100.")
    if key not in keys:
        raise UsageError(f"--set: {unknown_key(key, list(keys))}")
    *groups, last = key.split(".")
    group = study.base
    for name in groups:
        group = group[name]
    kind = group.get_type(last)
    if kind is str:
        return key, text
    if kind is bool and text.lower() in ("true", "false"):
        return key, text.lower() == "true"
    if text.lower() == "none":
        return key, None
    try:
        return key, kind(text) if kind in (int, float) else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise UsageError(
            f"--set={change}: {key} takes a value like {keys[key]!r} ({kind.__name__})."
        ) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds STUDY, --seeds and --set; `study_of` reads them."""
    parser.add_argument("study", metavar="STUDY[:FORM]", help="in experiments/studies/, or a path")
    parser.add_argument(
        "--seeds", type=_seeds, metavar="0,1,2", help="instead of the study's own seeds"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="changes the config of all points (repeatable)",
    )


def study_of(arguments: argparse.Namespace) -> Study:
    """The study that the arguments name."""
    return load_study(arguments.study, arguments.set, arguments.seeds)


def arguments_of(arguments: argparse.Namespace) -> list[str]:
    """The same arguments again, for another command."""
    again = [arguments.study]
    if arguments.seeds is not None:
        again.append(f"--seeds={','.join(map(str, arguments.seeds))}")
    return again + [f"--set={change}" for change in arguments.set]


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(seed) for seed in text.split(","))


def _find(name: str) -> tuple[pathlib.Path, str | None]:
    form = None
    stem = name
    if not pathlib.Path(name).is_file() and ":" in name:
        stem, form = name.rsplit(":", 1)
    if pathlib.Path(stem).suffix == ".py":
        if not pathlib.Path(stem).is_file():
            raise UsageError(f"no file {stem}: give the path of a study's file.")
        return pathlib.Path(stem), form
    paths = {
        path.stem: path for path in sorted(STUDIES.glob("*.py")) if not path.stem.startswith("_")
    }
    found = [stem] if stem in paths else [each for each in paths if stem and each.startswith(stem)]
    if len(found) != 1:
        there = ", ".join(found or paths) or "none"
        trouble = f"{stem!r} may be any of several studies" if found else f"no study {stem!r}"
        raise UsageError(f"{trouble}: there are {there} in experiments/studies/. Name one.")
    return paths[found[0]], form


def _module(path: pathlib.Path):
    name = f"study_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickles of the file look for it
    spec.loader.exec_module(module)
    missing = [part for part in ("get_study", "FORMS") if not hasattr(module, part)]
    if missing:
        raise UsageError(f"{path} is no study: it has no {' and no '.join(missing)}.")
    return module


def _short(path: pathlib.Path) -> str:
    """How to name the study on a command line; without folders of this machine's own."""
    path = path.resolve()
    if path.parent == STUDIES:
        return path.stem
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
