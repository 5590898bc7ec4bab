"""Wrong input: each is told in one screen that says what to do, and harms no earlier checkpoint."""

import json
import shutil
import subprocess

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from roberta_jax import cli, weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.pretrain import pretrain
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.training.checkpoints import Checkpoints
from tests.support import texts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_input")
    texts.write_corpus(folder / "corpus.jsonl")
    (folder / "empty.jsonl").write_text("")
    texts.write_corpus(folder / "short.jsonl", count=4)
    tokenizer = RobertaTokenizer.train(texts.documents(100), vocab_size=300)
    tokenizer.save_pretrained(folder / "tokenizer")
    save_model(folder / "short_model", tokenizer, max_position_embeddings=10)
    save_model(folder / "other_ids", tokenizer, vocab_size=290)
    return folder


def save_model(folder, tokenizer, **changes):
    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 18,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "type_vocab_size": 1,
    }
    model = RobertaForMaskedLM(RobertaConfig(**{**settings, **changes}))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    weights.save_pretrained(folder, model, nn.unbox(params), tokenizer)


def config_of(place, corpus="corpus.jsonl", **changes):
    changes = {"train.steps": 4, "schedule.warmup_steps": 2, **changes}
    return texts.small_config(place / corpus, place / "cache", **changes)


def one_screen(message):
    assert len(message.splitlines()) <= 24
    assert all(len(line) < 500 for line in message.splitlines())
    return message


# What is wrong -> (changes to a good config, what the message must say).
WRONG_VALUES = {
    "no corpus named": ({"data.files": None}, ["data.files"]),
    "corpus missing": ({"data.files": "/nowhere/*.jsonl"}, ["/nowhere/*.jsonl"]),
    "corpus empty": ({"data.files": "empty.jsonl"}, ["no documents", "config.data"]),
    "unknown source": ({"data.source": "web"}, ["'web'", "builtin", "files"]),
    "nothing held out": ({"data.validation_fraction": 1e-9}, ["validation_fraction", "Raise it"]),
    "corpus smaller than a batch": (
        {"data.files": "short.jsonl", "train.batch_size": 512, "data.validation_fraction": 0.0},
        ["fewer than one batch", "train.batch_size=512", "or less"],
    ),
    "vocabulary larger than the text allows": (
        {"new_tokenizer.vocab_size": 30_000},
        ["30000", "vocab"],
    ),
    "longer than the positions": (
        {"init_from": "short_model"},
        ["seq_len=16", "8 positions", "--config.seq_len=8"],
    ),
    "tokenizer of another model": ({"init_from": "other_ids"}, ["300 ids", "290"]),
    "no model to start from": ({"init_from": "nothing"}, ["nothing"]),
    "no tokenizer there": ({"tokenizer": "nothing"}, ["nothing"]),
    "batch not divisible": ({"mesh.data": 3}, ["mesh.data=3"]),
    "rows per device": ({"train.per_device_batch_size": 0}, ["train.per_device_batch_size=0"]),
    "no steps": ({"train.steps": 0}, ["train.steps=0"]),
    "warmup beyond the end": ({"schedule.warmup_steps": 4}, ["schedule.warmup_steps=4"]),
    "heads do not divide": ({"model.num_attention_heads": 3}, ["hidden_size 32", "heads"]),
    "unknown activation": ({"model.hidden_act": "gelou"}, ["gelou"]),
    "unknown dtype": ({"execution.dtype": "float8"}, ["float8", "bfloat16"]),
    "unknown remat": ({"execution.remat": "some"}, ["some", "dots"]),
    "unknown engine": ({"data.engine": "torch"}, ["torch", "numpy"]),
    "unknown optimizer": ({"optimizer.name": "sgd"}, ["sgd", "adamw"]),
    "unknown decay": ({"optimizer.decay_mask": "none"}, ["none", "bert"]),
    "masking everything": ({"masking.rate": 1.0}, ["masking.rate"]),
    "no token fits": ({"seq_len": 1}, ["seq_len"]),
}


@pytest.mark.parametrize("what", WRONG_VALUES)
def test_wrong_values(place, tmp_path, what):
    changes, says = WRONG_VALUES[what]
    # Names without a folder are files of this test.
    for key in ("data.files", "init_from", "tokenizer"):
        value = changes.get(key)
        if value and not value.startswith("/"):
            changes = {**changes, key: str(place / value)}
    with pytest.raises(UsageError) as told:
        pretrain(config_of(place, **changes), tmp_path / "run")
    message = one_screen(str(told.value))
    for words in says:
        assert words in message
    assert not (tmp_path / "run" / "checkpoints" / "0").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("--config.train.stps=3", "did you mean --config.train.steps"),
        ("--config.train.steps=many", "integer"),
        ("--config.optimizer.learning_rate=fast", "number"),
        ("--config.eval.ngram_baselines=perhaps", "true or false"),
        ("--config.train.per_device_batch_size=few", "per_device_batch_size"),
    ],
)
def test_wrong_flags(override, says):
    with pytest.raises(UsageError, match=says) as told:
        cli.parse(["pretrain", "--config=configs/pretrain.py:tiny", override])
    one_screen(str(told.value))


