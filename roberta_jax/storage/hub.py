"""Models of the Hugging Face hub, fetched when they are named: "roberta-base", "user/name".

Wherever a folder is taken, a hub id will do, and a local folder of that name always wins. Only the
files that are read are fetched, into `huggingface_hub`'s own cache. Its environment variables
(`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_ENDPOINT`) mean what they mean there.
"""

import fnmatch
import os
import re
from collections.abc import Sequence

from etils import epath

from roberta_jax.errors import UsageError

# "name" or "user/name", as the hub allows them.
_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")

MODEL_FILES = ("config.json",)
# Of these the first group of which a repository has a file is fetched.
WEIGHT_FILES = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ("flax_model.msgpack",),
    ("flax_model.msgpack.index.json", "flax_model-*-of-*.msgpack"),
    ("model.pt",),
    ("checkpoint_best.pt",),
    ("checkpoint_last.pt",),
)
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
    """Whether this names a model of the hub: it has the form of an id and no file has its name."""
    return isinstance(path, str) and bool(_ID.fullmatch(path)) and not epath.Path(path).exists()


def fetch(
    path: str | os.PathLike,
    files: Sequence[str],
    alternatives: Sequence[Sequence[str]] = (),
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> epath.Path:
    """Returns the local folder of a model, after fetching what is needed of it.

    Args:
      path: A folder, which is returned as it is, or a hub id.
      files: Names or patterns (`*`) of files; those that the repository has are fetched.
      alternatives: Groups of such names; of the first group of which there is a file, all are
        fetched, and none of the others.
      revision: A branch, a tag or a commit. Default: the main branch.
      token: A token of the hub; None takes `HF_TOKEN` or what `hf auth login` stored, False none.

    Raises:
      UsageError: There is no such model, it may not be read, or it cannot be reached and is not in
        the cache.
    """
    if not is_hub_id(path):
        if revision is not None and epath.Path(path).exists():
            raise UsageError(f"{path} is a local folder, which has no revision {revision!r}")
        return epath.Path(path)
    import huggingface_hub  # not at the top: most uses are of local folders
    from huggingface_hub import constants, errors

    name = f"{path}" + (f" (revision {revision})" if revision else "")
    wanted = [*files, *(name for group in alternatives for name in group)]
    # Read here, since `huggingface_hub` reads it once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return _cached(path, revision, wanted, f"{name}: HF_HUB_OFFLINE is set and it")
    try:
        info = huggingface_hub.HfApi(endpoint).model_info(path, revision=revision, token=token)
        present = [sibling.rfilename for sibling in info.siblings or ()]
        chosen = _matching(present, files)
        for group in alternatives:
            if found := _matching(present, group):
                chosen += found
                break
        # Without a match an empty list would mean "all files".
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
        trouble = f"{name}: the hub cannot be reached ({reason}), and it"
        return _cached(path, revision, wanted, trouble)
    return epath.Path(folder)


def tokenizer_folder(
    path: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> epath.Path:
    """Returns the folder that holds a model's tokenizer, or a tokenizer alone.

    Args:
      path: A folder, a file in one, a workdir, whose `hf/` is taken, or a hub id. It is not checked
        to hold a tokenizer.
      revision, token: As for `fetch`.

    Raises:
      UsageError: As `fetch`.
    """
    path = fetch(path, MODEL_FILES + TOKENIZER_FILES, revision=revision, token=token)
    if path.is_file():
        return path.parent
    return path / "hf" if (path / "hf").exists() else path


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _is_network(error: Exception) -> bool:
    """Whether an error is one of the connection: of `requests` or, newer, of `httpx`."""
    return isinstance(error, OSError) or type(error).__module__.startswith("httpx")


def _cached(path: str, revision: str | None, names: Sequence[str], trouble: str) -> epath.Path:
    """The folder of the cache that holds one of these files."""
    import huggingface_hub

    for name in names:
        found = huggingface_hub.try_to_load_from_cache(path, name, revision=revision)
        if isinstance(found, str):
            return epath.Path(found).parent
    raise UsageError(
        f"{trouble} is not in the cache, and there is no folder {path!r}. Fetch it once with a "
        f"connection (hf download {path}), or give the path of a local folder"
    )
