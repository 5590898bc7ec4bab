"""Runs of several processes: the losses of one process, and an end with a message on every host.

The processes run on this machine and are connected over the loopback interface.
"""

import json
import os
import pathlib
import shutil
import signal
import threading
import time

import jax
import pytest

from roberta_jax.errors import RESTART_FILE
from roberta_jax.pretrain import pretrain
from roberta_jax.training.distributed import join_processes
from roberta_jax.training.metrics import read_metrics
from tests.support import processes, texts
from tests.support.many_processes import Launcher, last_step, losses, wait_for_step

# A run that does not end by itself.
ENDLESS = {"train.steps": 100_000, "train.log_every": 1, "train.checkpoint_every": 10}
QUICK = {"distributed.heartbeat_timeout": 20}
SECONDS = 60  # within which every process has ended after a failure
STARTING = 300  # the same, and the time to start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture
def launcher(folder):
    launcher = Launcher(folder)
    yield launcher
    launcher.kill_all()


def assert_all_end(run, status, *messages, within=STARTING, of=None):
    """Every process (of those in `of`) ends with the status, and its stderr has the messages."""
    started = time.monotonic()
    waiting = [index for index in run.processes if of is None or index in of]
    while any(run.processes[index].poll() is None for index in waiting):
        assert time.monotonic() - started < within, run.all_errors()
        time.sleep(0.05)
    for index in waiting:
        assert run.processes[index].returncode == status, run.all_errors()
        for message in messages:
            assert message in run.errors(index), run.all_errors()


# Before the first step


def test_a_coordinator_that_never_starts(launcher, folder):
    note = folder / "no_0.restart"
    variables = {1: {RESTART_FILE: str(note)}}
    changes = {"distributed.start_timeout": 4}
    run = launcher.start(folder / "no_0", 2, only=[1], variables=variables, **changes)
    assert_all_end(run, 2, "error: process 0 does not answer at localhost:")
    assert "process 0 does not answer" in note.read_text()  # a supervisor may start it again


def test_a_process_that_never_starts(launcher, folder):
    run = launcher.start(folder / "no_1", 2, only=[0], **{"distributed.start_timeout": 5})
    assert_all_end(run, 2, "error: fewer than 2 processes of the run started within 5 s")


def test_other_configs_and_other_code_are_named(launcher, folder):
    run = launcher.start(folder / "configs", 2, each={1: {"seed": 3}}, **QUICK)
    assert_all_end(
        run, 2, "differ in their configs", "--config.seed: 0 on", "(process 0); 3 on", "(process 1)"
    )
    assert not (folder / "configs").exists()
    run = launcher.start(folder / "code", 2, variables={1: {"TEST_OTHER_CODE": "1"}}, **QUICK)
    assert_all_end(run, 2, "differ in their software", "code of roberta_jax", "0123456789abcdef")


@pytest.mark.slow
def test_all_processes_compute_with_what_fits_on_each(launcher, folder):
    left = {"execution.remat": "auto", "train.per_device_batch_size": -1}
    end = {"train.steps": 4, "schedule.warmup_steps": 1}
    run = launcher.start(folder / "fitted", 2, **left, **end)
    assert run.wait() == [0, 0], run.all_errors()
    found = json.loads((folder / "fitted" / "fitted.json").read_text())
    assert found["for"]["mesh"]["data"] == 2
    assert f"of {found['rows']} rows per device" in run.output(0)
    assert "rows per microbatch" not in run.output(1)


@pytest.mark.slow
def test_a_workdir_that_is_not_shared(launcher, folder):
    homes = {index: folder / f"home{index}" for index in range(2)}
    for home in homes.values():
        home.mkdir()
    run = launcher.start("run", 2, cwd=homes, **QUICK)
    assert_all_end(run, 2, "--workdir=run is not the same folder on all hosts", "(process 1)")
    for home in homes.values():
        assert not list(home.glob("run/.probe*"))
        assert not list(home.glob("run/checkpoints"))


@pytest.mark.slow
def test_a_file_that_one_host_lacks(launcher, folder):
    homes = {index: folder / f"files{index}" for index in range(2)}
    for home in homes.values():
        home.mkdir()
    texts.write_corpus(homes[0] / "corpus.jsonl")
    run = launcher.start(
        folder / "lacks",
        2,
        cwd=homes,
        each={index: {"data.cache_dir": home / "cache"} for index, home in homes.items()},
        **{"data.files": "corpus.jsonl", **QUICK},
    )
    assert_all_end(run, 2, "corpus.jsonl")
    assert "error: host " in run.errors(0)
    assert "(process 1) ended: " in run.errors(0)


