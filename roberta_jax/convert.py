"""Converts a model: `python -m roberta_jax.convert SRC DST --to=hf|flax|fairseq`.

SRC is a folder or hub id with weights in any format that loads here: safetensors,
pytorch_model.bin, flax_model.msgpack or fairseq's model.pt. DST is the folder to write. The
tokenizer's files go along. At the end both models are run on the same tokens, and the largest
difference of their outputs is printed.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

from roberta_jax import cli
from roberta_jax.errors import UsageError

FORMATS = ("hf", "flax", "fairseq")
DTYPES = ("float32", "float16", "bfloat16")

# How far outputs, relative to the largest, may be from those of the model that was read, by type.
_TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.2}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
      model: The class's name.
      source: The format that was read, and the types in it.
      parts: (part, tensors, parameters) of what was converted.
      unused: Names in the source that the model has no place for.
      files: What was written.
      notes: What a reader should know besides.
      difference: The largest difference of the outputs before and after.
      largest: The largest output.
    """

    model: str
    source: str
    parts: list[tuple[str, int, int]]
    unused: tuple[str, ...]
    files: list[str]
    notes: list[str]
    difference: float
    largest: float


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str,
    *,
    dtype: str | None = None,
    model_class: str | None = None,
    revision: str | None = None,
) -> Report:
    """Writes a model in another format and compares the two.

    Args:
      source: A folder, a weight file or a hub id; see `from_pretrained`.
      target: The folder to write.
      to: "hf", "flax" or "fairseq"; see `save_pretrained`.
      dtype: The type of the parameters; None keeps each tensor's own.
      model_class: The name of the class to convert as. Default: what the source says it is.
      revision: A branch, a tag or a commit of a hub id.

    Raises:
      UsageError: The source cannot be loaded, the target cannot hold it, or what was written does
        not compute what was read.
    """
    from etils import epath

    from roberta_jax import weights
    from roberta_jax.modeling.execution import Execution
    from roberta_jax.modeling.heads import MODEL_CLASSES
    from roberta_jax.weights import save

    if model_class is not None and model_class not in MODEL_CLASSES:
        raise UsageError(f"no class {model_class!r}: use one of {', '.join(MODEL_CLASSES)}")
    save.check_replaceable(epath.Path(target))
    if os.path.realpath(target) in (os.path.realpath(source), os.path.realpath(f"{source}/hf")):
        raise UsageError(f"{target} is what would be read; write to another folder")
    execution = Execution(scan_layers=False)  # so that each layer's tensors keep their own type
    loaded = weights.load_pretrained(
        source,
        MODEL_CLASSES[model_class] if model_class else None,
        execution,
        param_dtype=dtype,
        revision=revision,
    )
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer(source, revision, to, pathlib.Path(folder), notes)
        weights.save_pretrained(target, loaded.model, loaded.params, tokenizer, format=to)
    if to == "fairseq":
        notes += _fairseq_notes(loaded.params)
    again = weights.load_pretrained(target, type(loaded.model), execution, param_dtype=None)
    difference, largest = _compare(loaded, again)
    kinds = sorted({tensor.dtype for tensor in loaded.weights.tensors.values()})
    report = Report(
        type(loaded.model).__name__,
        f"{loaded.weights.format} ({', '.join(kinds)})",
        _parts(loaded.params),
        loaded.unused,
        sorted(path.name for path in epath.Path(target).iterdir()),
        notes,
        difference,
        largest,
    )
    allowed = max(_TOLERANCES[kind] for kind in _types(again.params)) * max(largest, 1.0)
    if not difference <= allowed:  # NaN is not, either
        raise UsageError(
            f"{target} was written, but does not compute what {source} does: outputs differ by "
            f"{difference:.3g}, of values up to {largest:.3g}. Do not use it"
            + (f"; try --dtype=float32 instead of {dtype}" if dtype else "")
        )
    return report


