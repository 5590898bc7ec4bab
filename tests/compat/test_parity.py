"""The drop-in classes against transformers' own Flax classes, live, and against torch's.

Where the two of transformers differ, ours is torch's: `DIFFERENCES` names each such case.
"""

import functools
import json
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.support import heads

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "FlaxRobertaModel"):
    pytest.skip("this transformers has no Flax classes", allow_module_level=True)

import roberta_jax
from roberta_jax.compat import outputs

pytestmark = pytest.mark.parity

NAMES = tuple(f"Flax{name}" for name in heads.MODEL_CLASSES)
CAUSAL, MASKED = "FlaxRobertaForCausalLM", "FlaxRobertaForMaskedLM"
CLASSIFIER = "FlaxRobertaForSequenceClassification"
TABLES = ("word_embeddings", "position_embeddings")


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def settings_of(name, **changes):
    """transformers' config."""
    config = heads.config_of(name.removeprefix("Flax"), type_vocab_size=2)
    values = config.to_dict()
    if "num_labels" in changes:  # transformers' config would heed the names alone
        del values["id2label"], values["label2id"]
    return transformers.RobertaConfig(**(values | changes))


def random_like(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), shapes)


def pair(name, **changes):
    """(ours, transformers'), with the same random parameters."""
    ours = getattr(roberta_jax, name)(settings_of(name, **changes))
    theirs = getattr(transformers, name)(settings_of(name, **changes))
    theirs.params = ours.params = random_like(theirs.params)
    return ours, theirs


cached_pair = functools.cache(pair)


