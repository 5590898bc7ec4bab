"""Object stores: whether one can be used, and copies of whole folders to and from it.

A folder on an object store is the objects whose names begin alike. Objects appear whole, and can be
replaced and deleted; they cannot be renamed or appended to. A folder that `upload_folder` wrote is
complete once it has the object `MANIFEST`, which is written last and holds the size and the digest
of each file. `download_folder` compares them.

gs:// is read and written through gcsfs (the extra `gcs`). The environment variable
STORAGE_EMULATOR_HOST names a server to use instead of Google's.
"""

import concurrent.futures
import contextlib
import functools
import importlib.util
import json
import logging
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from etils import epath

from roberta_jax.errors import NotFoundError, StoreUnavailable, UsageError, listed, shortened
from roberta_jax.storage.atomic import is_local, write_json
from roberta_jax.storage.reading import describe_file, new_hash
from roberta_jax.storage.store_errors import may_pass, reason, store_error

MANIFEST = "files.json"
_MANIFEST_VERSION = 1
_CHUNK_BYTES = 1 << 23
_WORKERS = 8
_PROBE_SECONDS = 10.0
_PATIENCE = 30.0  # seconds for which a request of the probe is repeated while the store fails
_ANSWER_PATIENCE = 10.0  # the same while no server answers at all
_SERVER = "https://storage.googleapis.com"
# Scheme -> the package that fsspec needs for it.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}


def check_readable(path: os.PathLike | str) -> None:
    """Checks that the library of an object store is installed; a local path is always readable.

    Raises:
      StoreUnavailable: the object store does not answer.
      UsageError: the path is on an object store that cannot be used; the message says why.
    """
    if is_local(path):
        return
    scheme = _scheme(path)
    if scheme not in _PACKAGES:
        raise UsageError(
            f"{os.fspath(path)}: {scheme}:// cannot be read; give a local folder, or one on gs://"
        )
    package = _PACKAGES[scheme]
    if not (_is_installed(package) or _is_installed("tensorflow")):
        install = "'roberta_jax[gcs]'" if scheme == "gs" else package
        raise UsageError(
            f"{os.fspath(path)} cannot be read without the package {package}: pip install {install}"
        )
    if scheme == "gs":
        server = _use_one_server()
        if _is_installed("gcsfs"):
            # It logs with a traceback what it raises.
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
            _check_answers(server)


def check_bucket(path: os.PathLike | str, *, writes: bool, option: str) -> None:
    """Checks in seconds that a folder on an object store can be used; local ones are not checked.

    Args:
      path: the folder, which need not exist.
      writes: whether it has to be writable, which writes and deletes an object in it.
      option: how the user gave it, such as "--workdir", for the messages.

    Raises:
      StoreUnavailable: the store cannot be reached, or failed for half a minute.
      UsageError: a library is missing, there are no credentials, no such bucket or no permission;
        the message says what to do.
    """
    if is_local(path):
        return
    given = f"{option}={os.fspath(path)}"
    if _scheme(path) != "gs":
        raise UsageError(
            f"{given}: runs can be kept in a local folder or on Google Cloud Storage (gs://), not "
            f"on {_scheme(path)}://. Use a local folder, and copy it there when it is finished."
        )
    if not (_is_installed("gcsfs") and _is_installed("google.cloud.storage")):
        raise UsageError(f"{given} needs the extra gcs: pip install 'roberta_jax[gcs]'")
    check_readable(path)
    bucket, name = _split(path)
    if not (bucket[:1].isalnum() and bucket[-1:].isalnum()) or ".." in name.split("/"):
        raise UsageError(f"{given} is not a folder in a bucket; give gs://BUCKET/FOLDER")
    _ask_for_bucket(bucket, name, writes, given)


