"""Kills and stops small runs at random moments, and compares their ends with uninterrupted runs.

    python -m experiments.robustness.kills --count=300 --out=/tmp/kills \\
        --results=experiments/robustness/results

Each workdir is interrupted once in each phase of a run (preparing text, compiling, training,
evaluating, saving, exporting) by SIGKILL, SIGTERM, Ctrl-C, or Ctrl-C twice, is started again after
each, and at last runs to its end. The weights, all other exported files, the digests of the last
checkpoint (with the optimizer's state) and of all milestones, the records in metrics.jsonl and the
values in TensorBoard's files must be those of an uninterrupted run, bit by bit; only speeds may
differ. No process may print a traceback, end with another status than the signal's (or, beside
another process that was killed, than 2, with a message), or still run after --limit seconds.

What happened is appended to OUT/faults.jsonl, one line per interruption and per finished workdir.
The same command again continues where it stopped; a larger --count adds more. With several values
of --processes and --store, the interruptions are divided among all combinations. A run of several
processes is interrupted in one of them or in all at once.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.robustness import interrupted_runs
from experiments.robustness.interrupted_runs import PHASES, STORES, Place, Running
from roberta_jax.storage.locks import AlreadyLocked, exclusive_lock

KINDS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C twice": [signal.SIGINT, signal.SIGINT],
}
# The exit statuses that each may give; a negative one is that of a signal. 0: it had finished.
STATUSES = {
    "SIGKILL": {-signal.SIGKILL, 0},
    "SIGTERM": {143, -signal.SIGTERM, 0},
    "Ctrl-C": {130, 0},
    "Ctrl-C twice": {130, -signal.SIGINT, 0},
}
# Those of a process beside the interrupted one: it stops with it, or says that it is gone.
STATUSES_BESIDE = {0, 2, 130, 143}
RECORDS = "faults.jsonl"
_SECONDS_OF_A_SAVE = 0.3  # within which its files are written in the background


class Records:
    """The lines of `faults.jsonl`, without those of workdirs that were left unfinished."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        ended = {line["run"] for line in lines if "differences" in line or "straight" in line}
        self.lines = [line for line in lines if line["run"] in ended]
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, **values: Any) -> None:
        self.lines.append(values)
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def faults(self, **values: Any) -> list[dict[str, Any]]:
        return [line for line in self.lines if "kind" in line and values.items() <= line.items()]

    def straight(self, run: str) -> dict[str, float] | None:
        """The seconds of each phase of an uninterrupted run."""
        found = [line["straight"] for line in self.lines if line["run"] == run]
        return found[0] if found else None


