"""What the launch commands print and run; stubs stand for the programs of the clusters."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest

from experiments.launch import gke, local, slurm, supervised, tpu_pod
from roberta_jax import launch
from roberta_jax.launching.command import DISTRIBUTED
from tests.support import processes
from tests.support.fake_gcloud import Gcloud, program, wait_for

AWKWARD = "--config.data.files=gs://b/it's $HOME/*.zst"
TRAIN = ["--", "pretrain", "--config=configs/pretrain.py:base", "--workdir=gs://b/base", AWKWARD]
POD = ["--name=base", "--zone=z"]


def printed(module, capsys, *arguments):
    module.main([*arguments, "--dry_run", *TRAIN])
    return capsys.readouterr().out


def check_supervised(words, python):
    """Checks that a command line of a host supervises the training, with the words unchanged."""
    assert words[:3] == [python, "-m", "roberta_jax.launch"]
    options, command = words[3 : words.index("--")], words[words.index("--") + 1 :]
    launch._parser().parse_args(options)
    assert command in (TRAIN[1:], [*TRAIN[1:], DISTRIBUTED])
    return options, command


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A folder of programs that come first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_gke_submits_a_workload_of_xpk(capsys):
    options = ["--cluster=c", "--zone=z", "--name=n", "--image=i", "--project=p"]
    tpu = shlex.split(printed(gke, capsys, *options, "--type=v5litepod-256", "--slices=2"))
    assert tpu[:-1] == [
        *("xpk", "workload", "create", "--workload=n", "--cluster=c", "--zone=z", "--project=p"),
        *("--tpu-type=v5litepod-256", "--num-slices=2", "--docker-image=i", "--max-restarts=50"),
    ]
    _, command = check_supervised(shlex.split(tpu[-1].removeprefix("--command=")), "python3")
    assert command[-1] == DISTRIBUTED
    gpu = shlex.split(printed(gke, capsys, *options, "--type=h200-141gb-8", "--slices=4"))
    assert {"--device-type=h200-141gb-8", "--num-nodes=4"} <= set(gpu)
    assert DISTRIBUTED in shlex.split(gpu[-1])
    assert DISTRIBUTED not in printed(gke, capsys, *options, "--type=h200-141gb-8")


def test_processes_of_one_machine_are_those_of_the_launcher(capsys):
    words = shlex.split(printed(local, capsys, "--processes=3", "--devices=4"))
    assert words[:3] == [
        "env",
        "JAX_PLATFORMS=cpu",
        "XLA_FLAGS=--xla_force_host_platform_device_count=4",
    ]
    options, command = check_supervised(words[3:], sys.executable)
    assert options == ["--processes=3"]
    assert command == TRAIN[1:]  # the launcher adds what joins the processes


def rehearsal(folder, *command):
    """Starts `local` in a folder, with one process of a program in place of the training."""
    code = (
        "from experiments.launch import local, supervised\n"
        f"command = {list(command)!r}\n"
        "supervised.supervised = lambda *_, python, **__: [python, '-m', 'roberta_jax.launch',\n"
        "    '--max_restarts=0', '--', *command]\n"
        "local.main(['--processes=1', '--devices=3', '--', 'pretrain'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("status", [0, 2, 7])
def test_the_status_of_processes_of_one_machine_is_that_of_the_run(tmp_path, status):
    process = rehearsal(tmp_path, "bash", "-c", f"echo $JAX_PLATFORMS $XLA_FLAGS; exit {status}")
    output, _ = process.communicate(timeout=60)
    assert output == "cpu --xla_force_host_platform_device_count=3\n"
    assert process.returncode == status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_processes_of_one_machine_are_stopped_by_a_signal(tmp_path, number, status):
    script = 'trap "echo saved; exit 143" TERM; trap "echo saved; exit 130" INT; echo running; '
    process = rehearsal(tmp_path, "bash", "-c", f"{script} while true; do sleep 0.05; done")
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert output == "saved\n"
    assert process.returncode == status


def test_the_environment_of_the_processes_is_not_kept(monkeypatch):
    monkeypatch.setattr(local.launch, "launch", lambda own: 0)
    before = dict(os.environ)
    local.main(["--devices=3", *TRAIN])
    assert dict(os.environ) == before


SLURM = """#!/bin/bash
#SBATCH --job-name=roberta
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --output=roberta-%j.txt
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --exclusive
#SBATCH --requeue
source env/bin/activate
cd /shared || exit 1
srun \\
  --kill-on-bad-exit=1 \\
  --cpu-bind=none \\
  python \\
