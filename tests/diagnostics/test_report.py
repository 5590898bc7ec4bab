"""How results of several processes are merged and printed."""

import json

from roberta_jax.diagnostics.report import (
    WIDTH,
    Level,
    Result,
    formatted,
    merged,
    ok,
    problem,
    warning,
    worst,
)


def test_what_is_ok_everywhere_is_said_once():
    results = [[ok("memory", "8 GiB")], [ok("memory", "9 GiB")]]
    assert merged(results) == [("", ok("memory", "8 GiB"))]


def test_what_is_not_ok_says_on_which_processes():
    bad, worse = warning("memory", "1 GiB", "more"), problem("memory", "0 GiB", "more")
    results = [[ok("memory", "8 GiB")], [bad], [bad, worse]]
    assert merged(results) == [
        ("", ok("memory", "8 GiB")),
        ("processes 1, 2", bad),
        ("process 2", worse),
    ]
    assert merged([[bad], [bad]]) == [("", bad)]
    assert merged([[bad]] * 9 + [[]])[0][0] == "processes 0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_lines_fit_the_width_and_the_advice_follows():
    result = problem("compile cache", "word " * 40, "do this " * 20 + "\nor that")
    lines = formatted(result, "process 3").splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].startswith("problem  compile cache    process 3: word word")
    assert lines[-1] == " " * 26 + "-> or that"


def test_results_travel_as_json():
    result = warning("a", "b", "c")
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_the_worst_level_counts():
    assert worst([]) is Level.OK
    assert worst([ok("a", ""), problem("b", "", ""), warning("c", "", "")]) is Level.PROBLEM
