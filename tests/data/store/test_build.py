"""Tests that stores equal a plain loop for any number of workers, kills and concurrent builds."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest

from roberta_jax.data.store import build, digests, layout, shards
from roberta_jax.data.store.build import Recipe, build_stores
from roberta_jax.data.store.digests import CHECKED
from roberta_jax.data.store.token_store import TokenStore
from roberta_jax.data.text.corpus import FilesCorpus, is_heldout, open_corpus
from roberta_jax.data.text.sentences import split_sentences
from roberta_jax.data.text.source import TextSource
from roberta_jax.errors import UsageError
from roberta_jax.tokenizer import RobertaTokenizer

RECIPE = Recipe(validation_fraction=0.2, sentences="split", language="en", max_overlap=0.5)
WORDS = "the a cat sat on mat file returns True if not there Zoë été 猫 😀 42".split(" ")  # noqa: SIM905


def make_text(documents, seed=0):
    rng = random.Random(seed)

    def sentence():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 12))).capitalize() + "."

    return [
        "\n\n".join(
            " ".join(sentence() for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 4))
        )
        for _ in range(documents)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return RobertaTokenizer.train(make_text(300), vocab_size=300)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    documents = [*make_text(400), "  ", "twice the same"]
    lines = [json.dumps({"text": text}) for text in [*documents, "twice the same"]]
    (folder / "a.jsonl").write_text("\n".join(lines[:250]) + "\n")
    (folder / "b.jsonl").write_text("\n".join(lines[250:]))
    return folder


def open_text(folder):
    return open_corpus(TextSource(files=f"{folder}/*.jsonl"))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CHECKED  # holds times
    }


def use_small_chunks(patch):
    """Makes dozens of chunks and several shards from little text."""
    patch.setattr("roberta_jax.data.text.corpus.PIECE_BYTES", 1000)
    patch.setattr(build, "CHUNK_BYTES", 4000)
    patch.setattr(layout, "SHARD_TOKENS", 12_000)


@pytest.fixture
def small_chunks(monkeypatch):
    use_small_chunks(monkeypatch)


@pytest.fixture(scope="module")
def expected_contents(tmp_path_factory, text_folder, tokenizer):
    """The files of stores that one process builds without interruption."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        use_small_chunks(patch)
        build_stores(folder / "x", open_text(text_folder), tokenizer, RECIPE, workers=1)
    return contents(folder / "x")


def reference(documents, tokenizer, recipe):
    """The ids of the two stores, in plain Python."""
    sides = {"train": [], "heldout": []}
    for text in documents:
        side = sides["heldout" if is_heldout(text, recipe.validation_fraction) else "train"]
        sentences = split_sentences(text, recipe.sentences, recipe.language)
        for sentence in sentences:
            side += [*tokenizer.encode(sentence, add_special_tokens=False), tokenizer.eos_token_id]
        if sentences:
            side.append(tokenizer.eos_token_id)
    return sides


@pytest.mark.usefixtures("small_chunks")
def test_heldout_documents_that_occur_in_the_training_text_are_left_out(tmp_path, tokenizer):
    documents = make_text(200)
    heldout = [text for text in documents if is_heldout(text, 0.2)]
    train = [text for text in documents if not is_heldout(text, 0.2)]
    # Each held-out document, once with other words around it: part of a longer training document.
    copied = [text for text in heldout if len(text) > 300][:5]
    copies = [text + "\n\n" + "A new end." for text in copied]
    copies = [
        next(copy + "!" * n for n in range(99) if not is_heldout(copy + "!" * n, 0.2))
        for copy in copies
    ]
    for name, texts in (("without", documents), ("with", [*train, *copies, *heldout])):
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def build_from(name, max_overlap):
        recipe = dataclasses.replace(RECIPE, max_overlap=max_overlap)
        corpus = open_corpus(TextSource(files=f"{tmp_path / name}.jsonl"))
        return build_stores(tmp_path / name / f"{max_overlap}", corpus, tokenizer, recipe)

    _, all_heldout = build_from("with", 1.0)
    assert all_heldout.num_documents == len(heldout)
    assert all_heldout.index["counts"]["overlapping"] == 0

    train_store, heldout_store = build_from("with", 0.5)
    expected = [text for text in heldout if text not in copied]
    assert heldout_store.num_documents == len(expected) == len(heldout) - 5
    assert train_store.num_documents == len(train) + len(copies)
    assert heldout_store.index["counts"]["overlapping"] == 5
    tokens = np.concatenate([shard.tokens for shard in heldout_store.shards]).tolist()
    assert tokens == reference(expected, tokenizer, RECIPE)["heldout"]
    heldout_store.verify()
    for shard in heldout_store.shards:
        assert set(shard.document_ends) <= set(shard.sentence_ends)
        assert (shard.tokens[shard.sentence_ends - 1] == tokenizer.eos_token_id).all()

    _, without_copies = build_from("without", 0.5)
    assert without_copies.num_documents == len(heldout)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("sentences", ["split", "lines"])
