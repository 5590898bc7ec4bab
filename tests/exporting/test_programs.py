"""Exported programs: the same numbers as the model's, for any batch and length, and wrong input."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from roberta_jax import export, weights
from roberta_jax.errors import UsageError
from roberta_jax.exporting import programs
from roberta_jax.exporting.programs import export_saved_model, export_stablehlo, load_stablehlo
from tests.support import heads

# What a server does that has JAX, flax and safetensors, but not this package.
SERVER = """
import sys
import flax, numpy as np, safetensors.numpy
from jax import export
flat = safetensors.numpy.load_file("params.safetensors")
params = flax.traverse_util.unflatten_dict(flat, sep="/")
program = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
ids = np.arange(4, 14, dtype=np.int32).reshape(2, 5)
outputs = program.call(params, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
np.save("served.npy", outputs["logits"])
assert "roberta_jax" not in sys.modules
"""


def small(name, **changes):
    return heads.build(name, heads.config_of(name, num_hidden_layers=1, **changes))


def inputs_for(name, config, batch, length):
    given = heads.inputs_of(name, config, batch=batch, length=length, padded=batch > 1).given
    if config.type_vocab_size > 1:
        given["token_type_ids"] = np.ones_like(given["input_ids"])
    return {key: value.astype(np.int32) for key, value in given.items()}


@pytest.mark.parametrize("name", heads.HEADS)
def test_a_program_gives_the_models_numbers_at_any_size(tmp_path, name):
    types = 2 if name == "RobertaForQuestionAnswering" else 1
    model, params = small(name, type_vocab_size=types)
    export_stablehlo(tmp_path / "program", model, params, platforms=["cpu", "tpu"])
    program = load_stablehlo(tmp_path / "program")
    for batch, length in ((3, 12), (1, 38)):
        inputs = inputs_for(name, model.config, batch, length)
        wanted = programs.served(model)(params, inputs)
        found = program(**inputs)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], value, atol=2e-6, err_msg=key)
    signature = json.loads((tmp_path / "program" / "signature.json").read_text())
    assert set(signature["inputs"]) == set(inputs)
    assert set(signature["outputs"]) == set(wanted)
    assert signature["platforms"] == ["cpu", "tpu"]


def test_a_server_needs_no_package_of_ours(tmp_path):
    model, params = small("RobertaForMaskedLM")
    export_stablehlo(tmp_path / "program", model, params)
    subprocess.run([sys.executable, "-c", SERVER], cwd=tmp_path / "program", check=True)
    ids = np.arange(4, 14).reshape(2, 5)
    wanted = model.apply({"params": params}, ids).logits
    np.testing.assert_allclose(np.load(tmp_path / "program" / "served.npy"), wanted, atol=2e-6)


@pytest.mark.parametrize("name", ["RobertaForSequenceClassification", "RobertaForMultipleChoice"])
def test_a_saved_model_gives_the_models_numbers_at_any_size(tmp_path, name):
    tf = pytest.importorskip("tensorflow")
    model, params = small(name)
    export_saved_model(tmp_path / "saved", model, params)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    serve = loaded.signatures["serving_default"]
    for batch, length in ((3, 12), (1, 38)):
        inputs = inputs_for(name, model.config, batch, length)
        wanted = programs.served(model)(params, inputs)
        found = serve(**{key: tf.constant(value) for key, value in inputs.items()})
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key].numpy(), value, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("form", export.FORMS)
def test_the_command_exports_and_compares(tmp_path, capsys, form):
    if form == "saved_model":
        pytest.importorskip("tensorflow")
    model, params = small("RobertaForTokenClassification", type_vocab_size=2)
    weights.save_pretrained(tmp_path / "model", model, params)
    export.main([str(tmp_path / "model"), str(tmp_path / "out"), f"--to={form}"])
    printed = capsys.readouterr().out
    assert form in printed
    assert float(printed.split()[-1]) < 1e-5
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    export.main([str(tmp_path / "model"), str(tmp_path / "out"), f"--to={form}"])  # replaces it
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_wrong_input_is_told_and_nothing_is_lost(tmp_path):
    model, params = small("RobertaForMaskedLM")
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for write in (export_stablehlo, export_saved_model):
        with pytest.raises(UsageError, match=r"thesis\.txt"):
            write(folder, model, params)
    assert (folder / "thesis.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="unknown platform npu"):
        export_stablehlo(tmp_path / "program", model, params, platforms=["npu"])
    with pytest.raises(UsageError, match="holds no exported program"):
        load_stablehlo(tmp_path / "program")
    with pytest.raises(SystemExit):
        export.main([str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_programs_tell_what_they_take(tmp_path):
    model, params = small("RobertaForMaskedLM")
    export_stablehlo(tmp_path / "program", model, params, platforms=["cpu"])
    program = load_stablehlo(tmp_path / "program")
    ids = np.ones((1, 39), np.int32)
    with pytest.raises(ValueError, match="give attention_mask, input_ids, not input_ids"):
        program(input_ids=ids)
    with pytest.raises(ValueError, match="39 tokens; this model has positions for 38"):
        program(input_ids=ids, attention_mask=ids)
    path = pathlib.Path(tmp_path / "program" / "model.stablehlo")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match="is damaged"):
        load_stablehlo(tmp_path / "program")


def test_parameters_keep_their_type(tmp_path):
    model, params = small("RobertaForMaskedLM")
    half = jax.tree.map(lambda x: x.astype(np.float16), params)
    export_stablehlo(tmp_path / "program", model, half, platforms=["cpu"])
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "program" / "params.safetensors")
    assert {value.dtype for value in stored.values()} == {np.dtype("float16")}