"""


def test_slurm_has_a_task_for_each_node_or_gpu(capsys):
    options = [
        "--nodes=2",
        "--partition=gpu",
        "--setup=source env/bin/activate",
        "--folder=/shared",
    ]
    script = printed(slurm, capsys, *options)
    assert script.startswith(SLURM)
    assert "#SBATCH --ntasks-per-node=8\n" in printed(slurm, capsys, *options, "--tasks=gpu")
    alone = printed(slurm, capsys, "--gpus=1")
    assert DISTRIBUTED not in alone
    assert DISTRIBUTED in script


@pytest.mark.parametrize(
    ("status", "requeued"), [(143, True), (0, False), (2, False), (137, False)]
)
def test_a_slurm_job_whose_time_is_over_is_queued_again(capsys, tmp_path, stubs, status, requeued):
    program(stubs, "srun", f'printf "%s\\n" "$@" > {tmp_path}/srun; exit {status}')
    program(stubs, "scontrol", f'echo "$@" > {tmp_path}/scontrol')
    script = tmp_path / "job"
    script.write_text(printed(slurm, capsys, "--nodes=2", f"--folder={tmp_path}"))
    subprocess.run(["bash", "-n", str(script)], check=True)
    job = subprocess.run(["bash", str(script)], env={**os.environ, "SLURM_JOB_ID": "17"})
    assert job.returncode == status
    words = (tmp_path / "srun").read_text().splitlines()
    check_supervised(words[2:], "python")
    assert (tmp_path / "scontrol").exists() == requeued
    assert not requeued or (tmp_path / "scontrol").read_text() == "requeue 17\n"


def test_slurm_submits_its_script_once(tmp_path, stubs, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program(stubs, "sbatch", f'cat "$1" > {tmp_path}/submitted')
    slurm.main(["--nodes=2", *TRAIN])
    assert (tmp_path / "submitted").read_text() == (tmp_path / "roberta.sbatch").read_text()
    with pytest.raises(SystemExit) as error:
        slurm.main(["--nodes=3", *TRAIN])
    assert error.value.code == 2
    assert "roberta.sbatch exists and differs" in capsys.readouterr().err


def test_slices_are_requested(capsys):
    words = shlex.split(printed(tpu_pod, capsys, "create", *POD, "--type=v6e-64", "--spot"))
    assert words == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "base", "--zone=z"),
        *("--node-id=base", "--accelerator-type=v6e-64", "--runtime-version=v2-alpha-tpuv6e"),
        "--spot",
    ]
    several = shlex.split(printed(tpu_pod, capsys, "create", *POD, "--slices=2", "--type=v5p-128"))
    assert {"--node-count=2", "--node-prefix=base", "--runtime-version=v2-alpha-tpuv5"} <= set(
        several
    )
    old = printed(tpu_pod, capsys, "create", *POD, "--type=v4-32")
    assert "--runtime-version=tpu-ubuntu2204-base" in old


@pytest.mark.parametrize("action", ["install", "start", "logs", "stop", "doctor"])
def test_each_action_reaches_all_hosts_of_all_slices(capsys, action):
    lines = printed(
        tpu_pod, capsys, action, *POD, "--slices=2", "--package=gs://b/r.whl"
    ).splitlines()
    for node, line in zip(("base-0", "base-1"), lines, strict=True):
        words = shlex.split(line)
        assert words[:9] == [
            *("gcloud", "compute", "tpus", "tpu-vm", "ssh", node, "--zone=z", "--worker=all"),
            "--ssh-flag=-oServerAliveInterval=30",
        ]
        script = words[9].removeprefix("--command=")
        subprocess.run(["bash", "-n", "-c", script], check=True)
        assert action != "doctor" or script.endswith("--distributed --workdir=gs://b/base")


@pytest.mark.parametrize(
    ("package", "target"),
    [
        ("gs://b/r-1.whl", "$HOME/r-1.whl[tpu,gcs,data]"),
        ("roberta_jax", "roberta_jax[tpu,gcs,data]"),
        ("git+https://host/a.git", "roberta_jax[tpu,gcs,data]@git+https://host/a.git"),
    ],
)
def test_packages_are_installed_with_their_extras(capsys, package, target):
    line = printed(tpu_pod, capsys, "install", *POD, f"--package={package}")
    script = shlex.split(line)[-1]
    pip = "$HOME/roberta_jax_env/bin/python -m pip install --quiet"
    # The second command replaces an older build of the same version.
    assert script.endswith(f'&& {pip} "{target}" && {pip} --force-reinstall --no-deps "{target}"')
    assert ("gcloud storage cp" in script) == package.startswith("gs:")


def test_hosts_are_set_up_before_the_installation(capsys):
    options = [*POD, "--package=p", "--setup=mountpoint -q /b || mount a /b;", "--setup=true"]
    script = shlex.split(printed(tpu_pod, capsys, "install", *options))[-1]
    setup, _, rest = script.partition(" && { new()")
    assert setup == "--command={ mountpoint -q /b || mount a /b; } && { true; }"
    assert " -m venv " in rest


def python_of(version):
    """A script of bash for a Python that is of a version and creates environments of it."""
    check = "import sys; sys.version_info = tuple(map(int, sys.argv[1].split('.')))"
    return f"""
case "$1 $2" in
  "-c "*) exec {sys.executable} -c "{check}; exec(sys.argv[2])" {version} "$2";;
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python";;
  "-m pip") echo "$PWD $0 $@" >> $HOME/pip;;
