"""Makes one small example of every kind of file that the project reads."""

import bz2
import contextlib
import gzip
import json
import lzma
import pathlib
import shutil
from collections.abc import Collection

import jax
import numpy as np
import zstandard

import roberta_jax
from experiments.reporting.collect import collect
from experiments.reporting.report_files import write_report
from experiments.robustness.readers import (
    FORMATS,
    config_of,
    prepared_batches,
    study_of,
    use_small_chunks,
)
from roberta_jax import weights
from roberta_jax.data.store import build as store_build
from roberta_jax.data.store import layout
from roberta_jax.data.store.shards import ShardWriter
from roberta_jax.data.text import corpus
from roberta_jax.exporting.stablehlo import export_stablehlo
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaForPreTraining
from roberta_jax.pretrain import pretrain
from roberta_jax.weights.formats import pytorch
from roberta_jax.weights.parameters import parameter_shapes

COMPRESSORS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
_WORDS = ("a", "cat", "dog", "bird", "child", "sees", "likes", "hears", "paints", "home", "hill")


def build(root: pathlib.Path, parts: Collection[str] | None = None) -> None:
    """Writes files below `root`.

    Args:
      root: The folder, which does not exist.
      parts: Those of the kinds that are needed; None is all.
    """
    _write_text(root / "text")
    _write_compressed(root)
    for format in FORMATS:
        prepared_batches(root / "cache", root, format)
    if parts is not None and set(parts) <= {"text", "cache", *COMPRESSORS}:
        return  # nothing has to be trained
    _interrupt_building(root)
    pretrain(config_of(root, root / "cache"), root / "run")
    _write_models(root)
    (root / "runs").mkdir()
    for point in study_of(root).points():
        shutil.copytree(root / "run", point.workdir(root / "runs"))
    write_report(collect(study_of(root), root / "runs"), root / "report")


def _write_text(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    texts = [
        " ".join(f"{' '.join(rng.choice(_WORDS, 8))}.".capitalize() for _ in range(6))
        for _ in range(60)
    ]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "corpus.jsonl").write_text(lines)


def _write_compressed(root: pathlib.Path) -> None:
    """Writes the corpus in each compressed format, a folder each."""
    data = (root / "text" / "corpus.jsonl").read_bytes()
    for suffix, compress in COMPRESSORS.items():
        (root / suffix).mkdir()
        (root / suffix / f"corpus.jsonl.{suffix}").write_bytes(compress(data))


def _interrupt_building(root: pathlib.Path) -> None:
    """Leaves the folder of a preparation that stopped in the middle."""
    add = ShardWriter.add

    def stop(writer: ShardWriter, number: int) -> None:
        add(writer, number)
        if number == 12:
            raise _StoppedError

    sizes = corpus.PIECE_BYTES, store_build.CHUNK_BYTES, layout.SHARD_TOKENS
    use_small_chunks()
    ShardWriter.add = stop
    try:
        with contextlib.suppress(_StoppedError):
            prepared_batches(root / "building", root)
    finally:
        ShardWriter.add = add
        corpus.PIECE_BYTES, store_build.CHUNK_BYTES, layout.SHARD_TOKENS = sizes


class _StoppedError(Exception):
    """Stops a preparation in the middle."""


def _write_models(root: pathlib.Path) -> None:
    tokenizer = roberta_jax.RobertaTokenizer.from_pretrained(root / "run" / "hf")
    config = RobertaConfig.base(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=42,
    )
    for seed, name in enumerate(("models", "others")):
        draw = np.random.default_rng(seed).normal
        model = RobertaForMaskedLM(config)
        params = jax.tree.map(
            lambda x, draw=draw: draw(0, 0.2, x.shape).astype(np.float32), parameter_shapes(model)
        )
        params["roberta"]["embeddings"]["token_type_embeddings"]["embedding"][...] = 0
        folder = root / name
        for format in ("hf", "flax", "fairseq"):
            weights.save_pretrained(folder / format, model, params, tokenizer, format=format)
        weights.save_pretrained(folder / "sharded", model, params, tokenizer, max_shard_size=10_000)
        both = RobertaForPreTraining(config)
        head = jax.tree.map(
            lambda x, draw=draw: draw(0, 0.2, x.shape).astype(np.float32), parameter_shapes(both)
        )
        weights.save_pretrained(folder / "next_sentence", both, head, tokenizer)
        _write_pytorch(folder)
        _write_gpt2_files(folder / "gpt2", folder / "hf")
        _write_generation_config(folder / "generation", folder / "hf", seed)
    model, params = weights.from_pretrained(root / "models" / "hf")
    export_stablehlo(root / "program", model, params, platforms=("cpu",))


def _write_pytorch(folder: pathlib.Path) -> None:
    loaded = weights.load_pretrained(folder / "hf")
    tensors = {name: tensor.read() for name, tensor in loaded.weights.tensors.items()}
    keys = {name: number for number, name in enumerate(tensors)}
    state = {
        name: pytorch.Reference(keys[name], x.shape, x.dtype.name) for name, x in tensors.items()
    }
    shutil.copytree(
        folder / "hf", folder / "bin", ignore=lambda _, names: {"model.safetensors"} & set(names)
    )
    arrays = ((keys[name], x) for name, x in tensors.items())
    pytorch.write(folder / "bin" / "pytorch_model.bin", state, arrays)


def _write_gpt2_files(folder: pathlib.Path, model: pathlib.Path) -> None:
    """Writes a tokenizer in fairseq's form: GPT-2's files, and the ids in dict.txt."""
    folder.mkdir()
    vocab = json.loads((model / "vocab.json").read_text(encoding="utf-8"))
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    encoder = {
        token: number
        for number, token in enumerate(sorted(vocab.keys() - set(specials), key=vocab.get))
    }
    lines = [f"{number} {1000 - number}\n" for number in encoder.values()]
    (folder / "dict.txt").write_text("".join(lines))
    (folder / "encoder.json").write_text(json.dumps(encoder))
    shutil.copyfile(model / "merges.txt", folder / "vocab.bpe")


def _write_generation_config(folder: pathlib.Path, model: pathlib.Path, seed: int) -> None:
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 9 + seed, "top_k": 7}))
