"""Checkpoints that are whole or not there, and that say so when a byte of them has changed.

The only module that knows Orbax. Orbax writes a step into a temporary folder and renames it at the
end, so a kill at any moment leaves the earlier steps and nothing half written. What it does not do
is notice a changed byte: that restores as wrong numbers without an error. So each checkpoint holds
a digest of every array, made on the device that holds it, and a restore is compared with them.
"""

import contextlib
import gc
import logging
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from roberta_jax.errors import UsageError


class Checkpoints:
    """The checkpoints of one run: a folder with one folder a step.

    Saving copies the state to the host and returns; the files are written in the background. Use it
    as a context manager: leaving it waits for what is being written.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 2):
        """Opens the folder, creating it if need be.

        Args:
          folder: where the steps lie.
          keep: how many of the newest stay.

        Raises:
          UsageError: the folder cannot be created, or `keep` is below 1.
        """
        if keep < 1:
            raise UsageError(f"train.keep_checkpoints={keep}: at least 1 must be kept.")
        self.folder = epath.Path(folder)
        if "://" not in str(folder):  # Orbax wants absolute paths; gs://... is one
            self.folder = self.folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        with self._told("open"):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.wait()
            self._manager.close()
        else:
            # The first error is the one to tell; what a broken save adds to it is an echo.
            with contextlib.suppress(Exception), _hushed():
                self._manager.close()

    def steps(self) -> list[int]:
        """The steps on disk, ascending."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Saves `state`, a tree of arrays, as step `step`, unless that step is there already.

        The state may be donated as soon as this returns.

        Args:
          step: the number of updates made.
          state: what to save.
          extra: anything JSON can hold, returned by `restore` as it is.

        Raises:
          UsageError: this save or the one before could not be written; earlier steps are intact.
        """
        with self._told("write"):
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                return
            meta = {"leaves": _describe(state), "extra": dict(extra or {})}
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            )
            # Forced: the loop decides when to save, not Orbax's own policy.
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
          UsageError: it could not be written.
        """
        with self._told("write"):
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Reads the newest checkpoint and compares it with its digests.

        Args:
          like: the state's shapes, dtypes and shardings, a tree of `jax.ShapeDtypeStruct`s.

        Returns:
          (state, extra), or None where there is no checkpoint.

        Raises:
          UsageError: the checkpoint is of another model, or it is truncated or altered; the message
            names the newest one that reads back whole, and what to delete to go on from it.
        """
        steps = self.steps()
        if not steps:
            return None
        try:
            return self._restore(steps[-1], like)
        except _Unreadable as error:
            raise UsageError(self._advice(steps, error, like)) from error

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        try:
            leaves, extra = meta["leaves"], meta["extra"]
        except (KeyError, TypeError) as error:
            raise _Unreadable(f"its metadata lacks {error}") from error
        _check_same_leaves(leaves, like, self.folder / str(step))
        state = self._read(step, state=ocp.args.StandardRestore(like))["state"]
        found = _describe(state)
        altered = [name for name in found if found[name] != leaves[name]]
        if altered:
            names = ", ".join(altered[:3]) + (", ..." if len(altered) > 3 else "")
            raise _Unreadable(
                f"{len(altered)} of its {len(found)} arrays are not what was saved: {names}"
            )
        return state, extra

    def _read(self, step: int, **items: Any) -> Any:
        with _hushed():
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**items))
            except Exception as error:
                # A damaged file surfaces as any of a dozen exceptions of Orbax and tensorstore.
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                reason = reason.split(" [tensorstore_spec")[0]
                raise _Unreadable(textwrap.shorten(reason, 200)) from None

    def _advice(self, steps: list[int], error: "_Unreadable", like: Any) -> str:
        message = f"the checkpoint {self.folder / str(steps[-1])} is damaged ({error})."
        bad = [steps[-1]]
        for step in reversed(steps[:-1]):
            try:
                self._restore(step, like)
            except _Unreadable:
                bad.append(step)
                continue
            folders = " ".join(str(self.folder / str(b)) for b in sorted(bad))
            return (
                f"{message}\nStep {step} reads back whole. To go on from it, delete the damage "
                f"and run the same command again:\n  rm -r {folders}"
            )
        return (
            f"{message}\nNo earlier checkpoint reads back whole (there are: "
            f"{', '.join(map(str, steps))}). Start again in a new workdir."
        )

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turns what the file system refuses into a UsageError; what is on disk stays as it is."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            reason = _refusal(error)
            if reason is None:
                raise
            message = f"cannot {doing} checkpoints in {self.folder}: {reason}."
            if doing == "open":
                advice = "Choose a --workdir that can be written."
            else:
                done = self.steps()
                advice = (
                    f"The checkpoint of step {done[-1]} is intact" if done else "None was written"
                )
                advice += ": make room (or the folder writable) and run the same command again."
            raise UsageError(f"{message}\n{advice}") from error


class _Unreadable(Exception):
    """A checkpoint that is not what was written."""


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps Orbax's background tasks from printing what the exception says as well."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                yield
            except Exception:
                gc.collect()  # tasks that failed report when they are collected
                raise
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# What the operating system calls the errors that a user can mend; tensorstore passes them on as
# text inside exceptions of its own.
_REFUSALS = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "Not a directory",
)


def _refusal(error: BaseException | None) -> str | None:
    while error is not None:
        for words in _REFUSALS:
            if words in str(error):
                return words
        error = error.__cause__ or error.__context__
    return None


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shape_of(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _describe(state: Any) -> dict[str, dict[str, Any]]:
    """Returns {name of the leaf: its shape, dtype and digest}."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(state), strict=True)
    digests = np.asarray(_digests(list(leaves)))
    return {
        _name(path): {**_shape_of(leaf), "digest": f"{digest:08x}"}
        for path, leaf, digest in zip(paths, leaves, digests.tolist(), strict=True)
    }


