"""PyTorch's files: reading agrees with PyTorch, and PyTorch reads what is written."""

import argparse
import collections
import json
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.weights.formats import pytorch, unpickler
from roberta_jax.weights.tensors import LazyTensor
from tests.support.pickles import archive, tensor_pickle

CONFIG = RobertaConfig.base(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=20,
)


def test_views_of_a_storage_are_read(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    entries = [("data/0", numbers.tobytes())]
    for offset, shape, strides in [
        (0, (2, 3), (3, 1)), (0, (3, 2), (1, 3)), (1, (2, 2), (3, 1)),
        (5, (), ()), (0, (0, 4), (4, 1)),
    ]:  # fmt: skip
        path = archive(tmp_path / "x.bin", tensor_pickle(offset, shape, strides), entries)
        expected = np.lib.stride_tricks.as_strided(
            numbers[offset:], shape, [4 * step for step in strides]
        )
        np.testing.assert_array_equal(pytorch.state_dict(path)["a"].read(), expected)


def test_damaged_archives_are_errors(tmp_path):
    data = tensor_pickle(0, (6,), (1,))
    numbers = ("data/0", bytes(24))

    def assert_error(message, path):
        with pytest.raises(UsageError, match=message):
            pytorch.state_dict(path)

    assert_error("compressed", archive(tmp_path / "a", data, [numbers], zipfile.ZIP_DEFLATED))
    assert_error("lacks the data of '0'", archive(tmp_path / "b", data))
    short = archive(tmp_path / "c", data, [("data/0", bytes(20))])
    assert_error("cut short: '0' has 20 of its 24", short)
    assert_error("big-endian", archive(tmp_path / "d", data, [numbers, ("byteorder", b"big")]))
    with zipfile.ZipFile(tmp_path / "e", "w") as file:
        file.writestr("readme.txt", "hello")
    assert_error("not one of PyTorch's", tmp_path / "e")
    whole = archive(tmp_path / "f", data, [numbers]).read_bytes()
    for size in (0, 3, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "f").write_bytes(whole[:size])
        assert_error("cut short", tmp_path / "f")
    (tmp_path / "g").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert_error("Git LFS", tmp_path / "g")
    (tmp_path / "h").write_bytes(b"<html>404</html>")
    assert_error("not written by PyTorch", tmp_path / "h")


def test_a_legacy_file_with_a_wrong_head_is_an_error(tmp_path):
    head = pickle.dumps(pytorch._MAGIC, 2) + pickle.dumps(1000, 2) + pickle.dumps({}, 2)
    (tmp_path / "x.bin").write_bytes(head)
    with pytest.raises(UsageError, match="unknown version"):
        pytorch.read(tmp_path / "x.bin")
    head = pickle.dumps(pytorch._MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    body = tensor_pickle(0, (6,), (1,)) + pickle.dumps(["0"], 2) + struct.pack("<q", 6)
    (tmp_path / "x.bin").write_bytes(head + body + np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(pytorch.read(tmp_path / "x.bin")["a"].read(), range(6))
    (tmp_path / "x.bin").write_bytes(head + body + bytes(20))
    with pytest.raises(UsageError, match="cut short"):
        pytorch.read(tmp_path / "x.bin")


def test_written_values_are_read_back(tmp_path):
    arrays = {0: np.arange(6, dtype=np.float32).reshape(2, 3), 1: np.float16([1, 2])}
    one, two = (pytorch.Reference(k, x.shape, x.dtype.name) for k, x in arrays.items())
    value = {
        "a": one, "b": two, "again": one, "list": [1, "é", None, True, 2.5, -(2**40)], "empty": {},
    }  # fmt: skip
    pytorch.write(tmp_path / "x.pt", value, arrays.items())
    contents = pytorch.read(tmp_path / "x.pt")
    assert contents["list"] == value["list"]
    assert contents["empty"] == {}
    np.testing.assert_array_equal(contents["a"].read(), arrays[0])
    np.testing.assert_array_equal(contents["b"].read(), arrays[1])
    assert contents["again"] == contents["a"]
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        assert file.testzip() is None
    assert all(contents[name].byte_ranges[0].start % 64 == 0 for name in "ab")


# Comparison with PyTorch


def tensors_of(torch):
    """Tensors of every type, with offsets, strides and shared storages."""
    torch.manual_seed(0)
    base = torch.randn(10, 12)
    state = collections.OrderedDict(
        whole=base,
        turned=base.T,
        part=base[2:7, 3:9:2],
        parameter=torch.nn.Parameter(torch.randn(3)),
        scalar=torch.tensor(2.5),
        nothing=torch.zeros(0, 4),
        expanded=torch.ones(1, 5),
    )
    for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"):
        state[dtype] = torch.randint(0, 100, (3, 4)).to(getattr(torch, dtype))
    state["bool"] = torch.tensor([True, False])
    return state


def as_numpy(torch, tensor):
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype("bfloat16")
    return tensor.numpy()


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_files_by_pytorch_are_read(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    state = tensors_of(torch)
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    tensors = pytorch.state_dict(tmp_path / "x.bin")
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        assert isinstance(tensors[name], LazyTensor)
        expected = as_numpy(torch, tensor)
        np.testing.assert_array_equal(tensors[name].read(), expected, strict=True)
        np.testing.assert_array_equal(tensors[name].T.read(), expected.T, strict=True)
    data = (tmp_path / "x.bin").read_bytes()
    for size in (10, 200, 1000, len(data) // 2, len(data) - 30):
        (tmp_path / "x.bin").write_bytes(data[:size])
        with pytest.raises(UsageError, match="cut short|damaged"):
            pytorch.state_dict(tmp_path / "x.bin")


@pytest.mark.parity
def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = {
        number: np.random.default_rng(number).normal(size=(3, 5)).astype(dtype)
        for number, dtype in enumerate(("float64", "float32", "float16", "bfloat16"))
    }
    model = {f"x{k}": pytorch.Reference(k, x.shape, x.dtype.name) for k, x in arrays.items()}
    state = {"args": None, "cfg": {"n": 2**33, "f": 0.1, "l": [1, "a"]}, "model": model}
    model["tied"] = model["x1"]
    pytorch.write(tmp_path / "x.pt", state, arrays.items())
    for options in ({}, {"mmap": True}):
        contents = torch.load(tmp_path / "x.pt", weights_only=True, **options)
        assert contents["cfg"] == state["cfg"]
        for k, array in arrays.items():
            np.testing.assert_array_equal(as_numpy(torch, contents["model"][f"x{k}"]), array)
        assert contents["model"]["tied"].data_ptr() == contents["model"]["x1"].data_ptr()


@pytest.mark.parity
def test_a_checkpoint_with_a_namespace_and_an_optimizer_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    state = {
        "args": argparse.Namespace(encoder_attention_heads=2, best=np.float64(3.0)),
        "model": {"w": torch.ones(2)},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "extra_state": {"epoch": 1, "device": torch.device("cpu"), "dtype": torch.float32},
    }
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pt"
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        contents = pytorch.read(path, inert=True)
        assert unpickler.plain(contents["args"]) == {"encoder_attention_heads": 2, "best": None}
        np.testing.assert_array_equal(contents["model"]["w"].read(), [1, 1])


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder_with_pytorch_model_bin_loads(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = {k: v for k, v in CONFIG.to_dict().items() if k != "architectures"}
    theirs = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**config)).eval()
    theirs.save_pretrained(tmp_path / "one", safe_serialization=False)
    theirs.save_pretrained(tmp_path / "cut", safe_serialization=False, max_shard_size="5KB")
    theirs.save_pretrained(tmp_path / "safe")
    file = tmp_path / "one" / "pytorch_model.bin"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=zipped)
    assert len(list((tmp_path / "cut").glob("*.bin"))) > 1
    expected = weights.read_pretrained(tmp_path / "safe")[1]
    for name in ("one", "cut"):
        loaded = weights.load_pretrained(tmp_path / name)
        assert loaded.weights.format == "bin"
        assert type(loaded.model) is RobertaForMaskedLM
        for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
    index = tmp_path / "cut" / "pytorch_model.bin.index.json"
    files = json.loads(index.read_text())["weight_map"]
    (tmp_path / "cut" / next(iter(files.values()))).unlink()
    with pytest.raises(UsageError, match="names files that do not exist"):
        weights.load_pretrained(tmp_path / "cut")


# Checksums


def test_every_changed_byte_of_an_archive_is_noticed(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    entries = [("data/0", numbers.tobytes())]
    for number, (shape, strides) in enumerate([((2, 3), (3, 1)), ((3, 2), (1, 3)), ((2,), (2,))]):
        path = archive(tmp_path / str(number), tensor_pickle(0, shape, strides), entries)
        data = path.read_bytes()
        start = data.index(numbers.tobytes())
        pickled = data.index(b"\x80\x02}")
        for position in (*range(start, start + 24), *range(pickled, pickled + 60)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
            with pytest.raises(UsageError, match="damaged"):
                pytorch.state_dict(path)["a"].read()


def test_an_archive_without_checksums_is_read(tmp_path):
    """PyTorch writes 0 for them after `torch.serialization.set_crc32_options(False)`."""
    numbers = np.arange(6, dtype=np.float32)
    entries = [("data/0", numbers.tobytes())]
    path = archive(tmp_path / "x.bin", tensor_pickle(0, (6,), (1,)), entries)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        for entry in file.infolist():
            data = data.replace(struct.pack("<I", entry.CRC), bytes(4))
    path.write_bytes(data)
    np.testing.assert_array_equal(pytorch.state_dict(path)["a"].read(), numbers)
