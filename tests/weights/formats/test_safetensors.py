"""Reading and writing safetensors: checksums, and files that are damaged or not what they seem."""

import json
import os
import pathlib
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.weights.formats.safetensors import TensorSpec, read_weights, write_safetensors
from roberta_jax.weights.tensors import read_all
from tests.support.checkpoints import assert_trees_equal

ARRAYS = {
    "matrix": np.random.default_rng(0).normal(size=(70, 50)).astype(np.float32),
    "vector": np.arange(5, dtype=np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float16(3) * np.ones((), np.float16),
}


@pytest.fixture
def file(tmp_path):
    specs = [TensorSpec(name, array.shape, array.dtype) for name, array in ARRAYS.items()]
    write_safetensors(tmp_path / "x.safetensors", specs, ARRAYS.values())
    return tmp_path / "x.safetensors"


def read(file, transposed=False):
    tensors = read_weights(file).tensors
    if transposed:  # as kernels are read
        tensors = {name: tensor.T for name, tensor in tensors.items()}
    arrays = {name: np.empty(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    read_all((name, tensors[name], array) for name, array in arrays.items())
    return arrays


def test_other_programs_read_the_file(file):
    for name, array in load_file(file).items():
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)
    with safe_open(file, "np") as opened:
        assert opened.metadata()["format"] == "pt"
    for name, array in read(file).items():
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)
        np.testing.assert_array_equal(read(file, transposed=True)[name], ARRAYS[name].T)


@pytest.mark.parametrize("transposed", [False, True])
def test_every_changed_byte_of_a_tensor_is_noticed(file, transposed):
    data = file.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    draw = np.random.default_rng(1)
    for position in (start, len(data) - 1, *draw.integers(start, len(data), 30)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << draw.integers(8)
        file.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"x\.safetensors is damaged: the bytes of \w+ do not"):
            read(file, transposed)
    file.write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(UsageError, match="is damaged"):
        read(file, transposed)


def test_a_part_of_a_tensor_is_verified_with_the_whole(file):
    data = bytearray(file.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    part = read_weights(file).tensors["matrix"].rows(40, 50)
    np.testing.assert_array_equal(part.read(), ARRAYS["matrix"][40:50])
    data[start] ^= 1  # in row 0
    file.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        read_weights(file).tensors["matrix"].rows(40, 50).read()


def test_a_file_without_checksums_is_read(file):
    changed = {name: np.asarray(array + 1) for name, array in ARRAYS.items()}
    save_file(changed, file, metadata={"format": "pt"})  # leaves out the checksums
    assert_trees_equal(read(file), changed)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 8),
        ("layer_norm_eps", 1e-6),
        ("hidden_act", "relu"),
        ("is_decoder", True),
    ],
)
def test_a_config_that_the_weights_were_not_written_with_is_refused(folder, field, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(UsageError, match=rf"config\.json has {field}=.*were written with"):
        weights.read_pretrained(folder)
    model, _ = weights.read_pretrained(folder, **{field: value})  # on purpose
    assert getattr(model.config, field) == value


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def with_header(header, data=bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"abc",
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 10**8) + b"{",
        with_header(b"[]", b""),
        with_header(b"[" * 10**4 + b"]" * 10**4),
        with_header({"a": ENTRY, "b": ENTRY}),  # overlapping
        with_header({"a": ENTRY}),  # bytes left over
        with_header({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 16], "shape": [1]}}),
        with_header({"a": ENTRY | {"data_offsets": [8, 0]}}),
        with_header({"a": ENTRY | {"dtype": "F99"}}),
        with_header({"a": ENTRY | {"shape": [-2]}}),
        with_header({"a": ENTRY | {"shape": [1 << 40, 1 << 40]}}),
        with_header({"a": {}}),
        with_header(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
        ),
        with_header({"__metadata__": {"a": 1}, "a": ENTRY | {"shape": [4]}}),
        with_header({"__metadata__": {"roberta_jax.crc32": "x"}, "a": ENTRY}, bytes(8)),
        with_header({"__metadata__": {"roberta_jax.crc32": '{"a": 1}'}, "a": ENTRY}, bytes(8)),
        with_header({"__metadata__": {"roberta_jax.crc32": "[" * 10**5}, "a": ENTRY}, bytes(8)),
        with_header({"__metadata__": {"roberta_jax.config": "1"}, "a": ENTRY}, bytes(8)),
    ],
)
def test_a_damaged_header_is_an_error(tmp_path, contents):
    (tmp_path / "x.safetensors").write_bytes(contents)
    with pytest.raises(UsageError, match=r"x\.safetensors .*is cut short or not a safetensors"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("replace", "kind"),
    [
        (os.mkfifo, "a named pipe"),
        (os.mkdir, "a folder"),
        (lambda path: os.symlink("/dev/zero", path), "a device"),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "flax_model.msgpack",
        "model.pt",
        "model.safetensors.index.json",
        "config.json",
    ],
)
def test_only_regular_files_are_read(folder, name, replace, kind):
    (folder / name).unlink(missing_ok=True)
    if name != "config.json":
        (folder / "model.safetensors").unlink(missing_ok=True)
    replace(folder / name)
    with pytest.raises(UsageError, match=rf"{name} is {kind}"):
        weights.read_pretrained(folder)


def test_a_symbolic_link_to_itself_is_an_error(folder: pathlib.Path):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(UsageError, match=r"config\.json"):
        weights.read_pretrained(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "", "a/b"])
def test_an_index_that_names_files_elsewhere_is_refused(folder, name):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UsageError, match="names files outside its folder"):
        weights.read_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["", "{}", "null", '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 10**5]
)
def test_a_damaged_index_is_an_error(folder, text):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UsageError, match=r"index\.json .*fetch the file again"):
        weights.read_pretrained(folder)
