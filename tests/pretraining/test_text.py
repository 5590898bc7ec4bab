"""Text preparation: what is cached and reused, and the errors of wrong text and configs."""

import json
import lzma
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs.pretrain import get_config
from roberta_jax.data.packing.index import load_or_pack
from roberta_jax.data.text.corpus import is_heldout
from roberta_jax.data.text.sentences import split_sentences
from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.pretraining import text as text_module
from roberta_jax.pretraining.text import check_sources, prepare, summary
from roberta_jax.pretraining.text_spec import read_text_spec
from roberta_jax.tokenizer import RobertaTokenizer

DOCUMENTS = [
    f"Document {i} is about the number {i * 7}. It is one of many, and it is short. "
    f"Nobody has read it{'!' * (i % 3)}"
    for i in range(300)
]


@pytest.fixture
def make_config(tmp_path):
    """A config over a small text file; keyword arguments change `data`."""
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS))

    def make(**data):
        config = get_config("tiny")
        with config.unlocked():
            config.new_tokenizer.vocab_size = 320
            config.data.update(
                {
                    "source": "files",
                    "files": str(tmp_path / "text.txt"),
                    "validation_fraction": 0.1,
                    "cache_dir": str(tmp_path / "cache"),
                    **data,
                }
            )
        return config

    return make


def prepare_text(config, **options):
    return prepare(read_text_spec(config), progress=False, **options)


def decode_documents(store, tokenizer):
    return [
        tokenizer.decode(document.tolist(), skip_special_tokens=True)
        for shard in store.shards
        for document in np.split(shard.tokens, shard.document_ends[:-1])
    ]


def test_each_document_is_in_one_store(make_config):
    prepared = prepare_text(make_config())
    assert len(prepared.tokenizer) == prepared.train.vocab_size == 320
    for store, heldout in ((prepared.train, False), (prepared.heldout, True)):
        expected = [text for text in DOCUMENTS if is_heldout(text, 0.1) == heldout]
        assert expected
        documents = decode_documents(store, prepared.tokenizer)
        assert list(map(without_spaces, documents)) == list(map(without_spaces, expected))


def without_spaces(text):
    return "".join(text.split())


def test_corpora_of_a_mixture_share_a_tokenizer(make_config, tmp_path):
    (tmp_path / "more.txt").write_text("\n\n".join(f"Zyxw {i} zyxw." for i in range(400)))
    alone = prepare_text(make_config())
    config = make_config(mixture=({"files": str(tmp_path / "more.txt"), "weight": 0.5},))
    prepared = prepare_text(config)
    [more] = prepared.more
    assert prepared.train.num_documents == alone.train.num_documents
    assert prepared.heldout.num_documents == alone.heldout.num_documents  # of the first corpus
    assert 300 < more.num_documents < 400  # its held-out documents are not used
    assert prepared.train.fingerprint == more.fingerprint == prepared.tokenizer.fingerprint()
    # The tokenizer was trained on both corpora.
    assert len(prepared.tokenizer.tokenize(" zyxw")) == 1 < len(alone.tokenizer.tokenize(" zyxw"))
    assert "mixed in 1" in summary(prepared)
    assert prepare_text(config).more[0].folder == more.folder

    with pytest.raises(UsageError, match="no file matches"):
        prepare_text(make_config(mixture=({"files": str(tmp_path / "missing*.txt")},)))


def test_finished_text_is_not_written_again(make_config, tmp_path):
    first = prepare_text(make_config())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    second = prepare_text(make_config(num_workers=3))
    assert second.train.folder == first.train.folder
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}


def test_a_finished_cache_may_be_read_only(make_config, monkeypatch):
    folder = prepare_text(make_config()).train.folder

    def folder_lock(*arguments):
        raise AssertionError("writes the file of a lock")

    monkeypatch.setattr(text_module, "folder_lock", folder_lock)
    monkeypatch.setattr("roberta_jax.data.store.build.folder_lock", folder_lock)
    assert prepare_text(make_config()).train.folder == folder


