"""Finds `configs/` and `experiments/`, which are not modules of the package.

In a clone, also one installed with `pip install -e`, both folders lie beside the package. A wheel
contains copies of them in `roberta_jax/_bundled/`.
"""

import os
import pathlib

# How error messages and `--help` name a config file.
EXAMPLE_CONFIG = "configs/pretrain.py:tiny"

_PACKAGE = pathlib.Path(__file__).resolve().parent


def project_root() -> pathlib.Path:
    """Returns the folder that contains `configs/` and `experiments/`."""
    bundled = _PACKAGE / "_bundled"
    return bundled if bundled.is_dir() else _PACKAGE.parent


def find_file(path: str | os.PathLike) -> pathlib.Path | None:
    """Returns the path of a file, or None if it does not exist.

    A relative path is looked up in the current folder first, then in the project's root.
    """
    path = pathlib.Path(path)
    for candidate in (path, project_root() / path):
        if os.path.isfile(candidate):  # also False for names that are too long
            return candidate
    return None
