"""The files a tokenizer is kept in, read and written.

Three sets of files hold the same tokenizer; the first one found in a folder is read:

- `tokenizer.json`, the whole pipeline in the format of the `tokenizers` library;
- `vocab.json` and `merges.txt`, as Hugging Face writes them;
- `encoder.json`, `vocab.bpe` and `dict.txt`, as fairseq releases them: GPT-2's vocabulary, and the
  dictionary that renumbers it by frequency.

RoBERTa's relatives are read from `tokenizer.json` alone. `tokenizer_config.json`, where present,
adds the options; files written before it listed the added tokens have them, and which special token
serves what purpose, in `added_tokens.json` and `special_tokens_map.json`. Every file is written
under a temporary name and then renamed, so a reader never sees half of one.
"""

import json
from collections.abc import Mapping

from etils import epath
from tokenizers import AddedToken, Tokenizer

from roberta_jax.tokenizer import backend as backends
from roberta_jax.tokenizer.backend import BOS, EOS, MASK, PAD, UNK
from roberta_jax.tokenizer.special_tokens import ADDITIONAL, ROLES

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
HF_FILES = ("vocab.json", "merges.txt")
FAIRSEQ_FILES = ("encoder.json", "vocab.bpe", "dict.txt")
MERGES_HEADER = "#version: 0.2"

_FAIRSEQ_DICT = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/dict.txt"


def load(path) -> tuple[Tokenizer, dict, epath.Path]:
    """Reads a folder.

    Args:
      path: a local folder, or one that `etils.epath` reads (gs://…).

    Returns:
      The pipeline as the files have it, without RoBERTa's steps where they have none; the options
      (see `read_options`); and the file or folder to name in errors.

    Raises:
      FileNotFoundError: no folder, or no complete set of files; lists what is there.
      ValueError: a file cannot be understood; names the file.
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
        return read_pipeline(folder / TOKENIZER_FILE), options, folder / TOKENIZER_FILE
    if has(HF_FILES):
        vocab, merges = read_vocab(folder / "vocab.json"), read_merges(folder / "merges.txt")
    elif has(FAIRSEQ_FILES):
        vocab, merges = read_fairseq(folder), read_merges(folder / "vocab.bpe")
    else:
        raise FileNotFoundError(_nothing_found(folder))
    try:
        return backends.bpe(vocab, merges), options, folder
    except backends.BackendError as error:
        raise ValueError(f"the tokenizer files in {str(path)!r} cannot be used: {error}") from error


def read_options(folder: epath.Path) -> dict:
    """What the JSON files beside the vocabulary say, as the tokenizer's constructor takes it.

    Special tokens are strings or `AddedToken`s; "added_tokens_decoder" maps ids to `AddedToken`s.
    """
    path = folder / CONFIG_FILE
    options = _tokens_made(_read_json(path), path) if path.exists() else {}
    if "added_tokens_decoder" not in options:
        path = folder / SPECIAL_TOKENS_FILE
        if path.exists():
            found = _tokens_made(_read_json(path), path)
            options |= {k: v for k, v in found.items() if k in (*ROLES, ADDITIONAL)}
        path = folder / ADDED_TOKENS_FILE
        special = {str(options[role]) for role in ROLES if options.get(role)}
        special |= set(map(str, options.get(ADDITIONAL) or ()))
        if path.exists():
            options["added_tokens_decoder"] = {
                i: AddedToken(token, normalized=token not in special, special=token in special)
                for token, i in read_vocab(path).items()
            }
    return options


def _tokens_made(value, path: epath.Path):
    """A JSON value with the objects that describe tokens made `AddedToken`s."""
    if isinstance(value, list):
        return [_tokens_made(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    if "content" in value:
        try:
            return AddedToken(**{k: v for k, v in value.items() if k != "__type"})
        except TypeError as error:
            raise ValueError(f"{path} is corrupt: {value} describes no token") from error
    made = {k: _tokens_made(v, path) for k, v in value.items()}
    if "added_tokens_decoder" in made:
        decoder = made["added_tokens_decoder"]
        tokens = decoder.items() if isinstance(decoder, dict) else [("", None)]
        if not all(k.isdecimal() and isinstance(token, AddedToken) for k, token in tokens):
            raise ValueError(f"{path} is corrupt: added_tokens_decoder must map ids to tokens")
        made["added_tokens_decoder"] = {int(k): v for k, v in decoder.items()}
    return made


def read_pipeline(path: epath.Path) -> Tokenizer:
    """Reads a `tokenizer.json`."""
    text = _read_text(path)
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
        raise ValueError(f"{path} is corrupt: it must map each token to its id, a number from 0 up")
    return vocab


def read_merges(path: epath.Path) -> list[tuple[str, str]]:
    """Reads `merges.txt` or `vocab.bpe`: two tokens a line, after an optional version line."""
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise ValueError(
                f"{path} is corrupt: line {number} must be two tokens with one space between, "
                f"but is {line!r}"
            )
        merges.append((pair[0], pair[1]))
    return merges


def read_fairseq(folder: epath.Path) -> dict[str, int]:
    """Numbers GPT-2's tokens as fairseq does.

    First `<s>`, `<pad>`, `</s>`, `<unk>`, then the rows of `dict.txt` ("GPT-2 id, count") in file
    order, then `<mask>`. Rows such as "madeupword0000 0" keep their name.
    """
    token_of = {str(i): token for token, i in read_vocab(folder / "encoder.json").items()}
    path = folder / "dict.txt"
    vocab = {BOS: 0, PAD: 1, EOS: 2, UNK: 3}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        name = line.rpartition(" ")[0]
        token = name if name.startswith(backends.FILLER_PREFIX) else token_of.get(name)
        if token is None:
            raise ValueError(
                f"{path}: line {number}, {line!r}, must be an id of encoder.json and a count"
            )
        if token in vocab:
            raise ValueError(f"{path}: line {number} lists {token!r} a second time")
        vocab[token] = len(vocab)
    vocab[MASK] = len(vocab)
    return vocab


def save(
    folder,
    backend: Tokenizer,
    config: Mapping,
    special_tokens: Mapping,
    *,
    vocabulary: bool,
    pipeline: bool,
    prefix: str | None = None,
) -> list[str]:
    """Writes a tokenizer's files.

    Args:
      folder: made if it does not exist.
      backend: the pipeline.
      config: contents of `tokenizer_config.json` beside the added tokens.
      special_tokens: contents of `special_tokens_map.json`.
      vocabulary: write `vocab.json` and `merges.txt`.
      pipeline: write `tokenizer.json`.
      prefix: put before each name, with a hyphen.

    Returns:
      The files' paths.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = write_vocabulary(folder, backend, prefix) if vocabulary else []
    added = {str(i): _attributes(t) for i, t in backend.get_added_tokens_decoder().items()}
    contents = {TOKENIZER_FILE: backend.to_str(pretty=True)} if pipeline else {}
    contents[SPECIAL_TOKENS_FILE] = _as_json(special_tokens, typed=False)
    contents[CONFIG_FILE] = _as_json({"added_tokens_decoder": added, **config}, typed=True)
    for name, text in contents.items():
        written.append(_write(folder / _prefixed(name, prefix), text))
    return written


