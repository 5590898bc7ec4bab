"""Fetches models of the Hugging Face hub by id, such as "roberta-base" or "user/name".

A hub id can be given wherever the folder of a model is expected. A local folder of the same name
takes precedence. Only the files that are needed are fetched, into the cache of `huggingface_hub`.
Its environment variables apply: `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` and
`HF_ENDPOINT`.
"""

import dataclasses
import fnmatch
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.storage.objects import check_readable

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

# Keywords of transformers' `from_pretrained` that say where a model's files are and how to get
# them. They are never part of a model, and may hold a secret, so they are never written to a file.
LOADING_KEYWORDS = frozenset(
    (
        "_commit_hash", "_from_auto", "_from_pipeline", "adapter_kwargs", "cache_dir",
        "code_revision", "commit_hash", "force_download", "from_pt", "gguf_file",
        "local_files_only", "mirror", "proxies", "resume_download", "return_unused_kwargs",
        "revision", "subfolder", "token", "trust_remote_code", "use_auth_token", "user_agent",
    )
)  # fmt: skip
# Keywords of transformers' `save_pretrained` that concern an upload alone.
_UPLOAD_KEYWORDS = frozenset(
    (
        "commit_description", "commit_message", "create_pr", "organization", "private", "repo_id",
        "repo_name", "repo_path_or_name", "repo_url", "revision", "tags", "temp_dir", "token",
        "use_auth_token", "use_temp_dir",
    )
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class HubOptions:
    """Which files of a hub id are used, and how they are fetched.

    Attributes:
      subfolder: the folder inside the repository or inside a local folder.
      revision: a branch, tag or commit of the hub; None for the main branch.
      token: a hub token. None uses `HF_TOKEN` or the stored token, False none.
      cache_dir: the cache that files are fetched into; None for that of `huggingface_hub`.
      local_files_only: whether to use only files that are in the cache.
      force_download: whether to fetch files that are in the cache again.
    """

    subfolder: str = ""
    revision: str | None = None
    token: str | bool | None = dataclasses.field(default=None, repr=False)
    cache_dir: str | os.PathLike | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def pop_from(cls, kwargs: dict[str, Any], path: str | os.PathLike) -> "HubOptions":
        """Removes all `LOADING_KEYWORDS` from keyword arguments, and returns what they say.

        Those that mean nothing here are accepted: no code is run from the hub
        (`trust_remote_code`), PyTorch files are recognized (`from_pt`), and interrupted downloads
        are always resumed (`resume_download`).

        Args:
          kwargs: the keyword arguments of a `from_pretrained`; changed in place.
          path: a folder or a hub id. `revision` is ignored for a folder, as in transformers.

        Raises:
          UsageError: both `token` and `use_auth_token` are given, or one that cannot be ignored.
        """
        given = {name: kwargs.pop(name) for name in LOADING_KEYWORDS.intersection(kwargs)}
        if given.get("use_auth_token") is not None:
            if given.get("token") is not None:
                raise UsageError(
                    "token and use_auth_token are the same; pass only token, the present name"
                )
            given["token"] = given["use_auth_token"]
        if given.get("gguf_file") is not None:
            raise UsageError("gguf_file is not supported; use weights in another format")
        on_hub = is_hub_id(path)
        if on_hub and given.get("proxies") and not given.get("local_files_only"):
            raise UsageError(
                "proxies is not supported; set the environment variables HTTP_PROXY and "
                "HTTPS_PROXY instead"
            )
        names = [field.name for field in dataclasses.fields(cls)]
        options = {name: given[name] for name in names if given.get(name) is not None}
        if not on_hub or options.get("revision") == "main":
            options.pop("revision", None)
        return cls(**options)

    def in_subfolder(self, names: Iterable[str]) -> list[str]:
        """Returns the paths of files in the subfolder, relative to the repository."""
        folder = self.subfolder.strip("/")
        return [f"{folder}/{name}" if folder else name for name in names]

    def fetch_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `fetch`."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "subfolder"
        }


