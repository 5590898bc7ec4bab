"""Damages every kind of file that the project reads, and checks what the reader makes of it.

    python -m experiments.robustness.damaged_files --out=experiments/robustness/results

For each kind of file (see `kinds`) and each kind of damage (see `damages`) the files are copied,
one of them is damaged, and their reader runs in a process of its own: it resumes a run, prepares
text, loads a model, and so on. The verdict is one of

    refused         an error message names the file or its folder, and nothing else was done
    repaired        the file was made again, and the result is the same, bit by bit
    harmless        the result is the same, bit by bit
    older           the run continued from an earlier checkpoint, and the result is the same
    warned          the result differs, and a warning names the file
    unprotected     the result differs, but the damaged file has the right form and its nature
                    leaves no way to notice: people edit it, or its format has no checksum

or one of the failures

    silently wrong  the result differs, and nothing said so
    vague           there is an error message, but it names neither the file nor its folder
    traceback       the reader failed with an error that it does not document, or was killed
    hang            the reader did not end in time, nor in three times that time

The processes are forked from one that has imported everything and has not started JAX, which takes
a fraction of the time of new processes. The exit status is 1 if there is a failure.
"""

import argparse
import collections
import contextlib
import dataclasses
import fnmatch
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Text in, text out: TensorFlow and its threads are not needed, and would make forking unsafe.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from experiments.robustness import damages, world
from experiments.robustness.kinds import KINDS, Kind
from roberta_jax.errors import UsageError

GOOD = ("refused", "repaired", "harmless", "older", "warned", "unprotected")
BAD = ("silently wrong", "vague", "traceback", "hang")
# Errors that the readers document, beside UsageError.
_DOCUMENTED = (UsageError, FileNotFoundError, ValueError)
_RESULT, _OUTPUT = "result.json", "output.txt"


_HEADER = """\
# Damaged files

What became of each damaged file, counted. `python -m experiments.robustness.damaged_files` makes
this table, and its docstring explains the verdicts; the last four are failures. The damage that is
called "unprotected" left a file of the right form, which people may edit or which has no checksum.

"""


