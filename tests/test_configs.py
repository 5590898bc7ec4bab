"""configs/pretrain.py: the paper's recipe, the sizes, and the documentation of the keys."""

import inspect

import ml_collections
import pytest

import configs.pretrain
from configs.pretrain import SIZES, get_config
from roberta_jax import cli, config_help
from roberta_jax.dotted_keys import flatten
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.pretraining.spec import read_spec
from tests.support import texts


def test_base_and_large_are_the_papers_table_9():
    for size, warmup, rate in (("base", 24_000, 6e-4), ("large", 30_000, 4e-4)):
        config = get_config(size)
        assert config.schedule.to_dict() == {
            "name": "polynomial",
            "warmup_steps": warmup,
            "decay_steps": None,
            "power": None,  # 1, linear
            "end_learning_rate": 0.0,
        }
        assert config.optimizer.to_dict() == {
            "name": "adamw",
            "learning_rate": rate,
            "beta1": 0.9,
            "beta2": 0.98,
            "eps": 1e-6,
            "weight_decay": 0.01,
            "decay_mask": "all",
            "bias_correction": True,
            "clip_norm": 0.0,
        }
        assert (config.train.batch_size, config.train.steps) == (8192, 500_000)
        assert config.seq_len == 512
        assert config.model.hidden_dropout_prob == config.model.attention_probs_dropout_prob == 0.1
        assert config.masking.to_dict() == {
            "rate": 0.15,
            "mask_replace_prob": 0.8,
            "random_replace_prob": 0.1,
            "mask_special_tokens": True,
            "scheme": "token",
            "geometric_p": 0.2,
            "max_span_length": 10,
            "dupe_factor": None,
        }
        # The model is the released one.
        released = getattr(RobertaConfig, size)()
        for key, value in config.model.items():
            assert getattr(released, key) == value, key
        assert config.new_tokenizer.vocab_size == released.vocab_size
        assert config.seq_len + 2 == released.max_position_embeddings


def test_the_paper_batch_is_reached_by_accumulation():
    training = read_spec(get_config("base")).training
    assert (training.rows_per_microbatch, training.accumulation) == (16, 512)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_valid_and_locked(size):
    config = get_config(size)
    read_spec(config)
    with pytest.raises(AttributeError):
        config.train.step = 3
    with pytest.raises(TypeError):
        config.train.steps = "many"


def test_placeholders_are_typed_and_take_none():
    config = get_config("base")
    config.train.per_device_batch_size = None
    config.eval.max_rows = 10
    config.init_from = "runs/tiny"
    for group, key in (
        ("train", "per_device_batch_size"),
        ("eval", "max_rows"),
        ("data", "num_workers"),
    ):
        with pytest.raises(TypeError):
            config[group][key] = "two"


def test_all_sizes_have_the_same_keys():
    keys = {size: list(flatten(get_config(size))) for size in SIZES}
    assert all(keys_of_size == keys["base"] for keys_of_size in keys.values())


def test_every_key_and_group_has_a_comment():
    comments = config_help.key_comments(inspect.getsource(configs.pretrain))
    keys = flatten(get_config("base"))
    groups = {key.rpartition(".")[0] for key in keys} - {""}
    assert set(comments) == set(keys) | groups
    assert [key for key, comment in comments.items() if not comment.endswith(".")] == []


def test_every_leaf_is_what_json_can_hold():
    values = flatten(get_config("large"))
    assert values.pop("data.mixture") == values.pop("mesh.rules") == ()
    for value in values.values():
        assert value is None or type(value) in (bool, int, float, str)


def test_unknown_size():
    with pytest.raises(ValueError, match="'huge'.*tiny, small, base, large"):
        get_config("huge")
    with pytest.raises(UsageError, match="'huge'.*tiny, small, base, large"):
        cli.parse(["pretrain", "--config=configs/pretrain.py:huge"])


def test_size_is_part_of_the_flag_and_values_come_after():
    argv = [
        "pretrain",
        "--config=configs/pretrain.py:small",
        "--config.train.per_device_batch_size=4",
    ]
    config = cli.parse(argv).config
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.train.per_device_batch_size == 4
    assert config.seq_len == get_config("small").seq_len


def test_the_test_config_changes_known_keys_only(tmp_path):
    texts.small_config(tmp_path / "c.jsonl", tmp_path)
