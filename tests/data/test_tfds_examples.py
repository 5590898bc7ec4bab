"""Examples of TFDS as Python values."""

import sys

import numpy as np
import pytest

from roberta_jax.data.tfds_examples import read_examples
from roberta_jax.errors import UsageError

RECORDS = [
    {
        "text": "Zoë 😀",
        "label": label,
        "number": 2,
        "score": 0.5,
        "true": True,
        "words": ["a", "ü"],
        "tags": [1, 0],
        "options": [["a", "b"], ["c"]],
        "answers": {"text": ["x", "ß"], "start": [3, 4]},
    }
    for label in (0, 1, -1)
]


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """Two prepared datasets with every sort of feature that the tasks' datasets have."""
    pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict(
        {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "number": np.int32,
            "score": np.float32,
            "true": np.bool_,
            "words": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-PER"])),
            "options": tfds.features.Sequence(tfds.features.Sequence(tfds.features.Text())),
            "answers": tfds.features.Sequence({"text": tfds.features.Text(), "start": np.int32}),
        }
    )
    for name, records in (("everything", RECORDS), ("one_more", RECORDS[:1])):
        tfds.dataset_builders.AdhocBuilder(
            name=name,
            version="1.0.0",
            features=features,
            split_datasets={"train": list(enumerate(records)), "dev": [(0, RECORDS[0])]},
            data_dir=folder,
        ).download_and_prepare()
    return str(folder)


def test_values(tfds_folder):
    examples = list(read_examples("everything", "train", tfds_folder))
    assert sorted(str(each["label"]) for each in examples) == ["None", "no", "yes"]
    for example in examples:
        expected = RECORDS[0] | {"label": example["label"], "tags": ["B-PER", "O"]}
        assert example == expected
        assert type(example["number"]) is int
        assert type(example["true"]) is bool


def test_several_splits_and_datasets(tfds_folder):
    names = "everything:train+one_more:dev+train"
    assert len(list(read_examples("everything", names, tfds_folder))) == 3 + 1 + 3


def test_what_cannot_be_loaded(tfds_folder, monkeypatch):
    with pytest.raises(UsageError, match="TFDS cannot load 'nothing_of_this_name'"):
        list(read_examples("nothing_of_this_name", "train", tfds_folder))
    with pytest.raises(UsageError, match="TFDS cannot load 'everything', split 'test'"):
        list(read_examples("everything", "test", tfds_folder))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UsageError, match=r"dataset 'glue/rte' needs TensorFlow Datasets.*\[data\]"):
        list(read_examples("glue/rte", "train", None))
