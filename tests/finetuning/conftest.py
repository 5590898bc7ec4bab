"""A model to start from, shared by the tests of fine-tuning."""

import pytest

from tests.support import finetuning


@pytest.fixture(scope="session")
def base_model(tmp_path_factory):
    """The folder of a small masked language model with random parameters."""
    return finetuning.write_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for encoded examples."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def rte(tmp_path_factory):
    """A folder with small files as those of RTE."""
    folder = tmp_path_factory.mktemp("glue") / "RTE"
    finetuning.write_rte(folder)
    return folder


@pytest.fixture
def run_config(base_model, cache):
    """(task, **changes) -> the config of a run of a few steps."""

    def make(task, /, **changes):
        return finetuning.small_run(task, base_model, cache, **changes)

    return make