class Campaign:
    """Interruptions of runs of so many processes in one kind of store."""

    def __init__(
        self, folder: pathlib.Path, records: Records, processes: int, store: str, options: Any
    ):
        self._folder, self._records = folder, records
        self._processes, self._store = processes, store
        self._seed, self._limit, self._overrides = options.seed, options.limit, options.overrides
        self._key = {"processes": processes, "store": store}
        self._durations, self._expected = self._straight()

    def _place(self, name: str) -> Place:
        return Place(self._folder, f"{name}_{self._processes}_{self._store}", self._store)

    def _start(self, place: Place) -> Running:
        return interrupted_runs.start(place, self._processes, **self._overrides)

    def _straight(self) -> tuple[dict[str, float], dict[str, object]]:
        """The seconds of each phase, and the contents of an uninterrupted run."""
        place = self._place("straight")
        durations = self._records.straight(place.name)
        if durations is None:
            for _ in range(2):  # the first one also fills the cache of compiled programs
                _remove(place)
                durations = _time_phases(self._start(place), self._limit, place)
            self._records.add(run=place.name, straight=durations, **self._key)
        total = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in durations.items())
        print(f"an uninterrupted run, {self._describe()}: {total}", flush=True)
        return durations, interrupted_runs.contents(place.files)

    def _describe(self) -> str:
        return f"{self._processes} process(es), store {self._store}"

    def add_run(self, most: int) -> None:
        """Interrupts a new workdir, at most so many times, and compares its end."""
        taken = {line["run"] for line in self._records.lines}
        names = (f"run{number}" for number in itertools.count())
        place = next(each for each in map(self._place, names) if each.name not in taken)
        _remove(place)
        rng = random.Random(f"{self._seed}/{place.name}")
        wrong: list[str] = []
        chosen = sorted(rng.sample(range(len(PHASES)), min(most, len(PHASES))))
        for number in chosen:
            if not self._interrupt(place, PHASES[number], rng, wrong):
                break
        running = self._start(place)
        if not running.finish(self._limit):
            wrong.append("the last run hangs")
        elif any(running.statuses):
            wrong.append(f"the last run ended with status {running.statuses}")
        else:
            found = interrupted_runs.contents(place.files)
            wrong += [
                f"{key} differs"
                for key in sorted(found.keys() | self._expected.keys())
                if found.get(key) != self._expected.get(key)
            ]
        if "Traceback" in place.printed():
            wrong.append("a traceback")
        self._records.add(run=place.name, differences=wrong, **self._key)
        if not wrong:
            _remove(place)
        count = len(self._records.faults())
        print(f"{count} interruptions; {place.name}: {'; '.join(wrong) or 'identical'}", flush=True)

    def _interrupt(self, place: Place, phase: str, rng: random.Random, wrong: list[str]) -> bool:
        """Interrupts the run in a phase; False if it ended before."""
        kind = rng.choice(list(KINDS))
        times = rng.randint(1, 3) if phase in ("evaluating", "saving") else 1
        share = 0.5 if phase == "training" else 1.0
        delay = rng.uniform(0.0, share) * self._durations.get(phase, 0.0)
        one = rng.choice([*range(self._processes), None]) if self._processes > 1 else None
        began = time.monotonic()
        before = len(place.printed())
        running = self._start(place)
        hit = running.wait_for(phase, times, began + self._limit)
        if hit:
            time.sleep(delay)
            hit = running.poll(one)  # it may have ended since
        seen = running.look()
        for number in KINDS[kind] if hit else ():
            running.send(number, one)
            time.sleep(0.02)
        signalled = time.monotonic()
        if not running.finish(self._limit):
            wrong.append(f"{kind} while {seen}: still running after {self._limit:.0f} s")
        elif not hit:
            if any(running.statuses):
                wrong.append(f"a run ended with status {running.statuses}")
            return False
        else:
            wrong += _wrong_statuses(kind, seen, one, running.statuses, place.printed()[before:])
        self._records.add(
            run=place.name,
            kind=kind,
            wanted=phase,
            phase=seen,
            to="all" if one is None else one,
            statuses=running.statuses,
            seconds_until_signal=round(signalled - began, 3),
            seconds_until_end=round(time.monotonic() - signalled, 3),
            **self._key,
        )
        return any(running.statuses)  # it had not finished before the signal


def _wrong_statuses(
    kind: str, phase: str, one: int | None, statuses: Sequence[int | None], printed: str
) -> list[str]:
    wrong = []
    for index, status in enumerate(statuses):
        hit = one in (None, index)
        allowed = STATUSES[kind] if hit else STATUSES_BESIDE
        if hit and len(statuses) > 1:
            allowed = allowed | {2}  # another process was faster to end
        if status not in allowed:
            wrong.append(f"{kind} while {phase}: status {status} of process {index}")
        if status == 2 and not printed.strip():
            wrong.append(f"{kind} while {phase}: status 2 without a message")
    return wrong


def _time_phases(running: Running, limit: float, place: Place) -> dict[str, float]:
    """Lets a run finish; returns the mean seconds of each phase, from its begin to the next one."""
    seconds = dict.fromkeys(PHASES, 0.0)
    begins = dict.fromkeys(PHASES, 0)
    phase, began = PHASES[0], time.monotonic()
    end = began + limit
    while running.poll() and time.monotonic() < end:
        now, before = time.monotonic(), phase
        phase = running.look()
        seconds[before] += now - began
        begins[phase] += phase != before
        began = now
        time.sleep(0.002)
    if not running.finish(limit) or any(running.statuses):
        raise SystemExit(f"the uninterrupted run failed; see {place.log}")
    durations = {phase: seconds[phase] / max(begins[phase], 1) for phase in PHASES}
    return durations | {"training": seconds["training"], "saving": _SECONDS_OF_A_SAVE}


def _remove(place: Place) -> None:
    for path in (place.files, place.cache):
        shutil.rmtree(path, ignore_errors=True)
    place.log.unlink(missing_ok=True)


