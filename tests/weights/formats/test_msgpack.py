"""Flax's files, written and read by Flax and by this package."""

import json

import flax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.weights.formats import msgpack
from roberta_jax.weights.names import unstack_layers
from tests.support.checkpoints import assert_trees_equal, build


def test_flax_reads_what_is_written_and_vice_versa(tmp_path):
    tree = {"a": {"kernel": np.arange(6.0).reshape(2, 3), "scale": np.float16([1, 2])}}
    tree["b"] = {str(i): {"bias": jnp.full(3, i, jnp.bfloat16)} for i in range(20)}
    flat = traverse_util.flatten_dict(tree)
    specs = {path: (x.shape, np.dtype(x.dtype)) for path, x in flat.items()}
    arrays = [(path, np.asarray(flat[path])) for path in reversed(flat)]
    msgpack.write(tmp_path / "ours", specs, arrays)
    assert_trees_equal(flax.serialization.msgpack_restore((tmp_path / "ours").read_bytes()), tree)
    (tmp_path / "theirs").write_bytes(flax.serialization.msgpack_serialize(tree))
    arrays = {path: x.read() for path, x in msgpack.read(tmp_path / "theirs").items()}
    assert_trees_equal(arrays, flat)


def test_arrays_in_pieces_are_read_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100)
    monkeypatch.setattr(msgpack, "_CHUNK_BYTES", 100)
    tree = {"x": {"kernel": np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)}}
    flat = traverse_util.flatten_dict(tree)
    specs = {path: (x.shape, x.dtype) for path, x in flat.items()}
    msgpack.write(tmp_path / "ours", specs, flat.items())
    theirs = flax.serialization.msgpack_serialize(tree)
    assert_trees_equal(flax.serialization.msgpack_restore((tmp_path / "ours").read_bytes()), tree)
    (tmp_path / "theirs").write_bytes(theirs)
    for name in ("ours", "theirs"):
        [array] = msgpack.read(tmp_path / name).values()
        np.testing.assert_array_equal(array.read(), tree["x"]["kernel"])
        transposed = np.empty((9, 7), np.float64)
        array.T.read_into(transposed)
        np.testing.assert_array_equal(transposed, tree["x"]["kernel"].T)


def test_flax_shards_are_read_through_their_index(tmp_path):
    model, params = build("RobertaForMaskedLM")
    weights.save_pretrained(tmp_path / "out", model, params, format="flax")
    (tmp_path / "out" / "flax_model.msgpack").unlink()
    flat = traverse_util.flatten_dict(unstack_layers(params), sep="/")
    files = {}
    for i, names in enumerate((sorted(flat)[::2], sorted(flat)[1::2]), start=1):
        file = f"flax_model-{i:05}-of-00002.msgpack"
        data = flax.serialization.msgpack_serialize({name: flat[name] for name in names})
        (tmp_path / "out" / file).write_bytes(data)
        files |= dict.fromkeys(names, file)
    index = tmp_path / "out" / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_trees_equal(weights.read_pretrained(tmp_path / "out")[1], params)


@pytest.mark.parametrize("size", [0, 1, 50, 5000])
def test_a_truncated_flax_file_is_an_error(size, tmp_path):
    weights.save_pretrained(tmp_path / "out", *build("RobertaModel"), format="flax")
    file = tmp_path / "out" / "flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UsageError, match=r"flax_model\.msgpack.* cut short"):
        weights.read_pretrained(tmp_path / "out")
