"""The command: its report, the command that it prints, wrong input, and compiling."""

import importlib.util
import os
import subprocess
import sys

import pytest

from roberta_jax import cli, plan
from roberta_jax.errors import UsageError
from roberta_jax.planning import compiled, memory
from roberta_jax.planning.report import command_of, markdown, was_compiled
from tests.planning.programs import config_of
from tests.support import processes
from tests.support.messages import one_screen

LARGE = "--config=configs/pretrain.py:large"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    cli.run_config_job(plan.main, plan._flags)


def test_a_plan_has_everything_a_run_needs_to_know(monkeypatch, capsys, tmp_path):
    output = tmp_path / "plan.md"
    run(monkeypatch, LARGE, "--topology=v5e:8x8", "--mesh=fsdp=8", f"--output={output}")
    text = capsys.readouterr().out
    for part in (
        "# configs/pretrain.py:large on v5e:8x8",
        "By formula alone",
        "355,412,057 parameters",
        "64 chips (data=8, fsdp=8, tensor=1)",
        *(f"| {use} |" for use in (memory.PARAMETERS, memory.OPTIMIZER, memory.SAVED)),
        "Largest microbatch by formula",
        "| fsdp | ICI | all-gather",
        "chip-hours",
        "--config.mesh.data=8",
        "--config.mesh.fsdp=8",
        "--config.train.per_device_batch_size=8",
    ):
        assert part in text, part
    assert output.read_text() + "\n" == text


def test_a_run_that_does_not_fit_ends_with_status_2_and_the_change_that_fits(monkeypatch, capsys):
    rows = "--config.train.per_device_batch_size"
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, LARGE, "--topology=v5e:2x2", f"{rows}=64")
    assert end.value.code == 2
    text = capsys.readouterr().out
    assert "## It does not fit" in text
    assert "**fits**" in text
    command = text[text.index("## Command") :]
    assert command.count(rows) == 1
    assert f"{rows}=64" not in command


def test_the_tables_of_a_run_that_does_not_fit_are_those_of_its_command(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, LARGE, "--topology=v5e:4x4", "--config.model.num_hidden_layers=96")
    text = capsys.readouterr().out
    assert "the run as configured needs 40.02 GB of 16.91 GB usable" in text
    assert "| GB | formula, as configured | formula |" in text
    tables = text[text.index("## Memory of a chip, with the changes") : text.index("## Command")]
    words = text[text.index("python -m roberta_jax.pretrain") :].replace("\\", "").split()
    typed = [word for word in words if word.startswith("--config")]
    # The command that is printed, planned on its own: it fits, with the same traffic and time.
    run(monkeypatch, *typed, "--topology=v5e:4x4")
    again = capsys.readouterr().out
    assert "It does not fit" not in again
    for title in ("## Collectives", "## Time"):
        section = again[again.index(title) :].split("##")[1].split("\n", 1)[1]
        assert section in tables
    assert "| formula | 24.338 | 172k | 43% | 3,380 | 54,084 |" in tables


def test_if_nothing_fits_the_report_says_what_its_tables_are(monkeypatch, capsys):
    base, layers = LARGE.replace("large", "base"), "--config.model.num_hidden_layers=9600"
    with pytest.raises(SystemExit):
        run(monkeypatch, base, "--topology=v5e:2x4", layers)
    text = capsys.readouterr().out
    assert "| too much |" in text
    assert "| not possible: --config.model.num_attention_heads=12 is not divisible" in text
    assert "Everything below is about the run as configured, which does not fit." in text
    assert "with the changes" not in text


def test_numbers_have_their_nouns():
    config = config_of("tiny", train__batch_size=1, train__per_device_batch_size=1)
    text = markdown(plan.make_plan(config, "v5e:1x1"))
    assert "1 chip (data=1, fsdp=1, tensor=1)" in text
    assert "in 1 microbatch of 1 row per chip;" in text
    assert "Largest microbatch by formula: 1 row (the whole share" in text
    config = config_of("tiny", train__batch_size=64, train__per_device_batch_size=8)
    text = markdown(plan.make_plan(config, "v5e:1x1"))
    assert "in 8 microbatches of 8 rows per chip;" in text


