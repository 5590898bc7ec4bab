"""The files that the wrong calls name: corpora, models, configs and studies, sound and damaged."""

import gzip
import json
import os
import pathlib
import random
import shutil
import struct
from collections.abc import Callable

import numpy as np

SMALL_MODEL = {
    "model_type": "roberta",
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 18,
    "type_vocab_size": 1,
}

# Contents of config.json that describe no model, or one that no machine can hold.
HOSTILE_CONFIGS: dict[str, dict] = {
    "many-layers": {"num_hidden_layers": 10**9},
    "many-positions": {"max_position_embeddings": 10**12},
    "many-words": {"vocab_size": 10**12},
    "wide": {"hidden_size": 2 * 10**9},
    "many-types": {"type_vocab_size": 10**12},
    "many-labels": {"num_labels": 10**9},
    "no-layers": {"num_hidden_layers": 0},
    "negative-width": {"hidden_size": -16},
    "odd-heads": {"num_attention_heads": 3},
    "layers-in-words": {"num_hidden_layers": "twelve"},
    "half-a-layer": {"num_hidden_layers": 0.5},
    "null-width": {"hidden_size": None},
    "list-of-words": {"vocab_size": [300]},
    "epsilon-nan": {"layer_norm_eps": float("nan")},
    "epsilon-negative": {"layer_norm_eps": -1},
    "dropout-in-words": {"hidden_dropout_prob": "high"},
    "pad-beyond": {"pad_token_id": 300},
    "labels-no-dict": {"id2label": 7},
    "labels-no-numbers": {"id2label": {"one": "LABEL_0"}},
    "another-model": {"model_type": "gpt2"},
    "unknown-activation": {"hidden_act": "sinus"},
}

CONFIG_FILES = {
    "syntax-error": "def get_config(size):\n    return (\n",
    "indentation": "def get_config(size):\nreturn 3\n",
    "import-error": "import no_such_module\ndef get_config(size):\n    return None\n",
    "name-error": "config = ConfigDict()\n",
    "no-get-config": "config = {}\n",
    "empty": "",
    "raises": "def get_config(size):\n    raise KeyError(size)\n",
    "exits": "import sys\nsys.exit(0)\n",
    "exits-later": "import sys\ndef get_config(size):\n    sys.exit(0)\n",
    "returns-none": "def get_config(size):\n    return None\n",
    "returns-dict": "def get_config(size):\n    return {'seed': 0}\n",
    "no-parameter": "def get_config():\n    return None\n",
    "variable": "get_config = 3\n",
    "no-keys": (
        "from ml_collections import ConfigDict\ndef get_config(size):\n    return ConfigDict()\n"
    ),
    "fewer-keys": (
        "from configs.pretrain import get_config as tiny\n"
        "def get_config(size):\n    config = tiny(size).unlock()\n    del config.train\n"
        "    return config\n"
    ),
    "more-keys": (
        "from configs.pretrain import get_config as tiny\n"
        "def get_config(size):\n    config = tiny(size).unlock()\n    config.train.stepz = 3\n"
        "    return config\n"
    ),
    "other-types": (
        "from ml_collections import ConfigDict\n"
        "from configs.pretrain import get_config as tiny\n"
        "def get_config(size):\n    values = tiny(size).to_dict()\n"
        "    values['train']['steps'] = 'many'\n    return ConfigDict(values)\n"
    ),
    "group-is-a-number": (
        "from ml_collections import ConfigDict\n"
        "from configs.pretrain import get_config as tiny\n"
        "def get_config(size):\n    values = tiny(size).to_dict()\n"
        "    values['train'] = 3\n    return ConfigDict(values)\n"
    ),
}

STUDIES = {
    "syntax-error": "FORMS = (\n",
    "import-error": "import no_such_module\n",
    "no-forms": "def get_study(form):\n    return None\n",
    "no-study": "FORMS = ('tiny',)\n",
    "empty-forms": "FORMS = ()\ndef get_study(form):\n    return None\n",
    "forms-number": "FORMS = 3\ndef get_study(form):\n    return None\n",
    "returns-none": "FORMS = ('tiny',)\ndef get_study(form):\n    return None\n",
    "raises": "FORMS = ('tiny',)\ndef get_study(form):\n    raise KeyError(form)\n",
    "exits": "import sys\nsys.exit(0)\n",
    "no-parameter": "FORMS = ('tiny',)\ndef get_study():\n    return None\n",
    "empty": "",
}


