"""The kinds of files that the campaign of damaged files goes through, each with its reader."""

import csv
import dataclasses
import io
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

from experiments.robustness import readers
from experiments.robustness.world import COMPRESSORS


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      name: Its name in the table.
      part: The folder below the root of `world.build` that is copied for each damage.
      files: Globs below that folder.
      read: Reads the copy, see `readers`.
      is_valid: Whether contents have the form of such a file, so that only the values in them can
        be wrong, which no reader can notice: of files that people write or edit, and of formats of
        other programs that have no checksum. None where any change can be noticed.
      optional: Names of files that a folder need not have, so that nobody can miss them.
    """

    name: str
    part: str
    files: tuple[str, ...]
    read: Callable[[pathlib.Path, pathlib.Path], Any]
    is_valid: Callable[[pathlib.Path], bool] | None = None
    optional: tuple[str, ...] = ()


def _is_json(path: pathlib.Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def _is_json_lines(path: pathlib.Path) -> bool:
    try:
        return all(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError):
        return False


def _is_table(path: pathlib.Path) -> bool:
    """Whether a file is JSON, or CSV with the same number of fields in each line."""
    if path.suffix == ".json":
        return _is_json(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    rows = list(csv.reader(io.StringIO(text)))
    return "\0" not in text and len({len(row) for row in rows}) == 1 and len(rows) > 1


def _is_archive(path: pathlib.Path) -> bool:
    """Whether a file is a ZIP archive whose checksums fit."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _is_weights(path: pathlib.Path) -> bool:
    """Whether the header, at the start, is intact; the numbers after it may be any."""
    if path.suffix == ".json":
        return _is_json(path)
    return path.is_file() and path.stat().st_size > 0


def _is_text(path: pathlib.Path) -> bool:
    if path.suffix == ".json":
        return _is_json(path)
    try:
        return "\0" not in path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


_TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
_TOKENIZER += ("special_tokens_map.json",)
_PARTS = ("tokens/*/building/*",)

KINDS = (
    Kind("token store: index", "cache", ("tokens/*/*/index.json",), readers.read_prepared),
    Kind("token store: shards", "cache", ("tokens/*/*/*.npy",), readers.read_prepared),
    Kind(
        "token store: what was read", "cache", ("tokens/*/*/checked.json",), readers.read_prepared
    ),
    Kind("token store, not yet packed", "cache", ("tokens/*/train/*.npy",), readers.read_store),
    Kind("token store, with --verify", "cache", ("tokens/*/train/*.*",), readers.verify),
    Kind("packing index", "cache", ("tokens/*/*/packed/*/*",), readers.read_prepared),
    Kind(
        "packing index, with --verify", "cache", ("tokens/*/train/packed/full*/*",), readers.verify
    ),
    Kind("trained tokenizer in the cache", "cache", ("tokenizers/*/*",), readers.read_prepared),
    Kind("parts of an interrupted preparation", "building", _PARTS, readers.finish_preparation),
    Kind(
        "shards of an interrupted preparation",
        "building",
        ("*/*/train/*.npy",),
        readers.finish_preparation,
    ),
    *(Kind(f"text, .{suffix}", suffix, ("*",), readers.read_text) for suffix in COMPRESSORS),
    Kind("config.json of a workdir", "run", ("config.json",), readers.resume, _is_json),
    Kind("metrics.jsonl", "run", ("metrics.jsonl",), readers.resume, _is_json_lines),
    Kind(
        "metrics.jsonl, in a report", "runs", ("*0/metrics.jsonl",), readers.report, _is_json_lines
    ),
    Kind("hf/ of a finished run", "run", ("hf/*",), readers.read_finished_run, _is_weights),
    Kind("report of a study", "report", ("*.json", "*.csv"), readers.read_report, _is_table),
    Kind("config.json of a model", "models/hf", ("config.json",), readers.read_model, _is_json),
    Kind("model.safetensors", "models/hf", ("model.safetensors",), readers.read_model, _is_weights),
    Kind(
        "sharded model.safetensors", "models/sharded", ("model*",), readers.read_model, _is_weights
    ),
    Kind(
        "nsp_head.safetensors",
        "models/next_sentence",
        ("nsp*",),
        readers.read_with_next_sentence_head,
        _is_weights,
    ),
    Kind(
        "pytorch_model.bin", "models/bin", ("pytorch_model.bin",), readers.read_model, _is_archive
    ),
    Kind(
        "flax_model.msgpack",
        "models/flax",
        ("flax_model.msgpack",),
        readers.read_model,
        _is_weights,
    ),
    Kind("fairseq's model.pt", "models/fairseq", ("model.pt",), readers.read_model, _is_archive),
    Kind("fairseq's dict.txt and BPE", "models/gpt2", ("*",), readers.read_tokenizer, _is_text),
    Kind(
        "tokenizer of a model",
        "models/hf",
        _TOKENIZER,
        readers.read_tokenizer,
        _is_text,
        optional=("tokenizer_config.json",),
    ),
    Kind(
        "generation_config.json",
        "models/generation",
        ("gen*.json",),
        readers.read_generation_config,
        _is_json,
        optional=("generation_config.json",),
    ),
    Kind("exported program", "program", ("*",), readers.run_program),
    Kind("checkpoint", "run", ("checkpoints/4/**/*",), readers.resume),
    Kind(
        "checkpoint, with --on_damage=older",
        "run",
        ("checkpoints/4/**/*",),
        readers.resume_older,
    ),
)
"""The kinds of files, the slowest readers last."""