def write_vocabulary(folder, backend: Tokenizer, prefix: str | None = None) -> list[str]:
    """Writes `vocab.json` and `merges.txt` of a BPE model; returns their paths."""
    vocab, merges = backends.vocab_and_merges(backend)
    lines = [MERGES_HEADER, *(" ".join(pair) for pair in merges)]
    folder = epath.Path(folder)
    return [
        _write(
            folder / _prefixed("vocab.json", prefix),
            json.dumps(vocab, indent=2, ensure_ascii=False),
        ),
        _write(folder / _prefixed("merges.txt", prefix), "\n".join(lines) + "\n"),
    ]


def _prefixed(name: str, prefix: str | None) -> str:
    return f"{prefix}-{name}" if prefix else name


def _as_json(value, *, typed: bool) -> str:
    """JSON of a value with `AddedToken`s in it; `typed` marks them as HF's config file does."""

    def described(token):
        if not isinstance(token, AddedToken):
            raise TypeError(f"{token!r} cannot be kept in a JSON file")
        found = _attributes(token)
        if typed:
            return {"__type": "AddedToken", **found}
        del found["special"]
        return found

    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=described)


def _attributes(token: AddedToken) -> dict:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}


def _nothing_found(folder: epath.Path) -> str:
    sets = ([TOKENIZER_FILE], HF_FILES, FAIRSEQ_FILES)
    wanted = "; or ".join(" + ".join(names) for names in sets)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
    message = f"no tokenizer in {str(folder)!r}: looked for {wanted}; found {found}."
    if (folder / "vocab.bpe").exists() and not (folder / "dict.txt").exists():
        message += (
            " vocab.bpe and encoder.json alone are GPT-2's tokenizer, whose ids are not RoBERTa's: "
            f"fairseq's dict.txt is what renumbers them ({_FAIRSEQ_DICT})."
        )
    return message


def _read_text(path: epath.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is corrupt: it is not UTF-8 text ({error})") from error


def _read_json(path: epath.Path) -> dict:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is corrupt: it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is corrupt: it must hold a JSON object")
    return value


def _write(path: epath.Path, text: str) -> str:
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(text.encode("utf-8"))
    temporary.replace(path)
    return str(path)