def test_the_cache_folder_depends_on_all_that_changes_the_tokens(make_config, tmp_path):
    folders = {"default": prepare_text(make_config()).train.folder}
    for key, value in {"validation_fraction": 0.2, "sentences": "lines", "language": "de"}.items():
        folders[key] = prepare_text(make_config(**{key: value})).train.folder
    config = make_config()
    config.new_tokenizer.vocab_size = 330
    folders["vocabulary"] = prepare_text(config).train.folder
    with (tmp_path / "text.txt").open("a") as file:
        file.write("\n\nOne more.")
    folders["text"] = prepare_text(make_config()).train.folder
    assert len(set(folders.values())) == len(folders)


def test_tokenizer_is_trained_on_the_training_documents_alone(make_config, tmp_path):
    first = prepare_text(make_config())
    training_documents = [text for text in DOCUMENTS if not is_heldout(text, 0.1)]
    (tmp_path / "text.txt").write_text("\n\n".join(training_documents))
    second = prepare_text(make_config())
    assert second.heldout.num_documents == 0
    assert second.train.folder != first.train.folder
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()


def test_named_tokenizer(make_config, tmp_path):
    tokenizer = RobertaTokenizer.train(DOCUMENTS, vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = make_config()
    config.tokenizer = str(tmp_path / "tokenizer")
    prepared = prepare_text(config)
    assert prepared.train.fingerprint == tokenizer.fingerprint()
    assert not (tmp_path / "cache" / "tokenizers").exists()


@pytest.mark.parametrize("subfolder", ["", "hf"])
def test_tokenizer_of_init_from(make_config, tmp_path, subfolder):
    tokenizer = RobertaTokenizer.train(DOCUMENTS, vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "model" / subfolder)
    config = make_config()
    config.init_from = str(tmp_path / "model")
    assert prepare_text(config).train.fingerprint == tokenizer.fingerprint()


def test_verify(make_config, tmp_path):
    prepare_text(make_config(), verify=True)
    prepared = prepare_text(make_config(), verify=True)
    path = prepared.train.folder / "00000.tokens.npy"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    for verify in (False, True):
        with pytest.raises(UsageError, match=r"00000\.tokens\.npy have changed.*Delete that fol"):
            prepare_text(make_config(), verify=verify)
    data[200] ^= 1
    path.write_bytes(data)
    prepare_text(make_config(), verify=True)

    source = tmp_path / "text.txt"
    times = source.stat()
    source.write_text(source.read_text().replace("Nobody", "Anyone"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UsageError, match="text has changed since it was prepared.*Delete"):
        prepare_text(make_config(), verify=True)


def test_verify_removes_damaged_packing_indices(make_config, caplog):
    prepared = prepare_text(make_config())
    packed = load_or_pack(prepared.train, "full_sentences", 32)
    expected = packed.inputs.tobytes()
    [folder] = (prepared.train.folder / "packed").iterdir()
    (folder / "inputs.bin").write_bytes(bytes(len(expected)))
    prepare_text(make_config(), verify=True)
    assert f"The packing index {folder} was damaged. It was removed" in caplog.text
    assert not folder.exists()
    assert load_or_pack(prepared.train, "full_sentences", 32).inputs.tobytes() == expected


DAMAGES = {
    "changed": lambda path: path.write_bytes(path.read_bytes().replace(b"3", b"4")),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: path.unlink() or path.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "digests.json"])
def test_a_damaged_tokenizer_is_trained_again(make_config, tmp_path, caplog, name, damage):
    first = prepare_text(make_config())
    [folder] = (path for path in (tmp_path / "cache" / "tokenizers").iterdir() if path.is_dir())
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder.parent / f"{folder.name}.0123.tmp").mkdir()  # as a killed process leaves
    DAMAGES[damage](folder / name)
    again = prepare_text(make_config())
    assert again.train.folder == first.train.folder
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    if (name, damage) != ("digests.json", "missing"):  # as in caches of earlier versions
        assert again.is_new
        assert f"{name}" in caplog.text
        assert "It is trained again" in caplog.text
        assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
        assert not list(folder.parent.glob("*.tmp"))
    assert not prepare_text(make_config()).is_new


