"""Where transformers' Flax classes differ from its PyTorch classes, or are wrong.

In each of these cases the drop-in classes behave as the PyTorch classes do. The only exception is
PyTorch's `generate`, which does not number positions as its forward pass.
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
    """Theirs start at 0. So do those of PyTorch's `generate`, unlike PyTorch's forward pass."""
    ours, theirs = pair(CAUSAL_LM)
    ids = np.array([[1, 1, 5, 6], [7, 8, 9, 10]])
    mask = jnp.asarray(ids != 1, jnp.int32)
    actual, wrong = (model.prepare_inputs_for_generation(ids, 6, mask) for model in (ours, theirs))
    assert wrong["position_ids"].tolist() == [[-1, -1, 0, 1], [0, 1, 2, 3]]
    wrong = to_torch(ours, CAUSAL_LM).prepare_inputs_for_generation(
        torch.as_tensor(ids), attention_mask=torch.as_tensor(np.asarray(mask))
    )
    assert wrong["position_ids"].tolist() == [[1, 1, 0, 1], [0, 1, 2, 3]]
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


def test_beam_search_counts_only_the_best_candidates_as_finished():
    """Theirs also counts candidates that are not among the best `num_beams`."""
    first = {10: -1.0, 11: -1.1, 2: -1.2}
    ours, in_torch, theirs = beam_searches([first, {12: -5.0}])
    assert ours == in_torch == [([10, 12], -3.0), ([11, 12], -3.05)]
    assert theirs[0] == ([2, 1], -1.2)


def test_beam_search_returns_continuations_that_have_not_ended():
    """Theirs fills up with rows of pad tokens if at least one has ended."""
    first = {2: -0.5, 10: -1.0, 11: -1.1}
    ours, in_torch, theirs = beam_searches([first, {12: -5.0}])
    assert ours == in_torch == [([2, 1], -0.5), ([10, 12], -3.0)]
    assert theirs == [([2, 1], -0.5), ([1, 1], -1e7)]


def beam_searches(log_probs):
    """Two beams, with the same log-probabilities after any token: {token: one} for each step.

    Returns [(new tokens, score)] of ours, of PyTorch's and of theirs.
    """
    rows = np.full((len(log_probs), 60), -40.0, np.float32)
    for row, values in zip(rows, log_probs, strict=True):
        row[list(values)] = list(values.values())

    def in_jax(ids, scores, length):
        return jnp.broadcast_to(jnp.asarray(rows)[length - 3], scores.shape)

    def in_torch(ids, scores):
        return torch.as_tensor(rows[ids.shape[1] - 3]).expand(scores.shape)

    models = new_pair(CAUSAL_LM, num_hidden_layers=1, add_cross_attention=True)
    ids = np.array([[5, 6, 7]])
    options = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": len(rows)}
    lists = (
        [in_jax],
        transformers.LogitsProcessorList([in_torch]),
        transformers.generation.flax_logits_process.FlaxLogitsProcessorList([in_jax]),
    )
    outputs = [
        models[0].generate(ids, logits_processor=lists[0], **options),
        to_torch(models[0], CAUSAL_LM).generate(
            torch.as_tensor(ids),
            logits_processor=lists[1],
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        ),
        models[1].generate(jnp.asarray(ids), logits_processor=lists[2], **options),
    ]
    outputs[1].scores = outputs[1].sequences_scores
    return [
        [
            (row, round(score, 2))
            for row, score in zip(
                output.sequences[:, 3:].tolist(), output.scores.tolist(), strict=True
            )
        ]
        for output in outputs
    ]


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
