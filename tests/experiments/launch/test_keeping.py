"""How `tpu_pod keep` meets the states of the slices and the ends of the run; gcloud is a fake."""

import os
import signal
import time

import pytest

from experiments.launch import keeping, supervised, tpu_pod
from tests.support.fake_gcloud import Gcloud, program, wait_for

TRAIN = ["--", "pretrain", "--config=configs/pretrain.py:base", "--workdir=gs://b/base"]
POD = ["--name=base", "--zone=z"]
BILLED = "still billed; to delete them: gcloud compute tpus queued-resources delete base"
# Runs until the test writes `end`, and then one host after the other.
RUN = "trap 'exit 143' TERM; while [ ! -e ../../end ]; do sleep 0.02; done; exit $(cat ../../end)"


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """Two hosts, on which a run goes on until `end` is written."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    program(programs, "python3", "true")
    gcloud = Gcloud(tmp_path, programs, hosts=2)
    gcloud.run_is(RUN)
    monkeypatch.setattr(keeping, "ATTEMPTS", 3)
    yield gcloud
    gcloud.end()


def keep(monkeypatch, *events, options=(), limit=100):
    """Runs `keep` to its end, with events between its looks, and returns the exit status.

    Args:
      monkeypatch: replaces the pauses.
      *events: each is called after a look, from the first one on, and again after the next look if
        it returns False; a number is a count of looks without an event.
      options: of the command.
      limit: looks, after which the test fails.
    """
    left = []
    for event in events:
        left += [None] * event if isinstance(event, int) else [event]
    looks = iter(range(limit))

    def pause(seconds):
        assert next(looks, None) is not None, "an endless loop"
        if left and (left[0] is None or left[0]() is not False):
            left.pop(0)
        time.sleep(0.02)

    monkeypatch.setattr(keeping, "_pause", pause)
    try:
        tpu_pod.main(["keep", *POD, "--package=gs://b/r.whl", "--spot", *options, *TRAIN])
    except SystemExit as error:
        return error.code
    assert not left, "keep ended before all events"
    return 0


def started(pod, starts=(1, 1)):
    return lambda: pod.count("started") == list(starts)


def ended(pod, status=0, hosts=(0, 1)):
    def event():
        pod.write("end", str(status))
        for host in hosts:
            wait_for(lambda host=host: pod.status(host) is not None)

    return event


def set_state(pod, state):
    return lambda: pod.write("state", state)


# The ends of a run.


@pytest.mark.parametrize("status", [0, 1, 2, 134, 137])
def test_slices_of_a_run_that_has_ended_are_deleted(pod, monkeypatch, capfd, status):
    assert keep(monkeypatch, 1, started(pod), ended(pod, status)) == status
    assert pod.actions()[:3] == ["describe", "create", "describe"]
    assert pod.state is None
    assert pod.count("started") == [1, 1]
    output = capfd.readouterr().out
    assert ("has finished" if status == 0 else f"failed with status {status}") in output


@pytest.mark.parametrize("status", [130, 143])
def test_slices_of_a_run_that_was_stopped_are_kept(pod, monkeypatch, capfd, status):
    assert keep(monkeypatch, 1, started(pod), ended(pod, status)) == status
    assert pod.state == "ACTIVE"
    assert BILLED in capfd.readouterr().out
    (pod.folder / "end").unlink()
    # The same command continues.
    assert keep(monkeypatch, started(pod, (2, 2)), ended(pod)) == 0
    assert pod.state is None


def test_a_run_has_finished_when_it_has_on_all_hosts(pod, monkeypatch):
    def first():
        wait_for(lambda: pod.status(0))
        assert pod.status(1) is None

    pod.run_is('if [ "$(basename "$PWD")" = 0 ]; then exit 0; fi; ' + RUN)
    assert keep(monkeypatch, 1, first, 4, lambda: None, ended(pod)) == 0
    assert pod.count("started") == [1, 1]


# The states of a request.


def test_preempted_slices_are_requested_again(pod, monkeypatch):
    def preempt():
        for host in range(2):
            pod.reboot(host)
        pod.write("state", "SUSPENDED")

    assert keep(monkeypatch, 1, started(pod), preempt, started(pod, (2, 2)), ended(pod)) == 0
    assert pod.actions().count("create") == 2
    assert pod.actions().count("delete") == 2
    assert pod.count("started") == [2, 2]


def test_a_deletion_that_takes_a_while_is_not_that_of_a_person(pod, monkeypatch):
    pod.write("after-delete", "echo DELETING > $here/state; rm $here/after-delete")
    lost = [set_state(pod, "SUSPENDED"), 2, (pod.folder / "state").unlink]
    assert keep(monkeypatch, 1, started(pod), *lost, 2, started(pod, (2, 2)), ended(pod)) == 0
    assert pod.actions().count("create") == 2


@pytest.mark.parametrize("status", [1, 143])
def test_a_run_that_ends_just_before_its_preemption_is_continued(pod, monkeypatch, status):
    events = [started(pod), ended(pod, status), 1, set_state(pod, "SUSPENDING"), 6]
    again = [(pod.folder / "end").unlink, set_state(pod, "SUSPENDED"), 3, started(pod, (2, 2))]
    assert keep(monkeypatch, 1, *events, *again, ended(pod)) == 0
    assert pod.state is None


def test_a_request_that_failed_is_made_again(pod, monkeypatch, capfd):
    pod.write("next-state", "FAILED")
    pod.write("reason", "no capacity in z")
    assert keep(monkeypatch, 4, started(pod), ended(pod)) == 0
    assert pod.actions().count("create") == 2
    assert "base: FAILED: no capacity in z" in capfd.readouterr().out


def test_keep_waits_while_a_request_is_pending(pod, monkeypatch, capfd):
    states = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "A_NEW_STATE"]
    pod.write("next-state", "STATE_UNSPECIFIED")
    changes = [set_state(pod, state) for state in [*states, "ACTIVE"]]
    assert keep(monkeypatch, 1, *changes, 1, started(pod), ended(pod)) == 0
    assert pod.actions().count("create") == 1
    output = capfd.readouterr().out
    assert all(f"base: {state}\n" in output for state in states)


def test_slices_that_a_person_deletes_are_not_requested_again(pod, monkeypatch, capfd):
    assert keep(monkeypatch, 1, started(pod), (pod.folder / "state").unlink) == 2
    assert pod.actions().count("create") == 1
    assert "was deleted, not by this command" in capfd.readouterr().err


def test_slices_that_are_missing_for_one_look_are_not_requested_again(pod, monkeypatch):
    missing = (pod.folder / "state").unlink
    assert keep(monkeypatch, 1, started(pod), missing, set_state(pod, "ACTIVE"), ended(pod)) == 0
    assert pod.actions().count("create") == 1


# Hosts that are rebooted, or do not answer.


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rebooted_host_is_started_again(pod, monkeypatch, capfd, number):
    reboot = [lambda: pod.reboot(1, number), 3, started(pod, (1, 2))]
    assert keep(monkeypatch, 1, started(pod), *reboot, ended(pod)) == 0
    installs = pod.count("installed")
    assert installs[1] == 2 * installs[0] > 0
    assert "nothing is running on 1 of the hosts; starting the run there" in capfd.readouterr().out


def test_a_host_that_is_down_for_a_while_is_waited_for(pod, monkeypatch, capfd):
    down = pod.hosts[1] / "down"
    away = [lambda: pod.reboot(1), down.touch, 20, down.unlink, 3, started(pod, (1, 2))]
    assert keep(monkeypatch, 1, started(pod), *away, ended(pod)) == 0
    output, error = capfd.readouterr()
    assert "hosts of base did not answer 15 times in a row" in output
    assert BILLED in output
    assert error.count("no route to host") == 1


def test_a_run_that_fails_since_a_host_is_down_goes_on_when_it_is_back(pod, monkeypatch, capfd):
    down = pod.hosts[1] / "down"

    def lose():
        pod.reboot(1)
        down.touch()
        ended(pod, 1, hosts=[0])()

    back = [(pod.folder / "end").unlink, down.unlink, 3, started(pod, (2, 2))]
    assert keep(monkeypatch, 1, started(pod), lose, 8, *back, ended(pod)) == 0
    assert pod.actions().count("create") == 1


def test_a_run_that_fails_since_a_host_is_lost_ends(pod, monkeypatch, capfd):
    def lose():
        (pod.hosts[1] / "down").touch()
        ended(pod, 134)()

    assert keep(monkeypatch, 1, started(pod), lose, 13) == 134
    assert pod.state is None
    assert "the run failed with status 134" in capfd.readouterr().out


def test_hosts_that_never_answer_are_deleted_if_they_were_requested_here(pod, monkeypatch, capfd):
    pod.write("after-create", "touch $here/hosts/1/down")
    assert keep(monkeypatch) == 2
    assert pod.state is None
    assert pod.count("started") == [0, 0]
    error = capfd.readouterr().err
    assert "no route to host" in error
    assert "ssh-agent" in error
    assert "The slices were deleted." in error


def test_hosts_that_never_answer_are_kept_if_a_run_may_be_there(pod, monkeypatch, capfd):
    pod.write("state", "ACTIVE")
    (pod.hosts[1] / "down").touch()
    assert keep(monkeypatch) == 2
    assert pod.state == "ACTIVE"
    assert BILLED in capfd.readouterr().err


def test_a_run_that_cannot_be_started_is_given_up(pod, monkeypatch, capfd):
    program(pod.folder / "bin", "setsid", "exit 1")  # the start succeeds, and nothing runs
    assert keep(monkeypatch) == 2
    assert pod.count("installed") == [6, 6]  # with two commands of pip each
    assert pod.state is None
    assert "could not be started on all hosts of base in 3 attempts" in capfd.readouterr().err


# `keep` that is interrupted and started again.


def keep_interrupted(monkeypatch, event, options=()):
    """Runs `keep` until the run has been started, and interrupts it."""

    def interrupt():
        raise KeyboardInterrupt

    assert keep(monkeypatch, 1, event, interrupt, options=options) == 130


def test_a_run_that_is_running_is_left_alone(pod, monkeypatch, capfd):
    setup = ["--setup=echo >> setup"]
    keep_interrupted(monkeypatch, started(pod), setup)
    installed = pod.count("installed")
    assert keep(monkeypatch, 3, ended(pod), options=setup) == 0
    assert pod.count("started") == [1, 1]
    assert pod.count("setup") == [1, 1]
    assert pod.count("installed") == installed
    assert "the run was started before" in capfd.readouterr().out


def test_a_run_that_finished_meanwhile_is_not_started_again(pod, monkeypatch):
    keep_interrupted(monkeypatch, started(pod))
    ended(pod)()
    assert keep(monkeypatch) == 0
    assert pod.count("started") == [1, 1]
    assert pod.state is None


def test_a_run_that_failed_meanwhile_is_started_again(pod, monkeypatch, capfd):
    keep_interrupted(monkeypatch, started(pod))
    ended(pod, 1)()
    (pod.folder / "end").unlink()
    assert keep(monkeypatch, started(pod, (2, 2)), ended(pod)) == 0
    assert "an earlier start ended with status 1; starting again" in capfd.readouterr().out


def test_what_another_command_has_left_is_not_the_end_of_this_one(pod, monkeypatch):
    pod.write("state", "ACTIVE")
    tpu_pod.main(["start", *POD, *TRAIN, "--config.seed=2"])
    wait_for(started(pod))
    ended(pod)()
    (pod.folder / "end").unlink()
    assert keep(monkeypatch, started(pod, (2, 2)), ended(pod)) == 0


def test_another_command_that_is_running_is_left_alone(pod, monkeypatch, capfd):
    pod.write("state", "ACTIVE")
    tpu_pod.main(["start", *POD, *TRAIN, "--config.seed=2"])
    wait_for(started(pod))
    assert keep(monkeypatch) == 2
    assert pod.state == "ACTIVE"
    assert pod.count("started") == [1, 1]
    error = capfd.readouterr().err
    assert "another command is running on base" in error
    assert BILLED in error


# gcloud that fails.


@pytest.mark.parametrize("action", ["describe", "create", "ssh", "delete"])
def test_keep_goes_on_when_gcloud_fails_for_a_while(pod, monkeypatch, capfd, action):
    pod.write(f"trouble-{action}", "2")
    events = [started(pod), lambda: pod.write(f"trouble-{action}", "2"), 4, ended(pod)]
    assert keep(monkeypatch, 5, *events) == 0
    assert pod.state is None
    assert "try again later" in capfd.readouterr().err


def test_keep_waits_for_gcloud_that_fails_for_long_during_a_run(pod, monkeypatch, capfd):
    fail = [lambda: pod.write("trouble-describe", "20"), 22]
    assert keep(monkeypatch, 1, started(pod), *fail, ended(pod)) == 0
    assert capfd.readouterr().err.count("try again later") == 1


def test_keep_gives_up_if_gcloud_never_tells_the_state(pod, monkeypatch, capfd):
    pod.write("trouble-describe", "99")
    assert keep(monkeypatch) == 2
    assert pod.actions() == ["describe"]
    assert "Nothing was requested" in capfd.readouterr().err


def test_keep_gives_up_if_slices_cannot_be_requested(pod, monkeypatch, capfd):
    pod.write("trouble-create", "99")
    assert keep(monkeypatch) == 2
    assert pod.actions().count("create") == 3
    assert "gave up requesting base after 3 attempts" in capfd.readouterr().err


@pytest.mark.parametrize(("status", "expected"), [(0, 1), (2, 2)])
def test_keep_says_that_slices_could_not_be_deleted(pod, monkeypatch, capfd, status, expected):
    pod.write("trouble-delete", "99")
    assert keep(monkeypatch, 1, started(pod), ended(pod, status)) == expected
    assert pod.actions().count("delete") == 3
    assert BILLED in capfd.readouterr().err


def test_keep_gives_up_if_preempted_slices_cannot_be_deleted(pod, monkeypatch, capfd):
    pod.write("trouble-delete", "99")
    assert keep(monkeypatch, 1, started(pod), set_state(pod, "SUSPENDED")) == 2
    assert "gave up deleting base" in capfd.readouterr().err


def test_slices_that_are_gone_though_their_deletion_failed_are_not_deleted_again(pod, monkeypatch):
    pod.write("trouble-delete", "1")
    deleted = [set_state(pod, "DELETING"), 3, (pod.folder / "state").unlink]
    assert keep(monkeypatch, 1, started(pod), ended(pod), 0, *deleted) == 0
    assert pod.actions().count("delete") == 1


# An installation that fails.


def test_keep_gives_up_an_installation_that_always_fails(pod, monkeypatch, capfd):
    assert keep(monkeypatch, options=["--setup=echo >> setup; false"]) == 2
    assert pod.count("setup") == [3, 3]
    assert pod.state is None
    error = capfd.readouterr().err
    assert "gcloud failed with status 1" in error
    assert "in 3 attempts; the cause is above. The slices were deleted." in error


def test_keep_says_what_is_left_after_an_installation_that_always_fails(pod, monkeypatch, capfd):
    pod.write("trouble-delete", "99")
    assert keep(monkeypatch, options=["--setup=false"]) == 2
    assert BILLED in capfd.readouterr().err


def test_an_installation_that_fails_at_first_is_tried_again(pod, monkeypatch):
    setup = ["--setup=echo >> setup; [ $(wc -l < setup) -gt 2 ]"]
    assert keep(monkeypatch, 3, started(pod), ended(pod), options=setup) == 0


# gcloud that hangs, with children that hold its output.


def test_a_preemption_is_seen_though_ssh_hangs(pod, monkeypatch, capfd):
    monkeypatch.setattr(keeping, "LOOK_SECONDS", 1.0)

    def hang():
        pod.write("trouble-ssh", "hang")

    def preempt():
        pod.write("trouble-ssh", "0")
        for host in range(2):
            pod.reboot(host)
        pod.write("state", "SUSPENDED")

    again = [started(pod, (2, 2)), ended(pod)]
    assert keep(monkeypatch, 1, started(pod), hang, preempt, *again) == 0
    assert pod.actions().count("create") == 2
    assert "gcloud did not answer within 1 s" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("action", "limit"), [("describe", "LOOK_SECONDS"), ("create", "REQUEST_SECONDS")]
)
def test_keep_gives_up_if_gcloud_always_hangs(pod, monkeypatch, capfd, action, limit):
    monkeypatch.setattr(keeping, limit, 0.3)
    pod.write(f"trouble-{action}", "hang")
    assert keep(monkeypatch) == 2
    error = capfd.readouterr().err
    assert "within 0.3 s" in error
    assert "3 times in a row" in error or "after 3 attempts" in error


def test_keep_says_that_slices_are_left_if_their_deletion_hangs(pod, monkeypatch, capfd):
    monkeypatch.setattr(keeping, "REQUEST_SECONDS", 0.5)
    pod.write("trouble-delete", "hang")
    assert keep(monkeypatch, 1, started(pod), ended(pod)) == 1
    error = capfd.readouterr().err
    assert error.count("gcloud did not end within 0.5 s and was ended.") == 3
    assert BILLED in error


def test_an_installation_that_hangs_is_ended(pod, monkeypatch, capfd):
    monkeypatch.setattr(keeping, "INSTALL_SECONDS", 0.5)
    assert keep(monkeypatch, options=["--setup=sleep 600"]) == 2
    assert "gcloud did not end within 0.5 s" in capfd.readouterr().err
    assert pod.state is None


def test_children_of_a_command_that_takes_too_long_are_ended(tmp_path):
    pid = tmp_path / "pid"
    command = ["bash", "-c", f"sleep 600 & echo $! > {pid}; wait"]
    (result,) = supervised.results([command], seconds=0.5)
    assert result.returncode == supervised.TIMED_OUT
    wait_for(lambda: not is_alive(int(pid.read_text())))


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
