"""`read_spec`: what it reads from a config, and which configs it refuses."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh

from roberta_jax import weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaForPreTraining
from roberta_jax.pretraining.spec import check_schedule_is_stated, decay_steps, read_spec
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.training.partitioning import MESH_AXES, RULES
from tests.support import texts
from tests.support.messages import one_screen

PAIRS = {"data.format": "sentence_pair", "objective.next_sentence": True}


@pytest.fixture(scope="module")
def tokenizer():
    return RobertaTokenizer.train(texts.documents(100), vocab_size=300)


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """A folder of saved models: `good`, `short` with 8 positions, `narrow` with 290 ids."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "good", tokenizer)
    save_model(folder / "short", tokenizer, max_position_embeddings=10)
    save_model(folder / "narrow", tokenizer, vocab_size=290)
    return folder


def save_model(folder, tokenizer, **changes):
    sizes = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 18,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "type_vocab_size": 1,
    }
    model = RobertaForMaskedLM(RobertaConfig(**{**sizes, **changes}))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    weights.save_pretrained(folder, model, nn.unbox(params), tokenizer)


# What is wrong -> (changes to a good config, a pattern that the message must match).
WRONG_VALUES = {
    "batch that the mesh does not divide": ({"mesh.data": 3}, r"mesh\.data=3"),
    "no rows per device": (
        {"train.per_device_batch_size": 0},
        r"train\.per_device_batch_size=0",
    ),
    "no steps": ({"train.steps": 0}, r"train\.steps=0"),
    "warmup of all steps": (
        {"train.steps": 4, "schedule.warmup_steps": 4},
        r"schedule\.warmup_steps=4",
    ),
    "negative cadence": ({"train.checkpoint_every": -1}, r"checkpoint_every=-1"),
    "heads that do not divide the width": (
        {"model.num_attention_heads": 3},
        r"hidden_size 32.*heads",
    ),
    "unknown activation": ({"model.hidden_act": "gelou"}, "gelou"),
    "unknown dtype": ({"execution.dtype": "float8"}, r"execution\.dtype=float8.*bfloat16"),
    "unknown remat": ({"execution.remat": "some"}, "some.*dots"),
    "unknown order": ({"data.order": "random"}, r"data\.order=random.*full, windowed"),
    "more streams than rows": (
        {"data.order": "windowed", "data.order_streams": 9},
        r"data\.order_streams=9.*train\.batch_size=8",
    ),
    "streams that do not divide the rows": (
        {"data.order": "windowed", "data.order_streams": 6},
        r"data\.order_streams=6 does not divide.*train\.batch_size=8.*such as 2\.",
    ),
    "unknown engine": ({"data.engine": "torch"}, r"data\.engine=torch.*numpy"),
    "unknown optimizer": (
        {"optimizer.name": "sgd"},
        r"optimizer\.name='sgd' is unknown: use one of adamw, lamb",
    ),
    "unknown weight decay": ({"optimizer.decay_mask": "none"}, "none.*bert"),
    "unknown schedule": (
        {"schedule.name": "linear"},
        r"schedule\.name='linear' is unknown: use one of polynomial, cosine, constant",
    ),
    "option of another schedule": (
        {"schedule.name": "cosine", "schedule.power": 2.0},
        r"schedule\.power=2\.0 is not an option of the schedule 'cosine'.*polynomial",
    ),
    "unknown sharding rule": ({"mesh.rules": (("width", None),)}, r"mesh\.rules: 'width'"),
    "everything masked": ({"masking.rate": 1.0}, r"masking\.rate"),
    "unknown masking scheme": ({"masking.scheme": "line"}, r"masking\.scheme"),
    "no masks": ({"masking.dupe_factor": 0}, r"masking\.dupe_factor"),
    "rows without room for a token": ({"seq_len": 1}, "seq_len"),
    "next-sentence prediction without pairs": (
        {"objective.next_sentence": True},
        "next_sentence=true needs pairs.*full_sentences",
    ),
    "unknown format": ({"data.format": "pairs"}, r"data\.format is 'pairs'.*segment_pair"),
    "pairs that are never sampled": (
        {"data.format": "segment_pair", "data.dupe_factor": 0},
        r"--config\.data\.dupe_factor=0: give a whole number from 1",
    ),
    "three separators": ({"data.format": "segment_pair", "data.num_separators": 3}, "from 1 to 2"),
    "probability above 1": (
        {"data.format": "segment_pair", "data.short_seq_prob": 2.0},
        "from 0 to 1",
    ),
    "rows without room for a pair": (
        {"data.format": "sentence_pair", "seq_len": 5},
        "a pair takes at least 6",
    ),
    "unknown key in a mixture": (
        {"data.mixture": ({"file": "x"},)},
        "mixture: corpus 1 has 'file'",
    ),
    "no tokens": ({"data.max_tokens": 0}, "max_tokens=0"),
}


