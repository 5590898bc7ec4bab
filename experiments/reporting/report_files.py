"""Writes the report of a study: a Markdown page, CSV files and plots."""

import importlib.util
import io
import pathlib
from collections.abc import Sequence

from experiments.reporting.results import CURVES, POINTS, Results
from experiments.reporting.study_figure import AXES
from roberta_jax.errors import UsageError
from roberta_jax.storage import atomic

README = "README.md"


def write_report(results: Results, folder: pathlib.Path) -> None:
    """Writes the report, without plots if Matplotlib is not installed.

    Each file is replaced as a whole, so that a reader never sees a part of it.

    Raises:
      UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots = []
        for x, (field, _) in AXES.items():
            if can_draw() and any(row[field] is not None for row in results.curves):
                buffer = io.BytesIO()
                results.figure(x).savefig(buffer, format="png", dpi=120)
                plots.append(f"{x}.png")
                atomic.write_bytes(folder / plots[-1], buffer.getvalue())
        for name, text in results.files().items():
            atomic.write_text(folder / name, text)
        atomic.write_text(folder / README, readme(results, plots))
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error}") from error


def can_draw() -> bool:
    """Whether Matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def readme(results: Results, plots: Sequence[str]) -> str:
    """Returns the report as Markdown.

    Args:
      results: the results of a study.
      plots: file names of the plots, such as "steps.png".
    """
    study, missing = results.study, results.missing()
    num_runs = len(results.points)
    sweep = f"python -m experiments.sweep {study['origin']} --out=runs/{study['name']}"
    sweep += "".join(f" --set={key}={value}" for key, value in study["changes"].items())
    parts = [
        f"# {study['name']}",
        study["question"],
        markdown_table(results.table()),
        _legend(results),
        f"{num_runs - len(missing)} of {num_runs} runs are finished. The command that runs them: "
        f"`{sweep}`",
    ]
    if study["notes"]:
        parts += ["## Notes", study["notes"].strip()]
    if missing:
        parts += ["## Missing", "\n".join(f"- {line}" for line in missing)]
    if plots:
        parts += [
            "## Curves",
            "Each line is the mean over the seeds of a setting, and its band extends from their "
            "smallest to their largest value. Only finished runs are drawn, unless a setting has "
            "none.",
            *(f"![against {pathlib.Path(name).stem}]({name})" for name in plots),
        ]
    parts.append(
        f"[{POINTS}]({POINTS}) has a row for each run, and [{CURVES}]({CURVES}) has the curves."
    )
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Formats rows with the same keys as a Markdown table, with the keys as headings."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _legend(results: Results) -> str:
    study = results.study
    sentences = [
        "Mean ± standard deviation (median) over the seeds whose run is finished; a single value "
        'stands alone. "seeds" is the number of finished seeds.'
    ]
    if study["source"] and study["paper"]:
        sentences.append(f'"paper": {study["source"]}.')
    unmeasured = [
        heading
        for heading in study["columns"]
        if all(results.summary(setting, heading) is None for setting in study["settings"])
    ]
    if unmeasured:
        sentences.append(f"Not measured: {', '.join(unmeasured)}.")
    return " ".join(sentences)
