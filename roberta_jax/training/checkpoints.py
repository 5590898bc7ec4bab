"""Saves and restores checkpoints with Orbax, and detects damaged ones.

Orbax writes a checkpoint into a temporary folder and renames it when it is complete, so a process
that is killed leaves the earlier checkpoints intact and no partial one. Orbax does not detect
changed bytes, which restore as wrong values without an error. For that reason each checkpoint
stores a digest of every array, computed on the devices that hold it, and `restore` compares them.
"""

import contextlib
import gc
import hashlib
import json
import logging
import sys
import textwrap
import time
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
    """The checkpoints of one run: a folder with one subfolder per step.

    `save` copies the state to the host and returns; the files are written in the background. Use it
    as a context manager, which waits at its end until the files are written.

    Attributes:
      last_saved: the last step whose checkpoint this object has written or restored; None before.
      save_seconds: how long the last call of `save` took, until the state could be donated.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 2):
        """Opens the folder, and creates it if it does not exist.

        Args:
          folder: the folder of the checkpoints, local or on an object store.
          keep: the number of checkpoints to keep; older ones are deleted.

        Raises:
          UsageError: the folder cannot be created, or `keep` is less than 1.
        """
        _hide_errors_of_background_tasks()
        if keep < 1:
            raise UsageError(f"--config.train.keep_checkpoints={keep} must be at least 1.")
        self.last_saved: int | None = None
        self.save_seconds = 0.0
        self._being_saved: int | None = None
        self.folder = epath.Path(folder)
        if "://" not in str(folder):  # Orbax requires absolute paths; gs://... is one
            self.folder = self.folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(
                f"{self.folder} is a file, not the folder of the checkpoints. Restore the folder, "
                "or choose another --workdir."
            )
        with self._file_system_errors("open"):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.wait()
            self._manager.close()
        else:
            # Errors of the background save would only hide the first error.
            with contextlib.suppress(Exception), _silence_orbax():
                self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint on disk, ascending."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Returns the last step that has a checkpoint on disk, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Saves `state` as the checkpoint of step `step`, unless that step has one already.

        The state may be donated as soon as this returns.

        Args:
          step: the number of updates made.
          state: a tree of arrays.
          extra: a JSON object, which `restore` returns.

        Raises:
          UsageError: this or the previous checkpoint could not be written; earlier ones are intact.
        """
        started = time.perf_counter()
        self.wait()
        with self._file_system_errors("write"):
            if step in self._manager.all_steps():
                return
            meta = {"leaves": _describe(state), "extra": dict(extra or {})}
            meta["extra_digest"] = _digest_of_json(meta["extra"])
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            )
            # force=True: the training loop decides when to save, not Orbax's policy.
            self._manager.save(step, args=args, force=True)
        self._being_saved = step
        self.save_seconds = time.perf_counter() - started

    def wait(self) -> None:
        """Waits until all saved checkpoints are on disk.

        Raises:
          UsageError: a checkpoint could not be written.
        """
        with self._file_system_errors("write"):
            self._manager.wait_until_finished()
        self.last_saved = self._being_saved

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest checkpoint and verifies its digests.

        Args:
          like: the shapes, dtypes and shardings of the state, a tree of `jax.ShapeDtypeStruct`s.

        Returns:
          (state, extra), or None if there is no checkpoint.

        Raises:
          UsageError: the checkpoint belongs to another model or optimizer, or it is damaged. In
            that case the message names the newest intact checkpoint, and the folders to delete to
            resume from it.
        """
        steps = self.steps()
        if not steps:
            return None
        try:
            restored = self._restore(steps[-1], like)
            self.last_saved = self._being_saved = steps[-1]
            return restored
        except _DamagedError as error:
            raise UsageError(self._damage_message(steps, error, like)) from error

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        try:
            leaves, extra = meta["leaves"], meta["extra"]
        except (KeyError, TypeError) as error:
            raise _DamagedError(f"its metadata lacks {error}") from error
        # Checkpoints of earlier versions have no digest of it.
        if meta.get("extra_digest", _digest_of_json(extra)) != _digest_of_json(extra):
            raise _DamagedError("its metadata differs from the saved one")
        _check_same_leaves(leaves, like, self.folder / str(step))
        state = self._read(step, state=ocp.args.StandardRestore(like))["state"]
        restored = _describe(state)
        altered = [name for name in restored if restored[name] != leaves[name]]
        if altered:
            names = ", ".join(altered[:3]) + (", ..." if len(altered) > 3 else "")
            raise _DamagedError(
                f"{len(altered)} of its {len(restored)} arrays differ from the saved ones: {names}"
            )
        return state, extra

    def _read(self, step: int, **items: Any) -> Any:
        with _silence_orbax():
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**items))
            except Exception as error:
                # Orbax and tensorstore raise many types of exceptions for damaged files.
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                reason = reason.split(" [tensorstore_spec")[0]
                raise _DamagedError(textwrap.shorten(reason, 200)) from None

    def _damage_message(self, steps: list[int], error: "_DamagedError", like: Any) -> str:
        message = f"the checkpoint {self.folder / str(steps[-1])} is damaged ({error})."
        damaged = [steps[-1]]
        for step in reversed(steps[:-1]):
            try:
                self._restore(step, like)
            except _DamagedError:
                damaged.append(step)
                continue
            folders = " ".join(str(self.folder / str(each)) for each in sorted(damaged))
            return (
                f"{message}\nThe checkpoint of step {step} is intact. To resume from it, delete "
                f"the damaged ones and run the same command again:\n  rm -r {folders}"
            )
        return (
            f"{message}\nNo earlier checkpoint is intact (steps on disk: "
            f"{', '.join(map(str, steps))}). Start again in a new --workdir."
        )

    @contextlib.contextmanager
    def _file_system_errors(self, action: str) -> Iterator[None]:
        """Turns errors of the file system that a user can fix into a UsageError."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            reason = _file_system_reason(error)
            if reason is None:
                raise
            message = f"cannot {action} checkpoints in {self.folder}: {reason}."
            if action == "open":
                advice = "Choose a --workdir that can be written."
            else:
                steps = self.steps()
                advice = (
                    f"The checkpoint of step {steps[-1]} is intact"
                    if steps
                    else "No checkpoint was written"
                )
                advice += ": make room (or the folder writable) and run the same command again."
            raise UsageError(f"{message}\n{advice}") from error