@pytest.mark.parametrize("mistake", WRONG_VALUES)
def test_wrong_values_are_refused_before_any_text_is_read(small_config, mistake):
    changes, pattern = WRONG_VALUES[mistake]
    with pytest.raises(UsageError, match=pattern) as error:
        read_spec(small_config(**{"data.files": "missing/*.txt", **changes}))
    one_screen(error.value)


@pytest.mark.skipif(jax.__version_info__ >= (0, 8), reason="newer versions of jaxlib support it")
def test_bfloat16_is_refused_where_the_cpu_cannot_multiply_it(small_config):
    with pytest.raises(UsageError, match="cannot multiply bfloat16 matrices on this machine's CPU"):
        read_spec(small_config(**{"execution.dtype": "bfloat16"}))


def test_the_devices_of_a_plan_decide_the_mesh_and_the_dtype(small_config, monkeypatch):
    tpus = [types.SimpleNamespace(id=number, platform="tpu") for number in range(8)]
    with pytest.raises(UsageError, match=r"mesh\.data=3.* 8 tpu device"):
        read_spec(small_config(**{"mesh.data": 3}), tpus)
    monkeypatch.setattr(
        "roberta_jax.config_groups.create_mesh",
        lambda devices, **sizes: AbstractMesh((len(devices), 1, 1), MESH_AXES),
    )
    options = {"execution.dtype": "auto", "train.batch_size": 8, "eval.batch_size": 8}
    planned, here = (read_spec(small_config(**options), devices) for devices in (tpus, None))
    assert planned.training.mesh.size == 8
    assert (planned.execution.dtype, here.execution.dtype) == (jnp.bfloat16, jnp.float32)


def test_the_text_is_not_needed(small_config):
    spec = read_spec(small_config(**{"data.files": "missing/*.txt"}))
    assert spec.text.corpora[0].source.files == "missing/*.txt"


def test_the_spec_is_frozen(small_config):
    spec = read_spec(small_config())
    parts = (spec, spec.text, spec.text.corpora[0], spec.training, spec.evaluation)
    for part in (*parts, spec.masking, spec.pairs, spec.model, spec.execution):
        field = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, getattr(part, field))


def test_later_changes_of_the_config_do_not_reach_the_spec(small_config):
    config = small_config()
    spec = read_spec(config)
    config.train.steps = 5
    assert spec.config["train"]["steps"] == spec.training.steps == 12


@pytest.mark.parametrize(
    ("changes", "model_class"), [({}, RobertaForMaskedLM), (PAIRS, RobertaForPreTraining)]
)
def test_the_objective_chooses_the_model_class(small_config, changes, model_class):
    assert read_spec(small_config(**changes)).model_class is model_class


def test_sharding_rules_reach_the_training(small_config):
    assert read_spec(small_config()).training.rules == RULES
    rules = read_spec(small_config(**{"mesh.rules": (("embed", None),)})).training.rules
    assert dict(rules) == {**dict(RULES), "embed": None}


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (
            (1, 1, 8),
            {"model.hidden_size": 768, "model.num_attention_heads": 12},  # 768 is divisible by 8
            r"--config\.model\.num_attention_heads=12 is not divisible by the 8 devices that split "
            r"it \(--config\.mesh\.tensor=8\)\. Use a mesh that splits it over 6, or another",
        ),
        (
            (1, 1, 2),
            {"model.intermediate_size": 63},
            r"intermediate_size=63 is not .* by the 2 .*over 1, or another --config\.model\.inter",
        ),
        ((1, 3, 1), {"eval.batch_size": 9, "train.batch_size": 9}, r"hidden_size=32 .* by the 3"),
        (
            (1, 2, 2),
            {
                "model.num_attention_heads": 2,
                "mesh.rules": (("embed", None), ("heads", ("fsdp", "tensor"))),
            },
            r"num_attention_heads=2 .* 4 devices .*--config\.mesh\.fsdp=2 times --config\.mesh",
        ),
        ((1, 4, 1), {"train.batch_size": 6}, r"train\.batch_size=6 is not divisible by 4"),
        ((2, 2, 1), {"eval.batch_size": 6}, r"eval\.batch_size=6 is not divisible by 4"),
    ],
)
def test_sizes_that_the_mesh_does_not_divide(small_config, monkeypatch, mesh, changes, message):
    monkeypatch.setattr(
        "roberta_jax.config_groups.create_mesh", lambda **sizes: AbstractMesh(mesh, MESH_AXES)
    )
    with pytest.raises(UsageError, match=message) as error:
        read_spec(small_config(**changes))
    one_screen(error.value)


