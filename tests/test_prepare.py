"""Preparing as a whole: what is cached and found again, and every way a setting can be wrong."""

import json
import lzma
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict, config_dict

from roberta_jax.data.store.build import Recipe
from roberta_jax.data.text.corpus import FilesCorpus, is_heldout
from roberta_jax.data.text.sentences import split_sentences
from roberta_jax.errors import UsageError
from roberta_jax.pretraining import text as prepare_module
from roberta_jax.pretraining.text import cache_folder, prepare, summary, training_sentences
from roberta_jax.tokenizer import RobertaTokenizer

DOCUMENTS = [
    f"Document {i} tells of the number {i * 7}. It is one of many, and it is short. "
    f"Nobody has read it{'!' * (i % 3)}"
    for i in range(300)
]


@pytest.fixture
def make_config(tmp_path):
    """A config over a small text file; keyword arguments change `data`."""
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS))

    def make(**data):
        settings = {
            "source": "files",
            "files": str(tmp_path / "text.txt"),
            "text_field": "text",
            "sentences": "split",
            "language": "en",
            "validation_fraction": 0.1,
            "cache_dir": str(tmp_path / "cache"),
            "num_workers": config_dict.placeholder(int),
            "max_tokens": config_dict.placeholder(int),
            "mixture": (),
        }
        return ConfigDict(
            {
                "tokenizer": config_dict.placeholder(str),
                "init_from": config_dict.placeholder(str),
                "new_tokenizer": {"vocab_size": 320, "min_frequency": 2},
                "data": settings | data,
            }
        )

    return make


def quiet(config, **options):
    return prepare(config, progress=False, **options)


def texts_of(store, tokenizer):
    return [
        tokenizer.decode(document.tolist(), skip_special_tokens=True)
        for shard in store.shards
        for document in np.split(shard.tokens, shard.document_ends[:-1])
    ]


def test_everything_is_there_once(make_config):
    prepared = quiet(make_config())
    assert len(prepared.tokenizer) == prepared.train.vocab_size == 320
    found = [texts_of(store, prepared.tokenizer) for store in (prepared.train, prepared.heldout)]
    squeezed = ["".join(text.split()) for text in DOCUMENTS]
    for texts, side in zip(found, (False, True), strict=True):
        wanted = [
            short
            for short, text in zip(squeezed, DOCUMENTS, strict=True)
            if is_heldout(text, 0.1) == side
        ]
        assert ["".join(text.split()) for text in texts] == wanted
        assert wanted


def test_corpora_of_a_mixture_share_a_tokenizer(make_config, tmp_path):
    (tmp_path / "more.txt").write_text("\n\n".join(f"Zyxw {i} zyxw." for i in range(400)))
    alone = quiet(make_config())
    config = make_config(mixture=({"files": str(tmp_path / "more.txt"), "weight": 0.5},))
    prepared = quiet(config)
    [more] = prepared.more
    assert prepared.train.num_documents == alone.train.num_documents
    assert prepared.heldout.num_documents == alone.heldout.num_documents  # the first corpus's
    assert 300 < more.num_documents < 400  # what would be held out is not trained on
    assert prepared.train.fingerprint == more.fingerprint == prepared.tokenizer.fingerprint()
    # It was trained on both.
    assert len(prepared.tokenizer.tokenize(" zyxw")) == 1 < len(alone.tokenizer.tokenize(" zyxw"))
    assert "mixed in 1" in summary(prepared)
    assert quiet(config).more[0].folder == more.folder

    with pytest.raises(UsageError, match="no file matches"):
        quiet(make_config(mixture=({"files": str(tmp_path / "nowhere*.txt")},)))


def test_second_time_nothing_is_written(make_config, tmp_path):
    first = quiet(make_config())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    second = quiet(make_config(num_workers=3))
    assert second.train.folder == first.train.folder
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}


def test_a_finished_cache_may_be_read_only(make_config, monkeypatch):
    wanted = quiet(make_config()).train.folder

    def only_process(*arguments):
        raise AssertionError("takes a lock, which is a file to write")

    monkeypatch.setattr(prepare_module, "only_process", only_process)
    monkeypatch.setattr("roberta_jax.data.store.build.folder_lock", only_process)
    assert quiet(make_config()).train.folder == wanted


def test_whatever_decides_the_content_decides_the_name(make_config, tmp_path):
    folders = {"default": quiet(make_config()).train.folder}
    for key, value in {"validation_fraction": 0.2, "sentences": "lines", "language": "de"}.items():
        folders[key] = quiet(make_config(**{key: value})).train.folder
    config = make_config()
    config.new_tokenizer.vocab_size = 330
    folders["vocabulary"] = quiet(config).train.folder
    with (tmp_path / "text.txt").open("a") as file:
        file.write("\n\nOne more.")
    folders["text"] = quiet(make_config()).train.folder
    assert len(set(folders.values())) == len(folders)