esac
"""


UV = """
mkdir -p $HOME/.local/bin
cat > $HOME/.local/bin/uv <<'END'
#!/bin/bash
for last; do true; done
echo "$@" > $HOME/uv; mkdir -p $last/bin; cp $HOME/new_python $last/bin/python
END
chmod +x $HOME/.local/bin/uv
"""


@pytest.fixture
def pod(tmp_path, stubs):
    """A host that has no Python yet."""
    gcloud = Gcloud(tmp_path, stubs, hosts=1)
    for each in ("python3", "python3.11", "python3.12", "python3.13"):
        program(stubs, each, "exit 127")
    (gcloud.hosts[0] / "roberta_jax_env" / "bin").rmdir()
    yield gcloud
    gcloud.end()


@pytest.mark.parametrize(
    ("pythons", "version"),
    [
        ({"python3": "3.12.3"}, "3.12.3"),
        ({"python3": "3.10.12", "python3.11": "3.11.0"}, "3.11.0"),
        ({"python3": "3.10.12", "python3.11": "3.11.0", "python3.13": "3.13.1"}, "3.13.1"),
        ({"python3": "3.10.12"}, None),
    ],
)
def test_hosts_get_a_python_that_the_package_supports(pod, stubs, pythons, version):
    for name, each in pythons.items():
        script = python_of(each)
        if name == "python3":
            script += f'[[ "$*" = *"--user uv" ]] && {{ {UV} }}\ntrue'
        program(stubs, name, script)
    home = pod.hosts[0]
    program(home, "new_python", python_of("3.12.9"))
    for _ in range(2):
        tpu_pod.main(["install", *POD, "--package=gs://b/r.whl"])
    chosen = (home / "roberta_jax_env" / "bin" / "python").read_text()
    assert f" {version or '3.12.9'} " in chosen
    assert (home / "uv").exists() == (version is None)
    if version is None:
        words = (home / "uv").read_text().split()
        assert words[:2] == ["venv", "--quiet"]
        assert {"--python", "3.12", "--seed"} <= set(words)
    installed = [line for line in (home / "pip").read_text().splitlines() if "r.whl[" in line]
    assert len(installed) == 4
    assert all("/roberta_jax_env/bin/python -m pip install" in line for line in installed)


def test_an_environment_of_an_older_python_is_replaced(pod, stubs):
    program(stubs, "python3.11", python_of("3.11.0"))
    old = pod.hosts[0] / "roberta_jax_env" / "bin"
    program(old, "python", python_of("3.10.12"))
    tpu_pod.main(["install", *POD, "--package=p"])
    assert " 3.11.0 " in (old / "python").read_text()


def test_a_run_on_a_host_is_started_once_and_stopped(pod, capfd):
    (home,) = pod.hosts
    (home / "roberta_jax_env" / "bin").mkdir()
    pod.run_is(
        'printf "%s\\n" "$@" >> words; '
        'trap "echo saved; exit 143" TERM; while true; do sleep 0.05; done'
    )
    for _ in range(2):
        tpu_pod.main(["start", *POD, *TRAIN])
        wait_for(lambda: (home / "words").exists())
    words = (home / "words").read_text().splitlines()
    check_supervised(["python", *words], "python")
    tpu_pod.main(["stop", *POD])
    wait_for(lambda: pod.status(0))
    assert pod.status(0) == "143"
    tpu_pod.main(["logs", *POD])
    assert "saved" in capfd.readouterr().out
    tpu_pod.main(["stop", *POD])  # nothing is left to stop


def test_keep_prints_all_steps(capsys):
    lines = printed(tpu_pod, capsys, "keep", *POD, "--package=gs://b/r.whl").splitlines()
    assert [line.split()[4] for line in lines[1:]] == [
        *("create", "describe", "ssh", "ssh", "ssh", "ssh", "delete")
    ]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (tpu_pod, ["start", *POD, "--", "pretrain", "--workdir=runs/a"], "all hosts share"),
        (tpu_pod, ["start", *POD, "--", "pretrain"], "name the folder of the run"),
        (tpu_pod, ["start", *POD, "--", "pretrian"], "name a command of roberta_jax"),
        (tpu_pod, ["start", *POD], "name a command of roberta_jax"),
        (tpu_pod, ["install", *POD], "name what to install"),
        (tpu_pod, ["create", "--name=A b", "--zone=z"], "use small letters"),
        (slurm, ["--nodes=0", *TRAIN], "'0' is no whole number from 1"),
        (local, ["--processes=x", *TRAIN], "'x' is no whole number from 1"),
    ],
)
def test_wrong_calls_run_nothing(capsys, monkeypatch, module, arguments, message):
    monkeypatch.setattr(supervised.subprocess, "Popen", None)
    with pytest.raises(SystemExit) as error:
        module.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_program_is_a_message(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as error:
        tpu_pod.main(["logs", *POD])
    assert error.value.code == 2
    assert "gcloud is not installed." in capsys.readouterr().err


@pytest.mark.parametrize("module", ["tpu_pod", "gke", "slurm", "local"])
def test_each_command_has_help(module):
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", f"experiments.launch.{module}", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--dry_run" in result.stdout
    assert pathlib.Path(processes.ROOT, "experiments", "launch", f"{module}.py").exists()