def torch_of(model, name):
    """transformers' torch class with the parameters of a model of ours."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        cls = getattr(transformers, name.removeprefix("Flax"))
        return cls.from_pretrained(folder, attn_implementation="eager").eval()


def inputs_of(name):
    given = dict(heads.inputs_of(name.removeprefix("Flax"), heads.SMALL).given)
    shape = given["input_ids"].shape
    given["token_type_ids"] = np.random.default_rng(1).integers(0, 2, shape)
    return given


def assert_close(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)


# The same call gives the same outputs


@pytest.mark.parametrize("name", NAMES)
def test_outputs_keys_and_tuples(name):
    ours, theirs = cached_pair(name)
    given = inputs_of(name)
    given["head_mask"] = np.array([[1, 0, 1, 1], [0, 1, 1, 1]])
    for hidden in (False, True):
        for attentions in (False, True):
            flags = {"output_hidden_states": hidden, "output_attentions": attentions}
            if name not in ("FlaxRobertaModel", CAUSAL) and hidden != attentions:
                continue
            output, wanted = ours(**given, **flags), theirs(**given, **flags)
            assert list(output.keys()) == list(wanted.keys())
            assert len(output) == len(wanted)
            assert_close(output.to_tuple(), wanted.to_tuple())
    assert_close(
        ours(**given, **flags, return_dict=False), theirs(**given, **flags, return_dict=False)
    )


@pytest.mark.parametrize("name", NAMES)
def test_defaults_of_the_call(name):
    ours, theirs = cached_pair(name)
    ids = inputs_of(name)["input_ids"]  # with padding, which no mask hides
    assert_close(ours(ids).to_tuple(), theirs(ids).to_tuple())
    positions = np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
    assert_close(
        ours(ids, position_ids=positions).to_tuple(), theirs(ids, position_ids=positions).to_tuple()
    )


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_the_same_tree(name):
    """And begin as the same numbers, but for what `DIFFERENCES` names."""
    ours, theirs = (
        getattr(home, name)(settings_of(name), seed=5) for home in (roberta_jax, transformers)
    )
    assert jax.tree.map(jnp.shape, ours.params) == jax.tree.map(jnp.shape, theirs.params)
    assert ours.required_params == theirs.required_params
    found, wanted = flatten_dict(ours.params), flatten_dict(theirs.params)
    other = {path for path in wanted if not np.allclose(found[path], wanted[path], atol=1e-6)}
    assert {path[-2] for path in other} <= {*TABLES, "classifier", "qa_outputs"}
    for path in other:
        if path[-2] in TABLES:
            rows = np.arange(wanted[path].shape[0]) != 1
            np.testing.assert_allclose(found[path][rows], wanted[path][rows], atol=1e-6)


def test_their_config_stays_the_models():
    config = settings_of(CLASSIFIER, output_hidden_states=True)
    ours, theirs = (getattr(home, CLASSIFIER)(config) for home in (roberta_jax, transformers))
    assert ours.config is config
    given = inputs_of(CLASSIFIER)
    assert ours(**given).keys() == list(theirs(**given).keys())
    config.output_hidden_states, config.return_dict = False, False
    assert len(ours(**given)) == len(theirs(**given)) == 1


def test_outputs_have_their_fields():
    for ours, theirs in {
        "FlaxModelOutput": "FlaxBaseModelOutputWithPoolingAndCrossAttentions",
        "FlaxCausalLMOutput": "FlaxCausalLMOutputWithCrossAttentions",
        "FlaxLogitsOutput": "FlaxMaskedLMOutput",
        "FlaxQuestionAnsweringOutput": "FlaxQuestionAnsweringModelOutput",
    }.items():
        wanted = getattr(transformers.modeling_flax_outputs, theirs).__dataclass_fields__
        assert list(getattr(outputs, ours).__dataclass_fields__) == list(wanted)


def test_another_models_states_with_a_cache():
    ours, theirs = cached_pair(CAUSAL, add_cross_attention=True)
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 60, (2, 5))
    given = {
        "encoder_hidden_states": jnp.asarray(rng.normal(size=(2, 6, 32)), jnp.float32),
        "encoder_attention_mask": jnp.asarray([[1] * 6, [1] * 3 + [0] * 3]),
        "output_attentions": True,
        "attention_mask": np.ones((2, 9), np.int32),
    }
    steps = [(ids[:, :4], np.arange(2, 6)[None].repeat(2, 0)), (ids[:, 4:], np.full((2, 1), 6))]
    for return_dict in (True, False):
        caches = [model.init_cache(2, 9) for model in (ours, theirs)]
        assert jax.tree.map(jnp.shape, caches[0]) == jax.tree.map(jnp.shape, caches[1])
        for tokens, positions in steps:
            outputs = [
                model(
                    tokens,
                    position_ids=positions,
                    past_key_values=cache,
                    return_dict=return_dict,
                    **given,
                )
                for model, cache in zip((ours, theirs), caches, strict=True)
            ]
            if return_dict:
                assert set(outputs[0].keys()) == set(outputs[1].keys())
                caches = [output.past_key_values for output in outputs]
                outputs = [{name: output[name] for name in output} for output in outputs]
            else:
                caches = [output[1] for output in outputs]
            assert_close(*outputs)


@pytest.mark.parametrize("masked", [False, True])
def test_greedy_generation(masked):
    """Where positions do not matter, in which theirs are wrong (see `DIFFERENCES`)."""
    ours, theirs = pair(CAUSAL, add_cross_attention=True)
    params = flatten_dict(ours.params)
    path = ("roberta", "embeddings", "position_embeddings", "embedding")
    params[path] = jnp.zeros_like(params[path])
    ours.params = theirs.params = unflatten_dict(params)
    ids = np.random.default_rng(0).integers(4, 60, (3, 6))
    given = {}
    if masked:
        ids[0, :2] = 1
        given["attention_mask"] = jnp.asarray(ids != 1, jnp.int32)
    for options in (
        {"max_length": 15},
        {"max_new_tokens": 9, "eos_token_id": int(ids[0, -1])},
        {"max_length": 15, "min_length": 10},
        {"generation_config": transformers.GenerationConfig(max_length=13, pad_token_id=3)},
    ):
        found, wanted = (
            model.generate(jnp.asarray(ids), **given, **options).sequences
            for model in (ours, theirs)
        )
        assert found.tolist() == wanted.tolist()


# Files


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_loads_what_the_other_saved(name, safe, tmp_path):
    ours, theirs = cached_pair(name)
    ours.save_pretrained(tmp_path / "ours", safe_serialization=safe)
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=safe)
    for source, cls in (
        ("ours", getattr(transformers, name)),
        ("theirs", getattr(roberta_jax, name)),
    ):
        loaded = cls.from_pretrained(tmp_path / source)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, ours.params))
        assert loaded.config.num_labels == ours.config.num_labels
    settings = [
        json.loads((tmp_path / source / "config.json").read_text()) for source in ("ours", "theirs")
    ]
    for setting in settings:
        setting.pop("transformers_version")
    assert settings[0] == settings[1]
    if safe:  # torch's class takes ours, with nothing missing or left over
        cls = getattr(transformers, name.removeprefix("Flax"))
        _, account = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not any(account.values())


@pytest.mark.parametrize("safe", [False, True])
def test_loads_what_torch_saved(safe, tmp_path):
    theirs = transformers.RobertaForSequenceClassification(settings_of(CLASSIFIER)).eval()
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    ours = roberta_jax.FlaxRobertaForSequenceClassification.from_pretrained(tmp_path, from_pt=True)
    given = inputs_of(CLASSIFIER)
    with torch.no_grad():
        wanted = theirs(**{name: torch.as_tensor(value) for name, value in given.items()})
    assert_close([ours(**given).logits], [wanted.logits.numpy()])


def test_shards_of_either(tmp_path):
    ours, theirs = cached_pair(MASKED)
    for source, model in (("ours", ours), ("theirs", theirs)):
        model.save_pretrained(tmp_path / source, max_shard_size="10KB")
        assert (tmp_path / source / "flax_model.msgpack.index.json").exists()
        for home in (roberta_jax, transformers):
            loaded = getattr(home, MASKED).from_pretrained(tmp_path / source)
            assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, ours.params))


# Differences


def in_torch(model, name, ids, **options):
    with torch.no_grad():
        output = torch_of(model, name)(torch.as_tensor(np.asarray(ids)), **options)
    return output[0].numpy()


def cache_of_a_plain_decoder():
    ours, theirs = cached_pair(CAUSAL)
    ids = np.random.default_rng(0).integers(4, 60, (2, 5))
    assert "past_key_values" not in theirs(ids[:, :4], past_key_values=theirs.init_cache(2, 9))
    first = ours(ids[:, :4], past_key_values=ours.init_cache(2, 9))
    then = ours(ids[:, 4:], past_key_values=first.past_key_values)
    assert_close([then.logits[:, 0]], [in_torch(ours, CAUSAL, ids)[:, 4]])


def positions_while_generating():
    ours, theirs = cached_pair(CAUSAL)
    ids = np.array([[1, 1, 5, 6], [7, 8, 9, 10]])
    mask = jnp.asarray(ids != 1, jnp.int32)
    found, wrong = (model.prepare_inputs_for_generation(ids, 6, mask) for model in (ours, theirs))
    assert wrong["position_ids"].tolist() == [[-1, -1, 0, 1], [0, 1, 2, 3]]
    from transformers.models.roberta import modeling_roberta

    wanted = modeling_roberta.create_position_ids_from_input_ids(torch.as_tensor(ids), 1)
    assert found["position_ids"].tolist() == wanted.tolist()
    # A continuation is that of the whole input's logits, which torch's forward gives.
    grown = ids[1:]
    for _ in range(6):
        grown = np.append(grown, in_torch(ours, CAUSAL, grown)[:, -1:].argmax(-1), axis=1)
    options = {"max_new_tokens": 6, "eos_token_id": -1}
    assert (
        ours.generate(ids, attention_mask=mask, **options).sequences[1].tolist()
        == grown.tolist()[0]
    )


def dropout_of_attention():
    ours, theirs = pair("FlaxRobertaModel", attention_probs_dropout_prob=0.5)
    ids = np.tile(np.arange(4, 24), (2, 1))
    flags = {"train": True, "dropout_rng": jax.random.PRNGKey(0), "output_attentions": True}
    dropped, shared = (
        np.asarray(model(ids, **flags).attentions[0] == 0) for model in (ours, theirs)
    )
    assert (shared == shared[:1, :1]).all()  # one pattern for all inputs and heads
    model = torch_of(ours, "FlaxRobertaModel").train()
    wanted = model(torch.as_tensor(ids), output_attentions=True).attentions[0].detach().numpy() == 0
    for pattern in (dropped, wanted):
        agreement = (pattern == pattern[:1, :1])[1:].mean()
        assert 0.4 < agreement < 0.6
        assert 0.4 < pattern.mean() < 0.6


def input_that_is_too_long():
    ours, theirs = cached_pair("FlaxRobertaModel")
    ids = np.full((1, 39), 5)
    assert np.isnan(theirs(ids)[0]).all()
    with pytest.raises(IndexError):
        in_torch(ours, "FlaxRobertaModel", ids)
    with pytest.raises(ValueError, match="39 tokens, but this model has positions for 38"):
        ours(ids)


def rows_of_padding():
    config = settings_of("FlaxRobertaModel")
    models = [
        roberta_jax.FlaxRobertaModel(config),
        transformers.FlaxRobertaModel(config),
    ]
    found, wrong = (
        [np.asarray(model.params["embeddings"][table]["embedding"][1]) for table in TABLES]
        for model in models
    )
    theirs = transformers.RobertaModel(config).embeddings
    wanted = [getattr(theirs, table).weight[1].detach().numpy() for table in TABLES]
    assert not np.any(wanted)
    assert not np.any(found)
    assert np.all(wrong)


def variance_in_layer_norm():
    ours, theirs = pair("FlaxRobertaModel")
    params = flatten_dict(ours.params)
    table = ("embeddings", "word_embeddings", "embedding")
    params[table] = params[table] + 300.0  # the mean of squares less the squared mean cancels
    ours.params = theirs.params = unflatten_dict(params)
    ids = np.array([[5, 6, 7, 8]])
    flags = {"output_hidden_states": True}
    wanted = in_torch_hidden(ours, ids)
    right = np.abs(ours(ids, **flags).hidden_states[0] - wanted).max()
    wrong = np.abs(theirs(ids, **flags).hidden_states[0] - wanted).max()
    assert right < 1e-3 < 10 * right + 1e-3 < wrong


def in_torch_hidden(model, ids):
    with torch.no_grad():
        theirs = torch_of(model, "FlaxRobertaModel")
        return theirs(torch.as_tensor(ids), output_hidden_states=True).hidden_states[0].numpy()


def spread_of_new_last_layers():
    wide = {"hidden_size": 64, "num_labels": 200}
    name = "FlaxRobertaForTokenClassification"
    ours, theirs = (
        getattr(home, name)(settings_of(name, **wide)) for home in (roberta_jax, transformers)
    )
    wanted = transformers.RobertaForTokenClassification(settings_of(name, **wide))
    assert wanted.classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert ours.params["classifier"]["kernel"].std() == pytest.approx(0.02, rel=0.05)
    assert theirs.params["classifier"]["kernel"].std() > 0.1


def length_of_twenty():
    ours, theirs = cached_pair(CAUSAL, add_cross_attention=True)
    ids = np.full((1, 5), 7)
    options = {"max_length": 20, "eos_token_id": -1}
    assert theirs.generate(jnp.asarray(ids), max_length=20).sequences.shape == (1, 25)
    wanted = torch_of(ours, CAUSAL).generate(torch.as_tensor(ids), do_sample=False, **options)
    assert ours.generate(ids, **options).sequences.shape == tuple(wanted.shape) == (1, 20)


def logits_of_half_a_type():
    ours, theirs = (
        getattr(home, MASKED)(settings_of(MASKED), dtype=jnp.bfloat16)
        for home in (roberta_jax, transformers)
    )
    ids = np.array([[5, 6, 7]])
    assert (ours(ids).logits.dtype, theirs(ids).logits.dtype) == (jnp.float32, jnp.bfloat16)


def states_without_cross_attention():
    ours, theirs = cached_pair(CAUSAL)
    given = {"encoder_hidden_states": jnp.ones((1, 3, 32))}
    theirs(np.array([[5, 6]]), **given)  # passes them over
    with pytest.raises(ValueError, match="cross-attention"):
        ours(np.array([[5, 6]]), **given)


# What transformers' Flax classes do otherwise than its torch classes, or get wrong.
DIFFERENCES = {
    "past_key_values is ignored without add_cross_attention": cache_of_a_plain_decoder,
    "positions start at 0 while generating": positions_while_generating,
    "attention dropout is shared by all inputs and heads": dropout_of_attention,
    "an input that is too long gives NaN": input_that_is_too_long,
    "the rows of padding are drawn as the others": rows_of_padding,
    "LayerNorm's variance cancels": variance_in_layer_norm,
    "the last layers are drawn with another spread": spread_of_new_last_layers,
    "max_length=20 means 20 new tokens": length_of_twenty,
    "logits are of the type of computation": logits_of_half_a_type,
    "encoder_hidden_states are passed over": states_without_cross_attention,
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_differences(difference):
    DIFFERENCES[difference]()


# Scripts written for transformers, of which the import alone changes

FINE_TUNE = """
from transformers import FlaxRobertaForSequenceClassification, RobertaTokenizerFast

