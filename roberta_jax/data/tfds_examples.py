"""The examples of datasets of TensorFlow Datasets as Python values, without TensorFlow's types."""

from collections.abc import Iterator
from typing import Any

from roberta_jax.errors import UsageError


def read_examples(name: str, split: str, data_dir: str | None) -> Iterator[dict[str, Any]]:
    """Yields the examples of a split, in the order of the files.

    Texts are `str`. The number of a class becomes its name, or None where it is -1, which stands
    for an unpublished label. Sequences are lists, and other features are numbers.

    Args:
      name: the argument of `tfds.builder`, such as "glue/rte".
      split: the split, such as "train", or several: "race/middle:train+race/high:train" names the
        dataset of each.
      data_dir: the folder of datasets; None for the default of TFDS.

    Raises:
      UsageError: TFDS is not installed, or cannot load or download the dataset.
    """
    from roberta_jax.data.text.corpus import first_line, import_tfds

    tfds = import_tfds(f"the dataset {name!r}")
    for part in split.split("+"):
        dataset, _, of_dataset = part.rpartition(":")
        dataset = dataset or name
        try:
            builder = tfds.builder(dataset, data_dir=data_dir)
            builder.download_and_prepare()
            in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
            examples = builder.as_dataset(
                split=of_dataset, shuffle_files=False, read_config=in_order
            )
        except Exception as error:  # TFDS raises errors of its own, urllib, TensorFlow and Python
            raise UsageError(
                f"TFDS cannot load {dataset!r}, split {of_dataset!r}, from "
                f"{data_dir or 'its default folder'}: {first_line(error)}"
            ) from error
        for example in tfds.as_numpy(examples):
            yield {key: _value(value, builder.info.features[key]) for key, value in example.items()}


def _value(value: Any, feature: Any) -> Any:
    """A feature of an example as a Python value."""
    if isinstance(value, dict):
        inner = getattr(feature, "feature", feature)  # a sequence of dicts has lists in a dict
        return {key: _value(each, inner[key]) for key, each in value.items()}
    if hasattr(value, "to_list"):  # a ragged tensor: a sequence of sequences
        return _listed(value.to_list(), feature)
    if hasattr(value, "tolist") and getattr(value, "ndim", 0):
        return _listed(value.tolist(), feature)
    if hasattr(value, "item"):
        value = value.item()
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _listed(values: list, feature: Any) -> list:
    inner = getattr(feature, "feature", feature)
    return [
        _listed(value, inner) if isinstance(value, list) else _value(value, inner)
        for value in values
    ]
