"""Calls every command wrongly, hundreds of times, and counts how they answer.

    python -m experiments.robustness.wrong_calls --out=experiments/robustness/results/wrong_calls.md

Each key of the config gets each bad value of its type. The other calls name wrong files, models,
studies, workdirs and outputs, and have wrong flags. A call must end in one of two ways:

    refused    status 2 and one message that begins with "error:", or status 141 if the output
               cannot be written
    accepted   status 0: the value is valid

Everything else is a failure:

    traceback  a traceback, or another status
    hang       no end within the time limit
    abort      ended by a signal
    late       refused only after much work, or after something was written besides the lock of a
               workdir
    unclear    status 2 without exactly one message

The commands run in forks of one process (see `forked_runs`) with limits of time and memory, in a
folder of its own that is removed at the end. Failures are printed as they happen, with the last
line of what the command printed. The exit status is 1 if there are any.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from experiments.robustness import forked_runs, wrong_files
from experiments.robustness.wrong_call import MODULES, Call
from experiments.robustness.wrong_calls_of_configs import config_calls, config_values, small_run
from experiments.robustness.wrong_calls_of_evaluation import evaluation_calls
from experiments.robustness.wrong_calls_of_finetuning import finetuning_calls, small_finetuning
from experiments.robustness.wrong_calls_of_tools import (
    benchmark_calls,
    cluster_calls,
    study_calls,
    tool_calls,
)
from experiments.study.loading import ROOT
from roberta_jax.training.preemption import OUTPUT_CLOSED
from roberta_jax.training.workdir import LOCK

VERDICTS = ("refused", "accepted", "traceback", "hang", "abort", "late", "unclear")
GOOD = VERDICTS[:2]
LATE_SECONDS = 20.0  # of processor time
_MESSAGE = re.compile(r"^([\w. -]+: )?error: ", re.MULTILINE)
_REMARKS = ("---", "For simplicity, JAX has removed")  # below a traceback
# The environment of the calls: no network, and quiet libraries.
_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    "HF_HUB_OFFLINE": "1",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TQDM_DISABLE": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a command answered a call.

    Attributes:
      call: the call.
      verdict: one of `VERDICTS`.
      last_line: the last line that the command printed.
      run: what it printed.
    """

    call: Call
    verdict: str
    last_line: str
    run: forked_runs.Run


class Caller:
    """Makes calls in a scratch folder.

    Args:
      folder: an empty folder.
      time_limit: seconds for each call.
    """

    def __init__(self, folder: pathlib.Path, time_limit: float = forked_runs.TIME_LIMIT):
        self._files, self._calls = folder / "files", folder / "calls"
        self._time_limit = time_limit
        for each in (self._files, self._calls):
            each.mkdir(parents=True)

    def make_files(self) -> None:
        """Writes the files that the calls name, with a model that is trained for two steps."""
        wrong_files.make_files(self._files, self._pretrain)

    def _pretrain(self, workdir: pathlib.Path) -> None:
        arguments = list(small_run())
        arguments[1] = f"--workdir={workdir}"
        answer = self.call(Call("pretrain", tuple(arguments), "sound"))
        if answer.verdict != "accepted":
            raise RuntimeError(f"the sound run failed:\n{answer.run.stderr}")

    def call(self, call: Call) -> Answer:
        """Makes one call and judges it."""
        return next(self.call_all([call]))

    def call_all(self, calls: Iterable[Call], processes: int = 1) -> Iterator[Answer]:
        """Makes calls, several at a time, and yields the answers in the order of their ends."""
        waiting, running = collections.deque(calls), {}
        while waiting or running:
            while waiting and len(running) < processes:
                call = waiting.popleft()
                running[self._start(call)] = call
            for started in list(running):
                run = started.poll()
                if run is not None:
                    yield self._answer(running.pop(started), started.folder, run)
            time.sleep(forked_runs.POLL_SECONDS)

    def _start(self, call: Call) -> forked_runs.Running:
        folder = pathlib.Path(tempfile.mkdtemp(dir=self._calls))
        arguments = [
            each.replace("{files}", str(self._files))
            .replace("{out}", str(folder / "out"))
            .replace("{root}", str(ROOT))
            for each in call.arguments
        ]
        return forked_runs.start(
            MODULES[call.command],
            arguments,
            folder,
            stdin=call.stdin,
            stdout=call.stdout,
            environment=_ENVIRONMENT,
            time_limit=self._time_limit,
        )

    def _answer(self, call: Call, folder: pathlib.Path, run: forked_runs.Run) -> Answer:
        out = folder / "out"
        written = {path.name for path in out.iterdir()} - {LOCK} if out.is_dir() else set()
        verdict = judge(run, wrote=bool(written))
        lines = (run.stdout + run.stderr).splitlines()
        printed = [line for line in lines if line.strip() and not line.startswith(_REMARKS)]
        last = printed[-1].strip() if printed else ""
        for path, name in ((self._files, "{files}"), (folder, "{folder}"), (ROOT, "{root}")):
            last = last.replace(str(path), name)
        shutil.rmtree(folder)
        return Answer(call, verdict, last, run)