def test_stores_equal_the_reference(tmp_path, text_folder, tokenizer, sentences):
    recipe = Recipe(0.2, sentences, "en")
    corpus = open_text(text_folder)
    stores = build_stores(tmp_path / "x", corpus, tokenizer, recipe, workers=1)
    documents = [
        json.loads(line)["text"]
        for name in ("a.jsonl", "b.jsonl")
        for line in (text_folder / name).read_text().splitlines()
    ]
    for store, expected in zip(
        stores, reference(documents, tokenizer, recipe).values(), strict=True
    ):
        assert np.concatenate([shard.tokens for shard in store.shards]).tolist() == expected
        assert store.fingerprint == tokenizer.fingerprint()
        assert store.vocab_size == 300
        for shard in store.shards:
            assert shard.num_tokens <= 12_000
            assert shard.document_ends[-1] == shard.num_tokens
            assert set(shard.document_ends) <= set(shard.sentence_ends)
            assert (shard.tokens[shard.sentence_ends - 1] == tokenizer.eos_token_id).all()
    train, heldout = stores
    assert len(train.shards) > 2
    assert train.num_documents + heldout.num_documents == 402
    assert train.index["counts"] == heldout.index["counts"]
    assert train.index["counts"]["empty"] == 1
    assert train.index["counts"]["documents"] == 402
    assert train.index["text_blake2b"] == build.content_hash(corpus)


@pytest.mark.usefixtures("small_chunks")
def test_any_number_of_workers_gives_the_same_bytes(
    tmp_path, text_folder, tokenizer, expected_contents
):
    assert len(expected_contents) > 8
    for workers in (2, 3):
        folder = tmp_path / str(workers)
        build_stores(folder, open_text(text_folder), tokenizer, RECIPE, workers=workers)
        assert sorted(path.name for path in folder.iterdir()) == ["heldout", "train"]
        assert contents(folder) == expected_contents


def test_a_store_that_was_just_built_is_not_read_to_check_it(
    tmp_path, text_folder, tokenizer, monkeypatch
):
    def read(path):
        raise AssertionError(f"reads {path}")

    monkeypatch.setattr(digests, "_hash_of", read)
    build_stores(tmp_path / "x", open_text(text_folder), tokenizer, RECIPE, workers=1)


def test_a_finished_store_is_not_written_again(tmp_path, text_folder, tokenizer):
    build_stores(tmp_path / "x", open_text(text_folder), tokenizer, RECIPE)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}
    build_stores(tmp_path / "x", open_text(text_folder), tokenizer, RECIPE)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}


def test_validation_fraction_of_zero_gives_an_empty_heldout_store(tmp_path, text_folder, tokenizer):
    recipe = Recipe(0, "split", "en")
    train, heldout = build_stores(tmp_path / "x", open_text(text_folder), tokenizer, recipe)
    assert train.num_documents == 402
    assert (heldout.num_documents, heldout.num_tokens, len(heldout.shards)) == (0, 0, 0)


# A script without `if __name__ == "__main__"`, which workers must not run again.
SCRIPT = """
    import pathlib, sys, time
    print("started", flush=True)
    from roberta_jax.data.store import build, layout
    from roberta_jax.data.text import corpus
    from roberta_jax.tokenizer import RobertaTokenizer
    corpus.PIECE_BYTES, build.CHUNK_BYTES, layout.SHARD_TOKENS = 1000, 4000, 12_000
    text, folder = sys.argv[1:]
    tokenizer = RobertaTokenizer.from_pretrained(pathlib.Path(text) / "tokenizer")
    opened = corpus.FilesCorpus(sorted(pathlib.Path(text).glob("*.jsonl")), "text")
    recipe = build.Recipe(0.2, "split", "en", max_overlap=0.5)
    quick = opened.pieces  # too fast to be killed halfway
    corpus.FilesCorpus.pieces = lambda self: (time.sleep(0.02) or piece for piece in quick())
    build.build_stores(pathlib.Path(folder), opened, tokenizer, recipe, workers=2)
    assert "jax" not in sys.modules and "tensorflow" not in sys.modules
    print("finished", flush=True)
"""