@pytest.mark.slow
@pytest.mark.parametrize("refusing", [0, 1])
def test_a_text_that_one_host_refuses_while_the_others_prepare_theirs(launcher, folder, refusing):
    workdir, working = folder / f"refused_{refusing}", 1 - refusing
    variables = {refusing: {"TEST_PREPARE": "refuse"}, working: {"TEST_PREPARE": "wait"}}
    run = launcher.start(workdir, 2, variables=variables, **QUICK)
    assert_all_end(run, 2, "error: the text cannot be used", of=[refusing])
    message = f"(process {refusing}) ended: the text cannot be used"
    assert_all_end(run, 2, message, within=20, of=[working])
    assert not (workdir / "checkpoints").exists()


@pytest.mark.slow
def test_hosts_with_other_texts(launcher, folder):
    homes = {index: folder / f"texts{index}" for index in range(2)}
    for home in homes.values():
        home.mkdir()
        texts.write_corpus(home / "corpus.jsonl")
    corpus = homes[1] / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("garden", "kitchen"))
    run = launcher.start(
        folder / "other_texts",
        2,
        cwd=homes,
        each={index: {"data.cache_dir": home / "cache"} for index, home in homes.items()},
        **{"data.files": "corpus.jsonl", **QUICK},
    )
    assert_all_end(
        run, 2, "differ in their data", "  text: ", "  batch: ", "--config.data.cache_dir"
    )
    assert not (folder / "other_texts" / "checkpoints").exists()


# While training


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_lost_process(launcher, folder, victim, number):
    workdir, note = folder / f"lost_{victim}_{number}", folder / f"note_{victim}_{number}"
    others = [index for index in range(3) if index != victim]
    variables = {index: {RESTART_FILE: f"{note}.{index}"} for index in range(3)}
    changes = {**ENDLESS, **QUICK, "train.batch_size": 6, "eval.batch_size": 6}
    run = launcher.start(workdir, 3, variables=variables, **changes)
    wait_for_step(run, workdir, 5)
    run.processes[victim].send_signal(number)
    messages = ("error: lost host ", f"(process {victim})", "Start all")
    assert_all_end(run, 2, *messages, within=SECONDS, of=others)
    for index in others:  # a supervisor may start them again
        assert f"(process {victim})" in (folder / f"{note.name}.{index}").read_text()


@pytest.mark.slow
def test_a_late_process(launcher, folder):
    run = launcher.start(
        folder / "late",
        2,
        variables={1: {"TEST_WAIT_AT": "6"}},
        **ENDLESS,
        **QUICK,
        **{"distributed.late_timeout": 5},
    )
    wait_for_step(run, folder / "late", 4)
    assert_all_end(run, 2, "(process 1)", "late", "at step 6", within=SECONDS)


@pytest.mark.slow
def test_a_process_that_fails(launcher, folder):
    variables = {1: {"TEST_FAIL_AT": "6"}}
    run = launcher.start(folder / "fails", 2, variables=variables, **ENDLESS, **QUICK)
    wait_for_step(run, folder / "fails", 4)
    message = "(process 1) ended: RuntimeError: a mistake in the program"
    assert_all_end(run, 2, message, within=SECONDS, of=[0])
    assert_all_end(run, 1, "Traceback", "a mistake in the program", of=[1])


# Signals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "everywhere"),
    [(signal.SIGTERM, 143, False), (signal.SIGINT, 130, True), (signal.SIGINT, 130, False)],
)
def test_signals_stop_all_at_one_step(launcher, folder, number, status, everywhere):
    """Also right after a save and during an evaluation; the next run continues."""
    workdir = folder / f"signal_{number}_{everywhere}"
    changes = {**ENDLESS, **QUICK, "train.checkpoint_every": 2, "train.eval_every": 3}
    step = 0
    for delay in (0.0, 0.03, 0.11):
        run = launcher.start(workdir, 2, **changes)
        wait_for_step(run, workdir, step + 4)
        time.sleep(delay)
        for index in run.processes if everywhere else [1]:
            run.processes[index].send_signal(number)
        assert_all_end(run, status, "stopping", within=SECONDS)
        stopped = int(run.output(0).split("Stopped at step ")[1].split()[0])
        saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
        assert stopped == saved > step
        assert f"Continuing from the checkpoint of step {step}" in run.output(0) or not step
        step = stopped


