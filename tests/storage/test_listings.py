"""Listings of a bucket never come from a cache, whoever imports fsspec first."""

import importlib
import importlib.util
import json

import pytest

from tests.support import processes

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs gcsfs")


def open_bucket():
    """Prints how gs:// is opened, and with which options."""
    import fsspec

    files = fsspec.filesystem("gs", token="anon")
    options = fsspec.config.conf["gcs"]
    print(json.dumps({"cached": files.dircache.use_listings_cache, "options": options}))


def open_bucket_after(first):
    """The same where the module `first` was imported before this package."""
    importlib.import_module(first)
    importlib.import_module("roberta_jax.storage")
    open_bucket()


@pytest.mark.parametrize("first", ["roberta_jax.storage", "gcsfs"])
@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("{}", {}),
        ('{"timeout": 7}', {"timeout": 7}),
        ('{"timeout": 7, "use_listings_cache": true}', {"timeout": 7}),
        ("7", {}),
        ("{", {}),
    ],
)
def test_listings_are_not_cached(first, given, options):
    shown = processes.run(__name__, "open_bucket_after", first, FSSPEC_GCS=given)
    found = json.loads(shown)
    assert not found["cached"]
    assert found["options"] == {**options, "use_listings_cache": False}
