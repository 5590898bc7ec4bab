"""The printed commands for a cluster, a TPU pod and this machine."""

import json
import os
import re
import shlex
import subprocess

import pytest

from experiments import sweep
from experiments.running import launch
from experiments.study import arguments as study_arguments_module
from experiments.study.arguments import command_words, parsed_study
from experiments.study.loading import load_study
from experiments.study.selection import select_points
from tests.support import processes, toy_study

TOY = toy_study.PATH

AWKWARD = '/text of mine/$HOME/it\'s "here"/*.txt'


def printed_for(kind, capsys, *others):
    sweep.main(
        [f"{TOY}:quick", f"--set=data.files={AWKWARD}", "--seeds=3,4", *others, f"--print={kind}"]
    )
    return capsys.readouterr().out


def check_command(argv, name, out):
    """Checks that a printed command trains the point `name` of the same study."""
    assert argv[1:3] == ["-m", "experiments.sweep"]
    parsed = sweep._parser().parse_args(argv[3:])
    assert (parsed.point, parsed.out) == (name, out)
    points = parsed_study(parsed).points()
    assert points[0].config().data.files == AWKWARD
    (point,) = select_points(points, name=parsed.point)
    return parsed, point


def expected_points():
    return load_study(f"{TOY}:quick", [f"data.files={AWKWARD}"], [3, 4]).points()