import jax, jax.numpy as jnp, numpy as np, optax
from flax.training import train_state
from flax.training.common_utils import onehot

tokenizer = RobertaTokenizerFast.from_pretrained(FOLDER)
model = FlaxRobertaForSequenceClassification.from_pretrained(FOLDER, num_labels=3, seed=1)
texts = ["a first text", "another, somewhat longer one", "third"]
batch = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="np")
batch = {k: jnp.asarray(v) for k, v in batch.items()}
labels = jnp.array([0, 1, 2])
state = train_state.TrainState.create(
    apply_fn=model.__call__, params=model.params, tx=optax.adamw(1e-3)
)

def train_step(state, batch, labels, dropout_rng):
    dropout_rng, new_dropout_rng = jax.random.split(dropout_rng)
    def loss_fn(params):
        logits = state.apply_fn(**batch, params=params, dropout_rng=dropout_rng, train=True)[0]
        targets = onehot(labels, model.config.num_labels)
        return jnp.mean(optax.softmax_cross_entropy(logits, targets))
    loss, grad = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grad), loss, new_dropout_rng

p_train_step = jax.jit(train_step, donate_argnums=(0,))
losses, rng = [], jax.random.PRNGKey(0)
for _ in range(6):
    state, loss, rng = p_train_step(state, batch, labels, rng)
    losses.append(float(loss))