@functools.cache  # of what was found to be in order; errors are not kept
def _ask_for_bucket(bucket: str, name: str, writes: bool, given: str) -> None:
    from google.api_core import exceptions
    from google.auth import exceptions as auth_exceptions
    from google.cloud.storage.retry import DEFAULT_RETRY

    options = {"retry": DEFAULT_RETRY.with_timeout(_PATIENCE), "timeout": _PROBE_SECONDS}
    doing = "read"
    try:
        client = _google_client()
        # Orbax asks for it too, and would fail at the first checkpoint.
        client.get_bucket(bucket, **options)
        if writes:
            doing = "written"
            probe = f"{name}/.probe.{secrets.token_hex(4)}".strip("/")
            blob = client.bucket(bucket).blob(probe)
            blob.upload_from_string(b"", **options)
            doing = "deleted from"
            with contextlib.suppress(exceptions.NotFound):  # deleted, but the answer was lost
                blob.delete(**options)
    except auth_exceptions.GoogleAuthError as error:
        if may_pass(error):
            raise _unreachable(given, error) from error
        raise UsageError(
            f"{given} needs credentials for Google Cloud ({reason(error)}). Run `gcloud auth "
            "application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the file of a "
            "service account's key."
        ) from error
    except exceptions.NotFound as error:
        raise UsageError(
            f"{given}: there is no bucket {bucket!r}. Check the name, or create it: "
            f"gcloud storage buckets create gs://{bucket}"
        ) from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UsageError(
            f"{given} may not be {doing} with these credentials ({_answer(error)}). The account "
            "needs the roles Storage Object User (roles/storage.objectUser) and Storage Legacy "
            "Bucket Reader (roles/storage.legacyBucketReader) on the bucket."
        ) from error
    except Exception as error:
        if "Project was not passed" in str(error):
            raise UsageError(
                f"{given} needs the name of a Google Cloud project: set GOOGLE_CLOUD_PROJECT"
            ) from error
        if may_pass(error):
            raise _unreachable(given, error) from error
        raise UsageError(f"{given} cannot be used: {reason(error)}") from error


def _unreachable(given: str, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"{given} cannot be reached: {reason(error)}. When it can be, run the same command again."
    )


def _answer(error: Exception) -> str:
    """What the server says, without the request that the library puts before it."""
    return shortened(" ".join(str(error).split()).partition(": ")[2] or str(error), 200)


def google_blob(path: str) -> Any:
    """Returns the `google.cloud.storage.Blob` of gs://BUCKET/NAME."""
    bucket, name = _split(path)
    return _google_client().bucket(bucket).blob(name)


@functools.cache
def _google_client() -> Any:
    from google.cloud import storage

    return storage.Client()


def list_files(folder: os.PathLike | str) -> dict[str, int]:
    """Returns the files below a folder, with their sizes in bytes, by their relative names.

    Args:
      folder: local or on an object store. One that does not exist has no files.
    """
    files: dict[str, int] = {}

    def add(path: epath.Path, prefix: str) -> None:
        for child in sorted(path.iterdir(), key=lambda child: child.name):
            if child.is_dir():
                add(child, f"{prefix}{child.name}/")
            else:
                files[prefix + child.name] = child.stat().length

    folder = epath.Path(folder)
    with explained("list", folder):
        if folder.is_dir():
            add(folder, "")
    return files


def is_uploaded(folder: os.PathLike | str) -> bool:
    """Whether `upload_folder` has written this folder completely."""
    with explained("read", folder):
        return (epath.Path(folder) / MANIFEST).exists()


def upload_folder(
    folder: pathlib.Path,
    target: os.PathLike | str,
    *,
    skip: Callable[[str], bool] = lambda name: False,
    on_bytes: Callable[[int], Any] = lambda count: None,
) -> None:
    """Copies the files of a local folder to an object store.

    It is for folders whose contents follow from their name, such as entries of a cache, so that it
    does not matter which of several processes writes them. After a kill, call it again.

    Args:
      folder: the local folder, with its subfolders. It may not hold a file named `MANIFEST`.
      target: the folder to write. If it is complete already, nothing is written.
      skip: tells by its relative name whether a file is left out.
      on_bytes: called with the number of bytes after each part that was copied.

    Raises:
      StoreUnavailable: the object store cannot be reached.
      UsageError: it cannot be written.
    """
    target = epath.Path(target)
    if is_uploaded(target):
        return
    names = [name for name in list_files(folder) if not skip(name)]
    if MANIFEST in names:
        raise ValueError(f"{folder} holds a file named {MANIFEST}")

    def upload(name: str) -> dict[str, Any]:
        if is_local(target):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("rb") as source, (target / name).open("wb") as sink:
            return _copy(source, sink, on_bytes)

    with explained("write", target):
        files = dict(zip(names, _in_parallel(upload, names), strict=True))
        write_json(target / MANIFEST, {"version": _MANIFEST_VERSION, "files": files})


