"""Chooses what the config leaves to the memory: `execution.remat=auto`, and -1 rows per microbatch.

The formulas say which choices should fit and which of them is the fastest. The train step is
compiled with that one, what the compiler says about its memory corrects the formulas, and so on,
until no choice is left that should fit and be faster: one compilation, or a few. What was chosen is
kept in two places.

* `WORKDIR/fitted.json`: a run that continues on the same mesh computes as before, since another
  number of microbatches draws other random bits for dropout.
* The folder of JAX's compilation cache: another run of the same step on the same devices with the
  same versions compiles nothing to choose.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from roberta_jax.errors import UsageError, counted
from roberta_jax.modeling.execution import REMAT_POLICIES
from roberta_jax.planning.compiled import DoesNotFit, memory_of_step, platform_of
from roberta_jax.planning.estimate import (
    CLOSE,
    REMAT,
    ROWS,
    Estimate,
    estimate_of,
    possible_rows,
    usable_memory,
    with_rows,
)
from roberta_jax.planning.topologies import LOCAL, Topology, parse
from roberta_jax.planning.workload import Workload, workload
from roberta_jax.pretraining.spec import PretrainingSpec
from roberta_jax.storage.atomic import write_json
from roberta_jax.training.agreement import exchange
from roberta_jax.training.same_start import code_digest, package_version

FITTED = "fitted.json"
_KEPT = "roberta_jax_fitted"  # the folder of choices in that of JAX's compilation cache

# A microbatch of more tokens is not faster: its smallest products have 512 x 6 tiles of 128 x 128,
# many for each core of any chip, and 2% of the time is spent on its gradients' sum.
ENOUGH_TOKENS = 2**16

# The part of the memory that a step may take. The rest is for batches that wait, for gaps between
# arrays and, on a CPU, for the input pipeline and for other programs.
_SHARE = {"cpu": 0.5}
_SHARE_OF_ACCELERATORS = 0.92

# Compilations, if one of them fits; and otherwise.
_ENOUGH_TRIES, _MOST_TRIES = 4, 8

# What "auto" can be. "none" is not faster than "dots", which computes only what costs less than to
# read it from memory: by the TPU compiler's estimates a step of four layers of base takes 1% longer
# with it, and 9% more memory.
_REMATS = ("dots", "full")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A way to compute the train step.

    Attributes:
      remat: see `modeling.execution.Execution`.
      rows: per device and microbatch.
    """

    remat: str
    rows: int

    def __str__(self) -> str:
        return f"execution.remat={self.remat} with {counted(self.rows, 'row')} per microbatch"

    def of(self, spec: PretrainingSpec) -> PretrainingSpec:
        """The run with this choice."""
        return spec.with_memory_use(self.remat, self.rows)


def fitted(
    spec: PretrainingSpec, folder: epath.Path, say: Callable[[str], None]
) -> PretrainingSpec:
    """The run with everything chosen that its config leaves to the memory.

    All processes of the run call this alike.

    Args:
      spec: of the run, with the vocabulary of its tokenizer. Its config leaves something open.
      folder: the workdir.
      say: prints a line.

    Raises:
      UsageError: no choice fits into memory, or it is not known how much there is.
    """
    conditions = _conditions(spec)
    found = _read(folder / FITTED, conditions)
    where = "as before"
    if found is None:
        found, where = _kept_or_compiled(spec, conditions)
    # Hosts with less free memory than others may have chosen otherwise.
    everyone = exchange("the microbatch that fits", dataclasses.astuple(found))
    found = min((Choice(*each) for each in everyone), key=lambda each: (-_order(each), each.rows))
    say(f"{found} ({where}).")
    if jax.process_index() == 0:
        write_json(folder / FITTED, {**dataclasses.asdict(found), "for": conditions})
    return found.of(spec)


