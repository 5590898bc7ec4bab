"""The type and range of every value of the config: no key is left out."""

import math

import pytest

from configs.pretrain import SIZES, get_config
from roberta_jax.dotted_keys import flatten
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.config_values import VALUES, Entries, Flag, Number, Text, check_values
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.pretraining.text_spec import read_text_spec
from tests.support.messages import one_screen

NAN, INF = float("nan"), float("inf")
NUMBERS = {key: wanted for key, wanted in VALUES.items() if isinstance(wanted, Number)}
# No value of any key. (What is a bad value of one type may be a good one of another.)
BAD_FOR_ALL = (b"x", object(), {"a": 1}, complex(1))
BAD = {
    Number: (NAN, INF, -INF, -2, -0.5, 1e31, 10**35, 2**120, 10**5000, True, False, "", "3", [1]),
    Text: ("", "x" * 5000, "a\0b", "\udcff", 3, 0.5, True, NAN, ("a",)),
    Flag: ("true", "", 1, 0, NAN, 2.0, None, ()),
    Entries: ("", "((", 5, True, NAN, None),
}


@pytest.mark.parametrize("size", SIZES)
def test_every_key_has_its_range_and_every_default_is_in_it(size):
    values = flatten(get_config(size))
    assert set(values) == set(VALUES)
    check_values(values)
    config = get_config(size)
    for key, wanted in VALUES.items():
        *groups, name = key.split(".")
        group = config[groups[0]] if groups else config
        kind = {Text: str, Flag: bool, Entries: tuple}.get(type(wanted), type(wanted.example))
        assert group.get_type(name) is kind, key
        assert wanted.fits(wanted.example), key


@pytest.mark.parametrize("key", VALUES)
def test_bad_values_are_refused_with_the_key_the_range_and_a_good_value(key):
    values, wanted = flatten(get_config("tiny")), VALUES[key]
    bad = [*BAD_FOR_ALL, *BAD[type(wanted)]]
    bad += [] if wanted.optional else [None]
    bad = [value for value in bad if value != "" or not getattr(wanted, "may_be_empty", False)]
    bad += _beyond(wanted) if isinstance(wanted, Number) else []
    for value in bad:
        with pytest.raises(UsageError) as error:
            check_values({**values, key: value})
        message = one_screen(error.value)
        assert message.startswith(f"--config.{key}="), value
        assert f": give {wanted}" in message
        assert f", such as --config.{key}=" in message
    if wanted.optional:
        check_values({**values, key: None})


def _beyond(wanted: Number) -> list:
    """The nearest values out of the range, and 0.5 where only whole numbers fit."""
    if isinstance(wanted.example, int):
        return [wanted.low - 1, wanted.high + 1, 0.5, float(wanted.high)]
    low = wanted.low if wanted.above else math.nextafter(wanted.low, -INF)
    return [low, wanted.high if wanted.below else math.nextafter(wanted.high, INF)]


@pytest.mark.parametrize("key", NUMBERS)
def test_the_ends_of_a_range_are_read_or_refused_for_another_reason(small_config, key):
    """Whatever else a value must fulfil is a UsageError, too, never another exception."""
    wanted, is_whole = NUMBERS[key], isinstance(NUMBERS[key].example, int)
    low = wanted.low + (1 if is_whole else 1e-3) if wanted.above else wanted.low
    high = wanted.high - 1e-3 if wanted.below else wanted.high
    for value in (low, high):
        assert wanted.fits(value if is_whole else float(value))
        try:
            read_spec(small_config(**{key: value if is_whole else float(value)}))
        except UsageError as error:
            message = one_screen(error)
            assert "--config." in message
            assert ": give a" not in message  # the range's own message


def test_keys_that_are_missing_or_unknown():
    values = flatten(get_config("tiny"))
    with pytest.raises(UsageError, match=r"no key --config\.train\.steps\. Add .* = 10000"):
        check_values({key: value for key, value in values.items() if key != "train.steps"})
    with pytest.raises(UsageError, match=r"--config\.train\.stepz\. Did you mean .*train\.steps\?"):
        check_values({**values, "train.stepz": 3})
    with pytest.raises(UsageError, match=r"unknown key --config\.zebra\. Remove it"):
        check_values({**values, "zebra": 3})


@pytest.mark.parametrize("read", [read_spec, read_text_spec])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 10**20),
        ("seed", 2**70),
        ("schedule.power", NAN),
        ("new_tokenizer.min_frequency", -1),
        ("new_tokenizer.vocab_size", 10**9),
    ],
)
def test_both_readers_of_a_config_check_it(small_config, read, key, value):
    with pytest.raises(
        UsageError, match=rf"^--config\.{key}={value}: give a .*, such as --config\."
    ):
        read(small_config(**{key: value}))


def test_long_values_are_shortened():
    values = flatten(get_config("tiny"))
    with pytest.raises(UsageError, match=r"x\.\.\. \(5000 characters\): give a text"):
        check_values({**values, "tokenizer": "x" * 5000})
    with pytest.raises(UsageError, match="seed=a number of 16610 bits: give"):
        check_values({**values, "seed": 10**5000})
