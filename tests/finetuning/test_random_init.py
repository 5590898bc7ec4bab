"""Runs that start from random values, with the config and the tokenizer of a model."""

import json

import numpy as np
import pytest

from roberta_jax import from_pretrained
from roberta_jax.errors import UsageError
from roberta_jax.finetune import finetune
from roberta_jax.finetuning.spec import check_config
from tests.support import finetuning


@pytest.mark.parametrize(
    "change",
    [
        {"adapt.lora_rank": 4},
        {"adapt.frozen_layers": 1},
        {"adapt.freeze_embeddings": True},
        {"adapt.reinit_layers": 1},
    ],
)
def test_nothing_of_random_values_can_be_kept(change):
    config = finetuning.small_run("rte", "model", "cache", random_init=True, **change)
    (key,) = change
    with pytest.raises(UsageError, match=f"{key}=.* cannot be combined with --config.random_init"):
        check_config(config)
    with config.unlocked():
        config.random_init = False
    check_config(config)


def test_a_run_takes_no_weights(tmp_path, capsys):
    finetuning.write_model(tmp_path / "model")
    finetuning.write_csv(tmp_path / "train.csv", range(40))
    config = finetuning.small_run(
        "csv",
        tmp_path / "model",
        tmp_path / "cache",
        random_init=True,
        **{
            "data.train": str(tmp_path / "train.csv"),
            "data.validation": "0.25",
            "train.epochs": None,
            "train.steps": 1,
            "optimizer.learning_rate": 1e-6,
        },
    )
    finetune(config, tmp_path / "run")
    assert "Starting from random values, with the config of" in capsys.readouterr().out
    _, ours = from_pretrained(tmp_path / "run" / "hf")
    _, theirs = from_pretrained(tmp_path / "model")
    ours, theirs = (
        np.asarray(each["roberta"]["embeddings"]["word_embeddings"]["embedding"])
        for each in (ours, theirs)
    )
    assert ours.shape == theirs.shape
    words = slice(5, None)  # after the special tokens, of which <pad> is zero in both
    assert not np.isclose(ours[words], theirs[words], atol=1e-4).all(axis=1).any()
    assert abs(np.corrcoef(ours[words].ravel(), theirs[words].ravel())[0, 1]) < 0.05
    assert ours.std() == pytest.approx(theirs.std(), rel=0.1)  # the same distribution
    about = json.loads((tmp_path / "run" / "results.json").read_text())["about"]
    assert about["init_from"].startswith("random values, with the config of")
    card = (tmp_path / "run" / "hf" / "README.md").read_text()
    assert "fine-tuned from random values" in card
