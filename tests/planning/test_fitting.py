"""What `execution.remat=auto` and -1 rows per microbatch become, by formula and by compiling."""

import contextlib
import json
import pathlib

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.plan import make_plan
from roberta_jax.planning import fitting
from roberta_jax.planning.compiled import DoesNotFit
from roberta_jax.planning.estimate import estimate
from roberta_jax.planning.fitting import FITTED, Choice, choose, preferred
from roberta_jax.planning.report import markdown
from roberta_jax.planning.topologies import parse
from roberta_jax.pretrain import pretrain
from roberta_jax.pretraining.memory import check_memory
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.training import preemption
from tests.planning.programs import config_of
from tests.support import texts

OPEN = {"execution__remat": "auto", "train__per_device_batch_size": -1}
POD = parse("v5e:4x4")


@pytest.fixture(scope="module")
def of_large():
    """What the formulas say about each choice for large on 16 chips of 16 GB."""
    return fitting._estimates(read_spec(config_of("large", **OPEN), POD.devices()), POD)


class Compiler:
    """Stands in for the compiler: needs `factors[remat]` times what the formula says."""

    def __init__(self, estimates, usable, factors, refuses):
        self.estimates, self.usable, self.refuses = estimates, usable, refuses
        self.factors, self.tried = factors, []

    def __call__(self, choice):
        self.tried.append(choice)
        needed = self.factors[choice.remat] * self.estimates[choice].needed
        if needed > self.usable and self.refuses:
            raise DoesNotFit(needed if self.refuses == "with the size" else None)
        return needed


@pytest.mark.parametrize("refuses", ["with the size", "without it", ""])
@pytest.mark.parametrize(
    "factors",
    [(1, 1), (1.3, 1.3), (0.7, 0.7), (1.4, 1), (2, 1.2), (0.5, 1), (1, 0.6)],
)
def test_what_is_chosen_was_compiled_and_is_the_best_that_fits(of_large, factors, refuses):
    usable = POD.chip.usable
    compiler = Compiler(of_large, usable, dict(zip(fitting._REMATS, factors, strict=True)), refuses)
    choice, needed = choose(of_large, usable, compiler)
    assert choice in compiler.tried
    assert needed == compiler.factors[choice.remat] * of_large[choice].needed <= usable
    assert len(compiler.tried) == len(set(compiler.tried)) <= fitting._ENOUGH_TRIES
    fitting_ones = {
        each: found
        for each, found in of_large.items()
        if compiler.factors[each.remat] * found.needed <= usable
    }
    best = preferred(fitting_ones)
    if refuses != "without it" and len(set(factors)) == 1:
        assert choice == best
    # Never far from it, with whatever formula.
    assert of_large[choice].time.seconds <= 1.3 * of_large[best].time.seconds


def test_if_nothing_fits_it_says_what_to_do(of_large):
    compiler = Compiler(of_large, 1e9, dict.fromkeys(fitting._REMATS, 1), "with the size")
    with pytest.raises(UsageError, match=r"does not fit into the 1 GB.*--config\.mesh\.fsdp=-1"):
        choose(of_large, 1e9, compiler)
    assert Choice("full", 1) in compiler.tried


def test_the_least_recomputation_is_preferred_among_equally_fast_ones(of_large):
    some = [Choice("full", 32), Choice("dots", 32), Choice("dots", 16), Choice("dots", 1)]
    assert preferred({each: of_large[each] for each in some}) == Choice("dots", 32)
    # With one row most of the time goes to the gradients' sum.
    few = [Choice("full", 32), Choice("dots", 1)]
    assert preferred({each: of_large[each] for each in few}) == Choice("full", 32)


def test_on_devices_of_unknown_speed_it_is_the_least_recomputation_with_the_most_rows():
    local = parse("local")
    assert local.chip is None
    spec = read_spec(config_of("tiny", **OPEN, train__batch_size=64))
    estimates = fitting._estimates(spec, local)
    assert {each.remat for each in estimates} == {"dots", "full"}
    assert preferred(estimates) == Choice("dots", max(each.rows for each in estimates))