def table(lines: Iterable[dict[str, Any]]) -> str:
    """How often what was interrupted, and the ends, as Markdown."""
    lines = list(lines)
    faults = [line for line in lines if "kind" in line]
    ends = [line for line in lines if "differences" in line]
    keys = sorted({(line["processes"], line["store"]) for line in faults})
    heads = [f"{count} process{'es' * (count > 1)}, {store}" for count, store in keys]
    counts = collections.Counter(
        (line["phase"], line["kind"], line["processes"], line["store"]) for line in faults
    )
    rows = [
        f"| {phase} | {kind} | "
        + " | ".join(str(counts[phase, kind, *key] or "") for key in keys)
        + f" | {sum(counts[phase, kind, *key] for key in keys)} |"
        for phase in PHASES
        for kind in KINDS
        if any(counts[phase, kind, *key] for key in keys)
    ]
    totals = [sum(n for c, n in counts.items() if c[2:] == key) for key in keys]
    rows.append(f"| **all** | | {' | '.join(map(str, totals))} | **{sum(totals)}** |")
    runs = [sum((e["processes"], e["store"]) == key for e in ends) for key in keys]
    rows.append(f"| workdirs, run to their end | | {' | '.join(map(str, runs))} | {sum(runs)} |")
    same = [
        sum((e["processes"], e["store"]) == key and not e["differences"] for e in ends)
        for key in keys
    ]
    rows.append(f"| of these bit-identical | | {' | '.join(map(str, same))} | {sum(same)} |")
    head = (
        f"| the run was | signal | {' | '.join(heads)} | all |\n|---|---|{'---:|' * len(keys)}---:|"
    )
    wrong = [f"- {e['run']}: {'; '.join(e['differences'])}" for e in ends if e["differences"]]
    slowest = max((line["seconds_until_end"] for line in faults), default=0.0)
    return (
        "\n".join([head, *rows])
        + f"\n\nThe slowest process ended {slowest:.1f} s after its signal.\n\nFailures: "
        + ("\n\n" + "\n".join(wrong) if wrong else "none.")
        + "\n"
    )


_HEADER = """\
# Interruptions of small runs at random moments

`python -m experiments.robustness.kills` makes this table, and its docstring says what is compared.
The columns are the number of processes of a run, and where its workdir was: on the local file
system, or in a fake object store that allows neither appending nor renaming.

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.robustness.kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=40, help="interruptions (default: 40)")
    parser.add_argument("--processes", default="1", help="comma-separated numbers (default: 1)")
    parser.add_argument(
        "--store", default="local", help=f"comma-separated, of {', '.join(STORES)} (default: local)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds (default: 120)")
    parser.add_argument("--out", required=True, help="folder of the runs and of faults.jsonl")
    parser.add_argument("--results", help="folder for kills.md (default: print only)")
    parser.add_argument(
        "--override", action="append", default=[], help="of the runs' config, such as train.steps=9"
    )
    options = parser.parse_args(argv)
    options.overrides = dict(each.split("=", 1) for each in options.override)
    stores = options.store.split(",")
    if not set(stores) <= set(STORES):
        parser.error(f"--store={options.store}: only {', '.join(STORES)} are known")
    folder = pathlib.Path(options.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / ".lock"))
        except AlreadyLocked:
            parser.error(f"--out={folder}: another campaign is running there")
        return _run(folder, stores, options)


def _run(folder: pathlib.Path, stores: Sequence[str], options: argparse.Namespace) -> int:
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        interrupted_runs.write_corpus(corpus)
    # Most of a run's time would be compilation.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    interrupted_runs.import_everything()
    records = Records(folder / RECORDS)
    keys = [(int(number), store) for number in options.processes.split(",") for store in stores]
    campaigns = [Campaign(folder, records, *key, options) for key in keys]
    for campaign, key in itertools.cycle(zip(campaigns, keys, strict=True)):
        done = len(records.faults())
        if done >= options.count:
            break
        mine = len(records.faults(processes=key[0], store=key[1]))
        wanted = -(-options.count // len(keys))
        if mine < wanted:
            campaign.add_run(min(wanted - mine, options.count - done))
    text = table(records.lines)
    print("\n" + text)
    if options.results:
        (pathlib.Path(options.results) / "kills.md").write_text(_HEADER + text, encoding="utf-8")
    return int(any(line.get("differences") for line in records.lines))


if __name__ == "__main__":
    sys.exit(main())
