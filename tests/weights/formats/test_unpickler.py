"""Pickles that contain code are refused, and no code in them runs."""

import argparse
import io
import os
import pickle
import sys

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.weights.formats import pytorch, unpickler
from tests.support.pickles import archive, tensor_pickle


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def touch(path):
    open(path, "w").close()


def attacks(marker):
    """Pickles that would leave a file behind if anything in them ran."""
    command = f"touch {marker}"
    call = pickle.dumps(Call(os.system, command), 2)
    inner = Call(getattr, Call(__import__, "os"), "system")
    return {
        "os.system": call,
        "nested in a state dict": pickle.dumps({"a": [Call(os.system, command)]}, 2),
        "builtins.eval": pickle.dumps(Call(eval, f"open({str(marker)!r}, 'w')"), 2),
        "builtins.exec": pickle.dumps(Call(exec, f"open({str(marker)!r}, 'w')"), 4),
        "nested calls": b"\x80\x02" + pickle.dumps(inner, 2)[2:-1] + b"X\x01\x00\x00\x00x\x85R.",
        "a protocol 0 GLOBAL": f"cposix\nsystem\n(S'{command}'\ntR.".encode(),
        "INST": f"(S'{command}'\nios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nS'{command}'\no.".encode(),
        "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x0cos.system\x93)R."
        .replace(b"\x8c\x0cos.system", b"\x8c\x09os.system"),
        "an extension": b"\x80\x02\x82\x01.",
        "a subprocess": b"\x80\x02csubprocess\nPopen\nX\x05\x00\x00\x00touch\x85R.",
        "a builtin as a state": pickle.dumps(Call(os.system, command, state={"a": 1}), 2),
        "this test module": pickle.dumps(Call(touch, str(marker)), 2),
    }  # fmt: skip


@pytest.mark.parametrize("inert", [False, True])
@pytest.mark.parametrize("name", sorted(attacks("")))
def test_no_code_in_a_pickle_runs(name, inert, tmp_path):
    marker = tmp_path / "it ran"
    path = archive(tmp_path / "x.bin", attacks(marker)[name])
    # With `inert`, classes of modules outside of Python's library become `Inert` objects.
    if not (inert and name in ("this test module", "a dotted name")):
        with pytest.raises(UsageError, match=r"it names [\w.]+|damaged"):
            pytorch.read(path, inert)
    else:
        assert isinstance(
            unpickler.load(io.BytesIO(attacks(marker)[name]), "x", inert), unpickler.Inert
        )
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(os.system, 2), r"posix\.system|nt\.system"),
        (pickle.dumps(eval, 2), r"builtins\.eval"),
        (pickle.dumps(getattr, 4), r"builtins\.getattr"),
        (b"\x80\x02ctorch.nn.modules.linear\nLinear\n.", r"torch\.nn\.modules\.linear\.Linear"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x01\x00\x00\x00a\x88sb.", "damaged"),
        (b"\x80\x02ccollections\nOrderedDict\nN}b.", "damaged|not hold a state dict"),
        (b"\x80\x02X\x01\x00\x00\x00r\xff\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02K\x01.", "does not hold a state dict but a int"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", r'\["a"\] are not tensors'),
    ],
)
def test_the_error_names_what_the_pickle_contains(data, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        pytorch.state_dict(archive(tmp_path / "x.bin", data))


def test_constructors_cannot_be_changed():
    """A state set on an allowed function or class would outlast the file."""
    for slots in (b"N}X\x06\x00\x00\x00_buildNs\x86", b"}X\x06\x00\x00\x00_buildNs"):
        for name in (b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage", b"builtins\nset"):
            with pytest.raises(UsageError, match="damaged"):
                unpickler.load(io.BytesIO(b"\x80\x02c" + name + b"\n" + slots + b"b."), "x")


@pytest.mark.parametrize(
    "described",
    [(1, (2, 3), (3, 1)), (0, (2, 3), (3, -1)), (-1, (2,), (1,)), (0, (7,), (1,)),
     (0, (10**6, 10**6), (0, 0)), (0, (2,), (1, 1)), (0, (True,), (1,))],
)  # fmt: skip
def test_views_beyond_a_storage_are_errors(described, tmp_path):
    entries = [("data/0", bytes(24))]
    path = archive(tmp_path / "x.bin", tensor_pickle(*described), entries)
    with pytest.raises(UsageError, match="damaged"):
        pytorch.state_dict(path)


def test_cyclic_and_deeply_nested_pickles(tmp_path):
    loop = {}
    loop["self"] = loop
    assert set(pytorch.read(archive(tmp_path / "x", pickle.dumps(loop, 2)))) == {"self"}
    data = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with pytest.raises(UsageError, match="deeper|damaged"):
        pytorch.read(archive(tmp_path / "y", data))


def test_objects_of_a_checkpoint_are_inert():
    space = argparse.Namespace(layers=2, nested={"a": (1, 2)}, other=None)
    data = pickle.dumps({"args": space, "set": {1}, "bytes": b"\xff"}, 2)
    state = unpickler.load(io.BytesIO(data), "x", inert=True)
    assert unpickler.plain(state["args"]) == {
        "layers": 2,
        "nested": {"a": [1, 2]},
        "other": None,
    }
    assert state["set"] == {1}
    assert state["bytes"] == b"\xff"

    # omegaconf's nodes keep their contents in `_content` and `_val`.
    data = (
        b"\x80\x02comegaconf.dictconfig\nDictConfig\n)\x81}X\x08\x00\x00\x00_content"
        b"}X\x01\x00\x00\x00acomegaconf.nodes\nAnyNode\n)\x81}X\x04\x00\x00\x00_valK\x07sbssb."
    )
    assert unpickler.plain(unpickler.load(io.BytesIO(data), "x", inert=True)) == {"a": 7}
    with pytest.raises(UsageError, match=r"omegaconf\.dictconfig\.DictConfig"):
        unpickler.load(io.BytesIO(data), "x")
    assert "omegaconf" not in sys.modules
