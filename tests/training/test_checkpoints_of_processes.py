"""Checkpoints of a run of several processes: what one of them cannot do, all of them report."""

import json
import os
import pathlib
import resource
import shutil
import signal
import time
import traceback

import jax
import jax.numpy as jnp
import pytest

from roberta_jax.errors import StoreUnavailable, UsageError
from roberta_jax.training import distributed
from roberta_jax.training.agreement import exchange
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh
from roberta_jax.training.state import abstract_state, create_state
from tests.support import processes, toy

TX = adamw(lambda _: 1e-2)


def attempt(function):
    """What a function returns, or its error, and how long that took."""
    started = time.monotonic()
    try:
        value = function()
    except UsageError as error:
        value = f"UsageError: {error}"
    return [value, time.monotonic() - started]


def unavailable(*arguments):
    raise StoreUnavailable("no route")


def main(folder):
    """What each of two processes runs."""
    try:
        distributed.join_processes()
        save_and_restore(folder)
        os._exit(0)  # threads of failed saves may still be waiting for the other process
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def save_and_restore(folder):
    """Writes to INDEX.json what each call gave."""
    index = jax.process_index()
    mesh = create_mesh(data=1, fsdp=-1)
    state = create_state(toy.init_params, TX, mesh)
    like = abstract_state(toy.init_params, TX, mesh)

    def shifted(by):
        return jax.tree.map(lambda x: x + jnp.asarray(by, x.dtype), state)

    def save(name, steps, limited=None):
        with Checkpoints(f"{folder}/{name}", keep=5) as checkpoints:
            for step in steps:
                if step == steps[-1] and index == limited:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
                checkpoints.save(step, shifted(step), {"seen": step})
                if limited is not None:
                    checkpoints.wait()
            checkpoints.wait()
            return checkpoints.last_saved

    def restore(name, on_damage="stop"):
        with Checkpoints(f"{folder}/{name}") as checkpoints:
            restored = checkpoints.restore(like, on_damage)
            if restored is None:
                return None
            equal = jax.tree.map(
                lambda a, b: (a == b).all(), restored[0], shifted(restored[1]["seen"])
            )
            return [restored[1]["seen"], all(bool(each) for each in jax.tree.leaves(equal))]

    def go_back(name):
        """Where the first process has deleted something before the other one goes on."""
        with Checkpoints(f"{folder}/{name}", keep=3, keep_every=2) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, shifted(step), {"seen": step})
            checkpoints.wait()
            read = checkpoints._restore

            def read_and_wait(*arguments):
                restored = read(*arguments)
                time.sleep(index)
                return restored

            checkpoints._restore = read_and_wait
            restored, extra = checkpoints.go_back(1, like)
            exchange("the deletion", None)
            steps = checkpoints.steps()
            for step in (2, 3):
                checkpoints.save(step, restored)
            checkpoints.wait()
            return [extra["seen"], steps, checkpoints.steps()]

    def outage():
        """Whether a restart may help if process 1 cannot reach the store."""
        with Checkpoints(f"{folder}/shared") as checkpoints:
            if index == 1:
                checkpoints._read = unavailable
            try:
                checkpoints.restore(like)
            except UsageError as error:
                return [str(error), error.restart]

    def end_of_limit():
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        exchange("the end of the limit", None)

    results = {"nothing": attempt(lambda: restore("shared"))}
    results["saved"] = attempt(lambda: save("shared", (1, 2, 3)))
    results["restored"] = attempt(lambda: restore("shared"))
    results["went back"] = attempt(lambda: go_back("back"))
    # From here on process 1 has a folder of its own with the same checkpoints, as if its host could
    # not read all files.
    if index == 1:
        copy = pathlib.Path(folder) / "copy"
        shutil.copytree(f"{folder}/shared", copy)
        files = [*(copy / "2").rglob("d/*"), *(copy / "3").rglob("d/*")]
        for file in files:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    exchange("the copy", None)
    mine = "copy" if index else "shared"
    results["outage"] = attempt(outage)
    results["unreadable"] = attempt(lambda: restore(mine))
    results["older"] = attempt(lambda: restore(mine, "older"))
    results["full"] = attempt(lambda: save("full", (1, 2), limited=1))
    end_of_limit()
    results["full on the first"] = attempt(lambda: save("full_0", (1, 2), limited=0))
    end_of_limit()
    results["still"] = attempt(lambda: restore("full"))
    results["other steps"] = attempt(lambda: restore("copy" if index else "empty"))
    with open(f"{folder}/{index}.json", "w") as file:
        json.dump(results, file)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    processes.run_together(__name__, "main", str(folder), count=2, devices=2)
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(2)], folder


def both(results, name):
    return [each[name][0] for each in results[0]]


def test_all_is_saved_and_restored(results):
    assert both(results, "nothing") == [None, None]
    assert both(results, "saved") == [3, 3]
    assert both(results, "restored") == [[3, True]] * 2


def test_all_hosts_delete_what_they_go_back_from(results):
    assert both(results, "went back") == [[1, [1], [1, 2, 3]]] * 2  # a milestone as well


def test_a_file_that_one_host_cannot_read(results):
    for message in both(results, "unreadable"):
        assert "/3 is damaged (on " in message
        assert "(process 1): " in message
        assert "The checkpoint of step 1 is intact." in message
        assert "--on_damage=older" in message


def test_a_store_that_one_host_cannot_reach(results):
    assert both(results, "outage") == [["no route", True]] * 2


def test_all_hosts_go_back_to_the_same_step(results):
    assert both(results, "older") == [[1, True]] * 2
    names = {path.name for path in (results[1] / "shared").iterdir()}
    assert names == {"1", "damaged.2", "damaged.3"}


@pytest.mark.parametrize(("name", "failing"), [("full", 1), ("full on the first", 0)])
def test_a_file_that_one_host_cannot_write(results, name, failing):
    for index, message in enumerate(both(results, name)):
        assert "File too large" in message
        if index != failing:
            assert f"(process {failing})" in message
        assert "The checkpoint of step 1 is intact" in message
    assert max(each[name][1] for each in results[0]) < 30
    assert both(results, "still") == [[1, True]] * 2


def test_folders_with_other_steps(results):
    for message in both(results, "other steps"):
        assert "differ in their checkpoints" in message
        assert "file system that all hosts share" in message
