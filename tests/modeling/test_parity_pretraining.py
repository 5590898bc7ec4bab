"""A saved `RobertaForPreTraining` agrees with Hugging Face's classes that load its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.heads import assert_close

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.bert.modeling_bert import BertOnlyNSPHead, BertPooler

from roberta_jax import weights
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForPreTraining
from roberta_jax.weights.next_sentence import FILE, NAMES
from roberta_jax.weights.parameters import parameter_values

pytestmark = pytest.mark.parity


@pytest.fixture(autouse=True)
def _highest_matmul_precision():
    with jax.default_matmul_precision("highest"):
        yield


def test_the_masked_lm_and_the_next_sentence_head_agree(tmp_path):
    config = RobertaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=22, type_vocab_size=2, initializer_range=0.1,
    )  # fmt: skip
    model = RobertaForPreTraining(config)
    params = jax.tree.map(
        lambda x: x + 0.05 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32),
        parameter_values(model, jax.random.key(0)),
    )
    weights.save_pretrained(tmp_path, model, params)

    theirs, report = transformers.RobertaForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    tensors = {name: torch.from_numpy(x) for name, x in load_file(tmp_path / FILE).items()}
    assert tensors.keys() == NAMES.keys()
    bert = transformers.BertConfig(hidden_size=32)
    pooler, seq_relationship = BertPooler(bert), BertOnlyNSPHead(bert)
    for module, prefix in ((pooler, "bert.pooler."), (seq_relationship, "cls.")):
        module.load_state_dict(
            {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        )

    rng = np.random.default_rng(0)
    ids, types = rng.integers(4, 60, (3, 20)), np.repeat([[0] * 9 + [1] * 11], 3, axis=0)
    ours = model.apply({"params": params}, jnp.asarray(ids), token_type_ids=jnp.asarray(types))
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(ids), "token_type_ids": torch.tensor(types)}
        logits = theirs.eval()(**inputs).logits.numpy()
        hidden = theirs.roberta(**inputs).last_hidden_state
        next_sentence_logits = seq_relationship(pooler(hidden)).numpy()
    assert_close(ours.logits, logits)
    assert_close(ours.next_sentence_logits[:, 0], next_sentence_logits)
