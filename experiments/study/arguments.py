"""The command-line arguments that name a study, shared by `sweep`, `report` and the workers."""

import argparse

from experiments.study.definition import Study
from experiments.study.loading import load_study


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds STUDY, --seeds and --set, which `parsed_study` reads."""
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


def parsed_study(arguments: argparse.Namespace) -> Study:
    """Loads the study that parsed arguments name."""
    return load_study(arguments.study, arguments.set, arguments.seeds)


def study_arguments(arguments: argparse.Namespace) -> list[str]:
    """Returns the command-line arguments that name the same study."""
    argv = [arguments.study]
    if arguments.seeds is not None:
        argv.append(f"--seeds={','.join(map(str, arguments.seeds))}")
    return argv + [f"--set={change}" for change in arguments.set]


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(seed) for seed in text.split(","))
