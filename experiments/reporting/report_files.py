"""Writes the report of a study: a Markdown page, CSV files and plots."""

import importlib.util
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from experiments.reporting.paired_bootstrap import SAMPLES
from experiments.reporting.paired_test import LEVEL
from experiments.reporting.results import CURVES, DESCRIPTION, POINTS, Results
from experiments.reporting.study_figure import AXES
from experiments.study.arguments import ELSEWHERE, command_words, sweep_command
from experiments.study.loading import ROOT
from roberta_jax.errors import UsageError, shortened
from roberta_jax.storage import atomic

README = "README.md"


def write_report(results: Results, folder: epath.PathLike) -> None:
    """Writes the report, without plots if Matplotlib is not installed.

    Each file is replaced as a whole, so that a reader never sees a part of it.

    Raises:
      UsageError: the folder cannot be written, holds something else, or is that of the committed
        results while runs are missing.
    """
    folder = epath.Path(folder)
    _check_folder(results, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots = []
        for x, (field, _) in AXES.items():
            drawable = any(row[field] is not None for row in results.curves)
            one_task = not results.study.get("groups")  # losses of tasks are not comparable
            if can_draw() and drawable and one_task and results.study.get("one_tokenizer", True):
                buffer = io.BytesIO()
                results.figure(x).savefig(buffer, format="png", dpi=120)
                plots.append(f"{x}.png")
                atomic.write_bytes(folder / plots[-1], buffer.getvalue())
        for name, text in results.files().items():
            atomic.write_text(folder / name, text)
        atomic.write_text(folder / README, readme(results, plots))
    except OSError as error:
        raise UsageError(f"cannot write {_short(folder, error)}") from error


def _short(folder: epath.Path, error: OSError) -> str:
    return f"{shortened(str(error.filename or folder))}: {error.strerror or error}"


def _check_folder(results: Results, folder: epath.Path) -> None:
    """Checks that no file is replaced that is not of a report of the same study."""
    try:
        exists = folder.exists()
        is_report = exists and (folder / DESCRIPTION).exists()
        others = exists and not is_report and (folder / README).exists()
    except OSError as error:
        raise UsageError(f"cannot write {_short(folder, error)}") from None
    if others:
        raise UsageError(
            f"{folder} has a {README} that is not of a report, which would be replaced. Choose "
            "another folder with --out."
        )
    name = results.study["name"]
    if is_report:
        try:
            before = json.loads((folder / DESCRIPTION).read_text())["name"]
        except (OSError, ValueError, KeyError, TypeError):
            before = name  # a damaged report is replaced
        if before != name:
            raise UsageError(
                f"{folder} has the report of the study {before}, which that of {name} would "
                "replace. Choose another folder with --out."
            )
    committed = ROOT / "experiments" / "results"
    inside = atomic.is_local(folder) and pathlib.Path(folder).resolve().is_relative_to(committed)
    if results.missing() and inside:
        raise UsageError(
            f"{len(results.missing())} of {len(results.points)} runs are not finished, and "
            "experiments/results has reports of finished studies only. Leave --out away to write "
            "the report beside the runs."
        )


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
    out = study.get("out", f"runs/{study['name']}")
    command = sweep_command(
        study["origin"], study["seeds"], study["changes"], out, study.get("data", "")
    )
    parts = [f"**{unfinished(results)}**"] if missing else []
    parts += [
        f"# {study['name']}",
        study["question"],
        *_best(results),
        markdown_table(results.table()),
        _legend(results),
        *_comparisons(results),
        *_intervals(study.get("intervals", ())),
        "## Runs",
        f"{num_runs - len(missing)} of {num_runs} runs are finished. The command that runs them:",
        f"```\n{command}\n```",
    ]
    if ELSEWHERE in command:
        parts.append(f"`{ELSEWHERE}` stands for a folder of the machine that ran them.")
    if study.get("runs"):
        rows = [{"setting": setting, **facts} for setting, facts in study["runs"].items()]
        keys = list(dict.fromkeys(key for row in rows for key in row))
        cells = [{key: _number(row.get(key, "")) for key in keys} for row in rows]
        parts.append(markdown_table(cells))
        if "positions" in keys:
            parts.append("Positions are those of a whole run, padding included.")
    if study.get("downstream"):
        command = " ".join(command_words("downstream"))
        lines = [f"{command} {arguments}" for arguments in study["downstream"].values()]
        parts += [
            "Each finished model was then fine-tuned by these commands, with its workdir as "
            "`--model` and its examples as `--data`. Their scores are in per cent, the medians "
            "over the seeds of fine-tuning.",
            "```\n" + "\n".join(lines) + "\n```",
        ]
    cautions = [*study.get("warnings", ()), *(_equal(pair) for pair in results.equal_settings())]
    if cautions:
        parts += ["## Warnings", "\n".join(f"- {line}" for line in cautions)]
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


def unfinished(results: Results) -> str:
    """Returns a sentence that names the missing runs of an unfinished study."""
    missing = results.missing()
    return (
        f"Unfinished: {len(missing)} of {len(results.points)} runs are missing: "
        f"{'; '.join(missing[:6])}{f'; and {len(missing) - 6} more' if len(missing) > 6 else ''}."
    )


def _best(results: Results) -> list[str]:
    """Returns the section with the best setting of each task, and what others measured."""
    rows = results.best()
    if not rows:
        return []
    return [
        "## Best setting of each task",
        markdown_table(rows),
        "The best setting of a task has the highest median of the score over the seeds, on the "
        "validation examples. The score was selected among several settings on the same examples "
        "that it is measured on, so that it is too high for other examples; so are those of the "
        f"paper. {results.study['source']}",
        "## All settings",
    ]


def _intervals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the section with the intervals that count examples as well as seeds."""
    if not rows:
        return []
    cells = [
        {
            "task": row["task"],
            "metric": row["metric"],
            "difference": f"{row['one']} - {row['other']}",
            "mean": f"{row['mean']:+.2f}",
            "95% interval": f"{row['low']:+.2f} to {row['high']:+.2f}",
            "seeds": str(row["seeds"]),
            "examples": f"{row['examples']:,}",
        }
        for row in rows
    ]
    return [
        "## Differences over seeds and examples",
        markdown_table(cells),
        "The interval is that of a bootstrap which draws seeds and validation examples, both with "
        f"replacement, {SAMPLES:,} times, the same ones for both settings. Unlike the test above, "
        "it covers other validation examples. Few seeds say little about other seeds: with 3, "
        "drawing them with replacement understates their standard error by the factor 0.82, and "
        "with 1 the interval counts examples alone. The "
        "intervals are not adjusted for their number.",
    ]


def _comparisons(results: Results) -> list[str]:
    """Returns the section that says which differences the seeds decide."""
    comparisons = results.comparisons()
    if not comparisons:
        return []
    table = markdown_table([each.row() for each in comparisons])
    if results.study.get("groups"):
        return [
            "## Differences",
            table,
            "A difference is taken between the scores of runs of one task with the same seed. The "
            "test is Student's paired t-test, two-sided, over the seeds. Its p-value is adjusted "
            f'by Holm\'s method for the number of comparisons ({len(comparisons)}), and "decided" '
            f'means that it is below {LEVEL}. "Undecided" does not mean that two settings are '
            "equal. All runs of a task are scored on the same validation examples, and the test "
            "says nothing about other examples.",
        ]
    columns = {each.metric for each in comparisons}
    per_column = max(sum(each.metric == name for each in comparisons) for name in columns)
    return [
        "## Differences",
        table,
        "A difference is taken between runs with the same seed; that of perplexities is in nats "
        "per token, the difference of their logarithms. The test is Student's paired t-test, "
        f"two-sided. Its p-value is adjusted by Holm's method for the number of comparisons in the "
        f'column ({per_column}), and "decided" means that it is below {LEVEL}. "Undecided" does '
        "not mean that two settings are equal: with few seeds only large differences can be "
        "decided. All runs are scored on the same held-out text, so the test says nothing about "
        "other texts.",
    ]


def _equal(pair: tuple[str, str]) -> str:
    return (
        f"The finished runs of {pair[0]!r} and {pair[1]!r} have equal metrics, bit for bit: these "
        "settings do not differ in what they train."
    )


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Formats rows with the same keys as a Markdown table, with the keys as headings."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    escaped = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _legend(results: Results) -> str:
    study = results.study
    sentences = [
        "Mean ± standard deviation (median) over the seeds whose run is finished; a single value "
        'stands alone. "seeds" is the number of finished seeds.'
    ]
    if study["source"] and study["paper"]:
        sentences.append(f'"paper": {study["source"]}.')
    if study.get("groups"):
        sentences.append(
            "Scores are in per cent, on the validation examples. score: the metric that selects "
            "the best checkpoint of a run, on the same examples."
        )
    unmeasured = [
        heading
        for heading in study["columns"]
        if all(results.summary(setting, heading) is None for setting in study["settings"])
    ]
    if unmeasured:
        sentences.append(f"Not measured: {', '.join(unmeasured)}.")
    return " ".join(sentences)
