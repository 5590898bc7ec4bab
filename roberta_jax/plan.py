"""Plans a run before it is paid for: does it fit, how fast is it, and what is the command?

    python -m roberta_jax.plan --config=configs/pretrain.py:large --topology=v5e:8x8 [--compile]

Formulas answer at once, without any accelerator: the memory of a chip split by use, the largest
microbatch, what the collectives send over which network, and the time. With `--compile` the train
step itself is compiled as well, which takes minutes: for TPUs that need not be there (the extra
`plan`), or for the devices of this machine with `--topology=local`. For a run that does not fit,
the report and the command are those of the fastest change of the config that was found to fit.
From Python:

    from configs.pretrain import get_config
    from roberta_jax.plan import make_plan
    from roberta_jax.planning.report import markdown
    print(markdown(make_plan(get_config("large"), "v5e:8x8")))
"""

import copy
import functools
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from absl import flags
from ml_collections import ConfigDict

from roberta_jax import cli
from roberta_jax.errors import UsageError, listed, shortened
from roberta_jax.pretraining.config_keys import RENAMED
from roberta_jax.training.mesh import MESH_AXES

if TYPE_CHECKING:
    from roberta_jax.planning.report import Plan
    from roberta_jax.planning.topologies import Topology


def make_plan(
    config: ConfigDict,
    topology: str,
    *,
    slices: int = 1,
    mesh: str = "",
    compile: bool = False,
    largest: bool = False,
    arguments: Sequence[str] = ("--config=configs/pretrain.py:SIZE",),
) -> "Plan":
    """Plans the pretraining that `config` describes.

    Args:
      config: as `configs/pretrain.py` returns it.
      topology: "v5e:8x8", "gpu:h200x8", "local", ...; see `planning.topologies`.
      slices: number of slices, or of nodes of GPUs.
      mesh: sizes of mesh axes, such as "data=4,fsdp=8"; those left out are the config's.
      compile: whether to compile the train step as well.
      largest: whether to compile other microbatches too, to find the largest that fits.
      arguments: the command-line arguments that describe the config, for the command to type.

    Raises:
      UsageError: there is no such topology, the mesh or the batch does not suit it, a value of the
        config is wrong, or the compiler is missing.
    """
    # Imported here, as in `pretrain`.
    from roberta_jax.planning import fitting, search
    from roberta_jax.planning.topologies import compile_only_devices, parse

    target = parse(topology, slices)
    given = {f"mesh.{axis}": size for axis, size in read_mesh(mesh).items()}
    if largest and not compile:
        raise UsageError("--largest compiles several microbatches: add --compile.")
    chosen = fitting.by_formula(_read(config, given, target.devices(), {}), target)
    given |= chosen
    compiled = None
    if compile:
        devices = target.local or compile_only_devices(target)
        compiled = functools.partial(_read, config, given, devices)
    return search.plan(
        functools.partial(_read, config, given, target.devices()),
        target,
        given,
        arguments,
        compiled=compiled,
        largest=largest,
        notes=_notes(config, target, chosen),
        knobs=[{f"mesh.{key}": True} for key in ("shard_optimizer_state",) if key in config.mesh],
    )


def _notes(config: ConfigDict, target: "Topology", chosen: Mapping[str, Any]) -> list[str]:
    notes = []
    if chosen:
        values = listed([f"`{key}={value}`" for key, value in chosen.items()])
        notes.append(
            f"{values} by formula. The config leaves this to the memory: a run compiles its step "
            "to choose, if these are not set."
        )
    if config.tokenizer and not config.init_from:
        notes.append(
            f"The vocabulary is that of --config.new_tokenizer.vocab_size; the tokenizer in "
            f"{config.tokenizer} may have another one."
        )
    if config.data.source == "files" and not config.data.files:
        notes.append("The command needs the text as well: --config.data.files='...'.")
    if not target.is_tpu and not target.local:
        notes.append(
            "Programs for GPUs can be compiled only on the GPU itself. JAX uses three quarters of "
            "its memory unless XLA_CLIENT_MEM_FRACTION is set."
        )
    return notes


