"""Reads and writes a tokenizer's files.

A tokenizer is stored in one of three sets of files. In a folder with several of them, the first in
this order is read:

- `tokenizer.json`: the whole pipeline in the format of the `tokenizers` library;
- `vocab.json` and `merges.txt`: the format of Hugging Face;
- `encoder.json`, `vocab.bpe` and `dict.txt`: fairseq's release format. The first two are GPT-2's
  vocabulary, and `dict.txt` renumbers it by frequency.

Where the first two are both in a folder, they must hold the same vocabulary and merges.

Tokenizers of related models are read from `tokenizer.json` only. `tokenizer_config.json` has the
options, if it exists. Older versions of it do not list the added tokens; they are then read from
`added_tokens.json`, and the special tokens from `special_tokens_map.json`.
"""

import json
from collections.abc import Mapping

from etils import epath
from tokenizers import AddedToken, Tokenizer

from roberta_jax.errors import UsageError, listed
from roberta_jax.storage import atomic
from roberta_jax.storage.reading import parse_json, read_text
from roberta_jax.tokenizer import consistency, pipeline, vocabulary
from roberta_jax.tokenizer.special_tokens import (
    ADDITIONAL,
    ATTRIBUTES,
    BOS,
    EOS,
    FILLER_PREFIX,
    MASK,
    PAD,
    UNK,
)

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
OPTION_FILES = (CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
HF_FILES = ("vocab.json", "merges.txt")
FAIRSEQ_FILES = ("encoder.json", "vocab.bpe", "dict.txt")
MERGES_HEADER = "#version: 0.2"

_FAIRSEQ_DICT_URL = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/dict.txt"


# Reading


def load(path) -> tuple[Tokenizer, dict, epath.Path]:
    """Reads the tokenizer in a folder.

    Args:
      path: a local folder, or one that `etils.epath` reads (gs://...).

    Returns:
      The pipeline as the files define it, which may lack RoBERTa's other steps; the options (see
      `read_options`); and the file or folder to name in error messages.

    Raises:
      FileNotFoundError: the folder does not exist or has no complete set of files.
      ValueError: a file cannot be read; the message names it.
    """
    folder = epath.Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no tokenizer at {str(path)!r}: it is not a folder (nor a hub id, such as "
            "'roberta-base')"
        )
    options = read_options(folder)

    def has(names):
        return all((folder / name).exists() for name in names)

    if has([TOKENIZER_FILE]):
        backend = read_pipeline(folder / TOKENIZER_FILE)
        if has(HF_FILES):
            _check_same_vocabulary(folder)
        return backend, options, folder / TOKENIZER_FILE
    if has(HF_FILES):
        names = HF_FILES
        vocab = read_vocab(folder / "vocab.json")
    elif has(FAIRSEQ_FILES):
        names = ("dict.txt", "vocab.bpe")
        vocab = read_fairseq(folder)
    else:
        raise FileNotFoundError(_not_found_message(folder))
    merges = read_merges(folder / names[1])
    try:
        backend = pipeline.bpe(vocab, merges)
        added = _added_tokens(options)
        paths = (folder / names[0], folder / names[1])
        consistency.check_every_token_has_its_merge(vocab, merges, added, paths)
        return backend, options, folder
    except pipeline.PipelineError as error:
        raise ValueError(f"the tokenizer files in {str(path)!r} cannot be used: {error}") from error


def _check_same_vocabulary(folder: epath.Path) -> None:
    """Compares `tokenizer.json` with the `vocab.json` and `merges.txt` beside it."""
    paths = tuple(folder / name for name in (TOKENIZER_FILE, *HF_FILES))
    try:
        vocab, merges = read_vocab(paths[1]), read_merges(paths[2])
    except ValueError as error:
        raise UsageError(
            f"{error}. Copy it again; {TOKENIZER_FILE} is enough, if {' and '.join(HF_FILES)} are "
            "deleted"
        ) from None
    consistency.check_same_vocabulary(_read_json(paths[0]), vocab, merges, paths)


def _added_tokens(options: Mapping) -> set[str]:
    """The contents of the special and added tokens in options as `read_options` returns them."""
    named = [options.get(attribute) for attribute in ATTRIBUTES]
    listed = [*(options.get(ADDITIONAL) or ()), *options.get("added_tokens_decoder", {}).values()]
    return {str(token) for token in (*named, *listed) if token}


def read_options(folder: epath.Path) -> dict:
    """Reads the options of the tokenizer's constructor from the JSON files in a folder.

    Returns:
      The options. Special tokens are strings or `AddedToken`s; "added_tokens_decoder" maps ids to
      `AddedToken`s.

    Raises:
      ValueError: a file is corrupt.
    """
    path = folder / CONFIG_FILE
    options = _with_added_tokens(_read_json(path), path) if path.exists() else {}
    if "added_tokens_decoder" in options:
        return options
    path = folder / SPECIAL_TOKENS_FILE
    if path.exists():
        special_tokens = _with_added_tokens(_read_json(path), path)
        options |= {k: v for k, v in special_tokens.items() if k in (*ATTRIBUTES, ADDITIONAL)}
    path = folder / ADDED_TOKENS_FILE
    special = {str(options[attribute]) for attribute in ATTRIBUTES if options.get(attribute)}
    special |= set(map(str, options.get(ADDITIONAL) or ()))
    if path.exists():
        options["added_tokens_decoder"] = {
            i: AddedToken(token, normalized=token not in special, special=token in special)
            for token, i in read_vocab(path).items()
        }
    return options


def _with_added_tokens(value, path: epath.Path):
    """Returns a JSON value with its descriptions of tokens replaced by `AddedToken`s."""
    if isinstance(value, list):
        return [_with_added_tokens(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    if "content" in value:
        try:
            return AddedToken(**{k: v for k, v in value.items() if k != "__type"})
        except TypeError as error:
            raise ValueError(f"{path} is corrupt: {value} does not describe a token") from error
    value = {k: _with_added_tokens(v, path) for k, v in value.items()}
    if "added_tokens_decoder" in value:
        decoder = value["added_tokens_decoder"]
        tokens = decoder.items() if isinstance(decoder, dict) else [("", None)]
        if not all(k.isdecimal() and isinstance(token, AddedToken) for k, token in tokens):
            raise ValueError(f"{path} is corrupt: added_tokens_decoder must map ids to tokens")
        value["added_tokens_decoder"] = {int(k): v for k, v in decoder.items()}
    return value


def read_pipeline(path: epath.Path) -> Tokenizer:
    """Reads a `tokenizer.json`."""
    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(
            f"{path} is not a readable tokenizer.json ({error}): copy it again, or remove it to "
            "use vocab.json and merges.txt instead"
        ) from error


def read_vocab(path: epath.Path) -> dict[str, int]:
    """Reads `vocab.json` or `encoder.json`: token to id."""
    vocab = _read_json(path)
    if not vocab or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise ValueError(
            f"{path} is corrupt: it must map each token to its id, a number of 0 or more"
        )
    return vocab


def read_merges(path: epath.Path) -> list[tuple[str, str]]:
    """Reads `merges.txt` or `vocab.bpe`: two tokens per line, after an optional version line."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise ValueError(
                f"{path} is corrupt: line {number} must be two tokens separated by one space, but "
                f"is {line!r}"
            )
        merges.append((pair[0], pair[1]))
    return merges


def read_fairseq(folder: epath.Path) -> dict[str, int]:
    """Reads fairseq's `encoder.json` and `dict.txt`.

    The ids are fairseq's: `<s>`, `<pad>`, `</s>` and `<unk>`, then the tokens of `dict.txt` in the
    order of its lines ("GPT-2 id, count"), then `<mask>`. Entries such as "madeupword0000 0" are
    tokens of that name.

    Returns:
      Token to id.
    """
    token_of = {str(i): token for token, i in read_vocab(folder / "encoder.json").items()}
    path = folder / "dict.txt"
    vocab = {BOS: 0, PAD: 1, EOS: 2, UNK: 3}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name = line.rpartition(" ")[0]
        token = name if name.startswith(FILLER_PREFIX) else token_of.get(name)
        if token is None:
            raise ValueError(
                f"{path}: line {number}, {line!r}, must be an id of encoder.json and a count"
            )
        if token in vocab:
            raise ValueError(f"{path}: line {number} lists {token!r} a second time")
        vocab[token] = len(vocab)
    lacking = [repr(token) for token in token_of.values() if token not in vocab]
    if lacking:
        raise ValueError(
            f"{path} lacks {len(lacking)} tokens of encoder.json ({listed(lacking, 3)}): it is cut "
            "short or belongs to another encoder.json"
        )
    vocab[MASK] = len(vocab)
    return vocab


def _not_found_message(folder: epath.Path) -> str:
    sets = ([TOKENIZER_FILE], HF_FILES, FAIRSEQ_FILES)
    expected = "; or ".join(" + ".join(names) for names in sets)
    present = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
    message = f"no tokenizer in {str(folder)!r}: looked for {expected}; found {present}."
    if (folder / "vocab.bpe").exists() and not (folder / "dict.txt").exists():
        message += (
            " vocab.bpe and encoder.json alone are GPT-2's tokenizer, whose ids differ from "
            f"RoBERTa's: add fairseq's dict.txt, which renumbers them ({_FAIRSEQ_DICT_URL})."
        )
    return message


def _read_json(path: epath.Path) -> dict:
    try:
        value = parse_json(read_text(path))
    except UsageError:
        raise
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is corrupt: it must be a JSON object")
    return value


# Writing


def save(
    folder,
    backend: Tokenizer,
    config: Mapping,
    special_tokens: Mapping,
    *,
    vocabulary_files: bool,
    pipeline_file: bool,
    prefix: str | None = None,
) -> list[str]:
    """Writes a tokenizer's files; each file is replaced as a whole.

    Args:
      folder: created if it does not exist.
      backend: the pipeline.
      config: contents of `tokenizer_config.json`, except the added tokens.
      special_tokens: contents of `special_tokens_map.json`.
      vocabulary_files: write `vocab.json` and `merges.txt`.
      pipeline_file: write `tokenizer.json`.
      prefix: put before each file name, with a hyphen.

    Returns:
      The paths of the files.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = write_vocabulary(folder, backend, prefix) if vocabulary_files else []
    added_tokens = {
        str(i): _token_fields(token) for i, token in backend.get_added_tokens_decoder().items()
    }
    contents = {TOKENIZER_FILE: backend.to_str(pretty=True)} if pipeline_file else {}
    contents[SPECIAL_TOKENS_FILE] = _to_json(special_tokens, with_types=False)
    contents[CONFIG_FILE] = _to_json(
        {"added_tokens_decoder": added_tokens, **config}, with_types=True
    )
    return paths + [_write(folder, name, text, prefix) for name, text in contents.items()]


def write_vocabulary(folder, backend: Tokenizer, prefix: str | None = None) -> list[str]:
    """Writes `vocab.json` and `merges.txt` of a BPE model; returns their paths."""
    vocab, merges = vocabulary.vocab_and_merges(backend)
    lines = [MERGES_HEADER, *(" ".join(pair) for pair in merges)]
    contents = (json.dumps(vocab, indent=2, ensure_ascii=False), "\n".join(lines) + "\n")
    folder = epath.Path(folder)
    return [
        _write(folder, name, text, prefix) for name, text in zip(HF_FILES, contents, strict=True)
    ]


def _write(folder: epath.Path, name: str, text: str, prefix: str | None) -> str:
    path = folder / (f"{prefix}-{name}" if prefix else name)
    atomic.write_text(path, text)
    return str(path)


def _to_json(value, *, with_types: bool) -> str:
    """Returns a value with `AddedToken`s as JSON; `with_types` marks them as HF's config does."""

    def to_dict(token) -> dict:
        if not isinstance(token, AddedToken):
            raise TypeError(f"{token!r} cannot be written to a JSON file")
        fields = _token_fields(token)
        if with_types:
            return {"__type": "AddedToken", **fields}
        del fields["special"]
        return fields

    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=to_dict)


def _token_fields(token: AddedToken) -> dict:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}