def by_formula(spec: PretrainingSpec, topology: Topology) -> dict[str, Any]:
    """{key: value} of what the config leaves to the memory, chosen by formula alone.

    It is the fastest choice that fits, or the smallest one if none does.
    """
    if not spec.left_to_memory:
        return {}
    estimates, usable = _estimates(spec, topology), usable_memory(topology)
    fitting = {e: f for e, f in estimates.items() if usable is None or f.needed <= usable}
    choice = preferred(fitting) if fitting else _smallest(estimates)
    values = {REMAT: choice.remat, ROWS: choice.rows}
    return {key: value for key, value in values.items() if key in spec.left_to_memory}


def choose(
    estimates: Mapping[Choice, Estimate],
    usable: float,
    compile: Callable[[Choice], float],
) -> tuple[Choice, float]:
    """Chooses by compiling; see the module's docstring.

    Args:
      estimates: what the formulas say about each choice.
      usable: bytes that the step may take on a device.
      compile: compiles the step of a choice and returns the bytes that it takes on a device, or
        raises `DoesNotFit`.

    Returns:
      (the choice, the bytes that it takes).

    Raises:
      UsageError: nothing that was compiled fits.
    """
    scale = 1.0  # what the compiler needs, divided by what the formula says
    fitting: dict[Choice, float] = {}
    refused: list[Choice] = []
    for tries in range(_MOST_TRIES):
        if fitting and tries >= _ENOUGH_TRIES:
            break
        left = {
            each: found
            for each, found in estimates.items()
            if not any(each.remat == no.remat and each.rows >= no.rows for no in refused)
        }
        if not left:
            break
        # What was compiled is known to fit, whatever the formula says about it.
        known = {each: found for each, found in left.items() if each in fitting}
        hopeful = {e: found for e, found in left.items() if scale * found.needed <= usable}
        choice = preferred(hopeful | known) if hopeful or known else _smallest(left)
        if choice in fitting:
            break
        try:
            needed = compile(choice)
        except DoesNotFit as overflow:
            # Where the compiler does not say how much: a quarter more than there is.
            needed = overflow.needed or 1.25 * max(usable, scale * estimates[choice].needed)
            fits = False
        else:
            fits = needed <= usable
        scale = needed / estimates[choice].needed
        if fits:
            fitting[choice] = needed
        else:
            refused.append(choice)
    if not fitting:
        smallest = _smallest(estimates)
        raise UsageError(
            f"the train step does not fit into the {usable / 1e9:.3g} GB of a device that it may "
            f"take, not even with {refused[-1] if refused else smallest}. Use a smaller model, "
            "or split it over more devices (--config.mesh.data=1 --config.mesh.fsdp=-1)."
        )
    best = preferred({each: estimates[each] for each in fitting})
    return best, fitting[best]


def preferred(estimates: Mapping[Choice, Estimate]) -> Choice:
    """The fastest choice by formula; of about equally fast ones that which recomputes least.

    On devices of unknown speed all are about equally fast. Of those that recompute the same it is
    the one with the most rows.
    """
    choices = list(estimates)
    if all(found.time is not None for found in estimates.values()):
        least = min(found.time.seconds for found in estimates.values())
        choices = [c for c, found in estimates.items() if found.time.seconds <= CLOSE * least]
    return min(choices, key=lambda each: (_order(each), -each.rows))


def _order(choice: Choice) -> int:
    """From the least recomputation to the most."""
    return tuple(REMAT_POLICIES).index(choice.remat)


def _smallest(estimates: Mapping[Choice, Estimate]) -> Choice:
    return min(estimates, key=lambda each: estimates[each].needed)


def _estimates(spec: PretrainingSpec, topology: Topology) -> dict[Choice, Estimate]:
    """What the formulas say about each choice that the config leaves open."""
    work, left = workload(spec), spec.left_to_memory
    remats = _REMATS if REMAT in left else (work.execution.remat,)
    rows = [work.rows]
    if ROWS in left:
        every = possible_rows(work)
        rows = [n for n in every if n * work.length <= ENOUGH_TOKENS] or every[:1]
    return {
        Choice(remat, n): estimate_of(_with(work, remat, n), topology)
        for remat in remats
        for n in rows
    }


