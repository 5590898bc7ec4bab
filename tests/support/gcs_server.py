"""Google Cloud Storage on this machine: gcp-storage-emulator, with what it lacks.

The emulator ignores conditions on the generation of an object, which tensorstore and leases need,
and does not tell the generation of what it returns. It has no permissions: here the bucket
"forbidden" may not be seen, and "read-only" may not be written. Copies within the store, which
clients make to rename, are refused everywhere.

    python -m tests.support.gcs_server PORT
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from tests.support.processes import ROOT

BUCKETS = ("bucket", "forbidden", "read-only")


def is_installed() -> bool:
    """Whether the server and its clients are installed."""
    return all(importlib.util.find_spec(name) for name in ("gcp_storage_emulator", "gcsfs"))


def _generation(storage, bucket: str, name: str) -> int:
    from gcp_storage_emulator.exceptions import NotFound

    try:
        return int(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return 0


def _with_conditions(handler, method: str):
    """The handler of an object or of a list of objects, with conditions and permissions."""

    def handle(request, response, storage, *args, **kwargs):
        from http import HTTPStatus

        bucket = request.params.get("bucket_name")
        name = request.params.get("object_id") or request.query.get("name", [None])[0]
        if name is None and "uploadType" in request.query and isinstance(request.data, dict):
            name = request.data.get("meta", request.data).get("name")
        if bucket == "forbidden" or (bucket == "read-only" and method != "GET"):
            response.status = HTTPStatus.FORBIDDEN
            response.json({"error": {"code": 403, "message": "the account has no permission"}})
            return
        if name is not None:
            generation = _generation(storage, bucket, name)
            wanted = request.query.get("ifGenerationMatch")
            unwanted = request.query.get("ifGenerationNotMatch")
            if wanted and int(wanted[0]) != generation and "upload_id" not in request.query:
                response.status = HTTPStatus.PRECONDITION_FAILED
                response.json({"error": {"code": 412, "message": "conditionNotMet"}})
                return
            if unwanted and int(unwanted[0]) == generation and generation:
                response.status = HTTPStatus.NOT_MODIFIED
                return
            if generation:
                response["x-goog-generation"] = str(generation)
        handler(request, response, storage, *args, **kwargs)

    return handle


def _refuse(request, response, storage, *args, **kwargs):
    from http import HTTPStatus

    response.status = HTTPStatus.FORBIDDEN
    response.json({"error": {"code": 403, "message": "nothing may be copied or renamed"}})


def serve(port: int) -> None:
    """Serves until the process is killed; the objects are kept in memory."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import buckets, objects

    handlers = []
    for pattern, methods in server.HANDLERS:
        changed = {
            method: _refuse if handler in (objects.copy, objects.rewrite, objects.compose)
            else _with_conditions(handler, method) if "bucket_name" in pattern
            else handler
            for method, handler in methods.items()
        }  # fmt: skip
        handlers.append((pattern, changed))
    server.HANDLERS = tuple(handlers)
    emulator = server.create_server("127.0.0.1", port, in_memory=True)
    for bucket in BUCKETS:
        buckets.create_bucket(bucket, emulator._storage)
    emulator.start()
    signal.pause()


@contextlib.contextmanager
def running() -> Iterator[dict[str, str]]:
    """Runs the server in a process of its own; yields the environment of its clients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.gcs_server", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=1).close()
                break
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield {"STORAGE_EMULATOR_HOST": url}
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
