"""The built-in corpus: English text from Python's documentation topics and docstrings.

The topics are those of `help("with")`, the docstrings those of the standard library's sources. They
are read with `ast` and no module is imported, so modules with side effects and modules that the
platform lacks are no problem. The corpus has some 2 MB, enough to see a small model learn without a
download.
"""

import ast
import hashlib
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

from roberta_jax.errors import UsageError

VERSION = 1  # to be raised when the same sources give other text

_EXCLUDED = {"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages"}
_TOPICS = pathlib.PurePath("pydoc_data", "topics.py")


def documents() -> Iterator[tuple[str, str]]:
    """Yields the name and text of each document: first the topics, then the modules by path.

    The document of a module consists of its docstrings in source order, separated by blank lines.
    Modules without docstrings are left out.
    """
    folder = _library()
    sources = _sources(folder)
    if _TOPICS in sources:
        for name, text in sorted(_topics(folder / _TOPICS).items()):
            yield f"topic {name}", text
    for source in sources:
        tree = _parse(folder / source)
        docstrings = list(_docstrings(tree)) if tree else []
        if docstrings and source != _TOPICS:
            yield source.as_posix(), "\n\n".join(docstrings)


def digest() -> str:
    """A hash of the sources' names and sizes, which identifies the build of the library."""
    folder = _library()
    listing = [f"{path.as_posix()} {(folder / path).stat().st_size}" for path in _sources(folder)]
    return hashlib.blake2b("\n".join(listing).encode(), digest_size=16).hexdigest()


def _library() -> pathlib.Path:
    # In a virtual environment this is the library of the base Python.
    return pathlib.Path(sysconfig.get_path("stdlib"))


def _sources(folder: pathlib.Path) -> list[pathlib.PurePath]:
    sources = [pathlib.PurePath(path.relative_to(folder)) for path in folder.rglob("*.py")]
    sources = sorted(path for path in sources if not _EXCLUDED & set(path.parts))
    if not sources:
        raise UsageError(
            f"This Python has no library sources in {folder}, so --config.data.source=builtin has "
            f"no text. Name text with --config.data.source=files and --config.data.files=..., or "
            f"use another build of Python."
        )
    return sources


def _parse(path: pathlib.Path) -> ast.Module | None:
    """Parses a source file; returns None if it is not valid Python, as some templates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for invalid escape sequences in old modules
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return None


def _topics(path: pathlib.Path) -> dict[str, str]:
    tree = _parse(path)
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Yields the docstrings of `node` and of the statements in it, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):  # only statements contain docstrings
            yield from _docstrings(child)
