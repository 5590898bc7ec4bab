"""Compares what came out of a study: a table over the seeds, beside the paper's, and curves.

    python -m experiments.report table2:tiny --runs=runs/table2

Reads the workdirs that `experiments.sweep` wrote, also while it runs, and says what is missing.
Writes a folder that says everything without them, and names nothing of this machine:

    README.md               question, table, curves, what is missing
    points.csv              a line for each run, with all its final metrics
    curves.csv              losses and evaluations on the way, thinned
    study.json              what the study is
    steps.png, tokens.png, seconds.png

`experiments.study_results.Results.from_folder` reads it again.
"""

import argparse
import importlib.util
import io
import pathlib
from collections.abc import Sequence

from experiments import study_files
from experiments.study_figures import AXES
from experiments.study_results import CURVES, POINTS, Results, collect
from roberta_jax import cli
from roberta_jax.errors import UsageError

README = "README.md"


def readme(results: Results, pictures: Sequence[str]) -> str:
    """The report as Markdown."""
    study, missing = results.study, results.missing()
    runs = len(results.points)
    finished = f"{runs - len(missing)} of {runs} runs are finished."
    parts = [
        f"# {study['name']}",
        study["question"],
        markdown_table(results.table()),
        _legend(results),
    ]
    sweep = f"python -m experiments.sweep {study['origin']} --out=runs/{study['name']}"
    sweep += "".join(f" --set={key}={value}" for key, value in study["changes"].items())
    parts.append(f"{finished} What runs them: `{sweep}`")
    if study["notes"]:
        parts += ["## Notes", study["notes"].strip()]
    if missing:
        parts += ["## Missing", "\n".join(f"- {line}" for line in missing)]
    if pictures:
        parts += [
            "## Curves",
            "A line is the mean over a setting's seeds, its band their smallest and largest "
            "values; of finished runs, where there are any.",
            *(f"![against {pathlib.Path(name).stem}]({name})" for name in pictures),
        ]
    parts.append(f"Every run: [{POINTS}]({POINTS}); on the way: [{CURVES}]({CURVES}).")
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _legend(results: Results) -> str:
    study = results.study
    text = "Mean ± standard deviation (median) over the seeds whose run is finished; one alone has "
    text += 'its value. "seeds" counts them. '
    if study["source"] and study["paper"]:
        text += f'"paper": {study["source"]}. '
    unmeasured = [
        heading
        for heading in study["columns"]
        if all(results.summary(setting, heading) is None for setting in study["settings"])
    ]
    if unmeasured:
        text += f"Not measured: {', '.join(unmeasured)}."
    return text.strip()


def write(results: Results, folder: pathlib.Path) -> None:
    """Writes the report, without pictures where matplotlib is not installed.

    Each file takes its place whole.

    Raises:
      UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures, drawn = [], can_draw()
        for x, (field, _) in AXES.items():
            if drawn and any(row[field] is not None for row in results.curves):
                picture = io.BytesIO()
                results.figure(x).savefig(picture, format="png", dpi=120)
                pictures.append(f"{x}.png")
                _put(folder / pictures[-1], picture.getvalue())
        for name, text in results.files().items():
            _put(folder / name, text.encode())
        _put(folder / README, readme(results, pictures).encode())
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error}") from error


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _put(path: pathlib.Path, contents: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(contents)
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; wrong input is printed without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study_files.add_arguments(parser)
    parser.add_argument("--runs", required=True, help="the folder of the workdirs")
    parser.add_argument(
        "--out", help="the report's folder (default: the study's name in experiments/results/)"
    )
    arguments = parser.parse_args(argv)
    with cli.usage_errors():
        study = study_files.study_of(arguments)
        results = collect(study, arguments.runs)
        default = study_files.ROOT / "experiments" / "results" / study.name
        folder = pathlib.Path(arguments.out or default)
        write(results, folder)
    print(folder / README)
    if not can_draw():
        print("Without pictures, which need matplotlib: pip install matplotlib")


if __name__ == "__main__":
    main()
