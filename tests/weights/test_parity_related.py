"""XLM-RoBERTa, CamemBERT and KLUE checkpoints saved by transformers load and give its logits."""

import numpy as np
import pytest

from tests.support import heads

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from roberta_jax import weights
from roberta_jax.modeling.heads import RobertaForMaskedLM

pytestmark = pytest.mark.parity

RELATED = {
    "XLMRobertaForMaskedLM": {"max_position_embeddings": 42},
    "CamembertForMaskedLM": {"bos_token_id": 5, "eos_token_id": 6},
    "RobertaForMaskedLM": {"max_position_embeddings": 24, "num_hidden_layers": 1},  # as klue's
}


@pytest.mark.parametrize("name", RELATED)
def test_a_related_model_loads_and_agrees(tmp_path, name):
    config = heads.SMALL.to_dict() | RELATED[name]
    del config["model_type"], config["architectures"]
    cls = getattr(transformers, name)
    theirs = cls(cls.config_class(**config)).eval()
    theirs.save_pretrained(tmp_path)
    model, params = weights.from_pretrained(tmp_path)
    assert isinstance(model, RobertaForMaskedLM)
    for key, value in RELATED[name].items():
        assert getattr(model.config, key) == value
    ids = np.random.default_rng(0).integers(7, 60, (2, model.config.max_length))
    mask = np.ones_like(ids)
    mask[1, 9:] = 0
    ids[1, 9:] = model.config.pad_token_id
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    logits = model.apply({"params": params}, ids, mask).logits
    np.testing.assert_allclose(logits, expected, atol=1e-5)