def stub(folder, name):
    """Writes a program that prints its arguments, one per line."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def test_local_commands_name_each_point(capsys):
    first, *lines = printed_for("local", capsys, "--out=a b").splitlines()
    assert shlex.split(first) == ["cd", str(processes.ROOT)]
    for line, point in zip(lines, expected_points(), strict=True):
        _, selected = check_command(shlex.split(line), point.name, "a b")
        assert str(selected) == str(point)


def test_each_task_of_the_slurm_script_runs_a_point(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.sys, "executable", str(stub(tmp_path, "python")))
    script = tmp_path / "sweep.sbatch"
    script.write_text(printed_for("slurm", capsys, "--out=a b"))
    points = expected_points()
    assert script.read_text().startswith("#!/bin/bash\n#SBATCH")
    assert f"--array=0-{len(points) - 1}\n" in script.read_text()
    for number, point in enumerate(points):
        task = subprocess.run(
            ["bash", str(script)],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(number)},
            capture_output=True,
            text=True,
            check=True,
        )
        check_command(["python", *task.stdout.splitlines()], point.name, "a b")


def test_tpu_commands_start_all_hosts_of_a_pod(capsys, tmp_path):
    stub(tmp_path / "bin", "gcloud")
    script = printed_for("tpu", capsys, "--out=gs://bucket/a b")
    process = subprocess.run(
        ["bash", "-c", script],
        env={
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "TPU_NAME": "my pod",
            "TPU_ZONE": "here",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    lines = process.stdout.splitlines()
    commands = [line for line in lines if line.startswith("--command=")]
    assert lines.count("--worker=all") == lines.count("my pod") == len(commands) == 4
    for command, point in zip(commands, expected_points(), strict=True):
        remote = command.removeprefix("--command=")
        assert remote.startswith("cd ~/roberta_jax && ")
        argv = shlex.split(remote.split(" && ", 1)[1])
        parsed, _ = check_command(argv, point.name, "gs://bucket/a b")
        assert parsed.distributed
    without = subprocess.run(["bash", "-c", script], env={}, capture_output=True, text=True)
    assert "the name of the TPU" in without.stderr


def test_printing_checks_what_does_not_depend_on_the_machine(capsys):
    with pytest.raises(SystemExit):
        sweep.main([f"{TOY}:wrong", "--set=data.files=text", "--out=out", "--print=local"])
    assert "no steps, seed 0 1: --config.train.steps=0" in capsys.readouterr().err
    # This machine has neither 64 devices nor these weights.
    pod = ["--set=mesh.data=64", "--set=init_from=gs://bucket/weights"]
    sweep.main([f"{TOY}:quick", "--set=data.files=text", "--out=out", "--print=local", *pod])
    assert capsys.readouterr().out.count("--point=") == 4


def test_commands_hold_in_the_folder_where_they_were_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = printed_for("local", capsys, "--out=runs").splitlines()
    script = "\n".join([*lines[:2], 'pwd; echo "$PYTHONPATH"'])
    for before, after in (("", ""), ("a:b", ":a:b")):
        output = subprocess.run(
            ["bash", "-euc", script],
            env={**os.environ, "PYTHONPATH": before},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert output.splitlines() == [str(tmp_path), f"{processes.ROOT}{after}"]
    assert "--out=runs" in lines[2]


def test_a_wheel_has_another_command(monkeypatch, tmp_path):
    assert command_words("sweep") == ["python", "-m", "experiments.sweep"]
    monkeypatch.setattr(study_arguments_module, "ROOT", tmp_path / "_bundled")
    assert command_words("sweep") == ["roberta-jax", "sweep"]


def kubernetes(capsys, *others):
    return json.loads(printed_for("k8s", capsys, "--image=repo/image:1", *others))


def test_each_index_of_the_kubernetes_job_runs_a_point(capsys, tmp_path):
    job = kubernetes(capsys, "--out=gs://bucket/a b", "--processes=3", "--gpus_per_point=1")
    points = expected_points()
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"]) == (len(points), 3)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["image"] == "repo/image:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "volumes" not in spec["template"]["spec"]
    stub(tmp_path / "bin", "roberta-jax")
    for number, point in enumerate(points):
        output = subprocess.run(
            container["command"],
            env={
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "JOB_COMPLETION_INDEX": str(number),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert output[0] == "sweep"
        check_command(
            ["python", "-m", "experiments.sweep", *output[1:]], point.name, "gs://bucket/a b"
        )


def test_a_failed_point_is_not_repeated_and_a_lost_node_does_not_count(capsys):
    rules = kubernetes(capsys, "--out=gs://bucket")["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert rules[1]["onExitCodes"] == {"operator": "In", "values": [1, 2]}


def test_local_workdirs_are_in_a_volume_on_kubernetes(capsys):
    job = kubernetes(capsys, "--out=/shared/runs", "--volume=claim:/shared")
    pod = job["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "claim"}
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/shared"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=gs://b", "--print=k8s"], "--print=k8s needs the container's image"),
        (["--out=runs", "--print=k8s", "--image=i"], "--out=runs is lost with the container"),
        (
            ["--out=/other", "--print=k8s", "--image=i", "--volume=c:/shared"],
            "--out=/other is lost with the container",
        ),
        (["--out=/s", "--print=k8s", "--image=i", "--volume=c"], "--volume=c is not CLAIM:/PATH"),
        (["--out=gs://b", "--image=i"], "--image takes --print=k8s"),
        (
            ["--out=runs", "--cpus_per_point=2"],
            "--cpus_per_point takes --runner=ray, --print=slurm",
        ),
        (["--out=runs", "--print=tpu", "--gpus_per_point=1"], "--gpus_per_point takes --runner"),
        (["--out=runs", "--print=local", "--cpus_per_point=1"], "--cpus_per_point takes --runner"),
        (
            ["--out=runs", "--print=local", "--runner=ray", "--cpus_per_point=1"],
            "--cpus_per_point takes --runner=ray",
        ),
        (["--out=runs", "--print=tpu", "--processes=2"], "--processes has no effect with --print"),
        (["--out=runs", "--runner=ray", "--processes=2"], "--processes takes --runner=local"),
        (["--out=runs", "--gpus_per_point=x"], "invalid value 'x': give a number from 0"),
        (
            ["--out=runs", "--print=slurm", "--cpus_per_point=0.5"],
            "--cpus_per_point=0.5: Slurm gives out whole ones only. Give a whole number",
        ),
        (
            ["--out=runs", "--print=slurm", "--gpus_per_point=1.5"],
            "--gpus_per_point=1.5: Slurm gives out whole ones only",
        ),
        (
            ["--out=gs://b", "--print=k8s", "--image=i", "--gpus_per_point=0.5"],
            "--gpus_per_point=0.5: Kubernetes gives out whole ones only",
        ),
    ],
)
def test_options_of_clusters_are_checked(capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        sweep.main([f"{TOY}:quick", "--set=data.files=text", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_slurm_task_asks_for_what_a_point_needs(capsys):
    script = printed_for(
        "slurm", capsys, "--out=o", "--processes=2", "--cpus_per_point=8", "--gpus_per_point=1"
    )
    # Slurm refuses --gpus-per-task without a number of tasks.
    assert (
        "#SBATCH --array=0-3%2\n#SBATCH --ntasks=1\n#SBATCH --cpus-per-task=8\n"
        "#SBATCH --gpus-per-task=1\n"
    ) in script
    assert "#SBATCH --cpus-per-task=1000000\n" in printed_for(
        "slurm", capsys, "--out=o", "--cpus_per_point=1e6"
    )


def test_kubernetes_takes_parts_of_a_cpu(capsys):
    job = kubernetes(capsys, "--out=gs://bucket", "--cpus_per_point=0.5")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "0.5"}


def test_each_sweep_has_a_job_of_its_own_on_kubernetes(capsys):
    job, again, *others = (
        kubernetes(capsys, *options)
        for options in (
            ["--out=gs://bucket"],
            ["--out=gs://bucket", "--processes=3"],
            ["--out=gs://other"],
            ["--out=gs://bucket", "--shard=1/2"],
        )
    )
    names = [each["metadata"]["name"] for each in (job, *others)]
    assert len(set(names)) == 3
    assert again["metadata"]["name"] == names[0]
    for name in names:
        assert re.fullmatch(r"sweep-toy-study-quick-[0-9a-f]{8}", name)
    assert job["spec"]["ttlSecondsAfterFinished"] == 24 * 3600


def test_the_names_of_jobs_are_valid_and_short():
    for study in ("table2:tiny", "Ünï/" + "_very.long-" * 20 + ".py:paper", "---", "x" * 31 + ".y"):
        name = launch._job_name([study, "--out=gs://b"], ["point"])
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        assert "--" not in name
        assert len(name) <= 50  # Kubernetes: 63, with the index of a point


def test_a_kubernetes_job_says_how_to_prepare_and_to_continue(capsys):
    text = f"--set=data.files={AWKWARD}"
    options = [f"{TOY}:quick", text, "--seeds=3,4", "--out=gs://bucket"]
    sweep.main([*options, "--image=i", "--print=k8s"])
    captured = capsys.readouterr()
    metadata = json.loads(captured.out)["metadata"]
    note = metadata["annotations"]["kubernetes.io/description"]
    assert captured.err == f"{note}\n"
    prepare, delete = note.splitlines()
    words = shlex.split(prepare.split(": ", 1)[1])
    assert words[:2] == ["roberta-jax", "sweep"]
    parsed = sweep._parser().parse_args(words[2:])
    assert parsed.prepare
    assert parsed_study(parsed).points()[0].config().data.files == AWKWARD
    assert f"`kubectl delete job {metadata['name']}`" in delete
