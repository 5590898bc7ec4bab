"""Small programs in the notation of optimised HLO, written by hand, and configs to plan with.

`TPU` has what the TPU compiler's programs have: loops whose number of iterations stands in their
condition (5 and, within them, 3), collectives within fusions, groups of devices in three notations,
a reduce-scatter that is written as an all-reduce and a slice, pieces of one asynchronous
collective, and cycle estimates. It is for 8 devices, 2 x 2 x 2. `TWO_SLICES` is the program of one
of two slices of 4 devices, which reduces within the slice and then across.
"""

import pathlib

from configs.pretrain import get_config

_FOLDER = pathlib.Path(__file__).parent
TPU = (_FOLDER / "tpu.hlo").read_text()
TWO_SLICES = (_FOLDER / "two_slices.hlo").read_text()


def config_of(size, **changes):
    """The config of a size with some values changed: `config_of("tiny", train__batch_size=8)`."""
    config = get_config(size)
    with config.unlocked():
        for key, value in changes.items():
            group, name = key.split("__")
            config[group][name] = value
    return config