def stop_and_go_on(folder):
    """Two calls of `pretrain` in one process of two; process 1 gets SIGTERM in the first."""
    join_processes()
    workdir = pathlib.Path(folder) / "in_a_row"
    files = pathlib.Path(folder) / "corpus.jsonl", pathlib.Path(folder) / "cache"

    def interrupt():
        while last_step(workdir) < 4:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    if jax.process_index() == 1:
        threading.Thread(target=interrupt, daemon=True).start()
    stopped = pretrain(texts.small_config(*files, **ENDLESS), workdir)
    longer = {**ENDLESS, "train.steps": stopped.step + 20}
    finished = pretrain(texts.small_config(*files, **longer), workdir)
    if jax.process_index() == 0:
        print(json.dumps([stopped.finished, stopped.step, finished.finished, finished.step]))


@pytest.mark.slow
def test_the_next_run_of_the_same_processes_does_not_stop(launcher, folder):
    output, _ = processes.run_together(__name__, "stop_and_go_on", str(folder), count=2)
    stopped, step, finished, last = json.loads(output.splitlines()[-1])
    assert not stopped
    assert finished
    assert last == step + 20


# Results

STEPS = {
    "schedule.decay_steps": 40,
    "train.log_every": 1,
    "train.checkpoint_every": 7,
    "train.eval_every": 10,
}


def assert_same_losses(workdir, other, **tolerance):
    expected = losses(other)
    assert losses(workdir) == pytest.approx(expected, **tolerance)
    last, expected_last = read_metrics(workdir)[-1], read_metrics(other)[-1]
    assert last.keys() == expected_last.keys()
    for name in ("eval_loss", "unigram_perplexity"):
        assert last[name] == pytest.approx(expected_last[name], **tolerance)


@pytest.fixture(scope="module")
def one_process(folder):
    launcher = Launcher(folder)
    try:
        run = launcher.start(folder / "one", 1, **STEPS, **{"train.steps": 40})
        assert run.wait() == [0], run.all_errors()
    finally:
        launcher.kill_all()
    return folder / "one"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_losses_of_one_process(launcher, folder, one_process, count):
    workdir = folder / f"several_{count}"
    run = launcher.start(workdir, count, **STEPS, **{"train.steps": 40})
    assert run.wait() == [0] * count, run.all_errors()
    assert_same_losses(workdir, one_process, rel=1e-5)
    exported = json.loads((workdir / "hf" / "config.json").read_text())
    assert exported == json.loads((one_process / "hf" / "config.json").read_text())
    assert "Finished: 40 steps" in run.output(0)
    assert "Finished" not in run.output(1)
    # The finished run prints its result again.
    again = launcher.start(workdir, count, **STEPS, **{"train.steps": 40})
    assert again.wait() == [0] * count, again.all_errors()
    assert "is finished: 40 steps" in again.output(0)


@pytest.mark.slow
def test_all_go_back_because_of_a_spike(launcher, folder):
    changes = {**STEPS, "train.steps": 20, "spikes.policy": "skip", "spikes.skip_batches": 3}
    for count in (1, 2):
        variables = {index: {"TEST_SPIKE_AT": "11"} for index in range(count)}
        run = launcher.start(folder / f"spike_{count}", count, variables=variables, **changes)
        assert run.wait() == [0] * count, run.all_errors()
        assert "Going back to the checkpoint of step 7 and skipping 7 batches" in run.output(0)
    assert_same_losses(folder / "spike_2", folder / "spike_1", rel=1e-5)


@pytest.mark.slow
def test_a_run_moves_between_numbers_of_processes_and_meshes(launcher, folder, one_process):
    workdir = folder / "moved"
    stages = [
        (4, 1, {}),
        (1, 8, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}),
        (2, 1, {"mesh.fsdp": 2}),
        (1, 8, {}),
    ]
    for stage, (count, devices, mesh) in enumerate(stages):
        changes = {**STEPS, **mesh, "train.steps": 10 * (stage + 1)}
        run = launcher.start(workdir, count, devices=devices, **changes)
        assert run.wait() == [0] * count, run.all_errors()
        assert last_step(workdir) == 10 * (stage + 1)
        if stage == 0:
            shutil.rmtree(workdir / "hf")  # an export may be gone; checkpoints matter
    assert_same_losses(workdir, one_process, rel=1e-5)
