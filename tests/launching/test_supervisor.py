"""The supervisor, with small programs in place of runs."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from roberta_jax.errors import RESTART_FILE
from roberta_jax.launching.supervisor import Policy, Supervisor
from roberta_jax.training import heartbeat
from tests.support import processes

QUICK = Policy(
    max_restarts=3, backoff=0.01, max_backoff=0.05, stalled_after=0, ending=0.5, poll=0.01
)
# Counts its starts in the file `starts`.
COUNTED = """
import os, pathlib, signal, sys, time
index = os.environ.get("JAX_PROCESS_ID", "0")
starts = pathlib.Path("starts" + index)
start = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (start + 1))
"""


def program(code):
    return [sys.executable, "-c", COUNTED + textwrap.dedent(code)]


def starts(folder, index=0):
    return len((folder / f"starts{index}").read_text())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def supervise(code, policy=QUICK, **options):
    return Supervisor(program(code), policy=policy, **options).run()


def crash_files(folder):
    return sorted((folder / "launch_logs").glob("crash-*.txt"))


def test_what_crashes_is_restarted_until_it_finishes(folder, capfd):
    assert supervise("if start < 2: os.kill(os.getpid(), signal.SIGKILL)\nprint('done')") == 0
    assert starts(folder) == 3
    captured = capfd.readouterr()
    assert captured.out == "done\n"
    assert "launch: the process was ended by SIGKILL after 0 s" in captured.err
    assert "launch: restart 2 of 3 in 0.02 s" in captured.err
    assert captured.err.endswith("launch: finished after 2 restarts\n")


@pytest.mark.parametrize("ending", ["sys.exit(1)", "raise KeyError('x')", "os.abort()"])
def test_every_status_but_two_is_a_crash(folder, ending):
    assert supervise(f"if not start: {ending}") == 0
    assert starts(folder) == 2


def test_a_mistake_is_not_repeated(folder, capfd):
    assert supervise("print('error: wrong', file=sys.stderr); sys.exit(2)") == 2
    assert starts(folder) == 1
    assert capfd.readouterr().err == "error: wrong\n"
    assert not crash_files(folder)


# What a process of a run does that has lost another one.
LOST = f"pathlib.Path(os.environ['{RESTART_FILE}']).write_text('lost host b'); sys.exit(2)"


def test_a_lost_partner_is_restarted_although_it_exits_with_two(folder):
    assert supervise(f"if not start: {LOST}") == 0
    assert starts(folder) == 2


def test_it_gives_up_and_keeps_the_cause(folder, capfd):
    code = """
    print("step 10", f"step {start}0", sep="\\n", flush=True)
    print(f"cause {start}", file=sys.stderr, flush=True)
    os.abort()
    """
    status = supervise(code)
    assert status == 128 + signal.SIGABRT
    assert starts(folder) == 4
    files = crash_files(folder)
    assert len(files) == 4
    text = files[-1].read_text()
    assert text.startswith("the process was ended by SIGABRT on ")
    assert "newest checkpoint: none\ncommand: " in text
    assert (
        "\n--- process 0 was ended by SIGABRT; end of its stdout:\nstep 10\nstep 30\n"
        "--- process 0: end of its stderr:\ncause 3\n"
    ) in text
    captured = capfd.readouterr()
    assert (
        captured.out == "step 10\nstep 00\nstep 10\nstep 10\nstep 10\nstep 20\nstep 10\nstep 30\n"
    )
    err = captured.err
    assert "launch:   step 10\nlaunch:   step 30\nlaunch:   cause 3\n" in err
    assert f"gave up after 3 restarts in a row. What is known of the crash is in {files[-1]}" in (
        err.replace("launch_logs", str(folder / "launch_logs"))
    )


def test_the_python_stack_of_a_crash_in_native_code_is_kept(folder):
    policy = Policy(max_restarts=0)
    variables = {"PYTHONFAULTHANDLER": "1"}
    assert supervise("os.kill(os.getpid(), signal.SIGSEGV)", policy, variables=variables) == 139
    text = crash_files(folder)[0].read_text()
    assert "Fatal Python error: Segmentation fault" in text
    assert 'File "<string>"' in text


def test_a_progress_bar_is_passed_on_as_it_is_and_its_last_state_kept(folder, capfd):
    drawn = "".join(f"\r{percent:3}% of the epoch" for percent in range(100))
    code = f"""
    print("loaded")
    for state in {drawn!r}.split("\\r")[1:]:
        print("\\r" + state, end="", flush=True)
    os.abort()
    """
    assert supervise(code, Policy(max_restarts=0)) == 128 + signal.SIGABRT
    assert capfd.readouterr().out == f"loaded\n{drawn}"
    lines = crash_files(folder)[0].read_text().splitlines()
    start = lines.index("--- process 0 was ended by SIGABRT; end of its stdout:")
    assert lines[start + 1 : start + 3] == ["loaded", " 99% of the epoch"]
    assert lines[start + 3] == "--- process 0: end of its stderr:"


def test_output_is_passed_on_before_its_line_ends(folder, capfd):
    code = "print('half', end='', flush=True); pathlib.Path('said').touch(); time.sleep(3)"
    seen = []

    def look():
        wait_for((folder / "said").exists)
        time.sleep(0.5)
        seen.append(capfd.readouterr().out)

    watcher = threading.Thread(target=look)
    watcher.start()
    assert supervise(code) == 0
    watcher.join()
    assert seen == ["half"]


def test_a_new_checkpoint_allows_as_many_restarts_again(folder):
    # Each of the first eight attempts leaves a newer checkpoint.
    code = """
    pathlib.Path("run/checkpoints", str(min(start, 8) * 10)).mkdir(parents=True, exist_ok=True)
    sys.exit(1)
    """
    assert supervise(code, workdir="run") == 1
    # The ninth is the last with a newer one; three restarts follow.
    assert starts(folder) == 9 + 3
    files = sorted((folder / "run" / "launch").glob("crash-*.txt"))
    assert "newest checkpoint: step 80\n" in files[-1].read_text()


def test_waits_double_up_to_the_longest(folder, capfd):
    policy = Policy(max_restarts=4, backoff=0.01, max_backoff=0.03, poll=0.01)
    assert supervise("sys.exit(1)", policy) == 1
    lines = capfd.readouterr().err.splitlines()
    waits = [line.split(" in ")[-1] for line in lines if line.startswith("launch: restart")]
    assert waits == ["0.01 s", "0.02 s", "0.03 s", "0.03 s"]


HANG = f"""
pathlib.Path(os.environ["{heartbeat.VARIABLE}"]).touch()  # as after a first step
if not start:
    while True:
        print("still here", flush=True)  # output is no progress after the first step
        time.sleep(0.02)