@dataclasses.dataclass(frozen=True)
class Case:
    """One file, one damage.

    Attributes:
      kind: The kind of file.
      file: The damaged file, relative to the part that is copied.
      damage: A key of `damages.DAMAGES`, or `damages.ANOTHER`.
      another: The file that replaces it, for `damages.ANOTHER`.
    """

    kind: Kind
    file: pathlib.PurePath
    damage: str
    another: pathlib.Path | None = None

    def __str__(self) -> str:
        return f"{self.kind.name}: {self.file}: {self.damage}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
      verdict: One of `GOOD` or `BAD`.
      message: The error, or what else there is to say.
      seconds: The time that it took.
    """

    verdict: str
    message: str
    seconds: float


def cases(root: pathlib.Path, kinds: Sequence[Kind]) -> list[Case]:
    """Lists the cases of some kinds of files, which were built at `root`."""
    chosen = []
    for kind in kinds:
        files = [
            path
            for glob in kind.files
            for path in sorted((root / kind.part).glob(glob))
            if path.is_file()
        ]
        for path in files:
            names = [name for name in damages.DAMAGES if name != "unreadable" or os.geteuid()]
            if path.stat().st_size == 0:
                names = ["missing", "one byte more", "a folder", "other text"]
            file = path.relative_to(root / kind.part)
            chosen += [Case(kind, file, name) for name in names]
            if (another := _another(root, path, files)) is not None:
                chosen.append(Case(kind, file, damages.ANOTHER, another))
    return chosen


def _matches(kind: Kind, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(kind.name, pattern.strip()) for pattern in patterns)


def _another(
    root: pathlib.Path, path: pathlib.Path, files: Sequence[pathlib.Path]
) -> pathlib.Path | None:
    """Another file of the same name or ending, with other contents."""
    candidates = [
        root / "others" / path.relative_to(root / "models")
        if path.is_relative_to(root / "models")
        else path,
        *(other for other in files if other.name == path.name),
        *(other for other in files if other.suffixes[-2:] == path.suffixes[-2:]),
        *(root.glob(f"run/checkpoints/2/**/{path.name}") if "checkpoints" in path.parts else ()),
    ]
    contents = path.read_bytes()
    for candidate in candidates:
        if candidate.is_file() and candidate.read_bytes() != contents:
            return candidate
    return None


def run_case(case: Case, root: pathlib.Path, expected: Any, timeout: float) -> Verdict:
    """Damages a file of a copy and runs the reader on it.

    Args:
      case: What to damage.
      root: The folder given to `world.build`.
      expected: What the reader returns for the undamaged files.
      timeout: Seconds after which it counts as a hang.
    """
    start = time.monotonic()
    with _copy(root / case.kind.part) as folder:
        path = folder / case.file
        damages.apply(case.damage, path, case.another)
        damaged = _contents(path)
        excusable = case.kind.is_valid is not None and case.kind.is_valid(path)
        excusable |= path.name in case.kind.optional and not path.exists()
        outcome = _in_child(lambda: case.kind.read(folder, root), timeout)
        rewritten = damaged != _contents(path)
        verdict, message = _judge(case, folder, outcome, expected, rewritten, excusable)
    return Verdict(verdict, message, time.monotonic() - start)


def reference(kind: Kind, root: pathlib.Path, timeout: float) -> Any:
    """What the reader of a kind returns for a copy of the undamaged files."""
    with _copy(root / kind.part) as folder:
        outcome = _in_child(lambda: kind.read(folder, root), timeout)
    if "value" not in outcome:
        raise RuntimeError(f"{kind.name}: the undamaged files cannot be read: {outcome}")
    return outcome["value"]


def _judge(
    case: Case,
    folder: pathlib.Path,
    outcome: dict[str, Any],
    expected: Any,
    rewritten: bool,
    excusable: bool,
) -> tuple[str, str]:
    """(verdict, message)"""
    output = outcome["output"].strip()
    if "value" in outcome:
        value, wanted = outcome["value"], expected
        older = _start(value) != _start(wanted)
        if _without_start(value) == _without_start(wanted):
            if older:
                return "older", output
            return ("repaired" if rewritten else "harmless"), output
        if case.file.name in output:
            return "warned", output
        if excusable:
            return "unprotected", _difference(wanted, value)
        return "silently wrong", f"{_difference(wanted, value)} {output}"
    message = outcome.get("error", "")
    if outcome["status"] in ("hang", "traceback"):
        return outcome["status"], message or output
    names = [str(folder / case.file), *(str(parent) for parent in (folder / case.file).parents)]
    names = [name for name in names if name.startswith(str(folder))]
    if not any(name in message for name in [*names, case.file.name]):
        return "vague", message
    return "refused", message


def _start(value: Any) -> Any:
    """The step that a run resumed from, for readers that resume one."""
    last = value[-1] if isinstance(value, list) and value else None
    return last.get("start") if isinstance(last, dict) else None


def _without_start(value: Any) -> Any:
    return value[:-1] if _start(value) is not None else value


def _difference(expected: Any, value: Any) -> str:
    if isinstance(expected, list) and isinstance(value, list) and len(expected) == len(value):
        for a, b in zip(expected, value, strict=True):
            if a != b:
                return _difference(a, b)
    return f"expected {str(expected)[:200]}, got {str(value)[:200]}."


@contextlib.contextmanager
def _copy(part: pathlib.Path) -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="damaged_") as name:
        folder = pathlib.Path(name) / part.name
        shutil.copytree(part, folder, symlinks=True)
        yield folder


def _contents(path: pathlib.Path) -> bytes | None:
    """The contents of a file; None if it is missing or no file."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _in_child(work: Callable[[], Any], timeout: float) -> dict[str, Any]:
    """Calls a function in a forked process.

    Returns:
      {"status": "value", "value": its value}, or {"status": "refused" or "traceback", "error":
      text} for an exception, or {"status": "hang"}; and "output", what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="damaged_") as name:
        folder = pathlib.Path(name)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _run_and_exit(work, folder)
        deadline = time.monotonic() + timeout
        status = None
        while status is None and time.monotonic() < deadline:
            finished, code = os.waitpid(child, os.WNOHANG)
            status = code if finished else None
            time.sleep(0.005)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            outcome: dict[str, Any] = {"status": "hang", "error": f"no end after {timeout:.0f} s"}
        elif (folder / _RESULT).exists():
            outcome = json.loads((folder / _RESULT).read_text())
        else:
            outcome = {"status": "traceback", "error": f"killed, wait status {status}"}
        output = folder / _OUTPUT
        return {"output": output.read_text(errors="replace"), **outcome}


def _run_and_exit(work: Callable[[], Any], folder: pathlib.Path) -> None:
    """The child's part; does not return."""
    try:
        os.setsid()
        file = os.open(folder / _OUTPUT, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            outcome = {"status": "value", "value": work()}
        except _DOCUMENTED as error:
            outcome = {"status": "refused", "error": str(error)}
            if type(error) is not UsageError and not _is_deliberate(error):
                text = "".join(traceback.format_exception(error))
                outcome = {"status": "traceback", "error": text}
        except BaseException as error:
            outcome = {"status": "traceback", "error": "".join(traceback.format_exception(error))}
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / _RESULT).write_text(json.dumps(outcome))
    finally:
        os._exit(0)


