"""Scripts written for transformers' Flax classes run with only their import changed."""

import json

import jax
import numpy as np
import pytest

from tests.support.flax_classes import MASKED_LM, random_params
from tests.support.flax_parity import MARKS, config_of, transformers

pytestmark = MARKS

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

AUTO_CLASSES = """
from transformers import (
    CONFIG_MAPPING, FLAX_MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoTokenizer,
    FlaxAutoModelForMaskedLM, FlaxAutoModelForSequenceClassification, RobertaConfig,
)

import numpy as np

model_types = [config.model_type for config in FLAX_MODEL_FOR_MASKED_LM_MAPPING]
assert "roberta" in model_types and "xlm-roberta" in model_types
hub = {"cache_dir": None, "token": None, "trust_remote_code": False, "revision": "main"}
config = AutoConfig.from_pretrained(FOLDER, num_labels=3, finetuning_task="mnli", **hub)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, use_fast=True, **hub)
classifier = FlaxAutoModelForSequenceClassification.from_pretrained(
    FOLDER, config=config, ignore_mismatched_sizes=False, **hub
)
assert classifier.config.label2id == RobertaConfig(num_labels=3).label2id
config = AutoConfig.from_pretrained(FOLDER, vocab_size=len(tokenizer), **hub)
model = FlaxAutoModelForMaskedLM.from_pretrained(FOLDER, config=config, seed=3, **hub)
rows = [tokenizer(t, return_special_tokens_mask=True) for t in ("the cat", "and the other dog")]
batch = tokenizer.pad(rows, pad_to_multiple_of=8, return_tensors="np")
special_tokens_mask = batch.pop("special_tokens_mask")
output = model(**batch)
model.save_pretrained(OUTPUT, commit_message="done", token=None)
tokenizer.save_pretrained(OUTPUT)
new = CONFIG_MAPPING["roberta"]()
new = FlaxAutoModelForMaskedLM.from_config(config, seed=1, trust_remote_code=False)
result = (
    dict(output), special_tokens_mask, np.asarray(classifier.params["roberta"]["embeddings"]
    ["word_embeddings"]["embedding"]), type(new).__name__, config.architectures[0],
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A masked LM with a tokenizer of 300 tokens, as transformers saves them."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("scripts")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        ["the cat sat on the mat and the dog went on to the other one"] * 5,
        vocab_size=300,
        min_frequency=1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    tokenizer.save_model(str(folder))
    transformers.RobertaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    size = tokenizer.get_vocab_size()
    model = transformers.FlaxRobertaForMaskedLM(config_of(MASKED_LM, vocab_size=size))
    model.params = random_params(model.params, scale=0.2)
    model.save_pretrained(folder)
    return folder


SCRIPTS = {
    "fine-tune": FINE_TUNE,
    "fill a mask": FILL_MASK,
    "generate": GENERATE,
    "auto classes": AUTO_CLASSES,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    keys += ("intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps")
    results = []
    for home in ("transformers", "roberta_jax"):
        namespace = {
            "FOLDER": str(folder),
            "OUTPUT": str(tmp_path / home),
            "SETTINGS": {key: config[key] for key in keys if key in config},
        }
        script = SCRIPTS[name].replace("from transformers import", f"from {home} import", 1)
        exec(compile(script, home, "exec"), namespace)
        results.append(namespace["result"])
    expected, actual = results
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if isinstance(a, str):
            assert a == b
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
