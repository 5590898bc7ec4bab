"""Wrong calls of the commands of `experiments`: each ends with a message, and writes nothing."""

import json
import pathlib
import shutil

import pytest

pytest.importorskip("matplotlib")

from experiments import plot_metrics, report, sweep
from experiments.study.loading import load_study
from tests.support import fake_runs, messages, toy_study

TOY = f"{toy_study.PATH}:quick"
GOOD_STUDY = pathlib.Path(toy_study.PATH).read_text()

# A study's file -> a part of the message.
FILES = {
    "syntax": ("def get_study(:\n", "line 1: SyntaxError"),
    "indentation": ("FORMS = ('a',)\n  x = 1\n", "line 2: IndentationError"),
    "null": ("FORMS = ('a',)\0", "null bytes"),
    "latin": (b"x = '\xe9'\n", "SyntaxError"),
    "empty": ("", "it has no get_study and no FORMS"),
    "no_forms": ("def get_study(form): ...\n", "it has no FORMS"),
    "no_function": ("FORMS = ('tiny',)\n", "it has no get_study"),
    "raises": ("FORMS = ('tiny',)\nint('a')\n", "line 2: ValueError: invalid literal"),
    "imports": ("import no_such_module\n", "line 1: ModuleNotFoundError"),
    "exits": ("raise SystemExit(0)\n", "line 1: SystemExit: 0"),
    "recursion": ("def f(): f()\nf()\n", "RecursionError"),
    "forms_string": ("FORMS = 'tiny'\ndef get_study(form): ...\n", "FORMS must be a tuple"),
    "forms_empty": ("FORMS = ()\ndef get_study(form): ...\n", "FORMS must be a tuple"),
    "forms_numbers": ("FORMS = (1,)\ndef get_study(form): ...\n", "FORMS must be a tuple"),
    "not_callable": ("FORMS = ('a',)\nget_study = 3\n", "get_study a function of such a name"),
    "returns_none": ("FORMS = ('a',)\ndef get_study(form): ...\n", "returns NoneType"),
    "raises_later": ("FORMS = ('a',)\ndef get_study(form):\n    1 / 0\n", "line 3: ZeroDivision"),
    "no_argument": ("FORMS = ('a',)\ndef get_study(): ...\n", "TypeError: get_study() takes 0"),
}
# A change of the toy study's text -> a part of the message.
EDITS = {
    "unknown_field": (('name="toy"', 'nane="toy"'), "unexpected keyword argument 'nane'"),
    "name_path": (('name="toy"', 'name="../toy"'), "but it is '../toy'"),
    "name_number": (('name="toy"', "name=3"), "but it is 3"),
    "question": (('question="Does a larger batch help?"', "question=3"), "question is 3"),
    "base": (('base=texts.small_config("text.jsonl", "")', "base={}"), "toy: base is {}"),
    "settings_list": (("settings=settings", "settings=['a']"), "toy: settings is ['a']"),
    "settings_value": (("settings=settings", "settings={'a': 3}"), "settings is {'a': 3}"),
    "settings_name": (("settings=settings", "settings={3: {}}"), "settings is {3: {}}"),
    "no_settings": (("settings=settings", "settings={}"), "at least one setting"),
    "setting_key": (
        ("settings=settings", "settings={'LARGE (2x)': {'x': 1}}"),
        "unknown config key 'x'",
    ),
    "setting_seed": (("settings=settings", "settings={'a': {'seed': 1}}"), "changes seed"),
    "setting_json": (
        ("settings=settings", "settings={'LARGE (2x)': {'data.mixture': ({1},)}}"),
        "which config.json cannot hold",
    ),
    "seeds_none": (("seeds=(0, 1)", "seeds=()"), "at least one, each once"),
    "seeds_text": (("seeds=(0, 1)", "seeds=('a',)"), "seeds is ('a',)"),
    "seeds_string": (("seeds=(0, 1)", "seeds='01'"), "seeds is '01'"),
    "seeds_number": (("seeds=(0, 1)", "seeds=3"), "seeds is 3"),
    "seeds_bool": (("seeds=(0, 1)", "seeds=(True,)"), "seeds is (True,)"),
    "columns": (('"perplexity": "eval_perplexity"', '"perplexity": 3'), "columns is"),
    "command": (('evaluations={"measured": command}', 'evaluations={"m": "x"}'), "evaluations is"),
    "paper": (('paper={"LARGE (2x)": {', 'paper={"SMALL": {'), "name 'SMALL', which is not"),
}