@pytest.fixture(scope="module")
def run(place):
    """A run of four steps with checkpoints of steps 2 and 4, interrupted before its export."""
    folder = place / "run"
    pretrain(config_of(place, **{"train.checkpoint_every": 2}), folder)
    shutil.rmtree(folder / "hf")
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def intact(folder, steps):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.steps() == steps


def test_workdir_of_another_config(place, copy):
    config = config_of(place, **{"optimizer.learning_rate": 0.5, "seq_len": 8, "mesh.fsdp": 1})
    with pytest.raises(UsageError) as told:
        pretrain(config, copy)
    message = one_screen(str(told.value))
    assert "optimizer.learning_rate: 0.002 there, 0.5 here" in message
    assert "seq_len: 16 there, 8 here" in message
    assert "train.steps" not in message.splitlines()[1:3]
    assert "another --workdir" in message
    assert intact(copy, [2, 4])


def test_fewer_steps_than_made(place, copy):
    with pytest.raises(UsageError, match="at step 4 already, beyond train.steps=3"):
        pretrain(config_of(place, **{"train.steps": 3}), copy)


def test_text_that_changed(place, copy, tmp_path):
    texts.write_corpus(tmp_path / "corpus.jsonl", count=150)
    settings = json.loads((copy / "config.json").read_text())
    settings["data"]["files"] = str(tmp_path / "corpus.jsonl")
    (copy / "config.json").write_text(json.dumps(settings))
    config = config_of(place, **{"data.files": str(tmp_path / "corpus.jsonl")})
    with pytest.raises(UsageError, match="trained on other data"):
        pretrain(config, copy)


def test_unreadable_config(place, copy):
    (copy / "config.json").write_text('{"seed": 0, ')
    with pytest.raises(UsageError, match=r"config.json is not readable"):
        pretrain(config_of(place), copy)


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_damaged_checkpoint(place, copy, damage):
    damage(largest_file(copy / "checkpoints" / "4"))
    config = config_of(place, **{"train.checkpoint_every": 2})
    with pytest.raises(UsageError) as told:
        pretrain(config, copy)
    message = one_screen(str(told.value))
    assert f"{copy / 'checkpoints' / '4'} is damaged" in message
    assert "The checkpoint of step 2 is intact" in message
    # What the message says to do works, and leads to the same model.
    assert f"rm -r {copy / 'checkpoints' / '4'}" in message
    shutil.rmtree(copy / "checkpoints" / "4")
    assert pretrain(config, copy).finished


def mount(folder, size, *options):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")


def test_full_disk(place, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    # The state of this model takes 1.2 MB a checkpoint; two are kept and a third is being written.
    mount(disk, "3m")
    try:
        config = config_of(
            place,
            **{
                "train.steps": 400,
                "train.checkpoint_every": 1,
                "model.hidden_size": 64,
                "train.keep_checkpoints": 4,
            },
        )
        with pytest.raises(UsageError) as told:
            pretrain(config, disk / "run")
        message = one_screen(str(told.value))
        assert "No space left on device" in message
        assert "make room" in message.lower()
        with Checkpoints(disk / "run" / "checkpoints") as checkpoints:
            step = checkpoints.latest_step()
        assert step >= 1
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        config.train.steps = max(step + 2, 10)
        config.train.checkpoint_every = 0
        config.schedule.decay_steps = None
        assert pretrain(config, disk / "run").finished
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_read_only_workdir(place, run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "64m")
    try:
        shutil.copytree(run, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for workdir in (disk / "run", disk / "new"):
            with pytest.raises(UsageError) as told:
                pretrain(config_of(place, **{"train.checkpoint_every": 2}), workdir)
            message = one_screen(str(told.value))
            assert "Read-only file system" in message
            assert "--workdir" in message
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_workdir_is_a_file(place, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        pretrain(config_of(place), tmp_path / "run")
    with pytest.raises(UsageError, match="Not a directory|is a file"):
        pretrain(config_of(place), tmp_path / "run" / "below")


def test_no_workdir(capsys, monkeypatch):
    import sys

    from roberta_jax import pretrain as job

    monkeypatch.setattr(sys, "argv", ["pretrain", "--config=configs/pretrain.py:tiny"])
    with pytest.raises(SystemExit) as ended:
        cli.run_config_job(job.main, job._flags)
    assert ended.value.code == 2
    assert "--workdir=runs/tiny" in capsys.readouterr().err
