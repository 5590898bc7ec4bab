"""The files a tokenizer is kept in, read and written.

Three sets of files hold the same tokenizer; the first one found in a folder is read:

- `tokenizer.json`, the whole pipeline in the format of the `tokenizers` library;
- `vocab.json` and `merges.txt`, as Hugging Face writes them;
- `encoder.json`, `vocab.bpe` and `dict.txt`, as fairseq releases them: GPT-2's vocabulary, and the
  dictionary that renumbers it by frequency.

`tokenizer_config.json`, where present, adds the options. Every file is written under a temporary
name and then renamed, so a reader never sees half of one.
"""

import json
from collections.abc import Mapping

from etils import epath
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from roberta_jax.tokenizer import backend as backends
from roberta_jax.tokenizer.backend import BOS, EOS, MASK, PAD, UNK

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
HF_FILES = ("vocab.json", "merges.txt")
FAIRSEQ_FILES = ("encoder.json", "vocab.bpe", "dict.txt")
MERGES_HEADER = "#version: 0.2"

_FAIRSEQ_DICT = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/dict.txt"


def load(path, *, add_prefix_space: bool | None = None) -> tuple[Tokenizer, dict]:
    """Reads a folder.

    Args:
      path: a local folder, or one that `etils.epath` reads (gs://…).
      add_prefix_space: overrides what the files say; None follows `tokenizer_config.json`, then
        `tokenizer.json`, then RoBERTa's own False.

    Returns:
      The pipeline, and the contents of `tokenizer_config.json` ({} without one).

    Raises:
      FileNotFoundError: no folder, or no complete set of files; lists what is there.
      ValueError: a file cannot be understood; names the file.
    """
    folder = epath.Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no tokenizer at {str(path)!r}: it is not a folder. To use a tokenizer from the "
            f"Hugging Face hub, download it first: hf download {path} --local-dir FOLDER"
        )
    options = _read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
    if add_prefix_space is None:
        add_prefix_space = options.get("add_prefix_space")

    def has(names):
        return all((folder / name).exists() for name in names)

    if has([TOKENIZER_FILE]):
        return _load_tokenizer_json(folder / TOKENIZER_FILE, add_prefix_space), options
    if has(HF_FILES):
        vocab, merges = read_vocab(folder / "vocab.json"), read_merges(folder / "merges.txt")
    elif has(FAIRSEQ_FILES):
        vocab, merges = read_fairseq(folder), read_merges(folder / "vocab.bpe")
    else:
        raise FileNotFoundError(_nothing_found(folder))
    try:
        backend = backends.build(vocab, merges, add_prefix_space=bool(add_prefix_space))
    except backends.BackendError as error:
        raise ValueError(f"the tokenizer files in {str(path)!r} cannot be used: {error}") from error
    return backend, options


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


def save(folder, backend: Tokenizer, options: Mapping) -> None:
    """Writes `vocab.json`, `merges.txt`, `tokenizer.json` and the two files of options.

    Args:
      folder: made if it does not exist.
      backend: the pipeline.
      options: entries of `tokenizer_config.json` beside those that follow from the pipeline.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = backends.vocab_and_merges(backend)
    added = {str(i): _attributes(t) for i, t in backend.get_added_tokens_decoder().items()}
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "sep_token": EOS}
    names |= {"pad_token": PAD, "cls_token": BOS}
    mask = dict(added[str(backend.token_to_id(MASK))])
    del mask["special"]
    config = {
        "added_tokens_decoder": added,
        "add_prefix_space": backend.pre_tokenizer.add_prefix_space,
        "errors": "replace",
        "tokenizer_class": "RobertaTokenizer",
        "trim_offsets": True,
        **names,
        "mask_token": MASK,
        **options,
    }
    lines = [MERGES_HEADER, *(" ".join(pair) for pair in merges)]
    _write(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(lines) + "\n")
    _write(folder / TOKENIZER_FILE, backend.to_str(pretty=True))
    _write(folder / SPECIAL_TOKENS_FILE, json.dumps({**names, "mask_token": mask}, indent=2))
    _write(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True))


def _load_tokenizer_json(path: epath.Path, add_prefix_space: bool | None) -> Tokenizer:
    text = _read_text(path)
    try:
        backend = Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(
            f"{path} is not a readable tokenizer.json ({error}): copy it again, or remove it to "
            "use vocab.json and merges.txt instead"
        ) from error
    if add_prefix_space is None and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        add_prefix_space = backend.pre_tokenizer.add_prefix_space
    try:
        return backends.complete(backend, add_prefix_space=bool(add_prefix_space))
    except backends.BackendError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


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


def _write(path: epath.Path, text: str) -> None:
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(text.encode("utf-8"))
    temporary.replace(path)
