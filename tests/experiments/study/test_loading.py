"""Studies are found by name, prefix and path, and changed from the command line."""

import pytest

from experiments.robustness.wrong_files import STUDIES
from experiments.study import loading
from experiments.study.loading import load_study
from roberta_jax.errors import UsageError
from tests.support import processes, toy_study
from tests.support.messages import one_screen


def test_load_study_finds_by_name_prefix_and_path(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "STUDIES", tmp_path)
    source = (processes.ROOT / "tests" / "support" / "toy_study.py").read_text()
    for stem in ("table1_masking", "table1_units", "table2_formats", "_shared"):
        (tmp_path / f"{stem}.py").write_text(source.replace('name="toy"', f'name="{stem}"'))
    assert load_study("table2").name == "table2_formats"
    assert load_study("table2:evaluated").origin == "table2_formats:evaluated"
    assert load_study("table1_units").origin == "table1_units:quick"
    assert load_study(str(tmp_path / "_shared.py")).name == "_shared"
    for name, message in (
        ("table1", "matches several studies: .* has table1_masking, table1_units. Give"),
        ("table3", "no study 'table3': .* has table1_masking, table1_units, table2_formats. Give"),
        ("", "no study ''"),
        ("_shared", "no study '_shared'"),
        ("nowhere/table.py:quick", "no file nowhere/table.py"),
        ("table2:paper", "has the forms quick, evaluated, wrong, failing, no 'paper'"),
    ):
        with pytest.raises(UsageError, match=message):
            load_study(name)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UsageError, match="not define a study: it has no get_study and no FORMS"):
        load_study("empty")


def test_seeds_and_changes_of_the_command_line_reach_every_point():
    changes = (
        "data.files=some/*.txt", "masking.rate=0.25", "optimizer.bias_correction=false",
        "data.max_tokens=1000", "eval.max_rows=none", "execution.remat=none",
        "data.mixture=[{'source': 'files', 'weight': 2}]",
    )  # fmt: skip
    study = load_study(toy_study.PATH, changes, seeds=[5, 6, 7])
    assert len(study.points()) == 6
    assert {point.seed for point in study.points()} == {5, 6, 7}
    for point in study.points():
        config = point.config()
        assert config.data.files == "some/*.txt"
        assert config.masking.rate == 0.25
        assert config.optimizer.bias_correction is False
        assert config.data.max_tokens == 1000
        assert config.eval.max_rows is None
        assert config.execution.remat == "none"  # a string for this key, not None
        assert config.data.mixture == ({"source": "files", "weight": 2},)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.warmup=3", "--set=train.warmup=3: unknown config key"),
        ("data.fils=x", "did you mean data.files"),
        ("data.workers=2", r"'data.workers': it was renamed, use data.num_workers\."),
        ("masking.unit=span", r"'masking.unit': it was renamed, use masking.scheme\."),
        ("seq_len", "write --set=KEY=VALUE"),
        ("seq_len=long", "seq_len takes a value like 16"),
        ("data.mixture=[", "data.mixture takes"),
        ("train.steps=9", r"train.steps is what the study toy compares \(in LARGE \(2x\)\)"),
    ],
)
def test_a_wrong_change_is_an_error(change, message):
    with pytest.raises(UsageError, match=message):
        load_study(toy_study.PATH, [change])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("syntax-error", r"cannot be loaded: line 1: SyntaxError: '\(' was never closed"),
        ("import-error", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("no-forms", "not define a study: it has no FORMS"),
        ("no-study", "not define a study: it has no get_study"),
        ("empty-forms", "FORMS must be a tuple with at least one name"),
        ("forms-number", "FORMS must be a tuple with at least one name"),
        ("returns-none", "its get_study returns NoneType"),
        ("raises", "line 3: KeyError: 'tiny'"),
        ("exits", "line 2: SystemExit: 0"),
        ("no-parameter", r"TypeError: get_study\(\) takes 0 positional arguments"),
        ("empty", "it has no get_study and no FORMS"),
    ],
)
def test_files_that_define_no_study(tmp_path, name, message):
    path = tmp_path / "study.py"
    path.write_text(STUDIES[name])
    with pytest.raises(UsageError, match=message) as error:
        load_study(str(path))
    assert str(path) in one_screen(error.value)


def test_names_and_files_that_are_no_study(tmp_path):
    path = tmp_path / "study.py"
    for contents in (b"FORMS = '\xe9'\n", b"a\0b"):
        path.write_bytes(contents)
        with pytest.raises(UsageError, match=r"cannot be loaded: .*SyntaxError"):
            load_study(str(path))
    path.unlink()
    path.mkdir()
    for name in (str(path), "x" * 5000, "x" * 5000 + ".py", "/dev/null"):
        with pytest.raises(UsageError, match=r"^no (file|study) ") as error:
            load_study(name)
        one_screen(error.value)
