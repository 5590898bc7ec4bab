"""Converts a model: `python -m roberta_jax.convert SRC DST --to=hf|flax|fairseq`.

SRC is a folder or hub id with weights in any supported format: safetensors, pytorch_model.bin,
flax_model.msgpack or fairseq's model.pt. DST is the folder to write. The tokenizer is converted
too, and a next-sentence head (nsp_head.safetensors) beside the weights. At the end both models are
run on the same tokens, and the largest difference between their outputs is printed.
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

# Largest allowed difference from the source model's outputs, relative to the largest output, by
# the type of the converted parameters.
_TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.2}


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a conversion.

    Attributes:
      model: The name of the model's class.
      source: The source's format and the types of its tensors.
      parts: (part, number of tensors, number of parameters) of the model.
      unused: Names of the tensors in the source that the model has no parameter for.
      files: Names of the files in the target folder.
      notes: Further information, such as what the format cannot express.
      difference: The largest absolute difference between the outputs before and after.
      largest: The largest absolute output.
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
      dtype: The type of the parameters. None keeps the type of each tensor.
      model_class: The name of the class to convert to. Default: the class that the source names.
      revision: A branch, tag or commit of a hub id.

    Raises:
      UsageError: The source cannot be loaded, the target's format does not support the model, or
        the outputs of the converted model differ from the source's.
    """
    from etils import epath

    from roberta_jax import weights
    from roberta_jax.modeling.execution import Execution
    from roberta_jax.modeling.heads import (
        MODEL_CLASSES,
        RobertaForMaskedLM,
        RobertaForPreTraining,
    )
    from roberta_jax.weights import next_sentence, save

    if model_class is not None and model_class not in MODEL_CLASSES:
        raise UsageError(f"no class {model_class!r}: use one of {', '.join(MODEL_CLASSES)}")
    save.check_replaceable(epath.Path(target))
    if os.path.realpath(target) in (os.path.realpath(source), os.path.realpath(f"{source}/hf")):
        raise UsageError(f"{target} is the source; write to another folder")
    # Unstacked, so that each layer's tensors can keep a type of their own.
    execution = Execution(scan_layers=False)
    options = {"execution": execution, "param_dtype": dtype, "revision": revision}
    loaded = weights.load_pretrained(
        source, MODEL_CLASSES[model_class] if model_class else None, **options
    )
    folder = weights.model_folder(source, revision=revision)
    head_file = (folder.parent if folder.is_file() else folder) / next_sentence.FILE
    if type(loaded.model) is RobertaForMaskedLM and head_file.exists():
        loaded = weights.load_pretrained(source, RobertaForPreTraining, **options)
    notes: list[str] = []
    try:
        with tempfile.TemporaryDirectory() as staging:
            tokenizer = _tokenizer(source, revision, to, pathlib.Path(staging), notes)
            weights.save_pretrained(target, loaded.model, loaded.params, tokenizer, format=to)
    except UsageError:
        raise  # a tokenizer that does not exist is an OSError as well
    except OSError as error:
        raise UsageError(
            f"cannot write the tokenizer's files to {tempfile.gettempdir()}: "
            f"{error.strerror or error}. Free some space there, or set TMPDIR to another folder"
        ) from error
    if to == "fairseq":
        notes += _fairseq_notes(loaded.params)
    converted = weights.load_pretrained(target, type(loaded.model), execution, param_dtype=None)
    difference, largest = _compare(loaded, converted)
    dtypes = sorted({tensor.dtype for tensor in loaded.weights.tensors.values()})
    report = Report(
        type(loaded.model).__name__,
        f"{loaded.weights.format} ({', '.join(dtypes)})",
        _parts(loaded.params),
        loaded.unused,
        sorted(path.name for path in epath.Path(target).iterdir()),
        notes,
        difference,
        largest,
    )
    tolerance = max(_TOLERANCES[name] for name in _dtypes(converted.params)) * max(largest, 1.0)
    if not difference <= tolerance:  # also if the difference is NaN
        raise UsageError(
            f"{target} was written, but does not compute what {source} does: outputs differ by "
            f"{difference:.3g}, of values up to {largest:.3g}. Do not use it"
            + (f"; try --dtype=float32 instead of {dtype}" if dtype else "")
        )
    return report