OUT = "--out=out"
SWEEP = {
    "no arguments": ([], "the following arguments are required"),
    "no out": ([TOY], "arguments are required: --out"),
    "no study": (["nothing", OUT], "no study 'nothing': experiments/studies/ has"),
    "several studies": (["table", OUT], "matches several studies"),
    "empty study": (["", OUT], "no study ''"),
    "only a form": ([":tiny", OUT], "no study ''"),
    "no form": (["table2:", OUT], "has the forms tiny, paper, no ''"),
    "wrong form": (["table2:huge", OUT], "no 'huge'"),
    "two forms": (["table2:tiny:paper", OUT], "no study 'table2:tiny'"),
    "a folder": (["experiments/studies", OUT], "no study"),
    "a folder with .py": (["folder.py", OUT], "no file folder.py"),
    "a file without .py": (["file", OUT], "no study 'file'"),
    "no file": (["nowhere/x.py", OUT], "no file nowhere/x.py"),
    "a long name": ([f"{'x' * 5000}.py", OUT], "no file"),
    "not UTF-8": (["\udcff", OUT], "no study"),
    "two studies": ([TOY, "table2", OUT], "unrecognized arguments: table2"),
    "unknown flag": ([TOY, OUT, "--only=a"], "unrecognized arguments: --only=a"),
    "seeds: text": ([TOY, OUT, "--seeds=a"], "argument --seeds: invalid value 'a'"),
    "seeds: empty": ([TOY, OUT, "--seeds="], "argument --seeds: invalid value ''"),
    "seeds: comma": ([TOY, OUT, "--seeds=1,,2"], "invalid value '1,,2'"),
    "seeds: fraction": ([TOY, OUT, "--seeds=1.5"], "invalid value '1.5'"),
    "seeds: twice": ([TOY, OUT, "--seeds=1,1"], "seeds=(1, 1): at least one, each once"),
    "seeds: negative": ([TOY, OUT, "--seeds=-1"], "give whole numbers from 0 to 4294967295"),
    "seeds: large": ([TOY, OUT, f"--seeds={2**70}"], "give whole numbers from 0 to 4294967295"),
    "seeds: huge": ([TOY, OUT, f"--seeds={'9' * 5000}"], "argument --seeds: invalid value"),
    "shard: text": ([TOY, OUT, "--shard=a"], "argument --shard: invalid value 'a'"),
    "shard: zero": ([TOY, OUT, "--shard=0/2"], "invalid value '0/2'"),
    "shard: too large": ([TOY, OUT, "--shard=3/2"], "invalid value '3/2'"),
    "shard: three": ([TOY, OUT, "--shard=1/2/3"], "invalid value '1/2/3'"),
    "shard: by zero": ([TOY, OUT, "--shard=0/0"], "invalid value '0/0'"),
    "shard: no points": ([TOY, OUT, "--shard=9/9", "--print=slurm"], "has no points: the study"),
    "shard and point": ([TOY, OUT, "--shard=1/2", "--point=a"], "not allowed with argument"),
    "point: unknown": ([TOY, OUT, "--point=a"], "--point=a: no such point"),
    "point: empty": ([TOY, OUT, "--point="], "--point=: no such point"),
    "processes: zero": ([TOY, OUT, "--processes=0"], "argument --processes: invalid value '0'"),
    "processes: text": ([TOY, OUT, "--processes=all"], "invalid value 'all'"),
    "processes: negative": ([TOY, OUT, "--processes=-1"], "invalid value '-1'"),
    "print: unknown": ([TOY, OUT, "--print=pbs"], "invalid choice: 'pbs'"),
    "two actions": ([TOY, OUT, "--list", "--prepare"], "not allowed with argument"),
    "distributed": ([TOY, OUT, "--distributed"], "--distributed takes --point"),
    "set: no value": ([TOY, OUT, "--set=seq_len"], "write --set=KEY=VALUE"),
    "set: empty": ([TOY, OUT, "--set="], "write --set=KEY=VALUE"),
    "set: no key": ([TOY, OUT, "--set==3"], "unknown config key ''"),
    "set: unknown": ([TOY, OUT, "--set=seq_length=3"], "did you mean seq_len?"),
    "set: a group": ([TOY, OUT, "--set=masking=3"], "the keys are masking.dupe_factor"),
    "set: seed": ([TOY, OUT, "--set=seed=3"], "Use --seeds=3"),
    "set: no effect": (
        ["table1", OUT, "--set=data.files=missing/*.txt"],
        "data.files=missing/*.txt has no effect in any setting: it needs --set=data.source=files",
    ),
    "set: no span": ([TOY, OUT, "--set=masking.geometric_p=0.5"], "it needs --set=masking.scheme"),
    "set: no pairs": (["table1", OUT, "--set=data.dupe_factor=3"], "it needs a pair format"),
    "set: compared": ([TOY, OUT, "--set=train.steps=3"], "is what the study toy compares"),
    "set: type": ([TOY, OUT, "--set=seq_len=long"], "seq_len takes a value like 16"),
    "set: bool": ([TOY, OUT, "--set=train.deterministic=maybe"], "takes a value like False"),
    "set: literal": ([TOY, OUT, "--set=data.mixture=["], "data.mixture takes a value like ()"),
    "set: call": ([TOY, OUT, "--set=data.mixture=open('x')"], "data.mixture takes a value"),
    "set: set": ([TOY, OUT, "--set=data.mixture=({1},)"], "which config.json cannot hold"),
    "set: bytes": ([TOY, OUT, "--set=data.mixture=(b'x',)"], "which config.json cannot hold"),
    "set: nested": ([TOY, OUT, f"--set=data.mixture={'(' * 5000}"], "data.mixture takes a value"),
    "set: int keys": ([TOY, OUT, "--set=data.mixture={1: 2}"], "data.mixture takes"),
    "set: huge": ([TOY, OUT, f"--set=seq_len={'9' * 5000}"], "seq_len takes a value like 16"),
    "out: empty": ([TOY, "--out="], "--out= is empty"),
    "out: a file": ([TOY, "--out=file"], "--out=file is a file"),
    "out: below a file": ([TOY, "--out=file/below"], "is a file, and no folder"),
    "out: a workdir": ([TOY, "--out=workdir"], "--out=workdir is the workdir of a run"),
    "out: a loop": ([TOY, "--out=loop/below"], "loop is a link to nothing"),
    "out: a long name": ([TOY, f"--out={'x' * 5000}"], "File name too long"),
    "out: a device": ([TOY, "--out=/dev/null"], "--out=/dev/null is a file"),
    "out: below /proc": ([TOY, "--out=/proc/sweep/runs", "--list"], None),
    "list: a damaged workdir": ([TOY, "--out=damaged", "--list"], "metrics.jsonl is damaged"),
    "sweep: a damaged workdir": ([TOY, "--out=damaged", "--print=local"], None),
}
RUNS = "--runs=runs"
REPORT = {
    "no arguments": ([], "the following arguments are required"),
    "no runs": ([TOY], "arguments are required: --runs"),
    "nothing there": ([TOY, "--runs=nowhere"], "no point of toy has started in nowhere. First run"),
    "runs of another study": (["table1", RUNS], "no point of table1_tiny has started in runs"),
    "runs of other seeds": ([TOY, RUNS, "--seeds=7"], "pass its --set and --seeds"),
    "runs of another config": ([TOY, RUNS, "--set=seq_len=24"], "pass its --set and --seeds"),
    "runs: empty": ([TOY, "--runs="], "--runs= is empty"),
    "runs: a file": ([TOY, "--runs=file"], "--runs=file is a file"),
    "runs: a workdir": ([TOY, "--runs=workdir"], "is the workdir of a run"),
    "runs: below a file": ([TOY, "--runs=file/below"], "is a file, and no folder"),
    "runs: damaged": (
        [TOY, "--runs=damaged"],
        "metrics.jsonl is damaged: none of its lines is a record",
    ),
    "runs: damaged evaluation": ([TOY, "--runs=evaluated"], "mnli.json: .*Delete it"),
    "out: a file": ([TOY, RUNS, "--out=file"], "cannot write file"),
    "out: below a file": ([TOY, RUNS, "--out=file/below"], "cannot write file/below"),
    "out: other files": ([TOY, RUNS, "--out=project"], "has a README.md that is not of a report"),
    "out: other report": ([TOY, RUNS, "--out=reported"], "has the report of the study other"),
    "out: below /proc": ([TOY, RUNS, "--out=/proc/report"], "cannot write /proc/report"),
    "out: a long name": ([TOY, RUNS, f"--out={'x' * 5000}"], "File name too long"),
    "out: committed": ([TOY, RUNS, "--seeds=0,1,2", "--out={results}"], "are not finished, and"),
    "unknown flag": ([TOY, RUNS, "--processes=2"], "unrecognized arguments"),
    "wrong form": ([f"{TOY}er", RUNS], "no 'quicker'"),
    "a wrong change": ([TOY, RUNS, "--set=x=1"], "unknown config key 'x'"),
}
PLOT = {
    "no arguments": ([], "the following arguments are required: WORKDIR"),
    "nothing there": (["nowhere"], "no training loss in nowhere/metrics.jsonl"),
    "a file": (["file"], "no training loss in file/metrics.jsonl"),
    "twice": (["run", "run"], "run is given twice"),
    "twice, spelled twice": (["run", "run/"], "run is given twice"),
    "three times": (["run", "run", "run"], "run is given twice"),
    "one of two": (["run", "nowhere"], "no training loss in nowhere"),
    "empty": ([""], "no training loss in"),
    "the sweep's folder": (["runs"], "no training loss in runs/metrics.jsonl"),
    "no loss": (["no_loss"], "no training loss in"),
    "not UTF-8": (["not_utf8"], "metrics.jsonl is damaged: none of its lines is a record"),
    "a list": (["damaged/list"], "none of its lines is a record"),
    "no step": (["damaged/no_step"], "none of its lines is a record"),
    "text as loss": (["damaged/text"], "none of its lines is a record"),
    "metrics.jsonl is a folder": (["damaged/folder"], "cannot read damaged/folder/metrics.jsonl"),
    "out: a folder": (["run", "--out=folder.py"], "cannot write folder.py"),
    "out: nowhere": (["run", "--out=nowhere/loss.png"], "cannot write nowhere/loss.png"),
    "out: below a file": (["run", "--out=file/loss.png"], "cannot write file/loss.png"),
    "out: unknown format": (["run", "--out=loss.nonsense"], "cannot write loss.nonsense"),
    "out: empty": (["run", "--out="], "cannot write "),
    "out: no name": (["run", "--out=/"], "cannot write /"),
    "out: full": (["run", "--out=/dev/full"], "cannot write /dev/full: "),
    "unknown flag": (["run", "--set=a"], "unrecognized arguments"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    (folder / "file").write_text("")
    (folder / "folder.py").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "workdir").mkdir()
    (folder / "workdir" / "config.json").write_text("{}")
    (folder / "project").mkdir()
    (folder / "project" / "README.md").write_text("mine")
    (folder / "reported").mkdir()
    (folder / "reported" / "study.json").write_text('{"name": "other"}')
    fake_runs.write_records(folder / "run", fake_runs.records_to(4, 4))
    fake_runs.write_records(folder / "no_loss", [{"step": 1, "eval_loss": 2.0}])
    points = load_study(TOY).points()
    for point in points:
        fake_runs.finish(point, folder / "runs", perplexity=20.0)
    workdir = fake_runs.finish(points[0], folder / "evaluated", perplexity=20.0)
    (workdir / "evaluations").mkdir()
    (workdir / "evaluations" / "mnli.json").write_text("[" * 100_000)
    fake_runs.write_records(points[0].workdir(folder / "damaged"), [5])
    (folder / "not_utf8").mkdir()
    (folder / "not_utf8" / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2\xff}\n')
    for name, record in (
        ("list", []),
        ("no_step", {"loss": 2.0}),
        ("text", {"step": 1, "loss": "low"}),
    ):
        fake_runs.write_records(folder / "damaged" / name, [record])
    (folder / "damaged" / "folder" / "metrics.jsonl").mkdir(parents=True)
    for name, (text, _) in FILES.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / f"{name}.py").write_bytes(data)
    for name, ((old, new), _) in EDITS.items():
        assert old in GOOD_STUDY
        (folder / f"{name}.py").write_text(GOOD_STUDY.replace(old, new))
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(main, arguments, folder, capfd, monkeypatch):
    """Calls a command, which must not raise and not write; returns its status and its message."""
    monkeypatch.chdir(folder)
    before = contents(folder)
    results = str(pathlib.Path(report.__file__).parent / "results" / "toy")
    status = 0
    try:
        main([argument.replace("{results}", results) for argument in arguments])
    except SystemExit as stop:
        status = stop.code or 0
    assert contents(folder) == before
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    return status, errors