def test_more_rows_than_make_a_step_faster_are_not_considered():
    spec = read_spec(config_of("base", **OPEN), parse("gpu:h200x1").devices())
    rows = {each.rows for each in fitting._estimates(spec, parse("gpu:h200x1"))}
    assert max(rows) * spec.seq_len == fitting.ENOUGH_TOKENS
    assert 1 in rows


def test_only_what_is_left_open_is_chosen():
    spec = read_spec(config_of("base", execution__remat="auto"), POD.devices())
    assert {each.rows for each in fitting._estimates(spec, POD)} == {16}
    spec = read_spec(config_of("base", train__per_device_batch_size=-1), POD.devices())
    assert {each.remat for each in fitting._estimates(spec, POD)} == {"dots"}
    values = {"train__per_device_batch_size": -1, "execution__remat": "none"}
    chosen = fitting.by_formula(read_spec(config_of("base", **values), POD.devices()), POD)
    assert chosen == {"train.per_device_batch_size": 32}
    spec = read_spec(config_of("base"), POD.devices())
    assert not spec.left_to_memory


def test_until_it_is_chosen_a_run_takes_the_least_memory():
    spec = read_spec(config_of("base", **OPEN), POD.devices())
    assert spec.left_to_memory == {"execution.remat", "train.per_device_batch_size"}
    assert (spec.execution.remat, spec.training.rows_per_microbatch) == ("full", 1)
    chosen = spec.with_memory_use("dots", 16)
    fixed = read_spec(
        config_of("base", execution__remat="dots", train__per_device_batch_size=16), POD.devices()
    )
    assert not chosen.left_to_memory
    assert chosen.execution == fixed.execution
    for name in ("rows_per_microbatch", "accumulation"):
        assert getattr(chosen.training, name) == getattr(fixed.training, name)
    # The check of the least memory accepts it although other choices would not fit.
    check_memory(read_spec(config_of("tiny", **OPEN, train__batch_size=10**6)))


def test_a_plan_chooses_by_formula_and_prints_a_command_with_values():
    made = make_plan(config_of("large", **OPEN), "v5e:4x4")
    assert made.fits
    text = markdown(made)
    work = made.estimate.work
    assert f"`train.per_device_batch_size={work.rows}` by formula" in text
    command = text[text.index("## Command") :]
    assert f"--config.execution.remat={work.execution.remat}" in command
    assert f"--config.train.per_device_batch_size={work.rows}" in command
    fixed = make_plan(config_of("large"), "v5e:4x4")
    assert made.estimate.time.seconds < fixed.estimate.time.seconds


# Runs on this machine.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus, beside which its prepared text is cached."""
    return texts.write_corpus(tmp_path_factory.mktemp("fitting") / "corpus.jsonl")


@pytest.fixture
def config(corpus, monkeypatch):
    """A function from changes to a config that leaves everything open; no choice is kept."""
    monkeypatch.setattr(fitting, "_kept_file", lambda *_: None)

    def of(**changes):
        fixed = {
            "execution.remat": "auto",
            "train.per_device_batch_size": -1,
            "train.steps": 6,
            "train.checkpoint_every": 2,
            "train.eval_every": 0,
            "schedule.warmup_steps": 1,
        }
        return texts.small_config(corpus, corpus.parent / "cache", **fixed | changes)

    return of


def chosen(workdir):
    found = json.loads((pathlib.Path(workdir) / FITTED).read_text())
    return Choice(found["remat"], found["rows"])


def weights(workdir):
    return (pathlib.Path(workdir) / "hf" / "model.safetensors").read_bytes()


def smaller(monkeypatch, most_rows):
    """Makes more than so many rows per microbatch not fit."""

    def memory(spec, progress):
        if spec.training.rows_per_microbatch > most_rows:
            raise DoesNotFit(None)
        return 1e6

    monkeypatch.setattr(fitting, "memory_of_step", memory)


def stop_once(monkeypatch, polls):
    """Ends the next run after some steps."""
    left = iter(range(polls))

    def stop_requests(*_):
        return contextlib.nullcontext(preemption.StopRequests(lambda: next(left, None) is None))

    monkeypatch.setattr(preemption, "stop_requests", stop_requests)