class _DamagedError(Exception):
    """The files of a checkpoint are not what was written."""


def checkpoint_steps(folder: epath.PathLike) -> list[int]:
    """Returns the steps that have a complete checkpoint in a folder, ascending, without opening it.

    The folder need not exist.
    """
    folder = epath.Path(folder)
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def _digest_of_json(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _is_of_the_user(record: logging.LogRecord) -> bool:
    """Whether a log record is not one that Orbax or its tasks log about an error.

    A failed save logs its error with a traceback once for each task that takes part in it, while it
    runs or when the task is garbage collected. `save` and `wait` raise the same error.
    """
    if record.levelno < logging.ERROR:
        return True
    error = record.exc_info[1] if record.exc_info else None
    return not (
        "orbax" in record.pathname
        or "exception was never retrieved" in str(record.msg)
        or (isinstance(error, RuntimeError) and "Event loop is closed" in str(error))
    )


def _hide_errors_of_background_tasks() -> None:
    for name in ("absl", "asyncio", "concurrent.futures"):
        logger = logging.getLogger(name)
        if _is_of_the_user not in logger.filters:
            logger.addFilter(_is_of_the_user)


@contextlib.contextmanager
def _silence_orbax() -> Iterator[None]:
    """Keeps Orbax's background tasks from printing errors that an exception reports anyway."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook = sys.unraisablehook
    sys.unraisablehook = lambda error: hook(error) if error.exc_type is KeyboardInterrupt else None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                yield
            except Exception:
                gc.collect()  # failed tasks print their error when they are garbage collected
                raise
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# The operating system's names of the errors that a user can fix. tensorstore passes them on as text
# within its own exceptions.
_FILE_SYSTEM_ERRORS = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
    "Not a directory",
    "File too large",
    "Input/output error",
)


def _file_system_reason(error: BaseException | None) -> str | None:
    """Returns the error of the file system that caused an exception, or None."""
    while error is not None:
        for reason in _FILE_SYSTEM_ERRORS:
            if reason in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shape_and_dtype(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _describe(state: Any) -> dict[str, dict[str, Any]]:
    """Returns the shape, dtype and digest of each array in a tree, by its name."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(state), strict=True)
    digests = np.asarray(_digests(list(leaves)))
    return {
        _name(path): {**_shape_and_dtype(leaf), "digest": f"{digest:08x}"}
        for path, leaf, digest in zip(paths, leaves, digests.tolist(), strict=True)
    }


def _check_same_leaves(saved: Mapping[str, Any], like: Any, folder: epath.Path) -> None:
    """Checks names, shapes and dtypes. (Orbax casts other dtypes silently.)"""
    in_checkpoint = {name: f"{leaf['dtype']}{leaf['shape']}" for name, leaf in saved.items()}
    in_run = {
        _name(path): "{dtype}{shape}".format(**_shape_and_dtype(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    differing = sorted(
        name for name in in_checkpoint | in_run if in_checkpoint.get(name) != in_run.get(name)
    )
    if differing:
        lines = [
            f"  {name}: saved {in_checkpoint.get(name, 'nothing')}, "
            f"this run has {in_run.get(name, 'nothing')}"
            for name in differing[:8]
        ]
        more = [f"  ... and {len(differing) - 8} more"] if len(differing) > 8 else []
        raise UsageError(
            "\n".join(
                [f"the checkpoint {folder} belongs to another model or optimizer:", *lines, *more]
            )
            + "\nUse the config of the run that wrote it, or a new --workdir."
        )


@jax.jit
def _digests(leaves: list[jax.Array]) -> jax.Array:
    """Returns the digest of each array, uint32 [number of arrays]."""
    return jnp.stack([digest(leaf) for leaf in leaves])


def digest(x: jax.Array) -> jax.Array:
    """Computes a checksum of an array that does not depend on its sharding.

    It is the sum, modulo 2^32, of each element's bits as an unsigned integer, times an odd weight
    that depends on the element's global index. The order of summation does not matter, so every
    mesh gives the same value, without a copy to the host. An odd weight has an inverse, so a change
    of one element always changes the sum. (Of 8-byte types, only the lower 32 bits count.)

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
    # A hash of the index, so that weights of nearby elements differ in many bits. With consecutive
    # odd numbers as weights, many swaps of two elements would go unnoticed.
    weights = index * jnp.uint32(0x9E3779B1)
    weights = (weights ^ (weights >> 15)) | jnp.uint32(1)
    return jnp.sum(bits.astype(jnp.uint32) * weights, dtype=jnp.uint32)
