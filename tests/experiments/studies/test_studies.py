"""The studies of the paper's tables: every point is valid, and their numbers are the paper's."""

import pytest

from configs.pretrain import get_config
from experiments import downstream
from experiments.studies import _recipes as recipes
from experiments.study.comparability import warnings
from experiments.study.config_changes import values_that_affect_results
from experiments.study.loading import load_study, study_files
from roberta_jax.pretraining.spec import decay_steps, read_spec
from roberta_jax.tasks.table import TASKS

FINETUNING = ["glue", "race", "squad", "transfer"]
NAMES = [name for name in study_files() if name not in FINETUNING]
FORMS = ("tiny", "paper")


def test_there_is_a_study_for_each_table():
    assert NAMES == ["table1_masking", "table2_formats", "table3_batch_size", "table4_data"]


@pytest.mark.parametrize("name", NAMES)
def test_the_columns_of_fine_tuning_are_those_of_its_tasks(name):
    for form in FORMS:
        study = load_study(f"{name}:{form}")
        tasks = {metric.partition(".")[0] for metric in study.columns.values() if "." in metric}
        assert tasks == set(study.downstream)
        for heading, metric in study.columns.items():
            task, _, score = metric.partition(".")
            assert task not in study.downstream or score == TASKS[task].metrics[0], heading
        for task, arguments in study.downstream.items():
            parsed = downstream._parser().parse_args(
                [task, "--model=m", "--output=o", "--data=d", *arguments]
            )
            assert parsed.seeds == (5 if form == "paper" else 1)
            downstream._base_config(parsed)  # its changes are valid


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_every_point_is_valid(name, form):
    points = load_study(f"{name}:{form}").points()
    assert len({point.name for point in points}) == len(points)
    for point in points[: len(points) // len(points[0].study.seeds)]:  # of the first seed
        config = point.config()
        schedule = read_spec(config).training.schedule
        assert float(schedule(config.schedule.warmup_steps)) == pytest.approx(
            config.optimizer.learning_rate
        )
        assert config.eval.short_inputs  # studies compare settings on these too


@pytest.mark.parametrize("name", NAMES)
def test_all_settings_of_a_study_are_evaluated_alike(name):
    for form in FORMS:
        configs = [point.config() for point in load_study(f"{name}:{form}").points()]
        for key in ("eval", "seq_len", "tokenizer", "new_tokenizer"):
            assert all(config[key] == configs[0][key] for config in configs)
        assert {config.data.validation_fraction for config in configs} == {
            configs[0].data.validation_fraction
        }


def test_table_1():
    study = load_study("table1:paper")
    assert [study.settings[name]["masking.dupe_factor"] for name in ("static", "dynamic")] == [
        10,
        None,
    ]
    config = study.points()[0].config()
    assert (config.data.format, config.objective.next_sentence) == ("segment_pair", True)
    assert (config.data.dupe_factor, config.train.batch_size) == (10, 256)
    # Forty epochs; about 78% of the positions in a row are text.
    config = load_study("table1:tiny").points()[0].config()
    seen = config.train.steps * config.train.batch_size * config.seq_len
    assert seen * 0.775 / config.data.max_tokens == pytest.approx(40, rel=0.01)


def test_table_2():
    study = load_study("table2:paper")
    configs = {point.setting: point.config() for point in study.points() if point.seed == 0}
    summary = {
        name: (config.data.format, config.objective.next_sentence, config.model.type_vocab_size)
        for name, config in configs.items()
    }
    assert summary == {
        "SEGMENT-PAIR+NSP": ("segment_pair", True, 2),
        "SEGMENT-PAIR": ("segment_pair", False, 2),
        "SENTENCE-PAIR+NSP": ("sentence_pair", True, 2),
        "FULL-SENTENCES": ("full_sentences", False, 1),
        "DOC-SENTENCES": ("doc_sentences", False, 1),
    }
    for config in configs.values():
        assert (config.train.batch_size, config.train.steps) == (256, 1_000_000)
        assert config.optimizer.learning_rate == 1e-4
        assert config.optimizer.beta2 == 0.999
    assert study.paper["DOC-SENTENCES"]["RACE"] == 65.6


@pytest.mark.parametrize("form", FORMS)
def test_table_3_trains_for_equal_numbers_of_rows(form):
    study = load_study(f"table3:{form}")
    configs = [point.config() for point in study.points() if point.seed == 0]
    sizes = [config.train.batch_size for config in configs]
    assert [size / sizes[0] for size in sizes] == [1, 8, 32, 32]
    rows = [config.train.batch_size * config.train.steps for config in configs]
    assert max(rows) / min(rows) < 1.01
    assert [config.optimizer.name for config in configs] == ["adamw", "adamw", "adamw", "lamb"]
    if form == "paper":
        runs = [(c.train.steps, c.optimizer.learning_rate) for c in configs[:3]]
        assert runs == [(1_000_000, 1e-4), (125_000, 7e-4), (31_000, 1e-3)]
        assert [config.optimizer.beta2 for config in configs[:3]] == [0.999, 0.98, 0.98]
        # BERT's for the run of Table 2; else the share of Table 9, 24k of 500k steps.
        assert [c.schedule.warmup_steps for c in configs] == [10_000, 6000, 1488, 1488]
        assert [row["perplexity"] for row in study.paper.values()] == [3.99, 3.68, 3.77]


def test_table_4():
    study = load_study("table4:paper")
    configs = [point.config() for point in study.points()]
    assert [config.train.steps for config in configs] == [100_000, 100_000, 300_000, 500_000]
    assert [len(config.data.mixture) for config in configs] == [0, 3, 3, 3]
    assert all(decay_steps(config) == config.train.steps for config in configs)
    large = get_config("large")
    assert all(config.model == large.model for config in configs)
    assert all(config.optimizer == large.optimizer for config in configs)


def test_runs_that_the_paper_shares_between_tables_have_one_recipe():
    """So that their workdirs have the same digest, and their results can be shared."""

    def digest(name, setting):
        study = load_study(name)
        (point,) = (p for p in study.points() if (p.setting, p.seed) == (setting, 0))
        return point.name.rsplit("-", 1)[-1]

    assert digest("table1:paper", "dynamic") == digest("table2:paper", "SEGMENT-PAIR+NSP")
    table2 = load_study("table2:paper").points()[3].config()
    table3 = load_study("table3:paper").points()[0].config()
    ours, theirs = (values_that_affect_results(config) for config in (table2, table3))
    assert {key for key in ours if ours[key] != theirs[key]} == set()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_the_settings_of_a_study_can_differ_and_be_compared(name, form):
    assert warnings(load_study(f"{name}:{form}")) == []


def test_tiny_tokens_are_the_tokens_of_a_tiny_run():
    config = recipes.tiny()
    tokens = config.train.steps * config.train.batch_size * config.seq_len
    assert tokens == recipes.TINY_TOKENS
