"""The campaign of wrong calls: what it calls, how it judges, and some of its calls."""

import collections
import json
import pathlib

import pytest

from configs.pretrain import get_config
from experiments.robustness import wrong_calls
from experiments.robustness.forked_runs import Run
from experiments.robustness.wrong_call import MODULES, Call
from experiments.robustness.wrong_calls_of_configs import small_run
from roberta_jax.dotted_keys import flatten
from tests.support import processes

TRACEBACK = "Traceback (most recent call last):\n  ...\nKeyError: 3\n"


def test_there_are_hundreds_of_calls_of_every_kind():
    calls = wrong_calls.all_calls()
    kinds = collections.Counter(call.kind for call in calls)
    assert len(calls) >= 500
    assert len(calls) - kinds["config value"] >= 200
    assert {call.command for call in calls} == set(MODULES)


def test_every_key_of_the_config_is_called_wrongly():
    values = [
        call.arguments
        for call in wrong_calls.all_calls()
        if call.kind == "config value" and call.command == "pretrain"
    ]
    sound = small_run()
    for key in flatten(get_config("tiny")):
        changed = [
            argument
            for arguments in values
            for argument in arguments
            if argument.startswith(f"--config.{key}=") and argument not in sound
        ]
        assert len(changed) >= 3, key


@pytest.mark.parametrize(
    ("status", "stderr", "wrote", "seconds", "verdict"),
    [
        (2, "error: no file\n", False, 1, "refused"),
        (2, "Using a.py\nerror: no file\nAdvice.\n", False, 1, "refused"),
        (2, "usage: x\npython -m x: error: unknown\n", False, 1, "refused"),
        (0, "a warning\n", True, 30, "accepted"),
        (1, TRACEBACK, False, 1, "traceback"),
        (2, f"{TRACEBACK}error: no file\n", False, 1, "traceback"),
        (0, TRACEBACK, False, 1, "traceback"),
        (1, "error: no file\n", False, 1, "traceback"),
        (None, "", False, 60, "hang"),
        (-6, "Aborted\n", False, 1, "abort"),
        (2, "error: no file\n", True, 1, "late"),
        (2, "error: no file\n", False, 30, "late"),
        (2, "", False, 1, "unclear"),
        (2, "error: a\nerror: b\n", False, 1, "unclear"),
    ],
)
def test_verdicts(status, stderr, wrote, seconds, verdict):
    assert wrong_calls.judge(Run(status, "", stderr, seconds), wrote=wrote) == verdict


def test_the_tables_count_and_name_the_failures():
    run = Run(0, "", "", 1.0)
    answers = [
        wrong_calls.Answer(Call("export", ("a",), "model"), "refused", "error: a", run),
        wrong_calls.Answer(Call("export", ("b c",), "flags"), "hang", "", run),
        wrong_calls.Answer(
            Call("pretrain", small_run(seed=3), "config value"), "accepted", "", run
        ),
    ]
    text = wrong_calls.table(answers)
    assert "| export | 2 | 1 | 0 | 0 | 1 | 0 | 0 | 0 |" in text
    assert "| all | 3 | 1 | 1 | 0 | 1 | 0 | 0 | 0 |" in text
    assert "- hang: `export 'b c'`" in text
    assert "- `pretrain --config.seed=3 ...`" in text


# In a process of its own, because no JAX backend may exist before the calls are forked.
SAMPLE = {
    "roberta-jax": ("pretrian",),
    "pretrain": small_run(**{"train.steps": 10**20}),
    "prepare": small_run("prepare", seed=2**70),
    "fill_mask": ("no-such-model", "a <mask>"),
    "convert": ("no-such-model", "{out}", "--to=pt"),
    "export": ("no-such-model", "{out}"),
    "sweep": ("table9", "--out={out}"),
    "report": ("table1:tiny", "--runs=missing"),
    "plot_metrics": ("missing", "--out={out}.png"),
    "train_step": ("--rounds=many",),
}


def answer_some_calls(folder):
    wrong_calls.forked_runs.import_everything()
    caller = wrong_calls.Caller(pathlib.Path(folder), time_limit=120)
    calls = [Call(command, arguments, "sample") for command, arguments in SAMPLE.items()]
    answers = {answer.call.command: answer for answer in caller.call_all(calls)}
    print(json.dumps({name: [a.verdict, a.run.stderr] for name, a in answers.items()}))


def test_some_calls_are_refused(tmp_path):
    answers = json.loads(processes.run(__name__, "answer_some_calls", tmp_path))
    assert {command: verdict for command, (verdict, _) in answers.items()} == dict.fromkeys(
        SAMPLE, "refused"
    )
    assert "--config.train.steps=1000" in answers["pretrain"][1]