def without_loading_keywords(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of `values` without `LOADING_KEYWORDS`."""
    return {name: value for name, value in values.items() if name not in LOADING_KEYWORDS}


def check_no_upload(
    folder: str | os.PathLike, push_to_hub: bool, kwargs: Collection[str], caller: str
) -> None:
    """Checks the keywords of a `save_pretrained` that concern an upload.

    As in transformers, those that describe the upload have no effect without `push_to_hub`.

    Args:
      folder: the folder that is saved to, for the message.
      push_to_hub: whether an upload is asked for.
      kwargs: the names of further keyword arguments.
      caller: the name of the method, for the message.

    Raises:
      UsageError: an upload is asked for.
      TypeError: a keyword that transformers does not have either.
    """
    if push_to_hub:
        raise UsageError(
            f"push_to_hub is not supported; save the model, then run: hf upload NAME {folder}"
        )
    for name in kwargs:
        if name not in _UPLOAD_KEYWORDS:
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")


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
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> epath.Path:
    """Returns the local folder of a model, after fetching its files if necessary.

    Args:
      path: A folder, which is returned unchanged, or a hub id.
      files: Names or patterns (with `*`) of files. Those that the repository has are fetched.
      alternatives: Groups of such names. Only the files of the first group that has a match in the
        repository are fetched.
      revision: A branch, tag or commit. Default: the main branch.
      token: A hub token. None uses `HF_TOKEN` or the token of `hf auth login`, False none.
      cache_dir, local_files_only, force_download: See `HubOptions`.

    Raises:
      NotFoundError: There is no such model, or it is not in the cache and the hub cannot be asked.
      UsageError: The model may not be read.
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
        problem = f"{name}: HF_HUB_OFFLINE is set and it"
        return _cached_folder(path, revision, candidates, problem, cache_dir)
    if local_files_only:
        problem = f"{name}: local_files_only=True is given and it"
        return _cached_folder(path, revision, candidates, problem, cache_dir)
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
            cache_dir=cache_dir,
            force_download=force_download,
            allow_patterns=chosen or ["config.json"],
        )
    except errors.GatedRepoError:
        raise UsageError(
            f"{name} is gated: ask for access at {endpoint}/{path}, then log in with `hf "
            "auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(f"{path} on the hub has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise NotFoundError(
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
        return _cached_folder(path, revision, candidates, problem, cache_dir)
    return epath.Path(folder)


def tokenizer_folder(
    path: str | os.PathLike, *, subfolder: str = "", **fetch_arguments: Any
) -> epath.Path:
    """Returns the folder with a tokenizer's files, which may be a model's folder.

    Args:
      path: A folder, a file in one, a workdir (for its `hf/`), or a hub id. Whether the folder has
        a tokenizer is not checked.
      subfolder: The folder of the tokenizer inside `path`.
      fetch_arguments: `revision`, `token` and so on, as for `fetch`.

    Raises:
      NotFoundError, UsageError: As for `fetch`.
    """
    names = HubOptions(subfolder).in_subfolder(("config.json", *TOKENIZER_FILES))
    path = fetch(path, names, **fetch_arguments)
    if path.is_file():
        return path.parent
    path = path / subfolder
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
    check_readable(path)
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
    path: str,
    revision: str | None,
    names: Sequence[str],
    problem: str,
    cache_dir: str | os.PathLike | None,
) -> epath.Path:
    """The folder of the cache that has one of these files; else an error that says `problem`."""
    import huggingface_hub

    for name in names:
        file = huggingface_hub.try_to_load_from_cache(path, name, cache_dir, revision=revision)
        if isinstance(file, str):
            return epath.Path(file).parents[name.count("/")]
    raise NotFoundError(
        f"{problem} is not in the cache, and there is no folder {path!r}. Fetch it once while "
        f"online (hf download {path}), or give the path of a local folder"
    )