def _is_deliberate(error: BaseException) -> bool:
    """Whether the project itself raised an error, rather than a library below it."""
    frames = traceback.extract_tb(error.__traceback__)
    package = os.path.dirname(sys.modules["roberta_jax"].__file__)
    if not (frames and frames[-1].filename.startswith(package)):
        return False
    return "raise" in (frames[-1].line or "") or isinstance(error, UsageError)


def table(results: Sequence[tuple[Case, Verdict]]) -> str:
    """The number of cases by kind and verdict, as a Markdown table."""
    verdicts = [*GOOD, *BAD]
    counts: dict[str, collections.Counter] = {}
    files: dict[str, set] = {}
    for case, verdict in results:
        counts.setdefault(case.kind.name, collections.Counter())[verdict.verdict] += 1
        files.setdefault(case.kind.name, set()).add(case.file)
    lines = [
        "| kind of file | files | cases | " + " | ".join(verdicts) + " |",
        "|---|" + "---:|" * (len(verdicts) + 2),
    ]
    total: collections.Counter = collections.Counter()
    for kind, row in counts.items():
        cells = [str(row[name] or "") for name in verdicts]
        lines.append(f"| {kind} | {len(files[kind])} | {row.total()} | " + " | ".join(cells) + " |")
        total += row
    cells = [f"**{total[name]}**" for name in verdicts]
    number = sum(map(len, files.values()))
    lines.append(f"| **all** | **{number}** | **{total.total()}** | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.robustness.damaged_files",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", help="folder for damaged_files.md (default: print only)")
    parser.add_argument("--kinds", default="*", help="comma-separated globs (default: *)")
    parser.add_argument("--damages", help="comma-separated damages (default: all)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds (default: 120)")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--world", help="folder to build the files in, or in which they are")
    arguments = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        root = pathlib.Path(
            arguments.world or stack.enter_context(tempfile.TemporaryDirectory(prefix="world_"))
        ).absolute()
        cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="programs_"))
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        kinds = [kind for kind in KINDS if _matches(kind, arguments.kinds.split(","))]
        if not root.exists() or not any(root.iterdir()):
            parts = {kind.part for kind in kinds}
            outcome = _in_child(lambda: world.build(root, parts), 600)
            if "value" not in outcome:
                print(outcome["output"], outcome["error"], file=sys.stderr)
                return 2
        chosen = cases(root, kinds)
        if arguments.damages:
            chosen = [case for case in chosen if case.damage in arguments.damages.split(",")]
        if arguments.list:
            print("\n".join(map(str, chosen)))
            return 0
        results = _run_all(chosen, root, arguments.timeout)
    text = table(results)
    print(text)
    if arguments.out:
        folder = pathlib.Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        some = "" if arguments.kinds == "*" else f"Of the kinds `{arguments.kinds}` alone.\n\n"
        (folder / "damaged_files.md").write_text(_HEADER + some + text, encoding="utf-8")
    return int(any(verdict.verdict in BAD for _, verdict in results))


def _run_all(
    chosen: Sequence[Case], root: pathlib.Path, timeout: float
) -> list[tuple[Case, Verdict]]:
    references: dict[str, Any] = {}
    results = []
    for case in chosen:
        if case.kind.name not in references:
            references[case.kind.name] = reference(case.kind, root, timeout)
        verdict = run_case(case, root, references[case.kind.name], timeout)
        if verdict.verdict == "hang":  # or the machine was busy
            verdict = run_case(case, root, references[case.kind.name], 3 * timeout)
        results.append((case, verdict))
        message = " ".join(verdict.message.split())
        if verdict.verdict in BAD:
            message = message[-400:] if verdict.verdict == "traceback" else message[:400]
        print(f"{verdict.verdict:14} {verdict.seconds:5.1f} s  {case}  {message[:400]}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