def test_a_report_says_whether_and_by_what_it_was_compiled():
    config = config_of("tiny", train__batch_size=8)
    made = plan.make_plan(config, "local", compile=True)
    text = markdown(made)
    assert text.splitlines()[2].startswith("Compiled by the CPU compiler (jaxlib ")
    assert was_compiled(text)
    assert not was_compiled(markdown(plan.make_plan(config, "local")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no topology to plan for"),
        (["--topology=v9:2x2"], "--topology=v9:2x2 is unknown"),
        (["--topology=v5e:8x8", "--mesh=data=3"], "does not fit the 64 v5e device(s)"),
        (["--topology=v5e:8x8", "--mesh=rows=3"], "'rows=3' is not a mesh axis with its size"),
        (["--topology=v5e:8x8", "--mesh=data"], "Write it as --mesh=data=4,fsdp=8,tensor=2"),
        (["--topology=v5e:8x8", "--mesh=data=8,data=4"], "data is given twice"),
        (["--topology=v5e:8x8", "--mesh=tensor=64"], "num_attention_heads=16 is not divisible"),
        (["--topology=v5p:8x8x16"], "--config.eval.batch_size=256 is not divisible by 1024"),
        (
            ["--topology=v5e:8x8", "--config.train.batch_size=100"],
            "--config.train.batch_size=100 is not divisible by 64",
        ),
        (["--topology=v5e:8x8", "--largest"], "add --compile"),
        (
            ["--topology=gpu:h200x8", "--compile"],
            "--compile works for TPUs and for --topology=local",
        ),
        (["--topology=v5e:8x8", "--output=no/such/folder/plan.md"], "in an existing folder"),
        (["--topology=v5e:8x8", "--slices=many"], "--slices"),
    ],
)
def test_wrong_calls_are_explained(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, LARGE, *arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    one_screen(UsageError(captured.err))


def test_the_command_keeps_what_was_typed_and_quotes_it():
    typed = plan.config_arguments(
        [
            "--topology=v5e:8x8",
            "-config",
            "my configs.py:large",
            "--config.seq_len=128",
            "--slices=2",
        ]
    )
    assert typed == ["--config=my configs.py:large", "--config.seq_len=128"]
    command = command_of(
        [*typed, "--config.mesh.data=4"], {"mesh.data": 8, "train.per_device_batch_size": None}
    )
    words = command.replace("\\\n", "").split("  ")
    assert command.startswith("python -m roberta_jax.pretrain '--config=my configs.py:large'")
    assert "--config.mesh.data=4" not in command
    assert "--config.mesh.data=8" in command
    assert "--config.train.per_device_batch_size=none" in command
    assert words


def test_plans_for_gpus_and_for_this_machine_say_what_they_are():
    gpus = markdown(plan.make_plan(config_of("base"), "gpu:h200x16"))
    assert "on 2 nodes of gpu:h200x8" in gpus
    assert "| data | network | all-reduce" in gpus
    assert "can be compiled only on the GPU itself" in gpus
    local = plan.make_plan(config_of("tiny"), "local")
    assert local.fits
    assert local.estimate.time is None
    assert "no table has the speed of this device" in markdown(local)


def test_messages_of_exhausted_memory_are_read():
    size = compiled.size_of_overflow(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (52.12G) exceeds available HBM (15.75G)."
    )
    assert size == 52.12 * 2**30
    size = compiled.size_of_overflow("Used 16.5G of 15.75G hbm. Exceeded hbm capacity by 768M.")
    assert size == 16.5 * 2**30
    assert compiled.size_of_overflow("RESOURCE_EXHAUSTED: something else") is None


def test_importing_pretrain_does_not_load_planning():
    program = "import sys, roberta_jax.pretrain; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], env=processes.environment(), check=True,
        capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert not [name for name in modules if name.startswith("roberta_jax.plan")]


def compile_tiny():
    """Plans and compiles a run for the smallest topology; prints the report."""
    config = config_of("tiny", train__batch_size=8, train__per_device_batch_size=4)
    made = plan.make_plan(config, "v5e:1x1", compile=True)
    step, work = made.compiled, made.estimate.work
    assert made.fits
    assert step.rows == work.rows == 4
    assert step.memory[memory.PARAMETERS] == work.parameter_bytes
    assert step.memory[memory.OPTIMIZER] == work.optimizer_bytes
    assert 0.3 < made.estimate.needed / step.needed < 3
    assert step.cycles > 1e4
    assert step.collectives == []  # one chip
    print(markdown(made))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.slow
def test_the_train_step_compiles_for_a_tpu():
    text = processes.run(__name__, "compile_tiny", XLA_FLAGS="")
    assert "Compiled by the TPU compiler (libtpu " in text
    assert "| compiled, 4 rows |" in text


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_message_says_how_to_get_it():
    before = dict(os.environ)
    with pytest.raises(UsageError, match=r"pip install 'roberta_jax\[plan\]'") as error:
        plan.make_plan(config_of("tiny"), "v5e:2x2", compile=True)
    assert "libtpu" in one_screen(error.value)
    assert dict(os.environ) == before
