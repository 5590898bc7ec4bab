"""The records of a run's `metrics.jsonl`."""

from typing import Any

from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.training.metrics import FILE, read_metrics


def read_records(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a workdir, each with a "step" and otherwise only numbers.

    It is an empty list if the run has not started. Damaged lines are left out with a warning.

    Raises:
      UsageError: the file cannot be read, or none of its lines is a record of training.
    """
    records = read_metrics(workdir)
    path = epath.Path(workdir) / FILE
    if not records and path.is_file() and path.read_bytes().strip():
        raise UsageError(
            f"{path} is damaged: none of its lines is a record of training. Restore it, or delete "
            "it to lose the curves of the run; running the sweep again then repeats the final "
            "evaluation."
        )
    return records