def make_files(folder: pathlib.Path, pretrain: Callable[[pathlib.Path], None]) -> None:
    """Writes all files.

    Args:
      folder: an empty folder.
      pretrain: trains a model on `folder / "corpus.jsonl"`, in the workdir that it is called with.
    """
    _write_texts(folder)
    for name, contents in CONFIG_FILES.items():
        (folder / f"config-{name}.py").write_text(contents)
    for name, contents in STUDIES.items():
        (folder / f"study-{name}.py").write_text(contents)
    for kind in ("config", "study"):
        (folder / f"{kind}-binary.py").write_bytes(random.Random(0).randbytes(3000))
        (folder / f"{kind}-latin1.py").write_bytes(b"# \xe9\nFORMS = ()\n")
        (folder / f"{kind}-folder.py").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    (folder / "empty-folder").mkdir()
    full = folder / "full-folder"
    full.mkdir()
    (full / "notes.txt").write_text("mine\n")
    pretrain(folder / "run")
    _write_models(folder, folder / "run" / "hf")
    _write_runs(folder)


def _write_tables(folder: pathlib.Path) -> None:
    rows = [f"{('a cat', 'a dog')[n % 2]} sees {n},{('good', 'bad')[n % 2]}\n" for n in range(40)]
    table = "".join(["text,label\n", *rows])
    tables = {
        "reviews": table,
        "empty": "",
        "header": "text,label\n",
        "one-label": table.replace("bad", "good"),
        "no-label": "body\n" + "a cat sees a dog\n" * 20,
        "quotes": table + '"a cat,good\n',
        "binary": "text,label\n\0\0\0,\0\n",
    }
    for name, contents in tables.items():
        (folder / f"{name}.csv").write_text(contents)
    packed = gzip.compress(table.encode())
    (folder / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])


def _write_texts(folder: pathlib.Path) -> None:
    rng = random.Random(0)
    names, verbs = ("the cat", "a dog", "my friend", "that bird"), ("sees", "likes", "hears")
    documents = [
        " ".join(
            f"{rng.choice(names).capitalize()} {rng.choice(verbs)} {rng.choice(names)} "
            f"{rng.randrange(100)} times."
            for _ in range(rng.randint(3, 8))
        )
        for _ in range(150)
    ]
    lines = [json.dumps({"text": text}) for text in documents]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    (folder / "one-document.txt").write_text(documents[0] + "\n")
    (folder / "empty.txt").write_text("")
    _write_tables(folder)
    (folder / "blank.txt").write_text("\n" * 50)
    (folder / "latin1.txt").write_bytes("Un été à Orléans.\n\n".encode("latin-1") * 50)
    (folder / "utf16.txt").write_bytes("\n\n".join(documents).encode("utf-16"))
    (folder / "binary.txt").write_bytes(random.Random(0).randbytes(20_000))
    (folder / "nul.txt").write_bytes(b"\0" * 5000)
    (folder / "broken.jsonl").write_text("\n".join([*lines[:5], lines[5][:-4], *lines[6:]]))
    (folder / "other-field.jsonl").write_text('{"body": "text"}\n' * 20)
    (folder / "numbers.jsonl").write_text('{"text": 3}\n' * 20)
    (folder / "lists.jsonl").write_text('["text"]\n' * 20)
    (folder / "no-gzip.jsonl.gz").write_text("\n".join(lines))
    packed = gzip.compress("\n".join(lines).encode())
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    for suffix in ("zst", "xz", "bz2"):
        (folder / f"no-{suffix}.txt.{suffix}").write_text("no archive\n" * 20)
    (folder / "corpus.parquet").write_bytes(b"PAR1" + random.Random(1).randbytes(500) + b"PAR1")


