"""GLUE's tab-separated files."""

import pathlib
from collections.abc import Iterator

from roberta_jax.tasks.examples import TextExample
from roberta_jax.tasks.task import Task


def read_glue(path: pathlib.Path, task: Task, split: str) -> Iterator[TextExample]:
    """The examples of a file with a header."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    header = lines[0].split("\t")
    for number, line in enumerate(lines[1:]):
        row = dict(zip(header, line.split("\t"), strict=True))
        texts = [row[field] for field in task.fields]
        yield TextExample(
            row.get("index", str(number)),
            texts[0],
            texts[1] if len(texts) > 1 else None,
            row.get(task.label_field),
        )
