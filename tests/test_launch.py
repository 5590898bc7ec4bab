"""The command `launch`."""

import http.server
import os
import subprocess
import sys
import threading

import pytest

from roberta_jax import launch
from roberta_jax.launching import environment
from roberta_jax.training import clusters
from tests.support import processes


def ends(*arguments):
    with pytest.raises(SystemExit) as error:
        launch.main(list(arguments))
    return error.value.code


def test_it_prints_what_it_would_run(capsys, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    options = ["--dry_run", "--compile_cache=gs://b/a cache", "--processes=2"]
    assert ends(*options, "--", "python", "-m", "roberta_jax.pretrain", "--workdir=a b") == 0
    assert capsys.readouterr().out.splitlines() == [
        "export JAX_COMPILATION_CACHE_DIR='gs://b/a cache'",
        "export PYTHONFAULTHANDLER=1",
        "export PYTHONUNBUFFERED=1",
        f"{sys.executable} -m roberta_jax.pretrain '--workdir=a b' --distributed",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command to run"),
        (["--", "pretrian"], "'pretrian' is neither a program nor a command"),
        (["--processes=0", "--", "true"], "'0' is no whole number from 1"),
        (["--backoff=soon", "--", "true"], "'soon' is no number of seconds"),
        (["--stalled_after=nan", "--", "true"], "'nan' is no number of seconds"),
        (["--proc=2", "--", "true"], "unrecognized arguments: --proc=2"),
    ],
)
def test_wrong_calls_start_nothing(capsys, arguments, message):
    assert ends(*arguments) == 2
    assert message in capsys.readouterr().err


def test_the_supervisor_imports_no_library():
    code = (
        "import sys\n"
        "from roberta_jax import launch\n"
        "assert launch.launch(['--', sys.executable, '-c', '']) == 0\n"
        "heavy = {'absl', 'etils', 'flax', 'jax', 'ml_collections', 'numpy', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of a TPU VM that belongs to one of two slices."""

    def do_GET(self):
        known = self.path == "/tpu-env" and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b"ACCELERATOR_TYPE: 'v5litepod-16'\nMEGASCALE_NUM_SLICES: '2'\n")

    def log_message(self, *arguments):
        pass


def test_slices_of_tpu_vms_get_their_flags(capsys, tmp_path, monkeypatch):
    (tmp_path / "chip").mkdir()
    (tmp_path / "chip" / "vendor").write_text("0x1ae0\n")
    for name in [name for name in os.environ if name.startswith(("TPU_", "LIBTPU_", "MEGASCALE_"))]:
        monkeypatch.delenv(name)
    flags = f"export LIBTPU_INIT_ARGS={environment.MULTISLICE_FLAGS}"
    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(clusters, "_METADATA", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(clusters, "_METADATA_TIMEOUT", 60.0)  # for a machine that is busy
        monkeypatch.setattr(clusters, "_PCI_VENDORS", f"{tmp_path}/nothing/*/vendor")
        assert ends("--dry_run", "--", "true") == 0
        assert flags not in capsys.readouterr().out.splitlines()
        monkeypatch.setattr(clusters, "_PCI_VENDORS", f"{tmp_path}/*/vendor")
        assert ends("--dry_run", "--", "true") == 0
        assert flags in capsys.readouterr().out.splitlines()
        server.shutdown()


def test_a_wrong_number_of_slices_starts_nothing(capsys, monkeypatch):
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "two")
    assert ends("--", "true") == 2
    assert "MEGASCALE_NUM_SLICES='two' is not an integer" in capsys.readouterr().err


def test_the_status_is_that_of_the_command():
    assert launch.launch(["--", sys.executable, "-c", "import sys; sys.exit(2)"]) == 2