def test_sizes_that_the_mesh_divides(small_config, monkeypatch):
    mesh = AbstractMesh((2, 2, 2), MESH_AXES)
    monkeypatch.setattr("roberta_jax.config_groups.create_mesh", lambda **sizes: mesh)
    assert read_spec(small_config()).training.mesh == mesh


def test_rules_that_contradict_each_other_are_refused_on_one_device(small_config):
    with pytest.raises(UsageError, match=r"--config\.mesh\.rules: two of the axes"):
        read_spec(small_config(**{"mesh.rules": (("embed", "tensor"),)}))


# The model to start from.


def test_without_init_from_the_tokenizer_completes_the_model_config(small_config, tokenizer):
    spec = read_spec(small_config())
    assert (spec.model.hidden_size, spec.model.vocab_size) == (32, 320)
    model = spec.model_config(tokenizer)
    assert model == spec.model.replace(vocab_size=300, max_position_embeddings=18)
    assert (model.bos_token_id, model.pad_token_id, model.eos_token_id) == (0, 1, 2)


def test_init_from_gives_the_model_config(small_config, models, tokenizer):
    """Only the dropout rates are those of `config.model`."""
    changes = {
        "init_from": str(models / "good"),
        "model.hidden_size": 64,
        "model.hidden_dropout_prob": 0.3,
        "model.attention_probs_dropout_prob": 0.2,
    }
    spec = read_spec(small_config(**changes))
    saved = weights.from_pretrained(models / "good")[0].config
    assert spec.model == saved.replace(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    assert spec.model.hidden_size == 32
    assert spec.model_config(tokenizer) == spec.model


def test_init_from_is_checked_without_reading_tensors(small_config, models, monkeypatch):
    def read_all(pairs):
        raise AssertionError("reads tensors")

    monkeypatch.setattr("roberta_jax.weights.load.read_all", read_all)
    with pytest.raises(AssertionError, match="reads tensors"):
        weights.from_pretrained(models / "good")
    read_spec(small_config(init_from=str(models / "good")))
    read_spec(small_config(init_from=str(models / "good"), **PAIRS))  # with a new head


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        ("short", r"seq_len=16.*8 positions.*--config\.seq_len=8"),
        ("missing", "missing"),
    ],
)
def test_models_that_cannot_be_started_from(small_config, models, model, pattern):
    with pytest.raises(UsageError, match=pattern) as error:
        read_spec(small_config(init_from=str(models / model)))
    one_screen(error.value)


def test_weights_that_are_not_the_models_are_refused(small_config, models, tokenizer, tmp_path):
    save_model(tmp_path, tokenizer)
    config_file = tmp_path / "config.json"
    text = config_file.read_text()
    assert '"num_hidden_layers": 2' in text
    config_file.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(UsageError, match="missing") as error:
        read_spec(small_config(init_from=str(tmp_path)))
    one_screen(error.value)


def test_the_tokenizer_must_be_that_of_the_model(small_config, models, tokenizer):
    spec = read_spec(small_config(init_from=str(models / "narrow")))
    with pytest.raises(UsageError, match=r"300 ids.*290") as error:
        spec.model_config(tokenizer)
    one_screen(error.value)


def test_the_special_ids_must_be_those_of_the_model(small_config, tokenizer, tmp_path):
    save_model(tmp_path, tokenizer, pad_token_id=5, max_position_embeddings=30)
    spec = read_spec(small_config(init_from=str(tmp_path)))
    with pytest.raises(UsageError, match="pad_token_id is 1, the model's 5"):
        spec.model_config(tokenizer)


# Longer runs.


def test_a_longer_run_needs_the_end_of_the_decay(small_config):
    previous = small_config().to_dict()
    assert decay_steps(previous) == 12
    with pytest.raises(UsageError, match=r"planned for 12 steps.*decay_steps=20.*decay_steps=12"):
        check_schedule_is_stated(small_config(**{"train.steps": 20}), previous)
    for changes in (
        {"train.steps": 20, "schedule.decay_steps": 20},
        {"train.steps": 20, "schedule.decay_steps": 12},
        {"train.steps": 12},
        {"train.steps": 8},
    ):
        check_schedule_is_stated(small_config(**changes), previous)
    check_schedule_is_stated(small_config(**{"train.steps": 20}), None)
    planned = small_config(**{"schedule.decay_steps": 20}).to_dict()
    assert decay_steps(planned) == 20
    check_schedule_is_stated(small_config(**{"train.steps": 20}), planned)