model.save_pretrained(OUTPUT, params=jax.device_get(state.params))
tokenizer.save_pretrained(OUTPUT)
model = FlaxRobertaForSequenceClassification.from_pretrained(OUTPUT)
result = losses, model(**batch).logits
"""

FILL_MASK = """
from transformers import FlaxRobertaForMaskedLM, RobertaTokenizerFast

import jax.numpy as jnp, numpy as np, jax

tokenizer = RobertaTokenizerFast.from_pretrained(FOLDER)
model, params = FlaxRobertaForMaskedLM.from_pretrained(FOLDER, dtype=jnp.float32, _do_init=False)
inputs = tokenizer(["The <mask> sat here.", "Go to<mask> now"], return_tensors="np", padding=True)
predict = jax.jit(lambda params, inputs: model(**inputs, params=params, output_hidden_states=True))
outputs = predict(params, dict(inputs))
rows, places = np.nonzero(inputs["input_ids"] == tokenizer.mask_token_id)
best = jnp.argsort(outputs.logits[rows, places], axis=-1)[:, ::-1][:, :5]
result = outputs.to_tuple(), [tokenizer.convert_ids_to_tokens(row.tolist()) for row in best]
"""

GENERATE = """
from transformers import FlaxRobertaForCausalLM, RobertaConfig, RobertaTokenizerFast