def _check_same_leaves(saved: Mapping[str, Any], like: Any, folder: epath.Path) -> None:
    """Orbax casts dtypes without a word and tells other shapes at length; this says both."""
    have = {name: f"{leaf['dtype']}{leaf['shape']}" for name, leaf in saved.items()}
    want = {
        _name(path): "{dtype}{shape}".format(**_shape_of(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    differing = sorted(name for name in have | want if have.get(name) != want.get(name))
    if differing:
        lines = [
            f"  {name}: saved {have.get(name, 'nothing')}, this run has {want.get(name, 'nothing')}"
            for name in differing[:8]
        ]
        more = [f"  ... and {len(differing) - 8} more"] if len(differing) > 8 else []
        raise UsageError(
            "\n".join([f"the checkpoint {folder} is of another model or optimizer:", *lines, *more])
            + "\nUse the config that wrote it, or a new --workdir."
        )


@jax.jit
def _digests(leaves: list[jax.Array]) -> jax.Array:
    """uint32 [number of leaves]: a digest of each array's bits."""
    return jnp.stack([digest(leaf) for leaf in leaves])


def digest(x: jax.Array) -> jax.Array:
    """Sums an array's bits, as unsigned integers, times odd weights of the global index.

    Modulo 2^32, so the order of summation does not matter: the same on every mesh, and no copy to
    the host. An odd weight has an inverse, so a change of one element always changes the sum.

    Returns:
      uint32 scalar.
    """
    if x.dtype == jnp.bool_:
        bits = x
    else:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # Multiplied and folded, so that the weights of neighbours have nothing in common: plain odd
    # numbers would miss many a swap of two elements.
    weights = index * jnp.uint32(0x9E3779B1)
    weights = (weights ^ (weights >> 15)) | jnp.uint32(1)
    return jnp.sum(bits.astype(jnp.uint32) * weights, dtype=jnp.uint32)
