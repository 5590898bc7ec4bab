"""Checks before the first step that all processes of a run start from the same things."""

import contextlib
import hashlib
import importlib.metadata
import pathlib
import platform
import secrets
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
from etils import epath

from roberta_jax.dotted_keys import flatten, key_matches
from roberta_jax.errors import UsageError, listed
from roberta_jax.storage.objects import explained
from roberta_jax.training import agreement

_PACKAGE = pathlib.Path(__file__).parents[1]
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_VISIBLE_WITHIN = 20.0  # seconds: a network file system may show a new file late


def require_same_program(config: Mapping[str, Any], may_differ: Collection[str] = ()) -> None:
    """Checks that all processes run the same code with the same config.

    Args:
      config: the config as nested dictionaries.
      may_differ: dotted keys in which the hosts may differ, such as a local folder. A key that ends
        in a dot stands for all keys below it.

    Raises:
      UsageError: on every process, naming what differs and on which hosts.
    """
    if jax.process_count() == 1:
        return
    values = {
        f"--config.{key}": value if isinstance(value, bool | int | float | None) else str(value)
        for key, value in flatten(config).items()
        if not key_matches(key, may_differ)
    }
    agreement.require_equal(values, "Start all processes with the same command.", what="configs")
    versions = {name: package_version(name) for name in _PACKAGES}
    agreement.require_equal(
        {"code of roberta_jax": code_digest(), "Python": platform.python_version(), **versions},
        "Install the same versions on all hosts.",
        what="software",
    )


def require_same_data(values: Mapping[str, Any]) -> None:
    """Checks that all processes have prepared the same data, as `require_equal` does."""
    agreement.require_equal(
        values,
        "Give all hosts the same tokenizer and the same text files, or one --config.data.cache_dir "
        "that they share.",
        what="data",
    )


def check_shared(folder: epath.Path) -> None:
    """Checks that all processes see the same folder, by a file that the first one writes.

    Raises:
      UsageError: on every process, naming the hosts that do not see the file.
    """
    if jax.process_count() == 1:
        return
    token = agreement.exchange("the probe of the workdir", secrets.token_hex(8))[0]
    probe = folder / f".probe-{token}"
    primary = jax.process_index() == 0
    try:
        with agreement.together("writing to the workdir"):
            if primary:
                try:
                    with explained("write", probe):
                        probe.write_text(token)
                except OSError as error:
                    raise UsageError(
                        f"cannot write to --workdir={folder}: {error.strerror or error}."
                    ) from error
        seen = agreement.exchange(
            "reading from the workdir", [agreement.host(), _appears(probe, token)]
        )
    finally:
        if primary:
            with contextlib.suppress(Exception):  # of many types on an object store
                probe.unlink()
    blind = [host for host, sees in seen if not sees]
    if blind:
        raise agreement.agreed(
            UsageError(
                f"--workdir={folder} is not the same folder on all hosts: what {seen[0][0]} wrote "
                f"there is missing on {listed(blind)}. All processes of a run need one workdir, on "
                "a file system or an object store that all hosts share."
            )
        )


def code_digest(root: pathlib.Path = _PACKAGE) -> str:
    """Returns a digest of the names and contents of the source files in a folder.

    Args:
      root: the folder; by default that of the package.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _appears(probe: epath.Path, token: str) -> bool:
    deadline = time.monotonic() + _VISIBLE_WITHIN
    while True:
        try:
            if probe.read_text() == token:
                return True
        except Exception:  # of many types on an object store
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def package_version(package: str) -> str:
    """Returns the version of an installed package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
