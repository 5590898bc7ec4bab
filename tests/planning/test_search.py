"""What is proposed for a run that does not fit, with compilers that refuse it."""

import functools
import types

import pytest

from roberta_jax.plan import make_plan
from roberta_jax.planning import search
from roberta_jax.planning.compiled import CompiledStep, DoesNotFit
from roberta_jax.planning.estimate import estimate
from roberta_jax.planning.report import markdown
from roberta_jax.planning.topologies import Topology, parse
from roberta_jax.pretraining.spec import read_spec
from tests.planning.programs import config_of

POD = "v5e:2x2"


class Compiler:
    """Stands in for the compiler: needs more memory than the formula says.

    Attributes:
      runs: the (formula's bytes, rows, mesh) of each run that was compiled.
    """

    def __init__(self, factor, says_how_much=True):
        self.factor, self.says_how_much, self.runs = factor, says_how_much, []

    def __call__(self, spec, chip):
        found = estimate(spec, parse(POD))
        self.runs.append((found.needed, found.work.rows, found.work.mesh))
        needed = self.factor * found.needed
        if needed > chip.usable:
            raise DoesNotFit(needed if self.says_how_much else None)
        return CompiledStep(found.work.rows, {"all": needed}, needed, [], None, None, 1.0)


@pytest.fixture
def compiling(monkeypatch):
    """Plans large with 16 rows for 4 chips: (the plan, the compiler that it used)."""

    def plan(factor, says_how_much=True, **options):
        compiler = Compiler(factor, says_how_much)
        monkeypatch.setattr(search, "compile_step", compiler)
        monkeypatch.setattr(search, "platform_of", lambda spec: "tpu")
        monkeypatch.setattr(
            "roberta_jax.planning.topologies.compile_only_devices", Topology.devices
        )
        config = config_of("large", train__per_device_batch_size=16)
        return make_plan(config, POD, compile=True, **options), compiler

    return plan


def test_a_run_that_fits_is_compiled_once(compiling):
    made, compiler = compiling(1.0)
    assert made.fits
    assert not made.attempts
    assert made.proposal is None
    assert len(compiler.runs) == 1


@pytest.mark.parametrize("says_how_much", [True, False])
def test_the_proposal_is_smaller_than_what_was_refused_and_is_compiled(compiling, says_how_much):
    made, compiler = compiling(1.4, says_how_much)
    assert made.estimate.fits  # by formula
    assert not made.fits
    refused, *others = compiler.runs
    assert all(needed < refused[0] for needed, _, _ in others)
    assert made.proposal.compiled.needed <= made.estimate.usable
    work = made.proposal.estimate.work
    assert (work.rows, work.mesh) == others[-1][1:]
    if says_how_much:  # then the first proposal fits
        assert len(others) == 1
    text = markdown(made)
    assert f"has to stay below {made.limit / 1e9:.2f} GB by formula" in text
    assert made.proposal.estimate.needed < made.limit <= refused[0]
    assert "Compiled: 16 rows do not fit" in text
    assert "**fits, compiled: " in text
    assert f"| compiled, {work.rows} rows |" in text
    command = text[text.index("## Command") :]
    assert f"--config.train.per_device_batch_size={work.rows}" in command
    for axis, size in work.mesh.items():
        assert f"--config.mesh.{axis}={size}" in command


def test_after_some_proposals_that_do_not_fit_the_next_is_not_compiled(compiling):
    made, compiler = compiling(2.5, says_how_much=False)
    assert len(compiler.runs) == 1 + search.MOST_PROPOSALS
    needed = [run[0] for run in compiler.runs]
    assert needed == sorted(needed, reverse=True)
    assert made.proposal.compiled is None
    assert made.proposal.estimate.needed < needed[-1]
    text = markdown(made)
    assert text.count("| does not fit by the compiler |") == search.MOST_PROPOSALS
    assert "This run was not compiled" in text


def test_the_largest_microbatch_that_was_compiled_is_one_of_the_attempts(compiling):
    made, compiler = compiling(1.4, largest=True)
    needed = [needed for needed, _, _ in compiler.runs]
    assert len(needed) == len(set(needed)) > 1
    assert made.compiled.rows < 16
    first = made.attempts[0]
    assert first.compiled is made.compiled
    assert first.estimate.work.rows == made.compiled.rows
    assert made.proposal.compiled


def read_large(changes):
    return read_spec(config_of("large", **changes), parse(POD).devices())


def test_on_other_devices_the_compiled_memory_is_compared(monkeypatch):
    # Their compilers do not know how much memory there is.
    step = CompiledStep(16, {"all": 2e9}, 2e9, [], None, None, 1.0)
    monkeypatch.setattr(search, "compile_step", lambda spec, chip: step)
    found = estimate(read_large({}), parse(POD))
    local = functools.partial(types.SimpleNamespace, topology=parse(POD), needed=1e9)
    small, unknown = local(usable=1.9e9), local(usable=None)
    monkeypatch.setattr(search, "platform_of", lambda spec: "cpu")
    refuses = search._Compiler(read_large, small)
    assert refuses({}, found) == (None, 2e9)
    assert refuses.limit == pytest.approx(min(1.9e9, 0.95 * found.needed))
    assert search._Compiler(read_large, unknown)({}, found) == (step, 2e9)
