"""Files and folders: the Hugging Face hub, object stores, writes that are whole or not at all."""

import importlib.util
import json
import os
import pathlib
import sys


def _forbid_cached_listings() -> None:
    """Makes fsspec list a bucket anew each time, since other libraries write to the same folders.

    fsspec reads its environment variables once, when it is imported.
    """
    options = {"use_listings_cache": False}
    if (loaded := sys.modules.get("fsspec.config")) is not None:
        loaded.conf.setdefault("gcs", {}).update(options)
    try:
        of_user = json.loads(os.environ.get("FSSPEC_GCS", "{}"))
    except ValueError:
        of_user = None
    if not isinstance(of_user, dict):  # fsspec ignores it, too
        of_user = {}
    os.environ["FSSPEC_GCS"] = json.dumps(of_user | options)


# etils reaches gs:// through TensorFlow wherever that is installed, which needs settings of its own
# and retries for minutes. With the extra `gcs` there is one way, whatever else is installed. It is
# set here because etils looks once, at its first remote path.
if importlib.util.find_spec("gcsfs") is not None:
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Zonal buckets need a request for the kind of each bucket, which prints a warning where it is
    # not permitted.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    _forbid_cached_listings()


def is_local(path: os.PathLike | str) -> bool:
    """Whether a path is on a file system, and not on an object store (`gs://...`)."""
    return "://" not in os.fspath(path)


def cache_folder(cache_dir: str | None) -> pathlib.Path:
    """`config.data.cache_dir`, or where it is unset `roberta_jax` in the user's cache folder."""
    if cache_dir:
        return pathlib.Path(cache_dir).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "roberta_jax"
