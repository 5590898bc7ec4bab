"""Whole pretraining runs: the files, the metrics and the export, continued runs, and errors."""

import json
import pathlib
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from roberta_jax import cli, weights
from roberta_jax import pretrain as pretrain_module
from roberta_jax.errors import UsageError
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.pretrain import pretrain
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.training import preemption
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.metrics import read_metrics
from roberta_jax.training.run import RunResult
from tests.support import texts
from tests.support.messages import one_screen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a corpus, a cache of its prepared text, and the workdirs of these tests."""
    folder = tmp_path_factory.mktemp("pretrain")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


def small_config(folder, **changes):
    return texts.small_config(folder / "corpus.jsonl", folder / "cache", **changes)


@pytest.fixture(scope="module")
def run(folder):
    """The result of a finished run, whose files the tests do not change."""
    return pretrain(small_config(folder, **{"eval.ngram_baselines": True}), folder / "run")


@pytest.fixture(scope="module")
def plain_run(folder):
    """The same without n-gram baselines: the result of a run of `small_config(folder)`."""
    return pretrain(small_config(folder), folder / "plain")


def test_files_of_a_finished_run(run):
    assert run.finished
    assert run.step == 12
    assert {p.name for p in run.workdir.iterdir() if not p.name.startswith(".")} == {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "hf",
    }
    config = json.loads((run.workdir / "config.json").read_text())
    assert config["train"]["steps"] == 12
    assert config["init_from"] is None
    assert sorted(int(p.name) for p in (run.workdir / "checkpoints").iterdir()) == [8, 12]
    assert list((run.workdir / "tensorboard").iterdir())


def test_metrics_of_a_finished_run(run):
    records = read_metrics(run.workdir)
    assert [r["step"] for r in records if "loss" in r] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in records if "eval_loss" in r] == [5, 10, 12]
    last = records[-1]
    assert last["finished"]
    assert run.metrics.items() <= last.items()
    assert last["eval_perplexity"] == pytest.approx(np.exp(last["eval_loss"]))
    # Twelve steps teach little, but a bigram model beats a unigram model, and that beats chance.
    assert 1 < last["bigram_perplexity"] < last["unigram_perplexity"] < 320
    first = records[0]["loss"]
    assert first == pytest.approx(np.log(320), rel=0.1)
    assert records[-2]["loss"] < first


def test_the_export_is_the_trained_model(run):
    model, params = weights.from_pretrained(run.workdir)
    tokenizer = RobertaTokenizer.from_pretrained(run.workdir / "hf")
    assert tokenizer.model_max_length == model.config.max_length == 16
    config = model.config
    assert config.vocab_size == len(tokenizer) == 320
    assert config.max_position_embeddings == 18
    assert (config.hidden_size, config.num_hidden_layers) == (32, 2)
    assert isinstance(model, RobertaForMaskedLM)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    ids = jnp.asarray([tokenizer.encode("The cat sees <mask> at home")])
    logits = jax.jit(model.apply)({"params": params}, ids).logits
    assert logits.shape == (1, ids.shape[1], 320)


def test_a_finished_run_only_prints_its_result(run, folder, capsys, monkeypatch):
    monkeypatch.setattr("roberta_jax.pretraining.text.prepare", None)  # no text is prepared
    again = pretrain(small_config(folder, **{"eval.ngram_baselines": True}), run.workdir)
    assert "is finished: 12 steps" in capsys.readouterr().out
    assert (again.finished, again.metrics) == (True, pytest.approx(run.metrics))


def model_bytes(workdir):
    return (workdir / "hf" / "model.safetensors").read_bytes()


def test_a_deleted_export_is_written_again(plain_run, folder, tmp_path):
    workdir = pathlib.Path(shutil.copytree(plain_run.workdir, tmp_path / "run"))
    records = read_metrics(workdir)
    shutil.rmtree(workdir / "hf")
    assert pretrain(small_config(folder), workdir).finished
    assert model_bytes(workdir) == model_bytes(plain_run.workdir)
    assert read_metrics(workdir) == records


def test_a_run_in_two_parts_equals_one_run(plain_run, folder):
    first_part = small_config(folder, **{"schedule.decay_steps": 12, "train.steps": 7})
    assert pretrain(first_part, folder / "parts").step == 7
    second_part = small_config(folder, **{"schedule.decay_steps": 12, "train.steps": 12})
    result = pretrain(second_part, folder / "parts")
    assert result.metrics == plain_run.metrics
    assert model_bytes(folder / "parts") == model_bytes(plain_run.workdir)


def test_engine_cache_and_cadence_change_no_bit(plain_run, folder):
    pytest.importorskip("tensorflow")
    changes = {
        "data.engine": "tf",
        "data.cache_dir": str(folder / "cache2"),
        "train.log_every": 3,
        "train.eval_every": 0,
        "train.checkpoint_every": 5,
    }
    result = pretrain(small_config(folder, **changes), folder / "other_cadence")
    assert model_bytes(plain_run.workdir) == model_bytes(result.workdir)


def test_a_damaged_export_of_a_finished_run_is_written_again(plain_run, folder, tmp_path):
    workdir = pathlib.Path(shutil.copytree(plain_run.workdir, tmp_path / "run"))
    weights_file = workdir / "hf" / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UsageError, match=r"damaged: hf/model\.safetensors") as error:
        pretrain(small_config(folder), workdir)
    assert f"rm -r {workdir / 'hf'}" in one_screen(error.value)
    shutil.rmtree(workdir / "hf")  # as the message says
    assert pretrain(small_config(folder), workdir).finished
    assert model_bytes(workdir) == model_bytes(plain_run.workdir)


def test_init_from_starts_from_the_weights_and_the_tokenizer(run, folder, capsys):
    # Of config.model only the dropout rates are used; the shape is that of the pretrained model.
    changes = {"init_from": str(run.workdir), "model.hidden_size": 64, "train.steps": 6}
    result = pretrain(small_config(folder, **changes), folder / "init_from")
    assert f"Starting from the weights in {run.workdir}: " in capsys.readouterr().out
    model, _ = weights.from_pretrained(result.workdir)
    assert model.config.hidden_size == 32
    before = RobertaTokenizer.from_pretrained(run.workdir / "hf").fingerprint()
    after = RobertaTokenizer.from_pretrained(result.workdir / "hf").fingerprint()
    assert before == after
    # Its first loss is lower than that of the run that started from random weights.
    first_loss = read_metrics(result.workdir)[0]["loss"]
    assert first_loss < read_metrics(run.workdir)[0]["loss"] - 0.05
    assert result.finished


def test_without_held_out_text_there_is_no_evaluation(folder):
    result = pretrain(small_config(folder, **{"data.validation_fraction": 0.0}), folder / "no_eval")
    assert result.finished
    assert set(result.metrics) == {"epochs", "padding_share"}
    assert all("eval_loss" not in record for record in read_metrics(result.workdir))


def test_a_diverging_run_stops_and_its_last_checkpoint_is_kept(folder):
    changes = {
        "optimizer.learning_rate": 1e30,
        "schedule.warmup_steps": 6,
        "train.checkpoint_every": 1,
    }
    with pytest.raises(UsageError, match="training diverged"):
        pretrain(small_config(folder, **changes), folder / "diverged")
    with Checkpoints(folder / "diverged" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() >= 1
    assert not (folder / "diverged" / "hf").exists()


def test_the_recipe_of_bert(folder):
    changes = {
        "optimizer.decay_mask": "bert",
        "optimizer.bias_correction": False,
        "optimizer.clip_norm": 1.0,
        "masking.scheme": "whole_word",
        "masking.mask_special_tokens": False,
        "train.per_device_batch_size": 2,
        "train.deterministic": True,
        "execution.remat": "full",
        "execution.scan_layers": False,
        "train.steps": 5,
    }
    assert pretrain(small_config(folder, **changes), folder / "bert").finished


@pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="jaxlib 0.7 has no bfloat16 matrix products on the CPU"
)
def test_parameters_are_float32_when_activations_are_bfloat16(folder):
    changes = {"execution.dtype": "bfloat16", "train.steps": 5}
    result = pretrain(small_config(folder, **changes), folder / "bfloat16")
    assert result.finished
    _, params = weights.from_pretrained(result.workdir)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


PAIRS = {
    "data.format": "segment_pair",
    "data.dupe_factor": 3,
    "objective.next_sentence": True,
    "model.type_vocab_size": 2,
    "seq_len": 48,
    "eval.short_inputs": True,
}


@pytest.fixture(scope="module")
def pairs_run(folder):
    """The result of a finished run with next-sentence prediction."""
    return pretrain(small_config(folder, **PAIRS), folder / "pairs")


def test_metrics_of_next_sentence_prediction(pairs_run):
    assert 0 <= pairs_run.metrics["next_sentence_accuracy"] <= 1
    assert pairs_run.metrics["next_sentence_loss"] == pytest.approx(np.log(2), rel=0.2)
    assert pairs_run.metrics["eval_short_perplexity"] == pytest.approx(
        np.exp(pairs_run.metrics["eval_short_loss"])
    )
    assert 0 < pairs_run.metrics["padding_share"] < 0.3
    assert pairs_run.metrics["epochs"] == pytest.approx(12 * 8 / 343)  # rows per sampling
    records = [record for record in read_metrics(pairs_run.workdir) if "loss" in record]
    assert records[0]["loss"] == pytest.approx(
        records[0]["masked_lm_loss"] + records[0]["next_sentence_loss"], rel=1e-5
    )


def test_the_next_sentence_head_is_exported_in_a_file_of_its_own(pairs_run):
    export = pairs_run.workdir / "hf"
    with safetensors.safe_open(export / "model.safetensors", "np") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"roberta", "lm_head"}  # noqa: SIM118
        assert file.get_slice("roberta.embeddings.token_type_embeddings.weight").get_shape()[0] == 2
    with safetensors.safe_open(export / "nsp_head.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert shapes == {
        "bert.pooler.dense.weight": [32, 32],
        "bert.pooler.dense.bias": [32],
        "cls.seq_relationship.weight": [2, 32],
        "cls.seq_relationship.bias": [2],
    }
    model, _ = weights.from_pretrained(pairs_run.workdir)
    assert isinstance(model, RobertaForMaskedLM)


def test_init_from_reads_the_next_sentence_head(pairs_run, folder):
    """With a learning rate of 0, the final scores are those of the run it starts from."""
    changes = {
        **PAIRS,
        "init_from": str(pairs_run.workdir),
        "train.steps": 5,
        "optimizer.learning_rate": 0.0,
    }
    again = pretrain(small_config(folder, **changes), folder / "pairs_again")
    for name in ("next_sentence_loss", "next_sentence_accuracy", "eval_loss", "eval_short_loss"):
        assert again.metrics[name] == pytest.approx(pairs_run.metrics[name], rel=1e-5), name


def test_init_from_adds_a_new_next_sentence_head_where_there_is_none(run, folder):
    changes = {**PAIRS, "init_from": str(run.workdir), "seq_len": 16, "train.steps": 5}
    result = pretrain(small_config(folder, **changes), folder / "new_head")
    assert result.finished
    assert (result.workdir / "hf" / "nsp_head.safetensors").exists()


def test_a_longer_run_needs_the_end_of_the_decay(run, folder):
    config = small_config(folder, **{"eval.ngram_baselines": True, "train.steps": 20})
    with pytest.raises(UsageError, match=r"planned for 12 steps.*decay_steps=20.*decay_steps=12"):
        pretrain(config, run.workdir)
    assert json.loads((run.workdir / "config.json").read_text())["train"]["steps"] == 12


def test_a_mixture_of_corpora(folder):
    other = texts.write_corpus(folder / "other.jsonl", count=40)
    changes = {
        "data.mixture": ({"files": str(other), "weight": 2.0, "max_tokens": 500},),
        "train.steps": 6,
    }
    result = pretrain(small_config(folder, **changes), folder / "mixed")
    assert result.finished
    again = pretrain(small_config(folder, **changes), folder / "mixed")  # reads the saved config
    assert again.metrics == result.metrics


# What is wrong -> (changes to a good config, a pattern that the message must match). Names of
# files and folders are those in the folder of these tests.
WRONG_TEXT = {
    "no corpus": ({"data.files": None}, r"data\.files"),
    "missing corpus": ({"data.files": "/missing/*.jsonl"}, r"/missing/\*\.jsonl"),
    "empty corpus": ({"data.files": "empty.jsonl"}, r"no documents.*config\.data"),
    "unknown source": ({"data.source": "web"}, "source=web is unknown.*builtin.*files"),
    "nothing held out": (
        {"data.validation_fraction": 1e-9},
        "validation_fraction.*Raise it",
    ),
    "corpus smaller than a batch": (
        {"data.files": "short.jsonl", "train.batch_size": 512, "data.validation_fraction": 0.0},
        r"fewer than one batch.*train\.batch_size=512.*or less",
    ),
    "vocabulary larger than the text allows": (
        {"new_tokenizer.vocab_size": 30_000},
        "vocab.*30000",
    ),
    "missing tokenizer": ({"tokenizer": "missing"}, "missing"),
    "missing model": ({"init_from": "missing"}, "missing"),
    "tokenizer of another model": (
        {"init_from": "run", "tokenizer": "larger_tokenizer"},
        "330 ids.*320",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_TEXT)
def test_wrong_text_is_refused_before_training(run, folder, tmp_path, mistake):
    changes, pattern = WRONG_TEXT[mistake]
    (folder / "empty.jsonl").write_text("")
    texts.write_corpus(folder / "short.jsonl", count=4)
    if "tokenizer" in changes:
        tokenizer = RobertaTokenizer.train(texts.documents(100), vocab_size=330)
        tokenizer.save_pretrained(folder / "larger_tokenizer")
    for key in ("data.files", "init_from", "tokenizer"):
        if changes.get(key):
            changes = {**changes, key: str(folder / changes[key])}
    with pytest.raises(UsageError, match=pattern) as error:
        pretrain(small_config(folder, **changes), tmp_path / "run")
    one_screen(error.value)
    # The corrected command runs in the same workdir: nothing but its lock was written.
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {".lock"}


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.name": "sgd"},
        {"masking.scheme": "line"},
        {"objective.next_sentence": True},
        {"data.max_tokens": 0},
        {"init_from": "missing"},
    ],
)
def test_a_wrong_config_is_refused_before_the_workdir_is_created(folder, tmp_path, changes):
    with pytest.raises(UsageError):
        pretrain(small_config(folder, **{"data.files": "missing", **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The command line.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.stps=3", "did you mean --config.train.steps"),
        ("--config.train.steps=many", "integer"),
        ("--config.optimizer.learning_rate=fast", "number"),
        ("--config.eval.ngram_baselines=perhaps", "true or false"),
        ("--config.train.per_device_batch_size=few", "per_device_batch_size"),
    ],
)
def test_wrong_flags(override, message):
    with pytest.raises(UsageError, match=message) as error:
        cli.parse(["pretrain", "--config=configs/pretrain.py:tiny", override])
    one_screen(error.value)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (preemption.SIGPIPE, 141), (None, 143)],
)
def test_the_exit_status_of_a_run_that_was_stopped(tmp_path, monkeypatch, number, status):
    result = RunResult(tmp_path, 0, 3, False, {}, number)
    monkeypatch.setattr(pretrain_module, "pretrain", lambda config, workdir, on_damage: result)
    monkeypatch.setattr(
        sys, "argv", ["pretrain", "--config=configs/pretrain.py:tiny", f"--workdir={tmp_path}"]
    )
    with pytest.raises(SystemExit) as exit:
        cli.run_config_job(pretrain_module.main, pretrain_module._flags)
    assert exit.value.code == status


def test_no_workdir(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain", "--config=configs/pretrain.py:tiny"])
    with pytest.raises(SystemExit) as exit:
        cli.run_config_job(pretrain_module.main, pretrain_module._flags)
    assert exit.value.code == 2
    assert "--workdir=runs/tiny" in capsys.readouterr().err
