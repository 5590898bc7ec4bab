"""Runs in a bucket: the same bits as on a local disk, however they are interrupted."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import orbax.checkpoint as ocp
import pytest
from etils import epath

from roberta_jax.errors import RESTART_FILE, StoreUnavailable, UsageError
from roberta_jax.pretrain import pretrain
from roberta_jax.storage import leases
from roberta_jax.training import loop, run
from roberta_jax.training.checkpoints import Checkpoints, checkpoint_steps
from roberta_jax.training.metrics import read_metrics
from roberta_jax.training.tensorboard import _tensorboardx, _tf_records
from roberta_jax.training.workdir import trained_config
from tests.support import gcs_server, object_store, processes, texts
from tests.support.many_processes import Launcher

STEPS = {"train.steps": 30, "train.checkpoint_every": 3, "train.eval_every": 7}
RUN = "gs://bucket/runs/a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a corpus, and a cache of its prepared text."""
    folder = tmp_path_factory.mktemp("object_stores")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """The folder of a run on the local disk."""
    pretrain(small_config(folder), folder / "local")
    return folder / "local"


def small_config(folder, **changes):
    return texts.small_config(
        pathlib.Path(folder) / "corpus.jsonl", pathlib.Path(folder) / "cache", **STEPS, **changes
    )


def reproducible_metrics(workdir):
    """The records without speeds."""
    return [
        {key: value for key, value in record.items() if key not in ("tokens_per_second", "mfu")}
        for record in read_metrics(workdir)
    ]


def check_same(workdir, expected):
    """Checks that a run has the exported files and the records of another one."""
    exported = {path.name: path.read_bytes() for path in (epath.Path(workdir) / "hf").iterdir()}
    assert exported == {path.name: path.read_bytes() for path in (expected / "hf").iterdir()}
    assert reproducible_metrics(workdir) == reproducible_metrics(expected)


def shown_in_tensorboard(workdir) -> dict[tuple[int, str], int]:
    """How often TensorBoard shows each (step, name)."""
    proto, _ = _tensorboardx()
    shown = []
    for file in sorted((epath.Path(workdir) / "tensorboard").iterdir()):
        for data in _tf_records(file.read_bytes()):
            event = proto.Event.FromString(data)
            if event.HasField("session_log"):
                shown = [each for each in shown if each[0] < event.step]
            shown += [(event.step, value.tag) for value in event.summary.value]
    return {each: shown.count(each) for each in shown}


def check_tensorboard(workdir):
    records = read_metrics(workdir)
    names = {(r["step"], name) for r in records for name in r if name != "step"}
    assert shown_in_tensorboard(workdir) == dict.fromkeys(names, 1)


# On a store that allows no append and no rename, in this process.


@pytest.fixture
def store(tmp_path, monkeypatch):
    return object_store.install(tmp_path / "objects", monkeypatch.setattr)


def test_a_run_in_a_bucket_is_that_on_a_disk(folder, expected, store):
    result = pretrain(small_config(folder), RUN)
    assert result.finished
    check_same(RUN, expected)
    check_tensorboard(RUN)
    assert not (store / "bucket/runs/a/.lock").exists()
    assert checkpoint_steps(f"{RUN}/checkpoints") == checkpoint_steps(expected / "checkpoints")
    again = pretrain(small_config(folder), RUN)
    assert again.metrics == result.metrics
    assert again.start == 30


def test_records_are_in_the_bucket_before_the_checkpoint_that_counts_on_them(
    folder, store, monkeypatch
):
    save, counts = Checkpoints.save, []

    def save_and_count(self, step, state, extra):
        counts.append((extra[loop.RECORDS], len(read_metrics(RUN))))
        save(self, step, state, extra)

    monkeypatch.setattr(Checkpoints, "save", save_and_count)
    pretrain(small_config(folder), RUN)
    assert len(counts) == 10
    assert [known for known, _ in counts] == [there for _, there in counts]


def test_a_checkpoint_that_was_not_completed_does_not_count(folder, expected, store):
    pretrain(small_config(folder), RUN)
    (store / "bucket/runs/a/checkpoints/30/commit_success.txt").unlink()
    (epath.Path(RUN) / "hf").rmtree()
    result = pretrain(small_config(folder), RUN)
    assert result.start == 27
    check_same(RUN, expected)
    assert checkpoint_steps(f"{RUN}/checkpoints") == [27, 30]


def no_answer(*args, **kwargs):
    raise ValueError("UNAVAILABLE: CURL error Couldn't connect to server [tensorstore_spec='{}']")


def test_a_store_that_does_not_answer_is_no_damage(folder, store, monkeypatch):
    pretrain(small_config(folder), RUN)
    (epath.Path(RUN) / "hf").rmtree()
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "restore", no_answer)
        message = f"cannot read the checkpoint {RUN}/checkpoints/30: UNAVAILABLE: CURL error"
        with pytest.raises(StoreUnavailable, match=message):
            pretrain(small_config(folder), RUN, on_damage="older")
    assert checkpoint_steps(f"{RUN}/checkpoints") == [27, 30]