def judge(run: forked_runs.Run, *, wrote: bool) -> str:
    """Returns the verdict on a run; `wrote` is whether the output folder holds files."""
    if run.status is None:
        return "hang"
    if run.status < 0:
        return "abort"
    if "Traceback (most recent call last)" in run.stderr:
        return "traceback"
    if run.status == 0:
        return "accepted"
    if run.status == OUTPUT_CLOSED:
        return "refused"
    if run.status != 2:
        return "traceback"
    if len(_MESSAGE.findall(run.stderr)) != 1:
        return "unclear"
    return "late" if wrote or run.seconds > LATE_SECONDS else "refused"


def all_calls() -> list[Call]:
    """Returns every call, each once."""
    makers: tuple[Callable[[], Iterable[Call]], ...] = (
        tool_calls,
        evaluation_calls,
        finetuning_calls,
        cluster_calls,
        study_calls,
        benchmark_calls,
        config_calls,
        config_values,
    )
    return list(dict.fromkeys(call for make in makers for call in make()))


def table(answers: Sequence[Answer]) -> str:
    """Formats the counts by command and by kind, the failures, and the values that are valid."""
    lines = ["# Wrong calls", "", _INTRODUCTION, ""]
    for heading, key in (("command", "command"), ("what is wrong", "kind")):
        counts = collections.Counter((getattr(a.call, key), a.verdict) for a in answers)
        lines += [f"| {heading} | calls | {' | '.join(VERDICTS)} |"]
        lines += [f"|---|{'---:|' * (len(VERDICTS) + 1)}"]
        for name in dict.fromkeys(getattr(answer.call, key) for answer in answers):
            numbers = [counts[name, verdict] for verdict in VERDICTS]
            lines.append(f"| {name} | {sum(numbers)} | {' | '.join(map(str, numbers))} |")
        total = [sum(answer.verdict == verdict for answer in answers) for verdict in VERDICTS]
        lines += [f"| all | {len(answers)} | {' | '.join(map(str, total))} |", ""]
    failures = [answer for answer in answers if answer.verdict not in GOOD]
    lines += ["## Failures", ""]
    lines += [f"- {a.verdict}: `{_short(a.call)}`: {a.last_line[:200]}" for a in failures]
    lines += [] if failures else ["None."]
    lines += ["", "## Accepted", ""]
    lines += [f"- `{_short(a.call)}`" for a in answers if a.verdict == "accepted"]
    return "\n".join(lines) + "\n"


_INTRODUCTION = (
    "Written by `python -m experiments.robustness.wrong_calls`, whose docstring defines the "
    "verdicts. The `config value` calls are those of each key of the config with each bad value of "
    "its type."
)


def _short(call: Call) -> str:
    """The call without the arguments of the sound run."""
    sound = (*small_run(call.command), *small_finetuning())
    kept = tuple(each for each in call.arguments if each not in sound) or call.arguments
    left_out = " ..." if len(kept) < len(call.arguments) else ""
    return f"{dataclasses.replace(call, arguments=kept)}{left_out}".replace("`", "'")


def _answers(caller: Caller, calls: Sequence[Call], processes: int) -> Iterator[Answer]:
    """Makes the calls, and prints the failures and how many calls were made."""
    caller.make_files()
    for number, answer in enumerate(caller.call_all(calls, processes), start=1):
        yield answer
        if answer.verdict not in GOOD:
            print(f"{answer.verdict}: {_short(answer.call)}\n    {answer.last_line}", flush=True)
        if number % 50 == 0:
            print(f"{number} of {len(calls)} calls", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.robustness.wrong_calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, help="the file for the tables (Markdown)")
    parser.add_argument("--match", default="", help="make only the calls with this text in them")
    parser.add_argument("--command", choices=MODULES, help="make only the calls of this command")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="calls at a time (default: cores)"
    )
    parser.add_argument(
        "--time_limit",
        type=float,
        default=forked_runs.TIME_LIMIT,
        metavar="SECONDS",
        help="for each call (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.processes < 1:
        parser.error("--processes: give a number from 1")
    out = arguments.out and arguments.out.absolute()
    calls = [
        call
        for call in all_calls()
        if arguments.match in _short(call) and arguments.command in (None, call.command)
    ]
    forked_runs.import_everything()
    scratch = pathlib.Path(tempfile.mkdtemp())  # not an object: each fork would remove it
    try:
        answers = list(_answers(Caller(scratch, arguments.time_limit), calls, arguments.processes))
    finally:
        shutil.rmtree(scratch)
    order = {call: index for index, call in enumerate(calls)}
    answers.sort(key=lambda answer: order[answer.call])
    counts = collections.Counter(answer.verdict for answer in answers)
    print(f"{len(answers)} calls: {dict(counts)}")
    if out:
        out.write_text(table(answers))
    return 0 if set(counts) <= set(GOOD) else 1


if __name__ == "__main__":
    sys.exit(main())