def test_a_run_that_continues_computes_as_before(config, tmp_path, monkeypatch, capsys):
    """Although it would choose otherwise, as with more free memory."""
    with monkeypatch.context() as patches:
        smaller(patches, 2)
        stop_once(patches, 3)
        assert not pretrain(config(), tmp_path / "run").finished
    assert chosen(tmp_path / "run") == Choice("dots", 2)
    assert pretrain(config(), tmp_path / "run").finished
    assert "execution.remat=dots with 2 rows per microbatch (as before)." in capsys.readouterr().out
    fixed = config(**{"execution.remat": "dots", "train.per_device_batch_size": 2})
    assert pretrain(fixed, tmp_path / "fixed").finished
    assert weights(tmp_path / "run") == weights(tmp_path / "fixed")


def test_with_another_batch_or_a_damaged_file_it_chooses_again(config, tmp_path, monkeypatch):
    smaller(monkeypatch, 4)
    run = tmp_path / "run"
    pretrain(config(**{"train.steps": 2}), run)
    assert chosen(run) == Choice("dots", 4)
    (run / FITTED).write_text('{"remat": "dots", "rows"')
    smaller(monkeypatch, 2)
    pretrain(config(**{"train.steps": 3, "schedule.decay_steps": 2}), run)
    assert chosen(run) == Choice("dots", 2)
    smaller(monkeypatch, 8)
    values = {"execution.attention": "reference", "schedule.decay_steps": 2}
    pretrain(config(**{"train.steps": 4, **values}), run)
    assert chosen(run) == Choice("dots", 8)


def test_the_choice_is_that_of_the_compiler(config, tmp_path, monkeypatch, capsys):
    """The real step is compiled, and its memory is what decides."""
    memories = {}
    real = fitting.memory_of_step

    def memory(spec, progress):
        choice = Choice(spec.execution.remat, spec.training.rows_per_microbatch)
        memories[choice] = real(spec, None)
        return memories[choice]

    monkeypatch.setattr(fitting, "memory_of_step", memory)
    pretrain(config(**{"train.steps": 2}), tmp_path / "all")
    assert chosen(tmp_path / "all") == Choice("dots", 8)
    most = memories[Choice("dots", 8)]
    # With a little less memory than that it takes another choice, which fits.
    monkeypatch.setattr(fitting, "usable_memory", lambda topology: 2 * 0.97 * most)
    pretrain(config(**{"train.steps": 2}), tmp_path / "less")
    other = chosen(tmp_path / "less")
    assert other != Choice("dots", 8)
    assert memories[other] <= 0.97 * most
    assert "(it takes " in capsys.readouterr().out


def test_another_run_of_the_same_step_compiles_nothing_to_choose(config, tmp_path, monkeypatch):
    monkeypatch.undo()  # the fixture's, which keeps nothing
    monkeypatch.setattr(fitting, "_cache_folder", lambda: str(tmp_path / "kept"))
    smaller(monkeypatch, 4)
    made = config(**{"train.steps": 2})
    pretrain(made, tmp_path / "first")
    smaller(monkeypatch, 2)
    pretrain(made, tmp_path / "second")
    assert chosen(tmp_path / "first") == chosen(tmp_path / "second") == Choice("dots", 4)
    pretrain(config(**{"train.steps": 2, "seq_len": 32}), tmp_path / "other")
    assert chosen(tmp_path / "other") == Choice("dots", 2)


def test_of_the_choices_of_several_hosts_it_is_the_smallest(config, tmp_path, monkeypatch):
    smaller(monkeypatch, 4)

    def exchange(what, value):
        return [value, ("dots", 2), ("full", 8), ("full", 4)]

    monkeypatch.setattr(fitting, "exchange", exchange)
    pretrain(config(**{"train.steps": 2}), tmp_path / "run")
    assert chosen(tmp_path / "run") == Choice("full", 4)


def test_without_a_known_memory_it_asks_for_values(config, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "usable_memory", lambda topology: None)
    message = r"does not say how much memory.*execution\.remat=dots.*per_device_batch_size=16"
    with pytest.raises(UsageError, match=message):
        pretrain(config(), tmp_path / "run")


def test_estimates_are_those_of_the_planner():
    spec = read_spec(config_of("base", **OPEN), POD.devices())
    found = fitting._estimates(spec, POD)[Choice("dots", 16)]
    assert found == estimate(read_spec(config_of("base"), POD.devices()), POD)