def test_check_sources(make_config, tmp_path):
    """Nothing is written, whether the check fails or not."""
    check_sources(read_text_spec(make_config()))
    with pytest.raises(UsageError, match="no file matches"):
        check_sources(read_text_spec(make_config(files=str(tmp_path / "missing*"))))
    more = ({"files": str(tmp_path / "missing*")},)
    with pytest.raises(
        UsageError, match=r"^corpus 1 of --config\.data\.mixture: .*no file matches"
    ):
        check_sources(read_text_spec(make_config(mixture=more)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


def test_the_message_of_a_damaged_store_says_how_to_rebuild_it(make_config):
    store = prepare_text(make_config()).train
    (store.folder / "00000.tokens.npy").unlink()
    with pytest.raises(UsageError, match="Delete that folder"):
        prepare_text(make_config())
    for path in store.folder.iterdir():
        path.unlink()
    store.folder.rmdir()
    assert prepare_text(make_config(), verify=True).train.num_tokens == store.num_tokens


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sentences": "nltk"}, "'split'.*'lines'"),
        ({"language": "English"}, r"config\.data\.language"),
        ({"source": "web"}, "builtin, files, tfds"),
        ({"files": "missing/*.txt"}, "no file matches"),
        ({"cache_dir": "a\0b"}, r"--config\.data\.cache_dir=.*give a text"),
        ({"validation_fraction": 0.999999}, "no text to train a tokenizer on.*validation_fraction"),
    ],
)
def test_wrong_values(make_config, data, message):
    with pytest.raises(UsageError, match=message):
        prepare_text(make_config(**data))


def test_no_text(make_config, tmp_path):
    (tmp_path / "text.txt").write_text(" \n\n")
    with pytest.raises(UsageError, match="no text to train a tokenizer on"):
        prepare_text(make_config())
    RobertaTokenizer.train(DOCUMENTS, vocab_size=300).save_pretrained(tmp_path / "tokenizer")
    config = make_config()
    config.tokenizer = str(tmp_path / "tokenizer")
    with pytest.raises(UsageError, match=r"no text to train on: .*gave 0 documents"):
        prepare_text(config)


def test_vocabulary_larger_than_the_text_allows(make_config):
    config = make_config()
    config.new_tokenizer.vocab_size = 50265
    with pytest.raises(UsageError, match=r"No tokenizer can be trained: .*50265"):
        prepare_text(config)


@pytest.mark.parametrize("key", ["tokenizer", "init_from"])
def test_missing_tokenizer(make_config, tmp_path, key):
    config = make_config()
    config[key] = str(tmp_path / "missing")
    with pytest.raises(UsageError, match=rf"config\.{key} \(.*missing\) cannot be loaded"):
        prepare_text(config)


def test_a_missing_hub_id_is_not_reported_as_a_failed_write(make_config, monkeypatch):
    """Though the error is an OSError."""

    def not_found(path):
        raise NotFoundError(f"no model {path}")

    monkeypatch.setattr("roberta_jax.pretraining.text.tokenizer_folder", not_found)
    config = make_config()
    config.tokenizer = "user/name"
    with pytest.raises(UsageError, match="^no model user/name"):
        prepare_text(config)


def test_an_error_in_the_text_is_not_reported_as_one_of_the_tokenizer(make_config, tmp_path):
    """The text is read while a tokenizer is trained on it."""
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(UsageError, match=r"^\S*a\.jsonl:2: this line is not JSON"):
        prepare_text(make_config(files=str(tmp_path / "a.jsonl")))


