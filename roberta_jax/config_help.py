"""Formats the keys of a config for `--help`, with the comments of its source file."""

import ast
import io
import textwrap
import tokenize
from collections.abc import Mapping

WIDTH = 100
_INDENT = 46  # column of the descriptions


def key_comments(source: str) -> dict[str, str]:
    """Returns the keys that a config file assigns, with their comments: {dotted key: comment}.

    The comment of a key consists of the comment lines directly above its assignment
    (`config.data.files = ...`) and the one behind it; it is empty if there are none. A group of
    keys has the comment of the line that creates it (`config.data = ConfigDict()`). The keys are in
    the order of the file.
    """
    comments, own_line = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            comments[row] = token.string.lstrip("#").strip()
            if not token.line[:column].strip():
                own_line.add(row)
    described = {}
    assignments = [node for node in ast.walk(ast.parse(source)) if _assigned_key(node)]
    for node in sorted(assignments, key=lambda node: node.lineno):
        row = node.lineno
        while row - 1 in own_line:
            row -= 1
        rows = [*range(row, node.lineno), node.end_lineno]
        described[_assigned_key(node)] = " ".join(comments[row] for row in rows if row in comments)
    return described


def format_keys(keys: Mapping[str, object], comments: Mapping[str, str]) -> str:
    """Lays out config keys as `--config.KEY`, with their comments and default values.

    Args:
      keys: {dotted key: default value}.
      comments: The comments of keys and groups, as `key_comments` returns them. Their order is that
        of the lines; keys that are missing here follow at the end.

    Returns:
      Lines of at most 100 columns. Each group of keys starts with its name and comment.
    """
    lines, group = [], None
    for key in [*(key for key in comments if key in keys), *(k for k in keys if k not in comments)]:
        if key.rpartition(".")[0] != group:
            group = key.rpartition(".")[0]
            title = ": ".join(part for part in (group, comments.get(group)) if part)
            lines += ["", *textwrap.wrap(title, WIDTH)]
        # The no-break space holds "(default: 10)" together; `entry` prints a plain one.
        lines += entry(f"--config.{key}", f"{comments.get(key, '')} (default:\xa0{keys[key]})")
    return "\n".join(lines)


def entry(name: str, description: str) -> list[str]:
    """Lays out a flag and its description, which starts on a line of its own after a long name."""
    first = f"  {name}"
    wrapped = textwrap.wrap(description, WIDTH - _INDENT, break_on_hyphens=False)
    wrapped = [line.replace("\xa0", " ") for line in wrapped]
    lines = [" " * _INDENT + line for line in wrapped]
    if not lines or len(first) + 2 > _INDENT:
        return [first, *lines]
    return [first.ljust(_INDENT) + wrapped[0], *lines[1:]]


def _assigned_key(node: ast.AST) -> str | None:
    """Returns "data.files" for the statement `config.data.files = ...`, else None."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return None
    target, names = node.targets[0], []
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    if not names or not isinstance(target, ast.Name) or target.id != "config":
        return None
    return ".".join(reversed(names))
