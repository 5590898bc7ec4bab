"""Files and folders: the Hugging Face hub, object stores, writes that are whole or not at all."""

import importlib.util
import os

# etils reaches gs:// through TensorFlow wherever that is installed, which needs settings of its own
# and retries for minutes. With the extra `gcs` there is one way, whatever else is installed. It is
# set here because etils looks once, at its first remote path.
if importlib.util.find_spec("gcsfs") is not None:
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Zonal buckets need a request for the kind of each bucket, which prints a warning where it is
    # not permitted.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Other libraries write to the same folders, so no listing may come from a cache.
    os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')


def is_local(path: os.PathLike | str) -> bool:
    """Whether a path is on a file system, and not on an object store (`gs://...`)."""
    return "://" not in os.fspath(path)
