"""The config of fine-tuning: every key has its range, and mistakes are reported at once."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import pytest

from configs.finetune import get_config
from roberta_jax import config_help
from roberta_jax.config_ranges import check_values
from roberta_jax.dotted_keys import flatten
from roberta_jax.errors import UsageError
from roberta_jax.finetuning.config_values import MAY_CHANGE, MAY_DIFFER, VALUES
from roberta_jax.finetuning.prepare import digest, prepare
from roberta_jax.finetuning.spec import check_keys_of_kind, read_spec
from roberta_jax.finetuning.splits import validation_share
from roberta_jax.tasks.kinds import kind_class
from roberta_jax.tasks.table import TASKS
from roberta_jax.tasks.task import KINDS, Formatting
from roberta_jax.weights.parameters import parameter_shapes
from tests.support import heads, small_tasks
from tests.support.messages import one_screen


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_config_with_its_recipe(task):
    config = get_config(task)
    values, recipe = flatten(config), TASKS[task].recipe
    assert set(values) == set(VALUES)
    check_values(values, VALUES, VALUES, "configs/finetune.py")
    assert config.task == task
    assert config.optimizer.learning_rate == recipe.learning_rate
    assert (config.train.epochs, config.train.steps) == (recipe.epochs, recipe.steps)
    assert config.train.batch_size == recipe.batch_size
    assert config.schedule.warmup_ratio == recipe.warmup_ratio
    assert config.optimizer.weight_decay == recipe.weight_decay


def test_an_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'snli': there are .*rte"):
        get_config("snli")


def test_every_key_is_described():
    with open("configs/finetune.py", encoding="utf-8") as file:
        comments = config_help.key_comments(file.read())
    for key in VALUES:
        assert comments[key].endswith("."), key


def test_keys_that_may_change_exist():
    for key in (*MAY_CHANGE, *MAY_DIFFER):
        assert key in VALUES or any(each.startswith(key) for each in VALUES if key[-1] == "."), key


def test_the_papers_recipe_of_glue():
    """Liu et al. 2019, Table 10: 10 epochs, warmup 0.06, weight decay 0.1."""
    recipe = TASKS["rte"].recipe
    assert recipe.warmup_ratio == pytest.approx(0.06, abs=0.001)
    assert (recipe.weight_decay, recipe.batch_size, recipe.learning_rate) == (0.1, 16, 2e-5)


def test_steps_follow_from_epochs_and_rows(run_config, rte):
    spec = read_spec(run_config("rte", **{"data.folder": str(rte)}))
    training = spec.training(50)
    assert training.steps == 19  # 3 epochs of 50 rows in batches of 8
    assert training.warmup_steps == 1
    assert training.cadence.evaluate == training.cadence.checkpoint == 7
    config = run_config("rte", **{"train.epochs": None, "train.steps": 40, "train.eval_every": 5})
    training = read_spec(config).training(50)
    assert (training.steps, training.cadence.evaluate, training.cadence.checkpoint) == (40, 5, 5)


def test_lengths_follow_from_task_and_model(run_config):
    assert read_spec(run_config("rte", **{"format.max_length": None})).formatting.max_length == 38
    assert read_spec(run_config("rte", **{"format.max_length": 20})).formatting.max_length == 20


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("rte", {"init_from": None}, "no model to fine-tune: give one, such as --config.init_from"),
        ("rte", {"init_from": "nowhere/at/all"}, "nowhere/at/all"),
        ("rte", {"task": "snli"}, r"--config\.task=snli is unknown: use one of cola"),
        ("rte", {"train.steps": 3}, "either --config.train.epochs or --config.train.steps"),
        ("rte", {"train.epochs": None}, "either --config.train.epochs or --config.train.steps"),
        ("rte", {"train.epochs": 0.0}, r"--config\.train\.epochs=0\.0: give a number above 0"),
        ("rte", {"format.max_length": 39}, r"max_length=39 is longer than the 38 positions"),
        ("rte", {"data.text_column": "a"}, r"--config\.data\.text_column describes a file"),
        ("rte", {"data.validation": "1.5"}, r"--config\.data\.validation=1\.5: give a share"),
        (
            "rte",
            {"data.labels": ("a", "a")},
            "give different names",
        ),
        (
            "rte",
            {"data.labels": ("yes", "no")},
            r"the labels of RTE are entailment, not_entailment: give all of them",
        ),
        ("stsb", {"data.labels": ("yes", "no")}, r"--config\.data\.labels=.*STS-B has no labels"),
        ("rte", {"data.engine": "fast"}, r"--config\.data\.engine=fast is unknown"),
        ("csv", {}, r"needs the file of training examples: give --config\.data\.train=FILE\.csv"),
        ("csv", {"data.train": "a.csv"}, "no examples to validate on"),
        (
            "csv",
            {"data.train": "a.csv", "data.validation": "0.1", "data.folder": "glue"},
            r"--config\.data\.folder=glue says where the official files .* csv takes files of your",
        ),
        (
            "jsonl",
            {"data.train": "a.jsonl", "data.validation": "0.1", "data.tfds_data_dir": "tfds"},
            r"--config\.data\.tfds_data_dir=tfds says where .* --config\.data\.train, ",
        ),
        (
            "rte",
            {"format.doc_stride": 64},
            r"--config\.format\.doc_stride=64 has no effect on rte, whose examples are of the kind "
            r"classification\. It is for question_answering, as in squad1, squad2\. Leave it out",
        ),
        ("race", {"format.n_best": 5}, r"--config\.format\.n_best=5 has no effect on race"),
        ("conll2003", {"format.separators": 1}, r"--config\.format\.separators=1 has no effect"),
        ("wsc", {"format.max_option_length": 9}, r"max_option_length=9 .* It is for choice, as in"),
        (
            "squad1",
            {"format.null_threshold": 0.0},
            r"null_threshold=0\.0 .* It is for questions without an answer, as in squad2\. Leave",
        ),
        (
            "squad2",
            {"model.classifier_dropout": 0.1},
            r"classifier_dropout=0\.1 .* multi_label, regression, tokens, as in cola",
        ),
        ("race", {"model.classifier_dropout": 0.1}, r"classifier_dropout=0\.1 has no effect"),
        ("wsc", {"model.classifier_dropout": 0.1}, r"classifier_dropout=0\.1 has no effect"),
        ("rte", {"mesh.data": 3}, r"mesh\.data=3"),
        ("rte", {"optimizer.name": "sgd"}, r"--config\.optimizer\.name='sgd' is unknown"),
        ("rte", {"adapt.lora_rank": 4, "adapt.layer_decay": 0.9}, "lora"),
        ("rte", {"adapt.frozen_layers": 9}, r"--config\.adapt\.frozen_layers=9"),
    ],
)
def test_mistakes_in_the_config(run_config, task, changes, message):
    with pytest.raises(UsageError, match=message) as error:
        read_spec(run_config(task, **changes))
    one_screen(error.value)


def test_keys_are_refused_where_they_change_no_input(run_config, tmp_path):
    """And only there: of each kind that reads a key, a task has other inputs with another value."""
    values = {"separators": 1, "max_option_length": 1, "doc_stride": 3, "max_query_length": 1}
    changing, refusing = set(), set()
    for name, write in small_tasks.TASKS.items():
        (tmp_path / name).mkdir()
        task, changes = write(tmp_path / name)
        pair = {"data.pair_column": "text2"} if name == "pairs" else {}
        prepared = prepare(read_spec(run_config(task, **changes, **pair)))
        kind, examples = prepared.kind, prepared.train.examples
        before = digest(prepared.train.features)
        for key, value in values.items():
            formatting = dataclasses.replace(kind.formatting, **{key: value})
            other = type(kind)(kind.task, kind.labels, formatting)
            if digest(other.encode(examples, prepared.tokenizer)) != before:
                changing.add((kind.task.kind, key))
            try:
                check_keys_of_kind(run_config(task, **{f"format.{key}": value}), kind.task)
            except UsageError:
                refusing.add((kind.task.kind, key))
    assert changing.isdisjoint(refusing)
    without_pairs = {("regression", "separators"), ("multi_label", "separators")}
    assert changing | refusing | without_pairs == {(kind, key) for kind in KINDS for key in values}


@pytest.mark.parametrize("name", KINDS)
def test_the_dropout_of_the_classifier_is_refused_where_there_is_none(run_config, name):
    task = dataclasses.replace(TASKS["rte"], kind=name)
    kind = kind_class(name)(task, ("a", "b"), Formatting())
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = heads.SMALL.replace(classifier_dropout=0.5, **rates, **kind.config_changes())
    model = kind.model_class(config)
    ids = jnp.ones((1, 2, 8) if name == "choice" else (1, 8), jnp.int32)

    def training_step(params):  # dropout needs a key, and there is none
        return model.apply({"params": params}, input_ids=ids, deterministic=False)

    changes = run_config("rte", **{"model.classifier_dropout": 0.5})
    if name in ("choice", "question_answering", "pronoun"):
        jax.eval_shape(training_step, parameter_shapes(model))
        with pytest.raises(UsageError, match="classifier_dropout=0.5 has no effect on rte"):
            check_keys_of_kind(changes, task)
    else:
        with pytest.raises(flax.errors.InvalidRngError):
            jax.eval_shape(training_step, parameter_shapes(model))
        check_keys_of_kind(changes, task)


def test_validation_is_a_share_or_a_file(tmp_path, monkeypatch):
    assert validation_share("0.1") == 0.1
    assert validation_share("dev.csv") is None
    assert validation_share(None) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.1").write_text("a file")
    assert validation_share("0.1") is None
    for wrong in ("0", "1", "-0.1", "nan"):
        with pytest.raises(UsageError, match="give a share between 0 and 1"):
            validation_share(wrong)