class _TokenizerFiles:
    """Tokenizer files in a folder, to be passed to `save_pretrained` as its tokenizer."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def save_pretrained(self, folder: pathlib.Path) -> None:
        for path in self._folder.iterdir():
            shutil.copy(path, folder)


def _tokenizer(
    source: str | os.PathLike,
    revision: str | None,
    to: str,
    staging: pathlib.Path,
    notes: list[str],
) -> _TokenizerFiles | None:
    """Writes the tokenizer's files for a format to a folder; a note says why there are none."""
    from roberta_jax.storage import hub
    from roberta_jax.tokenizer import RobertaTokenizer
    from roberta_jax.tokenizer.files import (
        HF_FILES,
        OPTION_FILES,
        TOKENIZER_FILE,
        read_merges,
        read_vocab,
    )

    folder = hub.tokenizer_folder(source, revision=revision)
    is_hf = (folder / TOKENIZER_FILE).exists() or all((folder / name).exists() for name in HF_FILES)
    if is_hf and to != "fairseq":
        for name in hub.TOKENIZER_FILES:
            if (folder / name).exists():
                (folder / name).copy(staging / name)
        return _TokenizerFiles(staging)
    try:
        tokenizer = RobertaTokenizer.from_pretrained(folder)
        if to != "fairseq":
            tokenizer.save_pretrained(staging)
            return _TokenizerFiles(staging)
        from roberta_jax.tokenizer import fairseq_files

        tokenizer.save_vocabulary(str(staging))
        vocab, merges = read_vocab(staging / HF_FILES[0]), read_merges(staging / HF_FILES[1])
        for name in HF_FILES:
            (staging / name).unlink()
        fairseq_files.write(staging, vocab, merges)
        # fairseq has no place for model_max_length and the other options.
        for name in OPTION_FILES:
            if (folder / name).exists():
                (folder / name).copy(staging / name)
    except FileNotFoundError:
        notes.append("no tokenizer: the source has none")
        return None
    except (ValueError, UsageError) as error:
        notes.append(f"no tokenizer: {error}")
        return None
    return _TokenizerFiles(staging)


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


def _dtypes(params: dict[str, Any]) -> set[str]:
    import jax

    return {leaf.dtype.name for leaf in jax.tree.leaves(params)}


def _compare(before: Any, after: Any) -> tuple[float, float]:
    """Runs two loaded models in float32 on the same tokens.

    Returns:
      The largest absolute difference between their outputs, and the first one's largest output.
    """
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
        output = loaded.model.apply({"params": params}, ids)
        return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(output)]

    expected, actual = outputs(before), outputs(after)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, actual, strict=True))
    return difference, max(float(np.abs(a).max()) for a in expected)


def _parts(params: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(name, number of tensors, number of parameters) of the embeddings, layers and heads."""
    import jax

    parts = dict(params)
    parts = {**parts.pop("roberta", {}), **parts}
    rows = []
    for name, tree in parts.items():
        leaves = jax.tree.leaves(tree)
        rows.append((name, len(leaves), sum(leaf.size for leaf in leaves)))
    return [*rows, ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def table(report: Report) -> str:
    """Formats a report as text."""
    lines = [f"{report.model}, read from {report.source}", ""]
    lines.append(f"{'part':<12} {'tensors':>8} {'parameters':>14}")
    lines += [f"{name:<12} {tensors:>8} {count:>14,}" for name, tensors, count in report.parts]
    lines.append("")
    if report.unused:
        names = ", ".join(report.unused[:6]) + (", …" if len(report.unused) > 6 else "")
        lines.append(f"not used ({len(report.unused)}): {names}")
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"written: {', '.join(report.files)}")
    lines.append(
        f"largest difference between the outputs before and after: {report.difference:.3g} "
        f"(of values up to {report.largest:.3g})"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Wrong input is printed without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m roberta_jax.convert", description=__doc__)
    parser.add_argument("source", metavar="SRC", help="a folder, a weight file or a hub id")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format to write")
    parser.add_argument("--dtype", choices=DTYPES, help="of the parameters (default: the source's)")
    parser.add_argument("--model_class", help="such as RobertaForMaskedLM (default: the source's)")
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
