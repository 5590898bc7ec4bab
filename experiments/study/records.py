"""The records of a run's `metrics.jsonl`, checked."""

from typing import Any

from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.training.metrics import FILE, read_metrics


def read_records(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a workdir, each with a "step" and otherwise only numbers.

    It is an empty list if the run has not started.

    Raises:
      UsageError: the file cannot be read, or is not one that training wrote.
    """
    path = epath.Path(workdir) / FILE
    try:
        records = read_metrics(workdir)
    except UnicodeDecodeError as error:
        raise _damaged(path, f"not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not _is_whole(record.get("step")):
            raise _damaged(path, f'record {number} is no object with a whole number as "step"')
        wrong = [key for key, value in record.items() if not isinstance(value, int | float)]
        if wrong:
            raise _damaged(path, f'record {number} has a "{wrong[0]}" that is not a number')
    return records


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _damaged(path: epath.Path, reason: str) -> UsageError:
    return UsageError(
        f"{path} is damaged: {reason}. Restore it, or delete it to lose the curves of the run; "
        "running the sweep again then repeats the final evaluation."
    )
