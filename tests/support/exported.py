"""Small models and inputs for the tests of exported programs."""

import numpy as np

from tests.support import heads


def build_small(name, **changes):
    """(model, params) of a class with one layer."""
    return heads.build(name, heads.config_of(name, num_hidden_layers=1, **changes))


def inputs_for(name, config, batch, length):
    """Inputs of an exported program, by name: int32 arrays."""
    given = heads.inputs_of(name, config, batch=batch, length=length, padded=batch > 1).given
    if config.type_vocab_size > 1:
        given["token_type_ids"] = np.ones_like(given["input_ids"])
    return {key: value.astype(np.int32) for key, value in given.items()}
