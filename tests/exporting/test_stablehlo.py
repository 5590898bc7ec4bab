"""StableHLO exports: the model's outputs at any batch size and length, and wrong input."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from roberta_jax.errors import UsageError
from roberta_jax.exporting.lowering import serving_function
from roberta_jax.exporting.stablehlo import export_stablehlo, load_stablehlo
from tests.support import heads
from tests.support.exported import build_small, inputs_for

# A server that has JAX, flax and safetensors, but not this package.
SERVER = """
import sys
import flax, numpy as np, safetensors.numpy
from jax import export
flat = safetensors.numpy.load_file("params.safetensors")
params = flax.traverse_util.unflatten_dict(flat, sep="/")
program = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
ids = np.arange(4, 14, dtype=np.int32).reshape(2, 5)
outputs = program.call(params, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
np.save(sys.argv[1] + "/served.npy", outputs["logits"])
assert "roberta_jax" not in sys.modules
"""


@pytest.fixture(scope="module")
def masked_lm():
    return build_small("RobertaForMaskedLM")


@pytest.fixture(scope="module")
def exported(masked_lm, tmp_path_factory):
    """A masked LM's program for every platform; tests must not change it."""
    folder = tmp_path_factory.mktemp("exported") / "program"
    export_stablehlo(folder, *masked_lm)
    return folder


@pytest.mark.parametrize("name", heads.HEADS)
def test_a_program_returns_the_models_outputs_at_any_size(tmp_path, name):
    types = 2 if name == "RobertaForQuestionAnswering" else 1
    model, params = build_small(name, type_vocab_size=types)
    export_stablehlo(tmp_path / "program", model, params, platforms=["cpu", "tpu"])
    program = load_stablehlo(tmp_path / "program")
    for batch, length in ((3, 12), (1, 38)):
        inputs = inputs_for(name, model.config, batch, length)
        expected = serving_function(model)(params, inputs)
        outputs = program(**inputs)
        assert outputs.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(outputs[key], value, atol=2e-6, err_msg=key)
    signature = json.loads((tmp_path / "program" / "signature.json").read_text())
    assert set(signature["inputs"]) == set(inputs)
    assert set(signature["outputs"]) == set(expected)
    assert signature["platforms"] == ["cpu", "tpu"]


def test_a_server_does_not_need_this_package(masked_lm, exported, tmp_path):
    model, params = masked_lm
    subprocess.run([sys.executable, "-c", SERVER, str(tmp_path)], cwd=exported, check=True)
    ids = np.arange(4, 14).reshape(2, 5)
    expected = model.apply({"params": params}, ids).logits
    np.testing.assert_allclose(np.load(tmp_path / "served.npy"), expected, atol=2e-6)


def test_wrong_input_is_an_error_and_other_files_are_not_replaced(masked_lm, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        export_stablehlo(folder, *masked_lm)
    assert (folder / "thesis.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="unknown platform npu"):
        export_stablehlo(tmp_path / "program", *masked_lm, platforms=["npu"])
    with pytest.raises(UsageError, match="holds no exported program"):
        load_stablehlo(tmp_path / "program")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_wrong_inputs_of_a_program_are_errors(exported):
    program = load_stablehlo(exported)
    ids = np.ones((1, 39), np.int32)
    with pytest.raises(ValueError, match="give attention_mask, input_ids, not input_ids"):
        program(input_ids=ids)
    with pytest.raises(ValueError, match="39 tokens; this model has positions for 38"):
        program(input_ids=ids, attention_mask=ids)


def test_a_truncated_program_is_an_error(exported, tmp_path):
    folder = tmp_path / "program"
    folder.mkdir()
    for file in exported.iterdir():
        size = 1000 if file.name == "model.stablehlo" else None
        (folder / file.name).write_bytes(file.read_bytes()[:size])
    with pytest.raises(UsageError, match="is damaged"):
        load_stablehlo(folder)


def test_parameters_keep_their_type(masked_lm, tmp_path):
    model, params = masked_lm
    half = jax.tree.map(lambda x: x.astype(np.float16), params)
    export_stablehlo(tmp_path / "program", model, half, platforms=["cpu"])
    tensors = load_file(tmp_path / "program" / "params.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float16")}