class _Files:
    """Files to put beside a model."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def save_pretrained(self, folder: pathlib.Path) -> None:
        for path in self._folder.iterdir():
            shutil.copy(path, folder)


def _tokenizer(
    source: str | os.PathLike, revision: str | None, to: str, place: pathlib.Path, notes: list[str]
) -> _Files | None:
    """Makes the tokenizer's files for a format; a note says why there are none."""
    from roberta_jax.storage import hub
    from roberta_jax.tokenizer import RobertaTokenizer
    from roberta_jax.tokenizer.files import HF_FILES, TOKENIZER_FILE, read_merges, read_vocab
    from roberta_jax.weights import save
    from roberta_jax.weights.formats import fairseq_dictionary

    folder = hub.tokenizer_folder(source, revision=revision)
    hfs = (folder / TOKENIZER_FILE).exists() or all((folder / name).exists() for name in HF_FILES)
    if hfs and to != "fairseq":
        for name in save.TOKENIZER_FILES:
            if (folder / name).exists():
                (folder / name).copy(place / name)
        return _Files(place)
    try:
        tokenizer = RobertaTokenizer.from_pretrained(folder)
        if to != "fairseq":
            tokenizer.save_pretrained(place)
            return _Files(place)
        tokenizer.save_vocabulary(str(place))
        vocab, merges = read_vocab(place / HF_FILES[0]), read_merges(place / HF_FILES[1])
        for name in HF_FILES:
            (place / name).unlink()
        fairseq_dictionary.write(place, vocab, merges)
    except FileNotFoundError:
        notes.append("no tokenizer: the source has none")
        return None
    except (ValueError, UsageError) as error:
        notes.append(f"no tokenizer: {error}")
        return None
    return _Files(place)


def _fairseq_notes(params: dict[str, Any]) -> list[str]:
    import numpy as np

    types = params.get("roberta", params)["embeddings"]["token_type_embeddings"]["embedding"]
    types = np.asarray(types, np.float32)
    notes = []
    if types[0].any():
        notes.append("fairseq has no token types: row 0 was added to each position's row")
    if len(types) > 1:
        notes.append(f"fairseq has no token types: rows 1 to {len(types) - 1} were left out")
    return notes


def _types(params: dict[str, Any]) -> set[str]:
    import jax

    return {leaf.dtype.name for leaf in jax.tree.leaves(params)}


def _compare(before: Any, after: Any) -> tuple[float, float]:
    """The largest difference of two models' outputs, and the largest output, in float32."""
    import jax
    import numpy as np

    from roberta_jax.modeling.heads import RobertaForMultipleChoice

    config = before.model.config
    length = min(16, config.max_length)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
    ids = np.where(ids == config.pad_token_id, config.eos_token_id, ids)
    if isinstance(before.model, RobertaForMultipleChoice):
        ids = ids[None]

    def outputs(loaded):
        params = jax.tree.map(lambda x: np.asarray(x, np.float32), loaded.params)
        found = loaded.model.apply({"params": params}, ids)
        return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(found)]

    one, other = outputs(before), outputs(after)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))
    return difference, max(float(np.abs(a).max()) for a in one)


def _parts(params: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(part, tensors, parameters): the embeddings, each stack of layers, each head."""
    import jax

    parts = dict(params)
    parts = {**parts.pop("roberta", {}), **parts}
    rows = []
    for name, tree in parts.items():
        found = jax.tree.leaves(tree)
        rows.append((name, len(found), sum(leaf.size for leaf in found)))
    return [*rows, ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def table(report: Report) -> str:
    """Lays a report out for reading."""
    lines = [f"{report.model}, read from {report.source}", ""]
    lines.append(f"{'part':<12} {'tensors':>8} {'parameters':>14}")
    lines += [f"{name:<12} {tensors:>8} {count:>14,}" for name, tensors, count in report.parts]
    lines.append("")
    if report.unused:
        names = ", ".join(report.unused[:6]) + (", …" if len(report.unused) > 6 else "")
        lines.append(f"passed over ({len(report.unused)}): {names}")
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"written: {', '.join(report.files)}")
    lines.append(
        f"largest difference of the outputs before and after: {report.difference:.3g} (of values "
        f"up to {report.largest:.3g})"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; wrong input is printed without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m roberta_jax.convert", description=__doc__)
    parser.add_argument("source", metavar="SRC", help="a folder, a weight file or a hub id")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format to write")
    parser.add_argument("--dtype", choices=DTYPES, help="of the parameters (default: as they are)")
    parser.add_argument("--model_class", help="such as RobertaForMaskedLM (default: as it says)")
    parser.add_argument("--revision", help="a branch, tag or commit of a hub id")
    arguments = parser.parse_args(argv)
    with cli.usage_errors():
        report = convert(
            arguments.source,
            arguments.target,
            arguments.to,
            dtype=arguments.dtype,
            model_class=arguments.model_class,
            revision=arguments.revision,
        )
    print(table(report))


if __name__ == "__main__":
    main()
