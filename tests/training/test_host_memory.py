import pathlib
import platform
import sys

import pytest

import roberta_jax
from roberta_jax.training.host_memory import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another allocator")
def test_it_takes_effect_with_glibc():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_it_has_no_effect_on_other_systems(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


def test_nothing_replaces_the_process_or_sets_its_environment_for_a_restart():
    """A module that runs as `__main__` may run within a notebook or a user's script."""
    for path in pathlib.Path(roberta_jax.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "os.exec" not in text, path
        assert "GLIBC_TUNABLES" not in text, path