"""


def test_what_makes_no_progress_is_killed_and_restarted(folder, capfd):
    policy = Policy(max_restarts=1, backoff=0.01, stalled_after=3, ending=2, poll=0.01)
    variables = {"PYTHONFAULTHANDLER": "1"}
    assert supervise(HANG, policy, variables=variables) == 0
    assert starts(folder) == 2
    (file,) = crash_files(folder)
    text = file.read_text()
    assert text.startswith("the process made no progress on ")
    assert "most recent call first" in text  # where it hung
    assert "no progress for" in capfd.readouterr().err


def test_what_makes_progress_is_left_alone(folder):
    policy = Policy(max_restarts=0, stalled_after=3, stalled_at_start=3, ending=0.1, poll=0.01)
    code = f"""
    for _ in range(10):
        pathlib.Path(os.environ["{heartbeat.VARIABLE}"]).touch()
        time.sleep(0.4)
    """
    assert supervise(code, policy) == 0
    talks = "for _ in range(10): print('preparing', flush=True) or time.sleep(0.4)"
    assert supervise(talks, policy) == 0


def test_a_process_that_ignores_the_first_signal_is_killed_when_it_hangs(folder):
    policy = Policy(max_restarts=1, backoff=0.01, stalled_at_start=3, ending=0.3, poll=0.01)
    code = "if not start: signal.signal(signal.SIGABRT, signal.SIG_IGN), time.sleep(60)"
    begun = time.monotonic()
    assert supervise(code, policy) == 0
    assert time.monotonic() - begun < 20


def test_all_processes_are_restarted_when_one_crashes(folder, capfd):
    code = """
    if not start:
        (sys.exit(7) if index == "1" else time.sleep(60))
    print(os.environ["JAX_COORDINATOR_ADDRESS"], os.environ["JAX_NUM_PROCESSES"], flush=True)
    """
    begun = time.monotonic()
    assert supervise(code, processes=2) == 0
    assert time.monotonic() - begun < 20
    assert (starts(folder, 0), starts(folder, 1)) == (2, 2)
    captured = capfd.readouterr()
    assert "launch: process 1 exited with status 7" in captured.err
    first, second = sorted(captured.out.splitlines())
    assert first.startswith("[0] 127.0.0.1:")
    assert first.removeprefix("[0] ") == second.removeprefix("[1] ")
    assert first.endswith(" 2")


def test_a_crash_that_others_only_report_is_the_cause(folder, capfd):
    code = """
    if start: sys.exit(0)
    if index == "1": os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    """
    assert supervise(f"{textwrap.dedent(code)}{LOST}", processes=2) == 0
    assert "launch: process 1 was ended by SIGKILL" in capfd.readouterr().err


def test_a_mistake_of_one_process_ends_all(folder):
    code = """
    if index == "0": sys.exit(2)
    time.sleep(60)
    """
    policy = Policy(agreeing=0.3, backoff=0.01, poll=0.01)
    assert supervise(code, policy, processes=2) == 2
    assert starts(folder) == 1


GRANDCHILD = """
import subprocess
if not start:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path("child").write_text(str(child.pid))
    sys.exit(1)
