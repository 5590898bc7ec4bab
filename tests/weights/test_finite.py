"""Weights that are not finite: counted, refused when they are loaded, and never saved."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from roberta_jax import weights
from roberta_jax.compat.config import FlaxRobertaConfig
from roberta_jax.compat.models import FlaxRobertaForMaskedLM
from roberta_jax.convert import convert
from roberta_jax.errors import UsageError
from roberta_jax.fill_mask import fill_mask
from roberta_jax.weights.finite import count_not_finite
from roberta_jax.weights.save import FORMATS

PATH = ("roberta", "encoder", "layer", "attention", "self", "key", "kernel")
TENSOR = "roberta.encoder.layer.1.attention.self.key.weight"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_numbers_that_are_not_finite_are_counted(dtype, monkeypatch):
    monkeypatch.setattr("roberta_jax.weights.finite._CHUNK", 100)
    largest = float(jnp.finfo(dtype).max)
    array = np.full((30, 20), largest).astype(dtype)  # the sum overflows
    array[::2] *= -1
    assert count_not_finite(array) == 0
    assert count_not_finite(array[:0]) == 0
    for i, value in enumerate((np.nan, np.inf, -np.inf), start=1):
        array[7 * i, i] = value
        assert count_not_finite(array) == i
        assert count_not_finite(array.T) == i
        assert count_not_finite(array[:, ::-1][:, :-1]) == i


def spoiled(params, value):
    """A copy of the parameters with one wrong number in layer 1."""
    flat = traverse_util.flatten_dict(params)
    flat[PATH] = np.array(flat[PATH])
    flat[PATH][1, 3, 2] = value
    return traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_they_are_not_saved_and_the_folder_is_unchanged(format, value, masked_lm, tmp_path):
    model, params = masked_lm
    weights.save_pretrained(tmp_path / "m", model, params, format=format)
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    with pytest.raises(UsageError, match=r"not saved: 1 of .*key.weight .*NaN or infinite"):
        weights.save_pretrained(tmp_path / "m", model, spoiled(params, value), format=format)
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    with pytest.raises(UsageError, match="not saved"):
        weights.save_pretrained(tmp_path / "n", model, spoiled(params, value), format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def bad_folder(masked_lm, tokenizer, tmp_path, monkeypatch):
    """Writes weights with a wrong number, as other programs do."""

    def write(value, format="hf"):
        model, params = masked_lm
        with monkeypatch.context() as context:
            context.setattr("roberta_jax.weights.save.check_before_saving", lambda *_: None)
            weights.save_pretrained(
                tmp_path / "bad", model, spoiled(params, value), tokenizer, format=format
            )
        return tmp_path / "bad"

    return write


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_they_are_not_loaded(format, value, bad_folder):
    folder = bad_folder(value, format)
    name = TENSOR.replace("roberta.", "") if format == "fairseq" else "key"
    with pytest.raises(UsageError, match="the weights are not finite: 1 of") as error:
        weights.from_pretrained(folder)
    assert name.split(".")[-1] in str(error.value)
    assert str(folder) in str(error.value)


def test_the_message_names_the_tensor_and_the_file(bad_folder):
    folder = bad_folder(np.nan)
    with pytest.raises(UsageError) as error:
        weights.from_pretrained(folder)
    assert f"values of {TENSOR} in {folder / 'model.safetensors'} are NaN" in str(error.value)


def test_values_too_large_for_a_type_are_another_error(bad_folder):
    folder = bad_folder(1e6)
    with pytest.raises(UsageError, match=r"key.weight in .* are too large for float16"):
        weights.from_pretrained(folder, param_dtype="float16")
    _, params = weights.from_pretrained(folder, param_dtype="bfloat16")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_commands_say_that_the_weights_are_at_fault(bad_folder, tmp_path):
    folder = bad_folder(np.nan)
    with pytest.raises(UsageError, match="the weights are not finite"):
        fill_mask(folder, ["a <mask>"])
    with pytest.raises(UsageError, match="the weights are not finite"):
        convert(folder, tmp_path / "converted", "flax")
    assert not (tmp_path / "converted").exists()


def test_the_drop_in_classes_refuse_them_too(bad_folder, masked_lm, tmp_path):
    with pytest.raises(UsageError, match="the weights are not finite"):
        FlaxRobertaForMaskedLM.from_pretrained(bad_folder(np.nan))
    model, params = masked_lm
    for value, problem in ((0.0, None), (np.nan, "not saved: 1 of .*key/kernel")):
        unstacked = weights.unstack_layers(spoiled(params, value))
        drop_in = FlaxRobertaForMaskedLM(
            FlaxRobertaConfig(**model.config.to_dict("RobertaForMaskedLM")), _do_init=False
        )
        with pytest.raises(UsageError, match=problem) if problem else contextlib.nullcontext():
            drop_in.save_pretrained(tmp_path / "saved", params=unstacked)