def _with(work: Workload, remat: str, rows: int) -> Workload:
    execution = dataclasses.replace(work.execution, remat=remat)
    return dataclasses.replace(with_rows(work, rows), execution=execution)


def _kept_or_compiled(spec: PretrainingSpec, conditions: Mapping[str, Any]) -> tuple[Choice, str]:
    """(the choice, where it comes from)."""
    devices = tuple(spec.training.mesh.local_devices)
    topology = dataclasses.replace(parse(LOCAL), local=devices)
    memory = usable_memory(topology)
    if memory is None:
        raise UsageError(
            f"JAX does not say how much memory a {devices[0].device_kind} has, which "
            f"{' and '.join(f'--config.{key}' for key in sorted(spec.left_to_memory))} would "
            "follow. Set them to values, such as --config.execution.remat=dots "
            "--config.train.per_device_batch_size=16."
        )
    usable = memory * _SHARE.get(platform_of(spec), _SHARE_OF_ACCELERATORS)
    kept = _kept_file(spec, conditions, usable)
    found = None if kept is None else _read(kept, conditions)
    if found is not None:
        return found, "chosen by an earlier run"
    progress = sys.stderr if jax.process_index() == 0 else None
    found, needed = choose(
        _estimates(spec, topology),
        usable,
        lambda choice: memory_of_step(choice.of(spec), progress),
    )
    if kept is not None:
        _keep(kept, found, conditions)
    return found, f"it takes {needed / 1e9:.3g} of {memory / 1e9:.3g} GB"


def _conditions(spec: PretrainingSpec) -> dict[str, Any]:
    """What a choice depends on that may change within a run."""
    mesh, config = spec.training.mesh, spec.config
    return {
        "device": mesh.devices.flat[0].device_kind,
        "mesh": dict(mesh.shape),
        "shard_optimizer_state": config["mesh"]["shard_optimizer_state"],
        "rules": repr(config["mesh"]["rules"]),
        "batch_size": spec.training.batch_size,
        "attention": spec.execution.attention,
        "layer_norm": spec.execution.layer_norm,
        "scan_unroll": spec.execution.scan_unroll,
        REMAT: config["execution"]["remat"],
        ROWS: config["train"]["per_device_batch_size"],
    }


def _kept_file(
    spec: PretrainingSpec, conditions: Mapping[str, Any], usable: float
) -> epath.Path | None:
    """Where the choice for this step, on such devices and with these versions, is kept."""
    folder = _cache_folder()
    if not folder:
        return None
    config = spec.config
    whole = {
        "conditions": conditions,
        "model": dataclasses.asdict(spec.model),
        "class": spec.model_class.__name__,
        "masking rate": spec.masking.rate,
        "format": config["data"]["format"],
        **{key: config[key] for key in ("seq_len", "execution", "optimizer")},
        "deterministic": spec.training.deterministic,
        "usable": round(usable / 1e8),  # which varies by some MB from start to start
        "code": code_digest(),
        "versions": {name: package_version(name) for name in ("jax", "jaxlib", "libtpu", "flax")},
    }
    text = json.dumps(whole, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    return epath.Path(folder) / _KEPT / f"{digest}.json"


def _cache_folder() -> str | None:
    return jax.config.jax_compilation_cache_dir


def _read(path: epath.Path, conditions: Mapping[str, Any]) -> Choice | None:
    """The choice in a file; None if there is none for these conditions, or the file is damaged."""
    try:
        found = json.loads(path.read_text())
        choice = Choice(found["remat"], found["rows"])
        same = found["for"] == json.loads(json.dumps(conditions))
    except Exception:  # of many types on an object store; it is chosen again
        return None
    is_valid = choice.remat in REMAT_POLICIES and isinstance(choice.rows, int) and choice.rows > 0
    return choice if same and is_valid else None


def _keep(path: epath.Path, choice: Choice, conditions: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**dataclasses.asdict(choice), "for": dict(conditions)})
    except Exception:  # a cache that cannot be written costs time only
        return
