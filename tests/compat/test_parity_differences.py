"""Where transformers' Flax classes differ from its PyTorch classes, or are wrong.

In each of these cases the drop-in classes behave as the PyTorch classes do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.support.flax_classes import CAUSAL_LM, ENCODER, MASKED_LM
from tests.support.flax_parity import (
    EMBEDDING_TABLES,
    MARKS,
    assert_close,
    config_of,
    initial_pair,
    new_pair,
    pair,
    to_torch,
    torch,
    torch_outputs,
    transformers,
)

pytestmark = MARKS


def test_cache_is_used_without_cross_attention():
    """Theirs ignores `past_key_values` then."""
    ours, theirs = pair(CAUSAL_LM)
    ids = np.random.default_rng(0).integers(4, 60, (2, 5))
    assert "past_key_values" not in theirs(ids[:, :4], past_key_values=theirs.init_cache(2, 9))
    first = ours(ids[:, :4], past_key_values=ours.init_cache(2, 9))
    second = ours(ids[:, 4:], past_key_values=first.past_key_values)
    expected = torch_outputs(ours, CAUSAL_LM, ids)[0].numpy()
    assert_close([second.logits[:, 0]], [expected[:, 4]])


def test_generation_counts_positions_from_the_padding_id():
    """Theirs start at 0."""
    ours, theirs = pair(CAUSAL_LM)
    ids = np.array([[1, 1, 5, 6], [7, 8, 9, 10]])
    mask = jnp.asarray(ids != 1, jnp.int32)
    actual, wrong = (model.prepare_inputs_for_generation(ids, 6, mask) for model in (ours, theirs))
    assert wrong["position_ids"].tolist() == [[-1, -1, 0, 1], [0, 1, 2, 3]]
    from transformers.models.roberta import modeling_roberta

    expected = modeling_roberta.create_position_ids_from_input_ids(torch.as_tensor(ids), 1)
    assert actual["position_ids"].tolist() == expected.tolist()
    # The continuation follows from PyTorch's logits of the whole sequence.
    sequence = ids[1:]
    for _ in range(6):
        logits = torch_outputs(ours, CAUSAL_LM, sequence)[0].numpy()
        sequence = np.append(sequence, logits[:, -1:].argmax(-1), axis=1)
    output = ours.generate(ids, attention_mask=mask, max_new_tokens=6, eos_token_id=-1)
    assert output.sequences[1].tolist() == sequence.tolist()[0]


def test_attention_dropout_differs_between_inputs_and_heads():
    """Theirs draws one pattern for all inputs and heads."""
    ours, theirs = new_pair(ENCODER, attention_probs_dropout_prob=0.5)
    ids = np.tile(np.arange(4, 24), (2, 1))
    flags = {"train": True, "dropout_rng": jax.random.PRNGKey(0), "output_attentions": True}
    our_zeros, their_zeros = (
        np.asarray(model(ids, **flags).attentions[0] == 0) for model in (ours, theirs)
    )
    assert (their_zeros == their_zeros[:1, :1]).all()
    model = to_torch(ours, ENCODER).train()
    attentions = model(torch.as_tensor(ids), output_attentions=True).attentions
    for zeros in (our_zeros, attentions[0].detach().numpy() == 0):
        agreement = (zeros == zeros[:1, :1])[1:].mean()
        assert 0.4 < agreement < 0.6
        assert 0.4 < zeros.mean() < 0.6


def test_input_longer_than_the_position_table_is_an_error():
    """Theirs gives NaN."""
    ours, theirs = pair(ENCODER)
    ids = np.full((1, 39), 5)
    assert np.isnan(theirs(ids)[0]).all()
    with pytest.raises(IndexError):
        torch_outputs(ours, ENCODER, ids)
    with pytest.raises(ValueError, match="39 tokens, but this model has positions for 38"):
        ours(ids)


def test_embedding_rows_of_padding_are_initialized_to_zero():
    """Theirs are random."""
    config = config_of(ENCODER)
    our_rows, their_rows = (
        [np.asarray(model.params["embeddings"][t]["embedding"][1]) for t in EMBEDDING_TABLES]
        for model in initial_pair(ENCODER, config)
    )
    embeddings = transformers.RobertaModel(config).embeddings
    torch_rows = [getattr(embeddings, t).weight[1].detach().numpy() for t in EMBEDDING_TABLES]
    assert not np.any(torch_rows)
    assert not np.any(our_rows)
    assert np.all(their_rows)


def test_variance_of_layer_norm_does_not_cancel():
    """Theirs is the mean of squares less the squared mean."""
    ours, theirs = new_pair(ENCODER)
    params = flatten_dict(ours.params)
    table = ("embeddings", "word_embeddings", "embedding")
    params[table] = params[table] + 300.0
    ours.params = theirs.params = unflatten_dict(params)
    ids = np.array([[5, 6, 7, 8]])
    flags = {"output_hidden_states": True}
    expected = torch_outputs(ours, ENCODER, ids, **flags).hidden_states[0].numpy()
    our_error, their_error = (
        np.abs(model(ids, **flags).hidden_states[0] - expected).max() for model in (ours, theirs)
    )
    assert our_error < 1e-3 < 10 * our_error + 1e-3 < their_error


def test_initial_scale_of_the_last_layer():
    """Theirs is wider than `initializer_range`."""
    name = "FlaxRobertaForTokenClassification"
    config = config_of(name, hidden_size=64, num_labels=200)
    ours, theirs = initial_pair(name, config)
    torch_model = transformers.RobertaForTokenClassification(config)
    assert torch_model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert ours.params["classifier"]["kernel"].std() == pytest.approx(0.02, rel=0.05)
    assert theirs.params["classifier"]["kernel"].std() > 0.1


def test_max_length_of_twenty_includes_the_prompt():
    """Theirs generates 20 new tokens."""
    ours, theirs = pair(CAUSAL_LM, add_cross_attention=True)
    ids = np.full((1, 5), 7)
    options = {"max_length": 20, "eos_token_id": -1}
    assert theirs.generate(jnp.asarray(ids), max_length=20).sequences.shape == (1, 25)
    torch_model = to_torch(ours, CAUSAL_LM)
    expected = torch_model.generate(torch.as_tensor(ids), do_sample=False, **options)
    assert ours.generate(ids, **options).sequences.shape == tuple(expected.shape) == (1, 20)


def test_logits_are_float32():
    """Theirs have the dtype of the computation."""
    ours, theirs = initial_pair(MASKED_LM, dtype=jnp.bfloat16)
    ids = np.array([[5, 6, 7]])
    assert (ours(ids).logits.dtype, theirs(ids).logits.dtype) == (jnp.float32, jnp.bfloat16)


def test_encoder_hidden_states_need_cross_attention():
    """Theirs ignores them."""
    ours, theirs = pair(CAUSAL_LM)
    ids, states = np.array([[5, 6]]), jnp.ones((1, 3, 32))
    theirs(ids, encoder_hidden_states=states)
    with pytest.raises(ValueError, match="cross-attention"):
        ours(ids, encoder_hidden_states=states)