def test_a_checkpoint_that_a_store_does_not_take_is_reported(folder, store, monkeypatch):
    monkeypatch.setattr(ocp.CheckpointManager, "save", no_answer)
    message = f"cannot write checkpoints in {RUN}/checkpoints: UNAVAILABLE: .* to server\\.\n"
    with pytest.raises(StoreUnavailable, match=message):
        pretrain(small_config(folder), RUN)


def test_a_workdir_without_a_complete_checkpoint_takes_any_config(folder, store):
    for name in ("config.json", "checkpoints/3/_CHECKPOINT_METADATA"):
        (epath.Path(RUN) / name).write_text("{}")
    assert trained_config(RUN) is None
    (epath.Path(RUN) / "checkpoints/3/commit_success.txt").write_text("")
    assert trained_config(RUN) == {}


def test_an_exported_file_that_was_changed_is_named(folder, expected, store):
    pretrain(small_config(folder), RUN)
    path = store / "bucket/runs/a/hf/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"its model is damaged: hf/model\.safetensors") as error:
        pretrain(small_config(folder), RUN)
    assert f"gcloud storage rm -r {RUN}/hf" in str(error.value)
    (epath.Path(RUN) / "hf").rmtree()
    assert pretrain(small_config(folder), RUN).finished
    assert path.read_bytes() == (expected / "hf" / "model.safetensors").read_bytes()


def test_a_run_starts_from_weights_in_a_bucket(folder, expected, store, capsys):
    for path in (expected / "hf").iterdir():
        epath.Path(path).copy(f"gs://bucket/model/{path.name}")
    started = pretrain(small_config(folder, init_from="gs://bucket/model"), RUN)
    assert "Starting from the weights in gs://bucket/model" in capsys.readouterr().out
    on_disk = pretrain(small_config(folder, init_from=str(expected / "hf")), folder / "from_disk")
    assert started.metrics == on_disk.metrics


def test_a_second_run_is_refused_while_the_first_one_goes_on(folder, store, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    with leases.lease(f"{RUN}/.lock"), \
         pytest.raises(UsageError, match=f"another run is writing to {RUN}"):  # fmt: skip
        pretrain(small_config(folder), RUN)
    assert not (store / "bucket/runs/a/config.json").exists()


def test_a_run_that_has_lost_its_lease_writes_no_more(folder, store, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    stored = object_store.FakeObject(f"{RUN}/.lock", store)

    def lose_it():
        while stored.write(b"{}", stored.read()[1]) is None:
            pass
        deadline = time.monotonic() + 60
        while not leases._held[f"{RUN}/.lock"].lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    write_config = run.write_config
    monkeypatch.setattr(run, "write_config", lambda *given: (write_config(*given), lose_it()))
    with pytest.raises(UsageError, match="another one has taken it over"):
        pretrain(small_config(folder), RUN)
    assert not (store / "bucket/runs/a/metrics.jsonl").exists()
    assert stored.read()[0] == b"{}"


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("gs://other/run", "there is no bucket 'other'"),
        ("gs:///run", "is not a folder in a bucket"),
        ("gs://bucket/../run", "is not a folder in a bucket"),
        ("s3://bucket/run", "can be kept in a local folder or on Google Cloud Storage"),
    ],
)
def test_workdirs_that_cannot_be_used(folder, store, workdir, message):
    with pytest.raises(UsageError, match=message):
        pretrain(small_config(folder), workdir)


# On the server, in processes of their own.

needs_server = pytest.mark.skipif(
    not gcs_server.is_installed(), reason="needs gcp-storage-emulator and gcsfs"
)


@pytest.fixture(scope="module")
def server():
    with gcs_server.running() as variables:
        yield variables


def train(folder, workdir):
    """Trains as the command does."""
    from roberta_jax import cli

    with cli.usage_errors():
        result = pretrain(small_config(folder), workdir)
        if not result.finished:
            sys.exit(128 + result.signal)