"""


def ended(pid):
    """Whether a process has ended; a zombie has, too."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_children_of_a_crashed_process_are_ended(folder):
    begun = time.monotonic()
    assert supervise(GRANDCHILD) == 0
    assert time.monotonic() - begun < 20
    pid = int((folder / "child").read_text())
    wait_for(lambda: ended(pid))


SAVES = """
def save(number, frame):
    pathlib.Path("saved").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)
pathlib.Path("ready" + index).touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("several", [1, 2])
def test_signals_are_passed_on_and_end_the_supervisor(folder, number, several):
    def interrupt():
        wait_for(lambda: all((folder / f"ready{index}").exists() for index in range(several)))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert supervise(SAVES, processes=several) == 128 + number
    thread.join()
    assert (folder / "saved").read_text() == str(int(number))
    assert starts(folder) == 1
    assert not crash_files(folder)


def test_a_run_that_was_stopped_by_another_host_is_restarted(folder):
    assert supervise("sys.exit(0 if start else 143)") == 0
    assert starts(folder) == 2


def test_a_run_that_finishes_in_spite_of_a_signal_has_finished(folder):
    code = "signal.signal(15, lambda *_: None); pathlib.Path('ready0').touch(); time.sleep(0.5)"

    def interrupt():
        wait_for(lambda: (folder / "ready0").exists())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert supervise(code) == 0
    thread.join()


def test_a_signal_between_two_attempts_ends_the_supervisor(folder):
    policy = Policy(max_restarts=1, backoff=60, poll=0.01)

    def interrupt():
        wait_for(lambda: crash_files(folder))
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begun = time.monotonic()
    assert supervise("sys.exit(1)", policy) == 143
    thread.join()
    assert time.monotonic() - begun < 20


def supervisor_process(code, folder, *options, **keywords):
    command = [sys.executable, "-m", "roberta_jax.launch", "--backoff=0.01", *options, "--"]
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    return subprocess.Popen([*command, *program(code)], cwd=folder, env=environment, **keywords)


QUITS = SAVES.replace("sys.exit(128 + number)", "").replace(
    'pathlib.Path("saved")', 'pathlib.Path("saved" if not os.path.exists("saved") else "quit")'
)


@pytest.mark.parametrize("module", ["roberta_jax.launch", "roberta_jax"])
def test_a_second_interrupt_is_passed_on_too(folder, module):
    """Also within `roberta-jax`, which by itself ends at a second Ctrl-C."""
    words = ["launch"] if module == "roberta_jax" else []
    supervisor = subprocess.Popen(
        [sys.executable, "-m", module, *words, "--", *program(QUITS.replace("60", "2"))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(processes.ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for name in ("ready0", "saved", "quit"):
        wait_for(lambda name=name: (folder / name).exists())
        supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(30) == 0  # as the program


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's end is told on Linux only")
def test_the_processes_of_a_killed_supervisor_are_told_to_stop(folder):
    supervisor = supervisor_process(SAVES, folder)
    wait_for(lambda: (folder / "ready0").exists())
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: (folder / "saved").exists())
    assert (folder / "saved").read_text() == str(int(signal.SIGTERM))


def test_a_run_whose_output_nobody_reads_is_stopped(folder):
    code = SAVES.replace(
        "time.sleep(60)", "[print(i, flush=True) or time.sleep(0.01) for i in range(6000)]"
    )
    supervisor = supervisor_process(code, folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    supervisor.stdout.readline()
    supervisor.stdout.close()
    assert supervisor.wait(timeout=30) == 141
    assert (folder / "saved").exists()
    supervisor.stderr.close()
