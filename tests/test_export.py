"""The command `python -m roberta_jax.export`."""

import pytest

from roberta_jax import export, weights
from tests.support.exported import build_small


@pytest.mark.parametrize("format", export.FORMATS)
def test_the_command_exports_and_compares(tmp_path, capsys, format):
    if format == "saved_model":
        pytest.importorskip("tensorflow")
    model, params = build_small("RobertaForTokenClassification", type_vocab_size=2)
    weights.save_pretrained(tmp_path / "model", model, params)
    arguments = [str(tmp_path / "model"), str(tmp_path / "out"), f"--to={format}"]
    export.main(arguments)
    printed = capsys.readouterr().out
    assert format in printed
    assert float(printed.split()[-1]) < 1e-5
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    export.main(arguments)  # replaces the first export
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files


def test_a_source_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(SystemExit):
        export.main([str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())
