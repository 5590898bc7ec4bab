import os
import platform
import subprocess
import sys

import pytest

from roberta_jax.training import host_memory

SCRIPT = """
import os, sys
print(os.getpid(), sys.argv, os.environ.get("GLIBC_TUNABLES"))
from roberta_jax.training import host_memory
host_memory._KERNEL_SETTING = __import__("pathlib").Path(sys.argv[1])
host_memory.restart_with_huge_pages()
print("end")
"""


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A file in place of the kernel's setting, and glibc 2.36 as the C library."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    monkeypatch.setattr(host_memory, "_KERNEL_SETTING", path)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return path


def test_huge_pages_are_requested_where_the_kernel_gives_them_on_request(setting):
    assert host_memory.huge_page_environment() == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_other_tunables_stay(setting, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    tunables = "glibc.malloc.check=3:glibc.malloc.hugetlb=1"
    assert host_memory.huge_page_environment() == {"GLIBC_TUNABLES": tunables}


@pytest.mark.parametrize("case", ["set already", "always", "never", "no setting", "old", "musl"])
def test_nothing_is_requested_where_it_has_no_effect(setting, monkeypatch, case):
    if case == "set already":
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2")
    elif case == "no setting":
        setting.unlink()
    elif case in ("always", "never"):
        setting.write_text("always madvise never\n".replace(case, f"[{case}]"))
    else:
        version = {"old": ("glibc", "2.34"), "musl": ("", "")}[case]
        monkeypatch.setattr(platform, "libc_ver", lambda: version)
    assert host_memory.huge_page_environment() == {}


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.35"), reason="needs glibc 2.35")
def test_restart_keeps_process_and_arguments_and_happens_once(tmp_path):
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-W", "error", str(script), str(setting), "a b"]
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    first, second, end = output.splitlines()
    arguments = str([str(script), str(setting), "a b"])
    assert first.split(" ", 1)[1] == f"{arguments} None"
    assert second == first.replace("None", "glibc.malloc.hugetlb=1")  # the same process id
    assert end == "end"