def download_folder(
    source: os.PathLike | str,
    folder: pathlib.Path,
    *,
    on_bytes: Callable[[int], Any] = lambda count: None,
) -> None:
    """Copies a folder that `upload_folder` wrote to a local folder, and compares the digests.

    The files are collected beside `folder`, which appears when all of them are there. What a killed
    process has copied is used by the next call. One process at a time may call it for a folder.

    Args:
      source: the folder on the object store.
      folder: the local folder to create; it may not exist.
      on_bytes: called with the number of bytes after each part that was copied or found.

    Raises:
      NotFoundError: the folder on the object store is not complete.
      StoreUnavailable: the object store cannot be reached.
      UsageError: it is damaged, or cannot be read; the message says what to do.
    """
    source = epath.Path(source)
    files = _read_manifest(source)
    partial = folder.with_name(f"{folder.name}.download")
    partial.mkdir(parents=True, exist_ok=True)

    def download(name: str) -> bool:
        path = partial / name
        if path.exists() and describe_file(path) == files[name]:
            on_bytes(files[name]["bytes"])
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        with (source / name).open("rb") as reader, path.open("wb") as writer:
            return _copy(reader, writer, on_bytes) == files[name]

    try:
        with explained("read", source):
            same = _in_parallel(download, list(files))
    except FileNotFoundError as error:
        raise _damaged(source, f"a file is missing: {shortened(str(error), 200)}") from error
    damaged = [name for name, is_same in zip(files, same, strict=True) if not is_same]
    if damaged:
        for name in damaged:
            (partial / name).unlink()
        raise _damaged(
            source, f"these files differ from those that were written: {listed(damaged)}"
        )
    for extra in set(list_files(partial)) - set(files):
        (partial / extra).unlink()
    partial.rename(folder)


def _read_manifest(folder: epath.Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    try:
        with explained("read", path):
            data = path.read_bytes()
        manifest = json.loads(data.decode("utf-8"))
        if manifest["version"] > _MANIFEST_VERSION:
            raise UsageError(
                f"{folder} was written by a newer version of roberta_jax; use that one"
            )
        files = manifest["files"]
        inside = all(not pathlib.PurePosixPath(name).is_absolute() for name in files)
        if not inside or any(".." in pathlib.PurePosixPath(name).parts for name in files):
            raise ValueError("it names files outside of the folder")
        return {
            name: {"bytes": int(file["bytes"]), "blake2b": str(file["blake2b"])}
            for name, file in files.items()
        }
    except FileNotFoundError:
        raise NotFoundError(f"{folder} is not complete: it has no {MANIFEST}") from None
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read ({error})") from error


def _damaged(folder: epath.Path, reason: str) -> UsageError:
    return UsageError(
        f"{folder} is damaged: {reason}. Delete the folder, so that it is made again."
    )


def _copy(source: BinaryIO, sink: BinaryIO, on_bytes: Callable[[int], Any]) -> dict[str, Any]:
    """Copies an open file; returns the size and digest of what was copied."""
    digest, count = new_hash(), 0
    while chunk := source.read(_CHUNK_BYTES):
        sink.write(chunk)
        digest.update(chunk)
        count += len(chunk)
        on_bytes(len(chunk))
    return {"bytes": count, "blake2b": digest.hexdigest()}


def _in_parallel(function: Callable[[str], Any], names: list[str]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
        futures = [pool.submit(function, name) for name in names]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def explained(action: str, path: os.PathLike | str) -> Iterator[None]:
    """Turns the errors of an object store, which are of many types, into a UsageError.

    Raises:
      StoreUnavailable: the object store may work later.
      UsageError: it refused the request.
    """
    if not is_local(path):
        check_readable(path)
    try:
        yield
    except (UsageError, FileNotFoundError):
        raise
    except Exception as error:
        if is_local(path):
            raise
        raise store_error(f"cannot {action} {os.fspath(path)}: {reason(error)}", error) from error


def _scheme(path: os.PathLike | str) -> str:
    return os.fspath(path).split("://", 1)[0]


def _split(path: os.PathLike | str) -> tuple[str, str]:
    """The bucket, and the name within it."""
    bucket, _, name = os.fspath(path).split("://", 1)[1].partition("/")
    return bucket, name.strip("/")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package that contains it
        return False


def _use_one_server() -> str:
    """Makes tensorstore, which writes the checkpoints, use the server that the others use.

    Returns:
      The server's address.
    """
    server = os.environ.get("STORAGE_EMULATOR_HOST")
    if not server:
        return _SERVER
    if "://" not in server:
        server = f"http://{server}"
    os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", server)
    return server


@functools.cache  # of one that answers; errors are not kept
def _check_answers(server: str) -> None:
    """Asks for some seconds, where the libraries would ask again and again for a minute."""
    import requests

    deadline = time.monotonic() + _ANSWER_PATIENCE
    while True:
        try:
            requests.head(server, timeout=_PROBE_SECONDS)
            return
        except requests.RequestException as error:
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"Google Cloud Storage does not answer at {server} ({type(error).__name__}). "
                    "Check the network, and STORAGE_EMULATOR_HOST if it is set."
                ) from error
        time.sleep(1.0)
