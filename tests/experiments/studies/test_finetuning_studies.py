"""The studies of the paper's Tables 5 to 7, and of what pretraining gives."""

import pytest

from experiments import downstream
from experiments.studies import glue, transfer
from experiments.study.comparability import warnings
from experiments.study.loading import load_study
from roberta_jax.finetuning.spec import check_config, read_spec
from roberta_jax.tasks.table import TASKS
from tests.support import finetuning

STUDIES = [
    *(f"glue:{form}" for form in glue.FORMS),
    *(f"{name}:{form}" for name in ("squad", "race") for form in ("tiny", "paper")),
    *(f"transfer:{form}" for form in transfer.FORMS),
]


def configs_of(name):
    study = load_study(name, ["init_from=model"])
    return {point.setting: point.config() for point in study.points() if point.seed == 0}


@pytest.mark.parametrize("name", STUDIES)
def test_every_point_is_valid(name):
    study = load_study(name, ["init_from=model"])
    assert len({point.name for point in study.points()}) == len(study.points())
    for config in configs_of(name).values():
        check_config(config)
    assert warnings(study) == []
    titles = list(study.groups())
    for values in study.references.values():
        assert set(values) >= set(titles)


@pytest.mark.parametrize("name", ["glue:tiny", "squad:tiny", "race:tiny", "transfer:quick"])
def test_small_forms_fit_a_small_model(name, tmp_path):
    finetuning.write_model(tmp_path / "model")
    study = load_study(name, [f"init_from={tmp_path / 'model'}"])
    for setting in study.settings:
        (point, *_) = (each for each in study.points() if each.setting == setting)
        read_spec(point.config())


def test_the_sweep_of_glue_is_that_of_the_paper():
    study = load_study("glue:paper")
    assert len(study.settings) == 8 * 3 * 2
    assert list(study.seeds) == [0, 1, 2, 3, 4]
    for title, settings in study.groups().items():
        configs = [configs_of("glue:paper")[setting] for setting in settings]
        assert {(c.optimizer.learning_rate, c.train.batch_size) for c in configs} == {
            (rate, size) for rate in (1e-5, 2e-5, 3e-5) for size in (16, 32)
        }
        for config in configs:
            assert TASKS[config.task].title == title
            assert (config.train.epochs, config.optimizer.weight_decay) == (10, 0.1)
            assert config.schedule.warmup_ratio == TASKS[config.task].recipe.warmup_ratio
    assert load_study("glue:paper").base.init_from == "FacebookAI/roberta-large"
    assert study.references["paper, large, dev"]["STS-B"] == 92.4


@pytest.mark.parametrize("name", ["squad:paper", "race:paper", "transfer:full"])
def test_other_studies_have_the_recipes_of_their_tasks(name):
    for config in configs_of(name).values():
        recipe = TASKS[config.task].recipe
        assert (
            config.optimizer.learning_rate,
            config.optimizer.weight_decay,
            config.train.batch_size,
            config.train.epochs,
            config.schedule.warmup_ratio,
        ) == (
            recipe.learning_rate,
            recipe.weight_decay,
            recipe.batch_size,
            recipe.epochs,
            recipe.warmup_ratio,
        )


def test_the_small_comparison_has_one_recipe_but_for_what_belongs_to_a_task():
    configs = configs_of("transfer:small")
    assert {config.optimizer.learning_rate for config in configs.values()} == {2e-4}
    assert {config.train.epochs for config in configs.values()} == {3}
    assert {config.data.max_train_examples for config in configs.values()} == {4000}
    assert [config.random_init for config in configs.values()] == [False, True] * 8


def test_rte_stsb_and_mrpc_start_from_the_model_of_mnli():
    study = load_study("glue:mnli")
    (config,) = configs_of("glue:mnli").values()
    assert config.task == "mnli"
    assert set(study.downstream) == {"rte", "stsb", "mrpc"}
    for task, arguments in study.downstream.items():
        parsed = downstream._parser().parse_args([task, "--model=m", "--output=o", *arguments])
        assert (parsed.seeds, parsed.rates) == (5, [1e-5, 2e-5, 3e-5])
        assert (parsed.batch_sizes, parsed.keep) == ([16, 32], True)
        assert f"{task}.score" in study.columns.values()
