"""Selects points of a study, and lists how far they are."""

from collections.abc import Sequence

from experiments.study.definition import Point
from roberta_jax.errors import UsageError, listed, shortened


def select_points(
    points: Sequence[Point], shard: tuple[int, int] | None = None, name: str | None = None
) -> list[Point]:
    """Returns some of the points.

    Args:
      points: the points of a study.
      shard: (k, n) returns every n-th point from the k-th on, k counting from 1.
      name: returns the point whose workdir has this name, and `shard` is ignored.

    Raises:
      UsageError: no point has this name.
    """
    if name is not None:
        matches = [point for point in points if point.name == name]
        if not matches:
            names = "\n  ".join(point.name for point in points)
            raise UsageError(
                f"--point={shortened(name)}: no such point. With these --seeds and --set the study "
                f"has\n  {names}\nThe last part of a name is a hash of the point's config."
            )
        return matches
    k, n = shard or (1, 1)
    return list(points[k - 1 :: n])


def planned_points(points: Sequence[Point], names: Sequence[str]) -> list[Point]:
    """Returns the points that a sweep planned, by their names, which hold hashes of their configs.

    Raises:
      UsageError: a point does not exist, because the study was changed since.
    """
    by_name = {point.name: point for point in points}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UsageError(
            f"the study has no point {listed(missing)} any more: its file was changed after the "
            "sweep had started. Restore it, or start the sweep again to train the changed points."
        )
    return [by_name[name] for name in names]


def unfinished_points(points: Sequence[Point], root: str) -> list[Point]:
    """Returns the points that are not finished below `root`, and those with a wrong config."""

    def is_finished(point: Point) -> bool:
        try:
            return point.progress(root).finished
        except UsageError:
            return False  # the check of all points reports the error

    return [point for point in points if not is_finished(point)]


def progress_table(points: Sequence[Point], root: str) -> str:
    """Returns a line for each point: the point, its workdir and how far it is."""
    width = max((len(str(point)) for point in points), default=0)
    return "\n".join(
        f"{point!s:<{width}}  {point.workdir(root)}  {point.progress(root)}" for point in points
    )
