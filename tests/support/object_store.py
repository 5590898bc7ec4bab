"""An object store on the local disk that allows neither appending nor renaming.

`install(root)` makes gs:// paths of this process the files below `root`, for fsspec (and with it
etils), for tensorstore as Orbax uses it, and for `roberta_jax.storage.leases`. Processes that
install the same root see the same objects. As on an object store:

- an object appears when its writer closes it, whole;
- there are no folders: one is there while an object's name begins with its name;
- objects are not appended to, and nothing is renamed: both raise `Forbidden`;
- each write gives an object another generation, on which the next one can depend.
"""

import contextlib
import fcntl
import io
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import fsspec
from etils.epath import backend as etils_backend
from etils.epath import gpath

from roberta_jax.errors import UsageError

_TEMPORARY = ".temporary"


class Forbidden(Exception):
    """Something that object stores cannot do."""


class _Upload(io.BytesIO):
    """What is written becomes the object when the file is closed."""

    def __init__(self, path: pathlib.Path, files: "ObjectFileSystem"):
        super().__init__()
        self._path, self._files = path, files

    def close(self) -> None:
        if not self.closed:
            _put(self._files.root, self._path, self.getvalue())
            self._files.log.append(("write", self._path.name))
        super().close()


def _put(root: pathlib.Path, path: pathlib.Path, data: bytes) -> None:
    temporary = root / _TEMPORARY / uuid.uuid4().hex
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, path)


class ObjectFileSystem(fsspec.AbstractFileSystem):
    """The objects below `root`.

    Attributes:
      log: ("write" or "remove", last part of the name) of all objects, in this process.
    """

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, root: pathlib.Path, **options: Any):  # fsspec adds those for gcsfs
        super().__init__(use_listings_cache=False)
        self.root = root
        self.log: list[tuple[str, str]] = []

    def _path(self, path: str) -> pathlib.Path:
        return self.root / self._strip_protocol(os.fspath(path)).strip("/")

    def _open(self, path, mode="rb", **kwargs):
        local = self._path(path)
        if "a" in mode:
            raise Forbidden(f"append to {path}")
        if mode == "rb":
            if not local.is_file():
                raise FileNotFoundError(path)
            return io.BytesIO(local.read_bytes())
        if not (self.root / local.relative_to(self.root).parts[0]).is_dir():
            raise FileNotFoundError(f"no bucket for {path}")
        return _Upload(local, self)

    def _entry(self, path: pathlib.Path) -> dict | None:
        name = str(path.relative_to(self.root))
        if path.is_file():
            stat = path.stat()
            return {"name": name, "size": stat.st_size, "type": "file", "mtime": stat.st_mtime}
        if any(child.is_file() for child in path.rglob("*")):
            return {"name": name, "size": 0, "type": "directory"}
        return None

    def info(self, path, **kwargs):
        entry = self._entry(self._path(path))
        if entry is None:
            raise FileNotFoundError(path)
        return entry

    def ls(self, path, detail=True, **kwargs):
        local = self._path(path)
        info = self.info(path)
        entries = [info]
        if info["type"] == "directory":
            found = [self._entry(child) for child in sorted(local.iterdir())]
            entries = [entry for entry in found if entry is not None]
        return entries if detail else [entry["name"] for entry in entries]

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    makedirs = mkdir

    def rmdir(self, path):
        pass

    def rm_file(self, path):
        local = self._path(path)
        if not local.is_file():
            raise FileNotFoundError(path)
        local.unlink()

    def rm(self, path, recursive=False, maxdepth=None):
        local = self._path(path)
        if local.is_file():
            local.unlink()
            self.log.append(("remove", local.name))
        elif recursive and self._entry(local) is not None:
            for child in local.rglob("*"):
                with contextlib.suppress(IsADirectoryError, PermissionError):
                    child.unlink(missing_ok=True)
        elif self._entry(local) is not None:
            raise IsADirectoryError(path)
        else:
            raise FileNotFoundError(path)

    def mv(self, path1, path2, **kwargs):
        raise Forbidden(f"rename {path1}")

    rename = move = mv

    def cp_file(self, path1, path2, **kwargs):
        with self._open(path1) as source, self._open(path2, "wb") as target:
            target.write(source.read())


class FakeObject:
    """An object with conditional writes, as `roberta_jax.storage.leases` uses it."""

    def __init__(self, path: str, root: pathlib.Path):
        self._root = root
        self._path = root / path.removeprefix("gs://")

    @contextlib.contextmanager
    def _alone(self):
        (self._root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
        with (self._root / _TEMPORARY / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _generation(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def read(self) -> tuple[bytes, int] | None:
        with self._alone():
            return (self._path.read_bytes(), self._generation()) if self._path.exists() else None

    def write(self, data: bytes, generation: int) -> int | None:
        with self._alone():
            if self._generation() != generation:
                return None
            _put(self._root, self._path, data)
            return self._generation()

    def delete(self, generation: int) -> None:
        with self._alone():
            if self._generation() == generation:
                self._path.unlink(missing_ok=True)


def install(
    root: os.PathLike | str,
    set_attribute: Callable[[Any, str, Any], None] = setattr,
    buckets: tuple[str, ...] = ("bucket",),
) -> pathlib.Path:
    """Makes gs:// paths of this process the files below `root`, and returns `root`.

    Args:
      root: the folder of the objects.
      set_attribute: replaces an attribute of a module; `monkeypatch.setattr` undoes it.
      buckets: the buckets that exist.
    """
    from orbax.checkpoint._src.path import gcs_utils

    from roberta_jax.storage import leases, objects

    root = pathlib.Path(root).absolute()
    for bucket in buckets:
        (root / bucket).mkdir(parents=True, exist_ok=True)
    files = ObjectFileSystem(root)

    def check_bucket(bucket: str, name: str, writes: bool, given: str) -> None:
        if not (root / bucket).is_dir():
            raise UsageError(f"{given}: there is no bucket {bucket!r}.")

    def kvstore(path: str) -> dict[str, str]:
        bucket, name = gcs_utils.parse_gcs_path(path, add_trailing_slash=False)
        return {"driver": "file", "path": f"{root}/{bucket}/{name}"}

    def filesystem(name: str) -> fsspec.AbstractFileSystem:
        return files if name in files.protocol else fsspec.filesystem(name)

    set_attribute(etils_backend.fsspec_backend, "_get_filesystem", filesystem)
    set_attribute(gpath, "_is_tf_installed", lambda: False)
    set_attribute(gcs_utils, "get_kvstore_for_gcs", kvstore)
    set_attribute(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    set_attribute(objects, "_is_installed", lambda package: True)
    set_attribute(objects, "_check_answers", lambda server: None)
    set_attribute(objects, "_ask_for_bucket", check_bucket)
    set_attribute(leases, "open_object", lambda path: FakeObject(path, root))
    return root


def log() -> list[tuple[str, str]]:
    """Returns a copy of the `ObjectFileSystem`'s log."""
    return list(etils_backend.fsspec_backend.fs("gs://").log)