import jax, jax.numpy as jnp

tokenizer = RobertaTokenizerFast.from_pretrained(FOLDER, padding_side="left")
config = RobertaConfig(**SETTINGS, is_decoder=True, add_cross_attention=True)
model = FlaxRobertaForCausalLM(config, seed=2)
embeddings = model.params["roberta"]["embeddings"]
embeddings["position_embeddings"]["embedding"] *= 0
model.params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, model.params)
inputs = tokenizer(["Once upon a time", "No"], return_tensors="np", padding=True)
greedy = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_length=30)
drawn = model.generate(
    inputs["input_ids"], attention_mask=inputs["attention_mask"], max_length=30,
    do_sample=True, top_k=20, top_p=0.9, temperature=0.8, prng_key=jax.random.PRNGKey(1),
)
result = tokenizer.batch_decode(greedy.sequences, skip_special_tokens=True), drawn.sequences.shape
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A masked LM with a tokenizer of 300 tokens, as transformers saves them."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("scripts")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["the cat sat on the mat and the dog went on to the other one"] * 5,
        vocab_size=300,
        min_frequency=1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    trained.save_model(str(folder))
    transformers.RobertaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    size = trained.get_vocab_size()
    model = transformers.FlaxRobertaForMaskedLM(settings_of(MASKED, vocab_size=size))
    model.params = random_like(model.params)
    model.save_pretrained(folder)
    return folder


SCRIPTS = {"fine-tune": FINE_TUNE, "fill a mask": FILL_MASK, "generate": GENERATE}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_with_its_import_changed(name, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    kept += ("intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps")
    results = []
    for home in ("transformers", "roberta_jax"):
        space = {
            "FOLDER": str(folder),
            "OUTPUT": str(tmp_path / home),
            "SETTINGS": {key: config[key] for key in kept if key in config},
        }
        changed = SCRIPTS[name].replace("from transformers import", f"from {home} import", 1)
        exec(compile(changed, home, "exec"), space)
        results.append(space["result"])
    theirs, ours = results
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if isinstance(one, str):
            assert one == other
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