def check(main, arguments, message, *rest):
    status, errors = call(main, arguments, *rest)
    if message is None:
        assert status in (0, 2)
    else:
        assert status == 2
        assert all(part in errors for part in message.split(".*"))
        messages.one_screen(ValueError(errors[-4000:]))


@pytest.mark.parametrize("name", SWEEP)
def test_wrong_sweeps(name, folder, capfd, monkeypatch):
    check(sweep.main, *SWEEP[name], folder, capfd, monkeypatch)


@pytest.mark.parametrize("name", REPORT)
def test_wrong_reports(name, folder, capfd, monkeypatch):
    check(report.main, *REPORT[name], folder, capfd, monkeypatch)


@pytest.mark.parametrize("name", PLOT)
def test_wrong_plots(name, folder, capfd, monkeypatch):
    check(plot_metrics.main, *PLOT[name], folder, capfd, monkeypatch)


@pytest.mark.parametrize("name", [*FILES, *EDITS])
def test_wrong_studies(name, folder, capfd, monkeypatch):
    _, message = {**FILES, **EDITS}[name]
    form = ":evaluated" if name == "command" else ""
    arguments = [f"{name}.py{form}", OUT, "--list"]
    status, errors = call(sweep.main, arguments, folder, capfd, monkeypatch)
    assert status == 2
    assert any(each in errors for each in message.split("|")), errors
    assert name in errors or "toy" in errors or "a study's name" in errors
    arguments = [f"{name}.py{form}", RUNS]
    assert call(report.main, arguments, folder, capfd, monkeypatch)[0] == 2


def test_there_are_many_wrong_calls():
    assert len(SWEEP) + len(REPORT) + len(PLOT) + 2 * len({**FILES, **EDITS}) >= 150
    assert not FILES.keys() & EDITS.keys()


def test_a_json_report_of_a_wrong_type_is_an_error(folder, capfd, monkeypatch, tmp_path):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "study.json").write_text(json.dumps([1]))
    monkeypatch.chdir(tmp_path)
    report.main([TOY, RUNS, "--out=here"])  # a damaged report is replaced
    assert (tmp_path / "here" / "README.md").exists()
