"""Reads the pickles in PyTorch's files without running the code in them.

A pickle is a program that can call any function of any module. This unpickler accepts a short list
of names, maps them to constructors of its own that only hold data, and refuses all others. PyTorch
is not needed. A tensor is returned as a description of the data it refers to.

The names are those of `torch/_utils.py` and `torch/serialization.py`.
"""

import io
import pickle
import pickletools
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.weights.tensors import element_span

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")
_BUILTINS = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names in Python 2


class Storage:
    """The data that one or more tensors share.

    Attributes:
      dtype: NumPy's name of the elements' type.
      key: The name of the storage in the file.
      count: The number of elements.
      start: The offset of the data in the file, in bytes. The reader of the file's format sets it.
      checksum: The checksum of the data, if the file has one; set by the same.
    """

    __slots__ = ("checksum", "count", "dtype", "key", "start")

    def __init__(self, dtype: str, key: str, count: int):
        self.dtype, self.key, self.count = dtype, key, count
        self.start = self.checksum = None


class PickledTensor:
    """A tensor in a pickle: a view of a storage, with offset and strides in elements."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


class Inert:
    """A placeholder for an object of an unknown class, which is not created.

    Attributes:
      arguments, state: The arguments and the state that the pickle has for the object.
    """

    __slots__ = ("arguments", "state")

    def __new__(cls, *arguments, **named):
        self = object.__new__(cls)
        self.arguments, self.state = arguments, named
        return self

    def __setstate__(self, state):
        self.state = state

    def append(self, value):
        """Does nothing: the items of list-like objects are dropped."""

    def extend(self, values):
        """Does nothing; see `append`."""

    def __setitem__(self, key, value):
        """Does nothing; see `append`."""


def load(file: BinaryIO, name: str, inert: bool = False) -> Any:
    """Reads one pickle from the current position of a file.

    Args:
      file: A binary file. Its position afterwards is the end of the pickle.
      name: The name of the file in error messages.
      inert: Whether objects of packages outside Python's standard library become `Inert`
        placeholders. If False, they are errors. In both cases nothing is imported.

    Returns:
      Dictionaries, lists, numbers and strings, with a `PickledTensor` for each tensor.

    Raises:
      UsageError: The pickle refers to a name that is not on the list, or is damaged.
    """
    start = file.tell()
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name.startswith("EXT"):
                raise _forbidden(name, f"extension {argument}")
            if "PUT" in operation.name and int(argument) > file.tell() - start:
                raise ValueError("a memo index out of range")
        size = file.tell() - start
        file.seek(start)
        return _Unpickler(io.BytesIO(file.read(size)), name, inert).load()
    except UsageError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise UsageError(
            f"{name} is damaged or cut short ({type(error).__name__}: {error}); fetch or write it "
            "again"
        ) from error


def plain(value: Any) -> Any:
    """Converts namespaces and omegaconf's nodes to dictionaries, lists and plain values.

    Any other `Inert` object becomes None.
    """
    if isinstance(value, Inert):
        state = value.state
        if isinstance(state, dict):
            for key in ("_content", "_val"):
                if key in state:
                    return plain(state[key])
            if type(value).__name__ == "argparse.Namespace":
                return plain(state)
        return None
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _forbidden(file: str, what: str) -> UsageError:
    return UsageError(
        f"{file} was not read: it names {what}, and a weight file may contain only tensors and "
        "plain data. No code in it was run. If you trust its origin, load it with the program that "
        "wrote it and save the weights as safetensors"
    )


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, name: str, inert: bool):
        super().__init__(file)
        self._name = name
        self._inert = inert
        self._storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = _BUILTINS.get(module, module)
        full = f"{module}.{name}"
        if full in _KNOWN:
            return _KNOWN[full]
        if module in _STORAGE_MODULES and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        root = module.split(".")[0]
        if self._inert and root not in sys.stdlib_module_names:
            return type(full, (Inert,), {"__slots__": ()})
        raise _forbidden(self._name, full)

    def persistent_load(self, described: Any) -> Storage:
        kind, storage_type, key, _, count, *view = described
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ValueError(f"a persistent object of kind {kind!r}")
        if any(part is not None for part in view):
            raise ValueError("a view of a storage, which PyTorch wrote before version 0.4")
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage without name or size")
        storage = self._storages.setdefault(key, Storage(storage_type.dtype, key, count))
        if storage.dtype != storage_type.dtype:
            raise ValueError(f"storage {key!r} has two types")
        return storage


class _Constructor:
    """A function that a pickle may call. It is immutable, so that no pickle can replace it."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable):
        object.__setattr__(self, "_build", build)

    def __call__(self, *arguments):
        return self._build(*arguments)

    def __setattr__(self, name, value):
        raise AttributeError(name)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a pickle that changes a constructor")


class _StorageType:
    __slots__ = ("dtype",)

    def __init__(self, dtype: str):
        object.__setattr__(self, "dtype", dtype)

    __setattr__ = _Constructor.__setattr__
    __setstate__ = _Constructor.__setstate__


class _Dictionary(dict):
    """An OrderedDict without the attributes that PyTorch sets on state dicts."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


def _tensor(storage, offset, shape, strides, *_) -> PickledTensor:
    """PyTorch's `_rebuild_tensor_v2`, with checks that the view is within its storage."""
    shape, strides = tuple(shape), tuple(strides)
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor without storage, or of negative size")
    if len(shape) != len(strides) or offset + element_span(shape, strides) > storage.count:
        raise ValueError("a tensor that reaches past its storage")
    if len(shape) > 32 or int(np.prod([float(n) for n in shape])) > max(storage.count, 1):
        raise ValueError("a tensor that repeats its storage")
    return PickledTensor(storage, offset, shape, strides)


def _parameter(tensor, *_) -> PickledTensor:
    if not isinstance(tensor, PickledTensor):
        raise ValueError("a parameter that is not a tensor")
    return tensor


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _Constructor(_tensor),
    "torch._utils._rebuild_tensor_v2": _Constructor(_tensor),
    "torch._utils._rebuild_parameter": _Constructor(_parameter),
    "torch._utils._rebuild_parameter_with_state": _Constructor(_parameter),
    "torch.Size": _Constructor(lambda numbers=(): tuple(numbers)),
    "collections.OrderedDict": _Constructor(lambda items=(): _Dictionary(items)),
    "collections.defaultdict": _Constructor(lambda factory=None, items=(): _Dictionary(items)),
    "collections.Counter": _Constructor(lambda items=(): _Dictionary(items)),
    "argparse.Namespace": type("argparse.Namespace", (Inert,), {"__slots__": ()}),
    "_codecs.encode": _Constructor(_bytes),
    "pathlib.PosixPath": _Constructor(lambda *parts: "/".join(map(str, parts))),
    "pathlib.WindowsPath": _Constructor(lambda *parts: "\\".join(map(str, parts))),
    "typing.Any": type("typing.Any", (Inert,), {"__slots__": ()}),
    **{
        f"builtins.{kind.__name__}": _Constructor(kind)
        for kind in (set, frozenset, list, tuple, dict, complex, int, float, bool, str)
    },
}