def read_mesh(text: str) -> dict[str, int]:
    """Reads `--mesh=data=4,fsdp=8,tensor=2`.

    Raises:
      UsageError: it has another form.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        axis, equals, size = part.strip().partition("=")
        number = size.strip().removeprefix("-")
        if axis not in MESH_AXES or not equals or not (number.isascii() and number.isdigit()):
            raise UsageError(
                f"--mesh={shortened(text)}: {shortened(part)!r} is not a mesh axis with its size. "
                "Write it as --mesh=data=4,fsdp=8,tensor=2; -1 is all remaining chips."
            )
        if axis in sizes:
            raise UsageError(f"--mesh={shortened(text)}: {axis} is given twice.")
        sizes[axis] = int(size[:20])
    return sizes


def _read(
    config: ConfigDict, given: Mapping[str, Any], devices: Sequence[Any], changes: Mapping[str, Any]
) -> Any:
    from roberta_jax.pretraining.spec import read_spec

    config = copy.deepcopy(config)
    with config.unlocked():
        for key, value in {**given, **changes}.items():
            group, name = key.split(".")
            config[group][name] = value
    return read_spec(config, devices)


def main(config: ConfigDict, values: flags.FlagValues) -> None:
    """Plans a run on accelerators that need not be at hand: memory, traffic, time and the command.

    python -m roberta_jax.plan --config=configs/pretrain.py:large --topology=v5e:8x8

    The exit status is 0 if the run fits, and 2 if it does not or after a mistake that the message
    explains.
    """
    from roberta_jax.planning.report import markdown
    from roberta_jax.storage.atomic import write_text

    check_output(values.output)
    if values.topology != "local" and not jax.config.jax_platforms:
        # So that planning neither takes the accelerators of this machine nor looks for them.
        jax.config.update("jax_platforms", "cpu")
    plan = make_plan(
        config,
        values.topology,
        slices=values.slices,
        mesh=values.mesh,
        compile=values.compile,
        largest=values.largest,
        arguments=config_arguments(sys.argv[1:]),
    )
    text = markdown(plan)
    print(text)
    if values.output:
        write_text(pathlib.Path(values.output), text)
    if not plan.fits:
        sys.exit(2)


def check_output(output: str | None) -> None:
    """Checks that a report can be written, before it takes minutes to make.

    Raises:
      UsageError: it cannot.
    """
    if output is None:
        return
    path = pathlib.Path(output)
    if not output or path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--output={output} is not the name of a file in an existing folder.")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--output={output}: the folder {path.parent} is not writable.")


def config_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments that describe the config, in the form --key=value."""
    found, following = [], iter(arguments)
    for argument in following:
        if argument in ("--config", "-config"):
            found.insert(0, f"--config={next(following, '')}")
        elif argument.lstrip("-").startswith(("config=", "config.")):
            found.append(f"--{argument.lstrip('-')}")
    return sorted(found, key=lambda each: not each.startswith("--config="))


def _flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology",
        None,
        "What to plan for: TPUs such as v5e:8x8, v5p:4x4x4 or v6e:16x16; gpu:h200x8, gpu:h100x8 or "
        "gpu:a100x8; or local for this machine.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "slices", 1, "Number of slices of TPUs, or of nodes of GPUs.", flag_values=values
    )
    flags.DEFINE_string(
        "mesh",
        "",
        "Sizes of mesh axes, such as data=4,fsdp=8,tensor=2; the others are the config's.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "compile",
        False,
        "Whether to compile the train step as well, which takes minutes: for TPUs that need not be "
        "there, or with --topology=local for the devices of this machine. A run that does not fit "
        "has its proposal compiled, too.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "largest",
        False,
        "With --compile: compile other microbatches too, to find the largest that fits.",
        flag_values=values,
    )
    flags.DEFINE_string("output", None, "A file to write the report to.", flag_values=values)


if __name__ == "__main__":
    cli.run_config_job(main, _flags, renamed=RENAMED)