def _write_models(folder: pathlib.Path, sound: pathlib.Path) -> None:
    models = folder / "models"
    models.mkdir()

    def model(name: str) -> pathlib.Path:
        shutil.copytree(sound, models / name)
        return models / name

    for name, changes in HOSTILE_CONFIGS.items():
        (model(name) / "config.json").write_text(json.dumps({**SMALL_MODEL, **changes}))
    deep = "[" * 10_000 + "]" * 10_000
    for name, contents in {
        "config-nested": f'{{"a": {deep}}}',
        "config-empty": "",
        "config-list": "[]",
        "config-number": "3",
        "config-cut": '{"hidden_size": 1',
    }.items():
        (model(name) / "config.json").write_text(contents)
    (model("config-binary") / "config.json").write_bytes(b"\xff\xfe\x00" * 100)
    (model("config-missing") / "config.json").unlink()
    at = model("config-folder") / "config.json"
    at.unlink()
    at.mkdir()
    at = model("config-loop") / "config.json"
    at.unlink()
    at.symlink_to("config.json")

    weights = (sound / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])

    def with_header(change: Callable[[dict], object]) -> bytes:
        changed = json.loads(json.dumps(header))
        changed = change(changed) or changed
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + weights[8 + length :]

    first = next(name for name in header if name != "__metadata__")
    for name, contents in {
        "weights-empty": b"",
        "weights-short": b"\x08",
        "weights-cut": weights[: len(weights) // 2],
        "weights-zeros": b"\0" * len(weights),
        "weights-long-header": struct.pack("<Q", 1 << 60) + weights[8:],
        "weights-no-json": struct.pack("<Q", 20) + b"x" * 40,
        "weights-header-list": with_header(lambda h: [1]),
        "weights-header-nested": struct.pack("<Q", 20_000) + deep.encode(),
        "weights-other-dtype": with_header(lambda h: h[first].update(dtype="F99")),
        "weights-no-dtype": with_header(lambda h: h[first].pop("dtype") and None),
        "weights-other-shape": with_header(lambda h: h[first].update(shape=[3, 3])),
        "weights-huge-shape": with_header(lambda h: h[first].update(shape=[10**12, 10**12])),
        "weights-negative-shape": with_header(lambda h: h[first].update(shape=[-1, 4])),
        "weights-offsets-beyond": with_header(lambda h: h[first].update(data_offsets=[0, 10**15])),
        "weights-offsets-reversed": with_header(lambda h: h[first].update(data_offsets=[40, 0])),
        "weights-tensor-missing": with_header(lambda h: h.pop(first) and None),
    }.items():
        (model(name) / "model.safetensors").write_bytes(contents)
    from safetensors.numpy import load_file, save_file

    nans = {name: np.full_like(x, np.nan) for name, x in load_file(at_weights(sound)).items()}
    save_file(nans, at_weights(model("weights-nan")))
    (model("weights-missing") / "model.safetensors").unlink()
    at = model("weights-folder") / "model.safetensors"
    at.unlink()
    at.mkdir()
    for name, file, contents in (
        ("torch-garbage", "pytorch_model.bin", b"no archive" * 50),
        ("torch-empty", "pytorch_model.bin", b""),
        ("flax-garbage", "flax_model.msgpack", b"\xc1" * 500),
        ("flax-empty", "flax_model.msgpack", b""),
        ("fairseq-garbage", "model.pt", b"PK\x03\x04" + b"x" * 500),
        ("index-garbage", "model.safetensors.index.json", b"{"),
        ("index-of-nothing", "model.safetensors.index.json", b'{"weight_map": {"a": "b"}}'),
        ("index-of-numbers", "model.safetensors.index.json", b'{"weight_map": 3}'),
    ):
        at = model(name)
        (at / "model.safetensors").unlink()
        (at / file).write_bytes(contents)
    at = model("no-tokenizer")
    for file in at.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    for name, file, contents in (
        ("tokenizer-cut", "tokenizer.json", b'{"version": "1.0", '),
        ("tokenizer-empty", "tokenizer.json", b""),
        ("tokenizer-list", "tokenizer.json", b"[]"),
        ("tokenizer-binary", "tokenizer.json", b"\xff\x00" * 90),
        ("tokenizer-options-list", "tokenizer_config.json", b"[]"),
        ("tokenizer-options-cut", "tokenizer_config.json", b"{"),
    ):
        (model(name) / file).write_bytes(contents)


def at_weights(folder: pathlib.Path) -> pathlib.Path:
    return folder / "model.safetensors"


def _write_runs(folder: pathlib.Path) -> None:
    """Workdirs that are damaged, unfinished, or of another program."""
    runs, run = folder / "runs", folder / "run"
    runs.mkdir()

    def copy(name: str) -> pathlib.Path:
        shutil.copytree(run, runs / name)
        return runs / name

    shutil.rmtree(copy("unfinished") / "hf")
    for name, file, contents in (
        ("config-cut", "config.json", b'{"seed": '),
        ("config-list", "config.json", b"[]"),
        ("config-empty", "config.json", b""),
        ("config-of-another-job", "config.json", b'{"learning_rate": 1}'),
        ("config-group-is-a-number", "config.json", b'{"train": 3}'),
        ("metrics-binary", "metrics.jsonl", b"\xff\x00\n" * 30),
        ("metrics-list", "metrics.jsonl", b"[1]\n" * 3),
        ("metrics-no-step", "metrics.jsonl", b'{"loss": 1.0}\n' * 3),
        ("metrics-empty", "metrics.jsonl", b""),
        ("metrics-words", "metrics.jsonl", b'{"step": "one", "loss": "low"}\n'),
    ):
        (copy(name) / file).write_bytes(contents)
    (copy("damaged-export") / "hf" / "config.json").write_text("{")
    at = copy("metrics-folder") / "metrics.jsonl"
    at.unlink()
    at.mkdir()
    at = copy("checkpoints-file") / "checkpoints"
    shutil.rmtree(at)
    at.write_text("")
    shutil.rmtree(copy("checkpoints-file-unfinished") / "hf")
    at = runs / "checkpoints-file-unfinished" / "checkpoints"
    shutil.rmtree(at)
    at.write_text("")
