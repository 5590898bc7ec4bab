"""The command-line arguments that name a study, shared by `sweep`, `report` and the workers."""

import argparse
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.study.definition import Study
from experiments.study.loading import ROOT, load_study
from roberta_jax.errors import shortened

# Stands for a folder of the machine that ran a study, in commands that are published.
ELSEWHERE = "/path/to"


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds STUDY, --seeds, --set and --data, which `parsed_study` reads."""
    parser.add_argument(
        "study",
        metavar="STUDY[:FORM]",
        help="a study in experiments/studies/, or the path of a study's file",
    )
    parser.add_argument(
        "--seeds", type=_seeds, metavar="0,1,2", help="train these seeds instead of the study's own"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a config value of all points (repeatable)",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="a folder with the official files of the tasks to fine-tune on, each in a folder of "
        "its own, such as FOLDER/RTE or FOLDER/glue/RTE",
    )


def parsed_study(arguments: argparse.Namespace) -> Study:
    """Loads the study that parsed arguments name."""
    return load_study(arguments.study, arguments.set, arguments.seeds, arguments.data)


def study_arguments(arguments: argparse.Namespace) -> list[str]:
    """Returns the command-line arguments that name the same study."""
    argv = [arguments.study]
    if arguments.seeds is not None:
        argv.append(_seeds_argument(arguments.seeds))
    if arguments.data is not None:
        argv.append(f"--data={arguments.data}")
    return argv + [f"--set={change}" for change in arguments.set]


def sweep_command(
    origin: str, seeds: Sequence[int], changes: Mapping[str, Any], out: str, data: str = ""
) -> str:
    """Returns the command that trains a study.

    Args:
      origin: the study's name on the command line.
      seeds: its seeds.
      changes: the changes of its base config, by dotted key.
      out: the folder of the workdirs.
      data: that of the tasks' examples, or "".
    """
    argv = [*command_words("sweep"), origin, _seeds_argument(seeds), f"--out={out}"]
    argv += [f"--data={data}"] if data else []
    return shlex.join([*argv, *(f"--set={key}={value}" for key, value in changes.items())])


def command_words(name: str) -> list[str]:
    """Returns the words that start a command of `experiments`, such as "sweep".

    The copy of `experiments` in a wheel is found by the command `roberta-jax` only.
    """
    bundled = ROOT.name == "_bundled"
    return ["roberta-jax", name] if bundled else ["python", "-m", f"experiments.{name}"]


def without_folders(value: Any) -> Any:
    """Returns a value of the config in which ELSEWHERE replaces the folders of absolute paths."""
    if isinstance(value, str) and pathlib.PurePath(value).is_absolute():
        return f"{ELSEWHERE}/{pathlib.PurePath(value).name}"
    if isinstance(value, Mapping):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(without_folders(each) for each in value)
    return value


def _seeds_argument(seeds: Iterable[int]) -> str:
    return f"--seeds={','.join(map(str, seeds))}"


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid value {shortened(text)!r}: give whole numbers, such as 0,1,2"
        ) from None
