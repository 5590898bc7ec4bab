"""The script that mounts a bucket on a host, with programs in place of apt-get and gcsfuse."""

import os
import pathlib
import subprocess

import pytest

from tests.support import processes
from tests.support.fake_gcloud import program

SCRIPT = pathlib.Path(processes.ROOT, "experiments", "launch", "mount_bucket.sh")
KEY = "/usr/share/keyrings/cloud.google.asc"


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A folder with a log of what root does, and a mount that gcsfuse makes."""
    programs = tmp_path / "bin"
    gcsfuse = f'echo gcsfuse "$@" >> {tmp_path}/log; touch {tmp_path}/mounted'
    program(programs, "new-gcsfuse", gcsfuse)
    program(programs, "mountpoint", f"[ -e {tmp_path}/mounted ]")
    program(programs, "lsb_release", "echo jammy")
    program(programs, "curl", "echo the key")
    install = f"cp {programs}/new-gcsfuse {programs}/gcsfuse"
    program(
        programs,
        "sudo",
        f'echo "$@" >> {tmp_path}/log\n'
        f'case "$1" in tee) cat >> {tmp_path}/log;; mkdir) mkdir -p "${{@: -1}}";; esac\n'
        f'case "$*" in apt-get*install*) {install};; umount*) exit 1;; esac',
    )
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path


def mount(host, *arguments):
    words = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=host)


@pytest.mark.parametrize("bucket", ["my-bucket", "gs://my-bucket"])
def test_it_installs_what_is_missing_and_mounts_once(host, bucket):
    path = host / "mnt" / "text"
    for _ in range(2):
        result = mount(host, bucket, "text", str(path))
        assert result.returncode == 0, result.stderr
    lines = (host / "log").read_text().splitlines()
    source = f"deb [signed-by={KEY}] https://packages.cloud.google.com/apt gcsfuse-jammy main"
    assert lines == [
        f"tee {KEY}",
        "the key",
        "tee /etc/apt/sources.list.d/gcsfuse.list",
        source,
        "apt-get -o DPkg::Lock::Timeout=600 update",
        "apt-get -o DPkg::Lock::Timeout=600 install -y gcsfuse",
        f"umount --lazy {path}",
        f"mkdir -p -m 777 {path}",
        f"gcsfuse --implicit-dirs --only-dir=text my-bucket {path}",
    ]


def test_it_mounts_again_after_a_reboot(host):
    path = host / "text"
    assert mount(host, "b", "text", str(path)).returncode == 0
    (host / "mounted").unlink()
    (host / "log").unlink()
    assert mount(host, "b", "text", str(path)).returncode == 0
    assert "apt-get" not in (host / "log").read_text()
    assert (host / "mounted").exists()


def test_an_installation_that_fails_is_an_error(host):
    program(host / "bin", "curl", "exit 22")
    assert mount(host, "b", "text", str(host / "text")).returncode == 22
    assert not (host / "mounted").exists()


def test_wrong_calls_do_nothing(host):
    result = mount(host, "b", "text")
    assert result.returncode == 2
    assert "give the bucket, its folder and where to mount it" in result.stderr
    assert not (host / "log").exists()