def test_cache_that_cannot_be_written(make_config, tmp_path):
    with pytest.raises(UsageError, match=r"Cannot write in .*text\.txt.*--config\.data\.cache_dir"):
        prepare_text(make_config(cache_dir=str(tmp_path / "text.txt")))


def test_full_disk(make_config, tmp_path):
    """With files of at most 20 kB preparation fails; the next call, without the limit, succeeds."""
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS * 8))
    config = make_config()
    RobertaTokenizer.train(DOCUMENTS, vocab_size=300).save_pretrained(tmp_path / "tokenizer")
    config.tokenizer = str(tmp_path / "tokenizer")
    code = (
        "import sys, json, resource; from ml_collections import ConfigDict;"
        "from roberta_jax.pretraining.text import prepare;"
        "from roberta_jax.pretraining.text_spec import read_text_spec;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "config = ConfigDict(json.loads(sys.argv[1]));"
        "prepare(read_text_spec(config), progress=False)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, config.to_json_best_effort()],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert "UsageError: Cannot write in" in result.stderr
    assert "Free some space" in result.stderr
    index = prepare_text(config, verify=True).train.index
    config.data.cache_dir = str(tmp_path / "other")
    assert prepare_text(config).train.index == index


def test_problems_in_the_text_are_reported(make_config, tmp_path, caplog):
    text = ("\n\n".join(DOCUMENTS) + "\n\n").encode() + b"b\xffd\n\n"
    (tmp_path / "text.txt").write_bytes(text)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "\n"}) + "\n")
    config = make_config(files=f"{tmp_path}/text.txt,{tmp_path}/a.jsonl")
    for _ in range(2):  # the second call reads the cache
        caplog.clear()
        prepared = prepare_text(config)
        assert "1 of 301 documents hold invalid UTF-8" in caplog.text
        assert "1 empty documents were left out" in caplog.text
    text = summary(prepared)
    assert "1 empty documents, 0 held-out documents that occur in the training text" in text
    assert "invalid UTF-8 replaced in 1" in text


def test_real_text_in_many_languages(make_config, real_data):
    """French, Chinese, Korean, Arabic and others, with RoBERTa's own vocabulary."""
    files = real_data / "pretrain" / "multilingual.jsonl.xz"
    config = make_config(files=str(files), num_workers=1)
    config.tokenizer = str(real_data / "bpe_gpt2")
    prepared = prepare_text(config)
    assert prepared.train.dtype == np.uint16
    with lzma.open(files, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    assert prepared.train.num_documents + prepared.heldout.num_documents == len(documents)
    expected = []
    for text in documents:
        if is_heldout(text, 0.1):
            for sentence in split_sentences(text, "split", "en"):
                expected += [*prepared.tokenizer.encode(sentence, add_special_tokens=False), 2]
            expected.append(2)
    assert prepared.heldout.shards[0].tokens.tolist() == expected


def test_command(make_config, tmp_path):
    config = make_config()
    (tmp_path / "config.py").write_text(
        "import json; from ml_collections import ConfigDict\n"
        f"def get_config(size): return ConfigDict(json.loads({config.to_json_best_effort()!r}))\n"
    )
    command = [sys.executable, "-m", "roberta_jax.prepare", f"--config={tmp_path}/config.py:tiny"]
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(
        [*command, "--verify"], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout.split()[:4] == ["documents", "sentences", "tokens", "shards"]
    assert "held out" in result.stdout
    assert str(tmp_path / "cache" / "tokens") in result.stdout
    assert "Verified" in result.stdout
    assert "already prepared" not in result.stdout
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert str(tmp_path / "cache" / "tokens") in result.stdout
    assert "All of this was already prepared; nothing was written." in result.stdout
    result = subprocess.run(
        [*command, "--config.data.validation_fraction=2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: --config.data.validation_fraction=2.0")
