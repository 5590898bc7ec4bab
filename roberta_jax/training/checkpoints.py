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
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from roberta_jax.errors import StoreUnavailable, UsageError, listed
from roberta_jax.storage.atomic import is_local, move_aside, removal_command
from roberta_jax.storage.store_errors import store_error
from roberta_jax.training.agreement import exchange, host, require_equal, together
from roberta_jax.training.array_digests import check_same_leaves, describe
from roberta_jax.training.ending import ends_within
from roberta_jax.training.orbax_errors import (
    file_system_reason,
    hide_errors_of_background_tasks,
    silence_orbax,
    store_reason,
)
from roberta_jax.training.retention import NewestAndMilestones, Retention
from roberta_jax.training.save_barrier import SaveBarrier

ON_DAMAGE = ("stop", "older")
DAMAGED = "damaged"  # beginning of the name of a folder that was set aside

_CLOSE_TIMEOUT = 30.0  # seconds for a save in progress, after an error of several processes


class Checkpoints:
    """The checkpoints of one run: a folder with one subfolder per step.

    `save` copies the state to the host and returns; the files are written in the background. Use it
    as a context manager, which waits at its end until the files are written.

    Attributes:
      last_saved: the last step whose checkpoint this object has written or restored; None before.
      save_seconds: how long the last call of `save` took, until the state could be donated.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        keep: int = 2,
        keep_every: int = 0,
        *,
        is_kept: Callable[[Sequence[int]], list[bool]] | None = None,
    ):
        """Opens the folder, and creates it if it does not exist.

        Args:
          folder: the folder of the checkpoints, local or on an object store.
          keep: the number of checkpoints to keep; older ones are deleted.
          keep_every: a checkpoint whose step is a multiple of this is a milestone, which only
            `go_back` deletes, also after `keep_every` has changed. 0 is none.
          is_kept: the steps on disk, ascending -> whether each one stays when another is saved, in
            place of `keep` and `keep_every`.

        Raises:
          UsageError: the folder cannot be created, or `keep` or `keep_every` is too small.
        """
        hide_errors_of_background_tasks()
        self.last_saved: int | None = None
        self.save_seconds = 0.0
        self._being_saved: int | None = None
        self.folder = epath.Path(folder)
        if is_local(folder):  # Orbax requires absolute paths; gs://... is one
            self.folder = self.folder.absolute()
        self._newest = NewestAndMilestones(self.folder, keep, keep_every)
        self._barrier = SaveBarrier() if jax.process_count() > 1 else None
        with together("opening the checkpoints"):
            if self.folder.exists() and not self.folder.is_dir():
                raise UsageError(
                    f"{self.folder} is a file, not the folder of the checkpoints. Restore the "
                    "folder, or choose another --workdir."
                )
            if jax.process_index() == 0:
                with self._file_system_errors("open"):
                    self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            create=False,  # the first process did, and its errors reach the others
            preservation_policy=Retention(is_kept or self._newest),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(barrier_sync_fn=self._barrier),
        )
        with self._file_system_errors("open"):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.wait()
            self._manager.close()
            return
        # Errors of the background save would only hide the first error.
        with contextlib.suppress(Exception), silence_orbax():
            if self._has_ended_saving(_CLOSE_TIMEOUT):
                self._manager.close()

    def _has_ended_saving(self, timeout: float) -> bool:
        """Waits, but not for ever for a process that has ended or a store that is gone."""
        if self._barrier is not None:
            return self._barrier.join(self._manager, timeout)
        return is_local(self.folder) or ends_within(self._manager.wait_until_finished, timeout)

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
            meta = {
                "leaves": describe(state),
                "extra": dict(extra or {}),
                "milestone": self._newest.saving(step),
            }
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
          UsageError: a checkpoint could not be written, by this process or by another one.
        """
        if self._being_saved == self.last_saved:
            return
        with together("writing a checkpoint"), self._file_system_errors("write"):
            if self._barrier is None:
                self._manager.wait_until_finished()
            else:
                self._barrier.join(self._manager)
        self.last_saved = self._being_saved

    def restore(self, like: Any, on_damage: str = "stop") -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest checkpoint and verifies its digests.

        Args:
          like: the shapes, dtypes and shardings of the state, a tree of `jax.ShapeDtypeStruct`s.
          on_damage: what to do if the newest checkpoint is damaged: "stop" raises an error, "older"
            restores the newest intact one, prints so, and renames the folders of the damaged ones
            from STEP to damaged.STEP.

        Returns:
          (state, extra), or None if there is no checkpoint.

        Raises:
          StoreUnavailable: the object store of the checkpoints cannot be reached.
          UsageError: the checkpoint belongs to another model or optimizer, or it is damaged. In
            that case the message names the newest intact checkpoint, and the folders to delete to
            resume from it. With several processes all of them raise it if any of them cannot read
            a file.
        """
        steps = self.steps()
        require_equal(
            {"steps on disk": steps},
            f"{self.folder} must be on a file system that all hosts share.",
            what="checkpoints",
        )
        damaged: dict[int, _DamagedError] = {}
        for step in reversed(steps):
            try:
                restored = self._restore(step, like)
            except _DamagedError as error:
                damaged[step] = error
                continue
            if damaged and on_damage == "stop":
                del restored  # it may fill the devices
                raise UsageError(self._damage_message(damaged, step))
            self._set_aside(damaged, step)
            self.last_saved = self._being_saved = step
            return restored
        if damaged:
            raise UsageError(self._damage_message(damaged, None))
        return None

    def go_back(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Restores the checkpoint of a step, as `restore` does, and deletes the later ones.

        Milestones are deleted as well: training comes to their steps again.

        Raises:
          UsageError: it is damaged; nothing was deleted.
        """
        # Listed before `restore_step` lets the processes agree: all delete the same, together.
        later = [saved for saved in self.steps() if saved > step]
        advice = "To go back further, run the same command with --on_damage=older."
        restored = self.restore_step(step, like, advice)
        self.delete(later)
        self.last_saved = self._being_saved = step
        return restored

    def restore_step(self, step: int, like: Any, advice: str) -> tuple[Any, dict[str, Any]]:
        """Restores the checkpoint of a step, as `restore` does.

        Raises:
          UsageError: it is damaged, or there is none; the message ends in `advice`.
        """
        try:
            return self._restore(step, like)
        except _DamagedError as error:
            path = self.folder / str(step)
            raise UsageError(
                f"cannot read the checkpoint {path}, which is damaged ({error}).\n{advice}"
            ) from error

    def delete(self, steps: Iterable[int]) -> None:
        """Deletes the checkpoints of some steps; all processes call it alike."""
        with self._file_system_errors("delete"):
            for step in steps:
                self._manager.delete(step)

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        # Each process reads its part on its own, and all agree that they could read it before they
        # compute the digests together. Orbax's `restore` would wait for all of them at its end.
        mine: dict[str, Any] = {"damage": None, "other": None, "restart": False, "meta": None}
        try:
            leaves, extra, mine["meta"] = self._read_meta(step)
            check_same_leaves(leaves, like, self.folder / str(step))
            state = self._read(
                step, "state", ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(like)
            )
        except _DamagedError as error:
            mine["damage"] = f"on {host()}: {error}" if self._barrier else str(error)
        except UsageError as error:
            mine["other"], mine["restart"] = str(error), error.restart
        all_read = exchange("reading a checkpoint", mine)
        if others := [each for each in all_read if each["other"] is not None]:
            may_pass = all(each["restart"] for each in others)
            raise (StoreUnavailable if may_pass else UsageError)(others[0]["other"])
        damages = [each["damage"] for each in all_read if each["damage"] is not None]
        if damages:
            raise _DamagedError(textwrap.shorten(listed(damages, 2), 400))
        if len({each["meta"] for each in all_read}) > 1:
            raise UsageError(
                f"the hosts read different checkpoints of step {step} in {self.folder}. The folder "
                "of the run must be on a file system that all hosts share."
            )
        restored = describe(state)
        altered = [name for name in restored if restored[name] != leaves[name]]
        if altered:
            names = ", ".join(altered[:3]) + (", ..." if len(altered) > 3 else "")
            raise _DamagedError(
                f"{len(altered)} of its {len(restored)} arrays differ from the saved ones: {names}"
            )
        return state, extra

    def _read_meta(self, step: int) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Returns what was saved about the arrays, the extra values, and a digest of both."""
        meta = self._read(step, "meta", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())
        try:
            leaves, extra = meta["leaves"], meta["extra"]
        except (KeyError, TypeError) as error:
            raise _DamagedError(f"its metadata lacks {error}") from error
        # Checkpoints of earlier versions have no digest of it.
        if meta.get("extra_digest", _digest_of_json(extra)) != _digest_of_json(extra):
            raise _DamagedError("its metadata differs from the saved one")
        return leaves, extra, _digest_of_json(meta)

    def _read(self, step: int, item: str, handler: Any, args: Any) -> Any:
        with silence_orbax():
            try:
                return handler.restore(self.folder / str(step) / item, args=args)
            except Exception as error:
                if not is_local(self.folder) and (reason := store_reason(error)):
                    raise store_error(
                        f"cannot read the checkpoint {self.folder / str(step)}: {reason}. When it "
                        "can be, run the same command again.",
                        error,
                    ) from error
                # Orbax and tensorstore raise many types of exceptions for damaged files.
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
            gc.collect()  # failed tasks print their error when they are garbage collected
        reason = reason.split(" [tensorstore_spec")[0]
        raise _DamagedError(textwrap.shorten(reason, 200))

    def _damage_message(self, damaged: Mapping[int, Exception], intact: int | None) -> str:
        newest = max(damaged)
        message = f"the checkpoint {self.folder / str(newest)} is damaged ({damaged[newest]})."
        if intact is None:
            return (
                f"{message}\nNo earlier checkpoint is intact (steps on disk: "
                f"{', '.join(map(str, sorted(damaged)))}). Start again in a new --workdir."
            )
        command = removal_command(*(self.folder / str(each) for each in sorted(damaged)))
        return (
            f"{message}\nThe checkpoint of step {intact} is intact. To resume from it, run the "
            "same command with --on_damage=older, or delete the damaged ones and run the same "
            f"command again:\n  {command}"
        )

    def _set_aside(self, damaged: Mapping[int, Exception], intact: int) -> None:
        """Renames the folders of damaged checkpoints, so that they are no longer used."""
        if not damaged:
            return
        with together("setting damaged checkpoints aside"):
            if jax.process_index() == 0:
                with self._file_system_errors("rename"):
                    for step, error in sorted(damaged.items()):
                        name = move_aside(self.folder / str(step), DAMAGED)
                        print(
                            f"The checkpoint of step {step} is damaged ({error}). It was renamed "
                            f"to {name}.",
                            flush=True,
                        )
                print(f"Going back to the checkpoint of step {intact}.", flush=True)
        self._manager.reload()

    @contextlib.contextmanager
    def _file_system_errors(self, action: str) -> Iterator[None]:
        """Turns errors of the file system or the object store into a UsageError."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            reason = file_system_reason(error)
            if reason is None and not is_local(self.folder):
                reason = store_reason(error)
            if reason is None:
                raise
            message = f"cannot {action} checkpoints in {self.folder}: {reason}."
            if not is_local(self.folder):  # and may not be asked again
                advice = "When it can be, run the same command again; it continues the run."
                raise store_error(f"{message}\n{advice}", error) from error
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
