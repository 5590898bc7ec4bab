"""English that every Python brings along: its documentation topics and its docstrings.

The topics are those of `help("with")`; the docstrings are those of the standard library's sources.
All is read with `ast`, nothing is imported, so no module's side effects and no module that a
platform lacks can matter. Some 2 MB: enough to see a small model learn, with no download.
"""

import ast
import hashlib
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

from roberta_jax.errors import UsageError

# Changes whenever other text comes out of the same sources.
VERSION = 1

_LEFT_OUT = {"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages"}
_TOPICS = pathlib.PurePath("pydoc_data", "topics.py")


def documents() -> Iterator[tuple[str, str]]:
    """Yields (name, text): each topic, then for each module its docstrings in source order.

    The docstrings of one module make one document, a blank line between them; modules are sorted
    by path. Modules without docstrings are left out.
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
    """A hash of the sources' names and sizes: it tells one build of the library from another."""
    folder = _library()
    listing = [f"{path.as_posix()} {(folder / path).stat().st_size}" for path in _sources(folder)]
    return hashlib.blake2b("\n".join(listing).encode(), digest_size=16).hexdigest()


def _library() -> pathlib.Path:
    # In a virtual environment this is the library of the Python that it was made from.
    return pathlib.Path(sysconfig.get_path("stdlib"))


def _sources(folder: pathlib.Path) -> list[pathlib.PurePath]:
    sources = [pathlib.PurePath(path.relative_to(folder)) for path in folder.rglob("*.py")]
    sources = sorted(path for path in sources if not _LEFT_OUT & set(path.parts))
    if not sources:
        raise UsageError(
            f"This Python has no library sources in {folder}, so config.data.source='builtin' has "
            f"no text. Use 'files' with config.data.files, or another build of Python."
        )
    return sources


def _parse(path: pathlib.Path) -> ast.Module | None:
    """Parses a source; None for the few that are no Python of this version (templates)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old modules hold escapes that warn
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
    """Yields the docstrings below `node`, its own first, in the order of the source."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):  # docstrings are below statements alone
            yield from _docstrings(child)