def start(folder, workdir, variables):
    return subprocess.Popen(
        processes.command(__name__, "train", folder, workdir),
        env=processes.environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_at(process, pattern: str, number: int) -> None:
    """Sends a signal when a line of the output matches, and waits."""
    for line in process.stdout:
        if re.search(pattern, line):
            process.send_signal(number)
            process.communicate(timeout=300)
            return
    raise AssertionError(process.stderr.read()[-4000:])


@needs_server
@pytest.mark.slow
def test_a_killed_run_on_a_server_ends_with_the_same_bits(folder, expected, server):
    workdir = "gs://bucket/runs/killed"
    killed = start(folder, workdir, server)
    stop_at(killed, r"^step 1[0-9]/30", signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    stopped = start(folder, workdir, server)
    stop_at(stopped, r"^step 2[0-9]/30", signal.SIGTERM)
    assert stopped.returncode == 128 + signal.SIGTERM
    last = start(folder, workdir, server)
    output, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors[-4000:]
    assert "Continuing from the checkpoint of step" in output

    processes.run(__name__, "check_killed", workdir, expected, **server)
    answer = subprocess.run(
        [sys.executable, "-m", "roberta_jax.fill_mask", workdir, "a <mask> b"],
        env=processes.environment(**server),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr[-4000:]


def check_killed(workdir, expected):
    check_same(workdir, pathlib.Path(expected))
    check_tensorboard(workdir)
    names = {path.name for path in epath.Path(workdir).iterdir()}
    assert names == {
        "config.json", "checkpoints", "metrics.jsonl", "tensorboard", "hf", ".export.json",
    }  # fmt: skip


@needs_server
@pytest.mark.slow
def test_two_processes_that_are_killed_in_turn_end_with_the_same_bits(folder, server):
    workdir = "gs://bucket/runs/two"
    changes = {**STEPS, "train.log_every": 1, "distributed.heartbeat_timeout": 20}
    launcher = Launcher(folder)
    try:
        undisturbed = launcher.start(folder / "two", 2, **changes)
        assert undisturbed.wait() == [0, 0], undisturbed.all_errors()
        step = 0
        for victim, last in ((1, 14), (0, 23)):
            # Training stops before this step, where a process waits for its batch.
            variables = {0: server, 1: {**server, "TEST_WAIT_AT": str(last)}}
            run = launcher.start(workdir, 2, variables=variables, **changes)
            wait_for_output(run, rf"^step {last - 3}/30")
            run.processes[victim].kill()
            assert run.wait(120)[1 - victim] == 2, run.all_errors()
            assert f"(process {victim})" in run.errors(1 - victim)
            check_continued(run, step)
            step = last - 3
        run = launcher.start(workdir, 2, variables=dict.fromkeys(range(2), server), **changes)
        assert run.wait() == [0, 0], run.all_errors()
        check_continued(run, step)
    finally:
        launcher.kill_all()
    processes.run(__name__, "check_killed", workdir, folder / "two", **server)


def wait_for_output(run, pattern: str) -> None:
    """Waits for a line of the first process that matches."""
    deadline = time.monotonic() + 300
    while not re.search(pattern, run.output(0), re.MULTILINE):
        assert all(each.poll() is None for each in run.processes.values()), run.all_errors()
        assert time.monotonic() < deadline, run.all_errors()
        time.sleep(0.02)


def check_continued(run, step: int) -> None:
    """Checks that a run continued from one of the last two checkpoints up to a step, if any."""
    steps = re.findall("Continuing from the checkpoint of step ([0-9]+)", run.output(0))
    assert [step - 6 < int(each) <= step for each in steps] == [True] * bool(step), steps


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("gs://missing/run", "there is no bucket 'missing'"),
        ("gs://forbidden/run", r"may not be read .*the account has no permission"),
        ("gs://read-only/run", r"may not be written .*the account has no permission"),
    ],
)
def test_the_server_refuses_at_the_start(folder, server, workdir, message, tmp_path):
    note = tmp_path / "restart"
    process = start(folder, workdir, {**server, RESTART_FILE: str(note)})
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(message, errors), errors
    assert "Traceback" not in errors
    assert output == ""
    assert not note.exists()  # it would be refused again


@needs_server
@pytest.mark.slow
def test_a_server_that_does_not_answer_is_reported_in_seconds(folder):
    started = time.monotonic()
    note = folder / "no_server.restart"
    variables = {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1", RESTART_FILE: str(note)}
    process = start(folder, RUN, variables)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Google Cloud Storage does not answer at http://127.0.0.1:1" in errors
    assert time.monotonic() - started < 30
    assert "does not answer" in note.read_text()  # a supervisor may start it again


@needs_server
@pytest.mark.slow
def test_a_store_that_disappears_ends_the_run_with_a_message(folder):
    config = folder / "endless.py"
    config.write_text(
        "from tests.support import texts\n\n\n"
        "def get_config():\n"
        f"    config = texts.small_config({str(folder / 'corpus.jsonl')!r}, "
        f"{str(folder / 'cache')!r})\n"
        "    config.train.update({'steps': 100_000, 'log_every': 1, 'checkpoint_every': 5})\n"
        "    return config\n"
    )
    note = folder / "lost.restart"
    with gcs_server.running() as variables:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "roberta_jax.pretrain"),
                *(f"--config={config}", "--workdir=gs://bucket/runs/lost"),
            ],
            env=processes.environment(**variables, **{RESTART_FILE: str(note)}),
            cwd=processes.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert any(re.match(r"step 12/", line) for line in process.stdout), process.stderr.read()
    try:
        _, errors = process.communicate(timeout=240)  # the libraries try again for a while
    finally:
        process.kill()
    assert process.returncode == 2, errors[-4000:]
    assert "error: cannot write " in errors
    assert "Traceback" not in errors
    assert "cannot write " in note.read_text()
