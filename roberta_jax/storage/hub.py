"""Fetches models of the Hugging Face hub by id, such as "roberta-base" or "user/name".

A hub id can be given wherever the folder of a model is expected. A local folder of the same name
takes precedence. Only the files that are needed are fetched, into the cache of `huggingface_hub`.
Its environment variables apply: `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` and
`HF_ENDPOINT`.
"""

import fnmatch
import os
import re
from collections.abc import Sequence

from etils import epath

from roberta_jax.errors import UsageError

# "name" or "user/name", with the characters that the hub allows.
_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")

_LONGEST_PATH = 1000

TOKENIZER_FILES = (
    "added_tokens.json",
    "dict.txt",
    "encoder.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.bpe",
    "vocab.json",
)


def is_hub_id(path: str | os.PathLike) -> bool:
    """Whether this is a hub id: it has the form of one, and no file or folder has that name."""
    return isinstance(path, str) and bool(_ID.fullmatch(path)) and not epath.Path(path).exists()


def fetch(
    path: str | os.PathLike,
    files: Sequence[str],
    alternatives: Sequence[Sequence[str]] = (),
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> epath.Path:
    """Returns the local folder of a model, after fetching its files if necessary.

    Args:
      path: A folder, which is returned unchanged, or a hub id.
      files: Names or patterns (with `*`) of files. Those that the repository has are fetched.
      alternatives: Groups of such names. Only the files of the first group that has a match in the
        repository are fetched.
      revision: A branch, tag or commit. Default: the main branch.
      token: A hub token. None uses `HF_TOKEN` or the token of `hf auth login`, False none.

    Raises:
      UsageError: There is no such model, access is denied, or the hub cannot be reached and the
        model is not in the cache.
    """
    _check_can_be_opened(path)
    if not is_hub_id(path):
        if revision is not None and epath.Path(path).exists():
            raise UsageError(f"{path} is a local folder, which has no revision {revision!r}")
        return epath.Path(path)
    import huggingface_hub  # not at the top: most uses are of local folders
    from huggingface_hub import constants, errors

    name = f"{path}" + (f" (revision {revision})" if revision else "")
    candidates = [*files, *(name for group in alternatives for name in group)]
    # `huggingface_hub` reads this variable only when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return _cached_folder(path, revision, candidates, f"{name}: HF_HUB_OFFLINE is set and it")
    try:
        info = huggingface_hub.HfApi(endpoint).model_info(path, revision=revision, token=token)
        available = [sibling.rfilename for sibling in info.siblings or ()]
        chosen = _matching(available, files)
        for group in alternatives:
            if matches := _matching(available, group):
                chosen += matches
                break
        # An empty list of patterns would mean all files.
        folder = huggingface_hub.snapshot_download(
            path,
            revision=revision,
            token=token,
            endpoint=endpoint,
            allow_patterns=chosen or ["config.json"],
        )
    except errors.GatedRepoError:
        raise UsageError(
            f"{name} is gated: ask for access at {endpoint}/{path}, then log in with `hf "
            "auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"{path} on the hub has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise UsageError(
            f"no folder {path!r}, and no such model on the hub ({endpoint}/{path}). "
            "Check the name; if the model is private, log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and status < 500:
            raise UsageError(f"the hub refused {name}: {error}") from error
        if not _is_network(error):
            raise
        reason = " ".join(str(error).split())
        problem = f"{name}: the hub cannot be reached ({reason}), and it"
        return _cached_folder(path, revision, candidates, problem)
    return epath.Path(folder)


def tokenizer_folder(
    path: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> epath.Path:
    """Returns the folder with a tokenizer's files, which may be a model's folder.

    Args:
      path: A folder, a file in one, a workdir (for its `hf/`), or a hub id. Whether the folder has
        a tokenizer is not checked.
      revision, token: As for `fetch`.

    Raises:
      UsageError: As for `fetch`.
    """
    path = fetch(path, ("config.json", *TOKENIZER_FILES), revision=revision, token=token)
    if path.is_file():
        return path.parent
    of_workdir = path / "hf"
    return of_workdir if any((of_workdir / name).exists() for name in TOKENIZER_FILES) else path


def _check_can_be_opened(path: str | os.PathLike) -> None:
    """Raises a UsageError for a path that cannot be looked up, whether it exists or not."""
    text = os.fspath(path)
    if not text.strip("/"):
        raise UsageError(f"{text!r} is not the folder of a model: give one, or a hub id")
    if text.startswith(("http://", "https://")):
        raise UsageError(
            f"{text} is a web page: give a folder or a hub id, such as roberta-base or user/name"
        )
    if len(text) > _LONGEST_PATH:
        raise UsageError(f"the path {text[:60]!r}… has {len(text):,} characters, too many")
    try:
        epath.Path(path).exists()
    except Exception as error:  # each kind of object store raises errors of its own
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"cannot open {text!r}: {reason[:200]}") from error


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _is_network(error: Exception) -> bool:
    """Whether `huggingface_hub` failed to connect: an error of `requests` or, newer, of `httpx`."""
    return isinstance(error, OSError) or type(error).__module__.startswith("httpx")


def _cached_folder(
    path: str, revision: str | None, names: Sequence[str], problem: str
) -> epath.Path:
    """The folder of the cache that has one of these files; else an error that says `problem`."""
    import huggingface_hub

    for name in names:
        file = huggingface_hub.try_to_load_from_cache(path, name, revision=revision)
        if isinstance(file, str):
            return epath.Path(file).parent
    raise UsageError(
        f"{problem} is not in the cache, and there is no folder {path!r}. Fetch it once while "
        f"online (hf download {path}), or give the path of a local folder"
    )
