"""The table of tasks. A new task is a row here and, if no reader fits, one in `tasks.readers`."""

from roberta_jax.tasks.readers.glue import read_glue
from roberta_jax.tasks.task import Recipe, Task

_ROWS = (
    Task(
        name="rte",
        title="RTE",
        kind="classification",
        reader=read_glue,
        files={"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)},
        fields=("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        recipe=Recipe(learning_rate=2e-5, batch_size=16),
        tfds="glue/rte",
        submission={"test": "RTE.tsv"},
        source="Wang et al. 2019",
    ),
)

TASKS = {task.name: task for task in _ROWS}
"""Name -> task: the values of FILE:TASK on the command line."""
