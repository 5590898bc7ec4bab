"""Exchanges between processes of one machine."""

import json
import types

import jax
import pytest

from roberta_jax.errors import StoreUnavailable, UsageError
from roberta_jax.training import agreement, distributed
from roberta_jax.training.agreement import CoordinatorLost, exchange, require_equal, together
from tests.support import processes


def test_one_process_is_alone():
    assert exchange("a value", {"x": 1}) == [{"x": 1}]
    require_equal({"x": 1})
    with together("a block"):
        pass
    with pytest.raises(UsageError, match="wrong"), together("a block"):
        raise UsageError("wrong")


def test_a_coordinator_that_does_not_answer(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect")

    service = types.SimpleNamespace(key_value_set=fail)
    monkeypatch.setattr(agreement, "client", lambda: service)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(CoordinatorLost, match=r"does not answer \(UNAVAILABLE: failed") as raised:
        exchange("a value", 1)
    assert raised.value.restart


def attempt(function):
    try:
        return function()
    except UsageError as error:
        return f"{type(error).__name__}: {error}"


def agree(folder):
    """What each of three processes runs; it prints what it has got as JSON."""
    distributed.join_processes()
    index = jax.process_index()

    def fail(number):
        with together("a block"):
            if index == number:
                raise UsageError("no such file")

    def fail_before_an_exchange(number):
        with together("outer"), together("inner"):
            if index == number:
                raise UsageError("no such file")
            exchange("something", 1)
            raise AssertionError("not reached")

    def fail_all(restarts):
        """Whether a restart may help, as each process sees it, if some raise errors."""
        try:
            with together("a block"):
                if index in restarts:
                    raise (StoreUnavailable if restarts[index] else UsageError)("an error")
        except UsageError as error:
            return error.restart

    def late():
        if index != 2:
            exchange("the rows", 1, timeout=1)

    results = {
        "values": [exchange("a value", [index, number]) for number in range(3)],
        "equal": require_equal({"rows": 5, "text": "a" * 1000}),
        "different": attempt(
            lambda: require_equal({"rows": 5 + (index == 1), "text": "a" * 1000, "seed": 3})
        ),
        "long": attempt(lambda: require_equal({"text": "a" * 1000 + str(index // 2)})),
        "absent": attempt(lambda: require_equal({"seed": 1} if index else {})),
        "keys": len(agreement.client().key_value_dir_get(agreement.KEYS)),
        "no failure": attempt(lambda: fail(None)),
        "failure": attempt(lambda: fail(1)),
        "failure of the coordinator": attempt(lambda: fail(0)),
        "failure inside": attempt(lambda: fail_before_an_exchange(2)),
        "outage": fail_all({1: True}),
        "outage and mistake": fail_all({0: True, 1: False}),
        "still": exchange("a value", index),
        "elsewhere": attempt(lambda: exchange(f"point {index // 2}", index)),
        "late": attempt(late),
    }
    with open(f"{folder}/{index}", "w") as file:
        json.dump(results, file)
    jax.distributed.shutdown()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    processes.run_together(__name__, "agree", str(folder), count=3)
    return [json.loads((folder / str(index)).read_text()) for index in range(3)]


def test_values_arrive_in_the_order_of_the_processes(results):
    for each in results:
        assert each["values"] == [[[0, n], [1, n], [2, n]] for n in range(3)]
        assert each["still"] == [0, 1, 2]


def test_equal_values_are_equal(results):
    assert [each["equal"] for each in results] == [None] * 3


def test_what_differs_is_named_with_its_hosts(results):
    for each in results:
        assert each["different"] == results[0]["different"]
        name, value = each["different"].split("\n")[1].split(":", 1)
        assert name == "  rows"
        first, second = value.split("; ")
        assert first.startswith(" 5 on ")
        assert "(process 0)" in first
        assert "(process 2)" in first
        assert second.startswith("6 on ")
        assert second.endswith("(process 1)")
        assert "seed" not in each["different"]


def test_long_values_are_compared_whole_and_shown_by_their_digest(results):
    for each in results:
        assert "text:" in each["long"]
        assert len(each["long"]) < 400


def test_a_value_that_one_process_lacks(results):
    for each in results:
        assert "seed: absent on" in each["absent"]


def test_without_a_failure_nothing_happens(results):
    assert [each["no failure"] for each in results] == [None] * 3


@pytest.mark.parametrize(
    ("name", "failing"),
    [("failure", 1), ("failure of the coordinator", 0), ("failure inside", 2)],
)
def test_all_processes_fail_together(results, name, failing):
    for index, each in enumerate(results):
        if index == failing:
            assert each[name] == "UsageError: no such file"
        else:
            assert each[name].startswith("UsageError: on host ")
            assert each[name].endswith(f"(process {failing}): no such file")


def test_all_know_whether_a_restart_may_help(results):
    assert [each["outage"] for each in results] == [True, True, True]
    # The first process raises its own error, of an outage; the others also know of the mistake.
    assert [each["outage and mistake"] for each in results] == [True, False, False]


def test_processes_at_different_points(results):
    for each in results:
        assert "do different things: point 0; point 1" in each["elsewhere"]


def test_a_process_that_does_not_answer_is_named(results):
    assert results[2]["late"] is None
    for each in results[:2]:
        assert each["late"].startswith("PartnerLost: waited 1 s for the rows of process 2 of 3.")


def test_the_exchanges_leave_few_keys_behind(results):
    for each in results:
        assert 3 <= each["keys"] <= 6  # those of the last exchange, and what is not deleted yet
