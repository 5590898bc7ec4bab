"""Shared by all tests: a quiet CPU JAX, a compile cache, and where to find real text."""

import os
import pathlib
import tempfile

# Set before jax is imported anywhere: tests run on the CPU and share compiled programs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "roberta_jax_test_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tests compile more than they compute: without LLVM's optimizations compiling takes half the time.
# Set it to 0 to compile as users do.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("USE_TF", "0")  # keeps transformers' pipelines away from TensorFlow

import pytest


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real text that ROBERTA_JAX_DATA names; the test is skipped without it."""
    folder = os.environ.get("ROBERTA_JAX_DATA")
    if not folder:
        pytest.skip("set ROBERTA_JAX_DATA to the folder of real text to run this test")
    return pathlib.Path(folder)


def pytest_configure(config):
    """Sets what pytest-xdist has no settings for in `pyproject.toml`."""
    if hasattr(config.option, "maxworkerrestart"):
        # Keeps the order of `pytest_collection_modifyitems` with `--dist loadfile`.
        config.option.loadscopereorder = False
        # After a crash of a worker the others could wait for its tests for ever.
        config.option.maxworkerrestart = config.option.maxworkerrestart or "0"


def pytest_collection_modifyitems(items):
    """Puts the files that test whole commands first, since they take longest."""
    root = pathlib.Path(__file__).parent
    items.sort(key=lambda item: item.path.parent != root)
