"""Outputs of the drop-in classes behave as transformers' `ModelOutput`."""

import collections
import copy
import dataclasses
import pickle
from collections.abc import Mapping

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.compat import outputs

CLASSES = [
    outputs.FlaxModelOutput,
    outputs.FlaxCausalLMOutput,
    outputs.FlaxLogitsOutput,
    outputs.FlaxQuestionAnsweringOutput,
    outputs.FlaxGenerateOutput,
]


def new_output(cls):
    """An output with arrays in its required fields and in the last one."""
    fields = dataclasses.fields(cls)
    values = {f.name: jnp.arange(3.0) + i for i, f in enumerate(fields) if not _has_default(f)}
    if len(fields) > len(values):
        values[fields[-1].name] = (jnp.zeros(2), jnp.ones(2))
    return cls(**values), values


def _has_default(field):
    return field.default is not dataclasses.MISSING


def assert_equal(actual, expected):
    assert type(actual) is type(expected)
    assert list(actual) == list(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("cls", CLASSES)
def test_is_a_dictionary_of_the_fields_that_are_not_none(cls):
    output, values = new_output(cls)
    for base in (dict, collections.OrderedDict, Mapping):
        assert isinstance(output, base)
    assert list(output) == list(output.keys()) == list(values)
    assert (lambda **given: given)(**output) == dict(output) == {**output} == values
    assert list(output.values()) == list(output.to_tuple()) == list(values.values())
    assert [name for name, _ in output.items()] == list(values)
    for index, (name, value) in enumerate(values.items()):
        assert output[name] is output[index] is getattr(output, name) is output.get(name) is value
        assert name in output
    assert output[:1] == output.to_tuple()[:1]
    assert output[-1] is output.to_tuple()[-1]
    assert len(output) == len(values)
    for field in dataclasses.fields(cls):
        if field.name not in values:
            assert getattr(output, field.name) is None
            assert field.name not in output
            assert output.get(field.name, 3) == 3
            with pytest.raises(KeyError):
                output[field.name]
    with pytest.raises(IndexError):
        output[len(values)]
    with pytest.raises(AttributeError):
        _ = output.other


@pytest.mark.parametrize("cls", CLASSES)
def test_cannot_be_changed(cls):
    output, values = new_output(cls)
    name = next(iter(values))
    for change in (
        lambda: output.update({name: 1}),
        lambda: output.setdefault(name, 1),
        lambda: output.pop(name),
        lambda: output.popitem(),
        lambda: output.clear(),
        lambda: output.move_to_end(name),
        lambda: output.__setitem__(name, 1),
        lambda: output.__delitem__(name),
        lambda: output.__ior__({name: 1}),
    ):
        with pytest.raises(TypeError, match=r"cannot be changed: use output\.replace"):
            change()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(output, name, 1)
    assert dict(output) == values
    replaced = output.replace(**{name: 1})
    assert (replaced[name], getattr(replaced, name), replaced[0]) == (1, 1, 1)
    assert dict(output) == values
    assert {"other": 0} | output == {"other": 0} | values
    assert output | {"other": 0} == values | {"other": 0}


@pytest.mark.parametrize("cls", CLASSES)
def test_copies_pickles_and_trees(cls):
    output, values = new_output(cls)
    for other in (copy.copy(output), copy.deepcopy(output), output.copy()):
        assert_equal(other, output)
    assert_equal(pickle.loads(pickle.dumps(output)), output)
    flat, structure = jax.tree.flatten(output)
    assert len(flat) == len(jax.tree.leaves(list(values.values())))
    assert_equal(jax.tree.unflatten(structure, flat), output)
    assert_equal(jax.jit(lambda x: x)(output), output)
    doubled = jax.tree.map(lambda x: 2 * x, output)
    assert list(doubled) == list(output)
    np.testing.assert_array_equal(doubled[0], 2 * output[0])
    assert jax.tree.map(jnp.shape, output)[0] == (3,)
    state = flax.serialization.to_state_dict(output)
    assert_equal(flax.serialization.from_state_dict(output, state), output)