def test_tokenizer_sees_training_documents_alone(make_config, tmp_path):
    heldout = [text for text in DOCUMENTS if is_heldout(text, 0.1)]
    first = quiet(make_config())
    rest = "\n\n".join(text for text in DOCUMENTS if text not in heldout)
    (tmp_path / "text.txt").write_text(rest)
    second = quiet(make_config())
    assert second.heldout.num_documents == 0
    assert second.train.folder != first.train.folder
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()


def test_named_tokenizer(make_config, tmp_path):
    tokenizer = RobertaTokenizer.train(DOCUMENTS, vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = make_config()
    config.tokenizer = str(tmp_path / "tokenizer")
    prepared = quiet(config)
    assert prepared.train.fingerprint == tokenizer.fingerprint()
    assert not (tmp_path / "cache" / "tokenizers").exists()


@pytest.mark.parametrize("inside", ["", "hf"])
def test_tokenizer_of_init_from(make_config, tmp_path, inside):
    tokenizer = RobertaTokenizer.train(DOCUMENTS, vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "model" / inside)
    config = make_config()
    config.init_from = str(tmp_path / "model")
    assert quiet(config).train.fingerprint == tokenizer.fingerprint()


def test_verify(make_config, tmp_path):
    quiet(make_config(), verify=True)
    prepared = quiet(make_config(), verify=True)
    path = prepared.train.folder / "00000.tokens.npy"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    quiet(make_config())  # sizes are right: only verifying finds it
    with pytest.raises(UsageError, match=r"00000\.tokens\.npy have changed.*Delete that folder"):
        quiet(make_config(), verify=True)
    data[200] ^= 1
    path.write_bytes(data)
    quiet(make_config(), verify=True)

    source = tmp_path / "text.txt"
    times = source.stat()
    source.write_text(source.read_text().replace("Nobody", "Anyone"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UsageError, match="text has changed since it was prepared.*Delete"):
        quiet(make_config(), verify=True)


def test_damaged_store_says_how_to_rebuild(make_config):
    store = quiet(make_config()).train
    (store.folder / "00000.tokens.npy").unlink()
    with pytest.raises(UsageError, match="Delete that folder"):
        quiet(make_config())
    for path in store.folder.iterdir():
        path.unlink()
    store.folder.rmdir()
    assert quiet(make_config(), verify=True).train.num_tokens == store.num_tokens


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"validation_fraction": 1.0}, r"validation_fraction is 1\.0"),
        ({"validation_fraction": -0.1}, r"validation_fraction is -0\.1"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"sentences": "nltk"}, "'split'.*'lines'"),
        ({"language": "English"}, r"config\.data\.language"),
        ({"source": "web"}, "builtin, files, tfds"),
        ({"files": "nothing/*.txt"}, "no file matches"),
        ({"validation_fraction": 0.999999}, "no text to train a tokenizer on.*validation_fraction"),
    ],
)
def test_wrong_settings(make_config, data, message):
    with pytest.raises(UsageError, match=message):
        quiet(make_config(**data))


def test_no_text(make_config, tmp_path):
    (tmp_path / "text.txt").write_text(" \n\n")
    with pytest.raises(UsageError, match="no text to train a tokenizer on"):
        quiet(make_config())
    RobertaTokenizer.train(DOCUMENTS, vocab_size=300).save_pretrained(tmp_path / "tokenizer")
    config = make_config()
    config.tokenizer = str(tmp_path / "tokenizer")
    with pytest.raises(UsageError, match=r"no text to train on: .*gave 0 documents"):
        quiet(config)


def test_vocabulary_larger_than_the_text_allows(make_config):
    config = make_config()
    config.new_tokenizer.vocab_size = 50265
    with pytest.raises(UsageError, match=r"No tokenizer can be trained: .*50265"):
        quiet(config)


@pytest.mark.parametrize("key", ["tokenizer", "init_from"])
def test_tokenizer_that_is_not_there(make_config, tmp_path, key):
    config = make_config()
    config[key] = str(tmp_path / "nothing")
    with pytest.raises(UsageError, match=rf"config\.{key} \(.*nothing\) cannot be loaded"):
        quiet(config)


def test_errors_in_the_text_stay_what_they_are(make_config, tmp_path):
    """They are raised while a tokenizer is trained; they are not the trainer's."""
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(UsageError, match=r"^\S*a\.jsonl:2: this line is not JSON"):
        quiet(make_config(files=str(tmp_path / "a.jsonl")))