@pytest.fixture
def start_script(tmp_path, text_folder, tokenizer):
    """Starts processes that build stores, and kills them at the end of the test."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    tokenizer.save_pretrained(text_folder / "tokenizer")
    root = pathlib.Path(__file__).parents[3]
    processes = []

    def start(folder, script=script):
        process = subprocess.Popen(
            [sys.executable, str(script), str(text_folder), str(folder)],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("small_chunks")
def test_resumes_after_kills(tmp_path, text_folder, tokenizer, start_script, expected_contents):
    building = tmp_path / "x" / "building"
    for parts in (1, 15):  # killed when this many parts, loose or in shards, exist
        process = start_script(tmp_path / "x")
        while _num_parts(building) < parts and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert building.is_dir()
        with pytest.raises(UsageError, match="holds no token store"):
            TokenStore.open(tmp_path / "x" / "train")
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "workers outlive their parent"
    (tmp_path / "x" / "train" / "00000.tokens.npy.0123.tmp").touch()  # as a killed process leaves
    finished = {path: path.stat().st_mtime_ns for path in _finished(tmp_path / "x")}
    assert len(finished) >= 3  # the files of one shard
    build_stores(tmp_path / "x", open_text(text_folder), tokenizer, RECIPE, workers=2)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert contents(tmp_path / "x") == expected_contents


def _finished(folder):
    """The files of the training shards that are recorded as finished."""
    for path in (folder / "building").glob("shard-*.json"):
        record = json.loads(path.read_text())
        yield from (folder / "train").glob(f"{record['train']['name']}.*.npy")


def _num_parts(building):
    records = sorted(building.glob("shard-*.json"))
    loose = len(list(building.glob("*.npz")))
    return loose + (json.loads(records[-1].read_text())["end"] if records else 0)


@pytest.mark.usefixtures("small_chunks")
def test_concurrent_builds(tmp_path, start_script, expected_contents):
    processes = [start_script(tmp_path / "x") for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "started\nfinished\n"), err
    assert contents(tmp_path / "x") == expected_contents


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("moment", ["loose part", "while joining"])
def test_damaged_parts_are_rebuilt(
    tmp_path, text_folder, tokenizer, monkeypatch, moment, expected_contents
):
    corpus = open_text(text_folder)
    write_part = build.write_part

    def damaging(folder, number, *rest):
        write_part(folder, number, *rest)
        if number == 2:
            path = folder / f"{number:08d}.npz"
            data = bytearray(path.read_bytes())
            # The middle of the file holds tokens, its end the directory of the archive.
            data[len(data) // 2 if moment == "while joining" else -1] ^= 255
            path.write_bytes(data[: None if moment == "while joining" else len(data) // 2])

    monkeypatch.setattr(build, "write_part", damaging)
    with pytest.raises((UsageError, FileNotFoundError), match="00000002.npz was damaged|lost part"):
        build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, workers=1)
    monkeypatch.undo()
    use_small_chunks(monkeypatch)
    build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, workers=1)
    assert contents(tmp_path / "x") == expected_contents


@pytest.fixture
def interrupted(tmp_path, text_folder, tokenizer, monkeypatch, small_chunks):
    """The folder of a build that stopped after 20 parts, of which some are in shards."""
    add = shards.ShardWriter.add

    def stop(writer, number):
        add(writer, number)
        if number == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            build_stores(tmp_path / "x", open_text(text_folder), tokenizer, RECIPE, workers=1)
    assert len(list((tmp_path / "x" / "building").glob("*.npz"))) > 1
    assert len(list((tmp_path / "x" / "building").glob("*.json"))) > 1
    return tmp_path / "x"


def _change_a_count(folder):
    path = folder / "building" / "shard-00000.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"end": record["end"] + 1}))


def _copy_a_part(folder):
    first, second, *_ = sorted((folder / "building").glob("*.npz"))
    second.write_bytes(first.read_bytes())


def _replace_by_a_folder(folder):
    for path in ("building/shard-00000.json", max((folder / "building").glob("*.npz"))):
        (folder / path).unlink()
        (folder / path).mkdir()


def _flip_a_bit_of_a_shard(folder):
    path = folder / "train" / "00000.tokens.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _leave_temporary_files(folder):
    (folder / "building" / "00000003.npz.0123.tmp").touch()
    (folder / "train" / "index.json.0123.tmp").touch()


@pytest.mark.parametrize(
    "damage",
    [
        _change_a_count,
        _copy_a_part,
        _replace_by_a_folder,
        _flip_a_bit_of_a_shard,
        _leave_temporary_files,
    ],
)
def test_what_an_interrupted_build_left_is_checked(
    interrupted, text_folder, tokenizer, expected_contents, damage
):
    damage(interrupted)
    build_stores(interrupted, open_text(text_folder), tokenizer, RECIPE, workers=1)
    assert contents(interrupted) == expected_contents


def test_parts_that_a_killed_process_did_not_delete(tmp_path, text_folder, tokenizer):
    corpus = open_text(text_folder)
    build_stores(tmp_path / "x", corpus, tokenizer, RECIPE)
    (tmp_path / "x" / "building").mkdir()
    (tmp_path / "x" / "building" / "00000000.npz").touch()
    build_stores(tmp_path / "x", corpus, tokenizer, RECIPE)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["heldout", "train"]


def test_stores_that_do_not_belong_together(tmp_path, text_folder, tokenizer):
    corpus = open_text(text_folder)
    build_stores(tmp_path / "x", corpus, tokenizer, RECIPE)
    other = RobertaTokenizer.train(make_text(300, seed=1), vocab_size=310)
    with pytest.raises(UsageError, match="train was made with another tokenizer"):
        build_stores(tmp_path / "x", corpus, other, RECIPE)
    shutil.rmtree(tmp_path / "x" / "heldout")
    shutil.copytree(tmp_path / "x" / "train", tmp_path / "x" / "heldout")
    with pytest.raises(UsageError, match="do not belong together"):
        build_stores(tmp_path / "x", corpus, tokenizer, RECIPE)


class DeadlyCorpus(FilesCorpus):
    """A corpus whose workers die, as they do when memory runs out."""

    def documents(self, piece, counts):
        os._exit(9)


@pytest.mark.usefixtures("small_chunks")
def test_death_of_a_worker(tmp_path, text_folder, tokenizer):
    corpus = DeadlyCorpus([text_folder / "a.jsonl"], "text")
    with pytest.raises(UsageError, match=r"worker process died.*config\.data\.num_workers"):
        build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, workers=2)


@pytest.mark.usefixtures("small_chunks")
def test_errors_of_workers_are_raised(tmp_path, text_folder, tokenizer):
    corpus = FilesCorpus([text_folder / "a.jsonl"], "body")
    with pytest.raises(UsageError, match=r"a\.jsonl:\d+: no field 'body'"):
        build_stores(tmp_path / "x", corpus, tokenizer, RECIPE, workers=2)


def test_progress_bar(tmp_path, text_folder, tokenizer, capsys):
    build_stores(tmp_path / "a", open_text(text_folder), tokenizer, RECIPE, progress=True)
    shown = capsys.readouterr().err
    assert "402 documents" in shown
    assert "MB/s" in shown
    assert "100%" in shown
    build_stores(tmp_path / "b", open_text(text_folder), tokenizer, RECIPE, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_document_of_50_megabytes(tmp_path, tokenizer):
    text = " ".join(make_text(20_000)).replace("\n\n", "\n")
    text *= 50_000_000 // len(text.encode()) + 1
    (tmp_path / "a.txt").write_text(text)
    start = time.monotonic()
    corpus = FilesCorpus([tmp_path / "a.txt"], "text")
    recipe = Recipe(0, "split", "en")
    train, _ = build_stores(tmp_path / "x", corpus, tokenizer, recipe, workers=2)
    assert train.num_documents == 1
    assert len(train.shards) == 1
    assert train.index["counts"]["characters"] == len(text)
    assert time.monotonic() - start < 240


def test_shards_depend_only_on_the_sizes_of_parts(tmp_path, monkeypatch):
    """The order in which parts come and interruptions make no difference."""
    monkeypatch.setattr(layout, "SHARD_TOKENS", 100)
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(1, 60, 40).tolist(), 150, 5]
    orders = {
        "sorted": range(len(sizes)),
        "reversed": range(len(sizes))[::-1],
        "shuffled": rng.permutation(len(sizes)).tolist(),
    }
    for name, order in orders.items():
        writer = shards.ShardWriter(tmp_path / name, np.dtype(np.uint16))
        for i, number in enumerate(order):
            tokens = np.full(sizes[number], number, np.uint16)
            ends = np.array([len(tokens)])
            nothing = (tokens[:0], ends[:0], ends[:0])
            shards.write_part(
                writer.building,
                number,
                {"train": (tokens, ends, ends), "heldout": nothing},
                {"tokens": len(tokens)},
            )
            writer.add(number)
            if name == "shuffled" and i == 20:
                writer = shards.ShardWriter(tmp_path / name, np.dtype(np.uint16))
                assert all(writer.has(n) == (n in order[:21]) for n in range(len(sizes)))
        writer.finish(
            vocab_size=100, eos_id=2, fingerprint="", max_overlap=1.0, workers=1, about={}
        )
        assert writer.counts["tokens"] == sum(sizes)
    train = TokenStore.open(tmp_path / "sorted" / "train")
    assert all(shard.num_tokens <= 100 or shard.num_documents == 1 for shard in train.shards)
    # The first part of a shard would not have fit into the previous one.
    for shard, following in zip(train.shards, train.shards[1:], strict=False):
        assert shard.num_tokens + following.document_ends[0] > 100
    assert contents(tmp_path / "sorted") == contents(tmp_path / "reversed")
    assert contents(tmp_path / "sorted") == contents(tmp_path / "shuffled")