def test_cache_that_cannot_be_written(make_config, tmp_path):
    with pytest.raises(UsageError, match=r"Cannot write in .*text\.txt.*--config\.data\.cache_dir"):
        quiet(make_config(cache_dir=str(tmp_path / "text.txt")))


def test_full_disk(make_config, tmp_path):
    """Files of at most 20 kB may be written: nothing is taken for whole, and it goes on after."""
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS * 8))
    config = make_config()
    RobertaTokenizer.train(DOCUMENTS, vocab_size=300).save_pretrained(tmp_path / "tokenizer")
    config.tokenizer = str(tmp_path / "tokenizer")
    code = (
        "import sys, json, resource; from ml_collections import ConfigDict;"
        "from roberta_jax.pretraining.text import prepare;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "prepare(ConfigDict(json.loads(sys.argv[1])), progress=False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, config.to_json_best_effort()],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert "UsageError: Cannot write in" in done.stderr
    assert "Make room there" in done.stderr
    index = quiet(config, verify=True).train.index
    config.data.cache_dir = str(tmp_path / "other")
    assert quiet(config).train.index == index


def test_problems_in_the_text_are_reported(make_config, tmp_path, caplog):
    text = ("\n\n".join(DOCUMENTS) + "\n\n").encode() + b"b\xffd\n\n"
    (tmp_path / "text.txt").write_bytes(text)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "\n"}) + "\n")
    config = make_config(files=f"{tmp_path}/text.txt,{tmp_path}/a.jsonl")
    for _ in range(2):  # also when nothing is left to do
        caplog.clear()
        prepared = quiet(config)
        assert "1 of 301 documents hold invalid UTF-8" in caplog.text
        assert "1 empty documents were left out" in caplog.text
    assert "left out: 1 empty documents; invalid UTF-8 replaced in 1" in summary(prepared)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(ConfigDict({"cache_dir": None})) == tmp_path / "roberta_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    wanted = pathlib.Path("/home/someone/.cache/roberta_jax")
    assert cache_folder(ConfigDict({"cache_dir": None})) == wanted
    assert cache_folder(ConfigDict({"cache_dir": "~/x"})) == pathlib.Path("/home/someone/x")


def test_real_text_in_many_languages(make_config, real_data):
    """French with its wide spaces, Chinese, Korean, Arabic: with RoBERTa's own vocabulary."""
    files = real_data / "pretrain" / "multilingual.jsonl.xz"
    config = make_config(files=str(files), num_workers=1)
    config.tokenizer = str(real_data / "bpe_gpt2")
    prepared = quiet(config)
    assert prepared.train.dtype == np.uint16
    with lzma.open(files, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    assert prepared.train.num_documents + prepared.heldout.num_documents == len(documents)
    wanted = []
    for text in documents:
        if is_heldout(text, 0.1):
            for sentence in split_sentences(text, "split", "en"):
                wanted += [*prepared.tokenizer.encode(sentence, add_special_tokens=False), 2]
            wanted.append(2)
    assert prepared.heldout.shards[0].tokens.tolist() == wanted


@pytest.mark.parametrize("kept_bytes", [0, 1 << 27])
def test_sample_is_even_and_bounded(tmp_path, monkeypatch, kept_bytes):
    monkeypatch.setattr("roberta_jax.data.text.corpus.PIECE_BYTES", 100)
    monkeypatch.setattr(prepare_module, "_KEPT_BYTES", kept_bytes)
    (tmp_path / "a.txt").write_text("\n\n".join(f"{i:0100d}" for i in range(1000)))
    corpus = FilesCorpus([tmp_path / "a.txt"], "text")
    recipe = Recipe(0, "split", "en")
    everything = list(map(int, training_sentences(corpus, recipe)))
    assert everything == list(range(1000))
    sample = list(map(int, training_sentences(corpus, recipe, sample_bytes=10_200)))
    assert 98 <= len(sample) <= 100
    assert set(np.diff(sample)) <= {10, 11}
    assert sample == list(map(int, training_sentences(corpus, recipe, sample_bytes=10_200)))


def test_command(make_config, tmp_path):
    config = make_config()
    (tmp_path / "config.py").write_text(
        "import json; from ml_collections import ConfigDict\n"
        f"def get_config(size): return ConfigDict(json.loads({config.to_json_best_effort()!r}))\n"
    )
    command = [sys.executable, "-m", "roberta_jax.prepare", f"--config={tmp_path}/config.py:tiny"]
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [*command, "--verify"], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.split()[:4] == ["documents", "sentences", "tokens", "shards"]
    assert "held out" in done.stdout
    assert str(tmp_path / "cache" / "tokens") in done.stdout
    assert "Verified" in done.stdout
    done = subprocess.run(
        [*command, "--config.data.validation_fraction=2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: config.data.validation_fraction is 2.0")
